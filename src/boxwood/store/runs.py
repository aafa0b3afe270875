"""Rows of runs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Any

from boxwood.store.database import SMALL_BYTES


@dataclass(frozen=True, slots=True)
class RunRow:
    """`out` and `err`: None is in DATA/spool, or nowhere yet as long as `completed_at` is None."""

    id: str
    vm_id: str
    session_id: str
    command: str
    options: str | None
    state: str
    exit_code: int | None
    started_at: int
    completed_at: int | None
    duration_us: int | None
    fail_reason: str | None
    out: bytes | None
    err: bytes | None
    out_bytes: int
    err_bytes: int
    truncated: int
    tag: str | None = None

    @property
    def small(self) -> bool:
        """May it be written on the event loop?"""
        parts = (self.command, self.options or "", self.out or b"", self.err or b"")
        return sum(map(len, parts)) < SMALL_BYTES


_COLUMNS = tuple(field.name for field in fields(RunRow))
_ALL = ", ".join(_COLUMNS)
_BRIEF = _ALL.replace(" out,", " NULL,").replace(" err,", " NULL,")
_PUT = (
    f"INSERT INTO runs ({_ALL}) SELECT {', '.join('?' * len(_COLUMNS))} WHERE EXISTS (SELECT 1 FROM vms WHERE id = ?)"
    " ON CONFLICT (id) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[4:])
)


def put(connection: sqlite3.Connection, row: RunRow) -> None:
    """Insert or replace; nothing if the VM has gone meanwhile."""
    connection.execute(_PUT, (*[getattr(row, name) for name in _COLUMNS], row.vm_id))


def by_id(connection: sqlite3.Connection, vm_id: str, run_id: str) -> RunRow | None:
    row = connection.execute(f"SELECT {_ALL} FROM runs WHERE id = ? AND vm_id = ?", (run_id, vm_id)).fetchone()
    return None if row is None else RunRow(*row)


def unfinished(connection: sqlite3.Connection) -> list[RunRow]:
    """Oldest first."""
    return [
        RunRow(*row) for row in connection.execute(f"SELECT {_ALL} FROM runs WHERE completed_at IS NULL ORDER BY id")
    ]


def page(connection: sqlite3.Connection, conditions: list[str], params: dict[str, Any], limit: int) -> list[RunRow]:
    """Newest first, without output. `conditions`: SQL of this program's own making; values belong into `params`."""
    where = " AND ".join(conditions) or "1"
    rows = connection.execute(
        f"SELECT {_BRIEF} FROM runs WHERE {where} ORDER BY id DESC LIMIT :limit", params | {"limit": limit}
    )
    return [RunRow(*row) for row in rows]
