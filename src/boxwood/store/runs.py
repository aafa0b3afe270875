"""Rows of runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from boxwood.store.database import SMALL_BYTES


@dataclass(frozen=True, slots=True)
class RunRow:
    """`out` and `err`: None is in DATA/spool, or nowhere yet as long as `completed_at` is None.
    `direct`: the command is a program and its arguments."""

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
    direct: bool = False
    not_started: bool = False

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


def older(connection: sqlite3.Connection, before: int) -> list[str]:
    """Runs that had ended by then."""
    return [run_id for (run_id,) in connection.execute("SELECT id FROM runs WHERE completed_at < ?", (before,))]


def crowded(connection: sqlite3.Connection, count: int, output: int) -> list[str]:
    """VMs that have more."""
    having = "count(*) > ? OR sum(out_bytes + err_bytes - truncated) > ?"
    sql = f"SELECT vm_id FROM runs WHERE completed_at IS NOT NULL GROUP BY vm_id HAVING {having}"
    return [vm_id for (vm_id,) in connection.execute(sql, (count, output))]


_SURPLUS = """
    SELECT id FROM (
        SELECT id, row_number() OVER newest AS number, sum(out_bytes + err_bytes - truncated) OVER newest AS total
        FROM runs WHERE vm_id = ? AND completed_at IS NOT NULL WINDOW newest AS (ORDER BY id DESC)
    ) WHERE number > ? OR (total > ? AND number > 1)
"""


def surplus(connection: sqlite3.Connection, vm_id: str, count: int, output: int) -> list[str]:
    """Ended runs of a VM but for the newest `count` that have put out at most `output` bytes together; the newest one
    is no surplus."""
    return [run_id for (run_id,) in connection.execute(_SURPLUS, (vm_id, count, output))]


def delete(connection: sqlite3.Connection, ids: Iterable[str]) -> list[tuple[str, str]]:
    """VM and run of those that were there."""
    sql = "DELETE FROM runs WHERE id = ? RETURNING vm_id, id"
    return [(vm_id, run_id) for ident in ids for vm_id, run_id in connection.execute(sql, (ident,)).fetchall()]
