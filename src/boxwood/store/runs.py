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
    `direct`: the command is a program and its arguments. Of a durable VM: `background`, somebody was told of it before
    it had ended; `retries`, how often it was begun again."""

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
    background: bool = False
    retries: int = 0
    reports: bytes | None = None
    report_bytes: int | None = None  # None: not of a run in a Python context

    @property
    def small(self) -> bool:
        """May it be written on the event loop?"""
        parts = (self.command, self.options or "", self.out or b"", self.err or b"", self.reports or b"")
        return sum(map(len, parts)) < SMALL_BYTES


_COLUMNS = tuple(field.name for field in fields(RunRow))
_ALL = ", ".join(_COLUMNS)
_BRIEF = _ALL.replace(" out,", " NULL,").replace(" err,", " NULL,").replace(" reports,", " NULL,")
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


def in_background(connection: sqlite3.Connection, run_id: str) -> None:
    """Somebody is being told of it before it has ended."""
    connection.execute("UPDATE runs SET background = 1 WHERE id = ?", (run_id,))


def begin_again(connection: sqlite3.Connection, run_ids: Iterable[str]) -> None:
    """They were interrupted: from now on they are pending once more."""
    connection.executemany(
        "UPDATE runs SET state = 'pending', retries = retries + 1 WHERE id = ? AND completed_at IS NULL",
        [(run_id,) for run_id in run_ids],
    )


def at_a_prompt(connection: sqlite3.Connection, vm_id: str) -> list[str]:
    """Sessions whose last run was ended by a prompt: a program was waiting for input there."""
    sql = """
        SELECT session_id FROM runs r WHERE vm_id = ? AND state = 'completed' AND exit_code IS NULL AND NOT EXISTS (
            SELECT 1 FROM runs later WHERE later.vm_id = r.vm_id AND later.session_id = r.session_id
            AND later.completed_at IS NOT NULL AND later.id > r.id)
    """
    return [session_id for (session_id,) in connection.execute(sql, (vm_id,))]


def page(connection: sqlite3.Connection, conditions: list[str], params: dict[str, Any], limit: int) -> list[RunRow]:
    """Newest first, without output. `conditions`: SQL of this program's own making; values belong into `params`."""
    where = " AND ".join(conditions) or "1"
    rows = connection.execute(
        f"SELECT {_BRIEF} FROM runs WHERE {where} ORDER BY id DESC LIMIT :limit", params | {"limit": limit}
    )
    return [RunRow(*row) for row in rows]


def older(connection: sqlite3.Connection, before: int, first_id: str) -> list[str]:
    """Runs that had ended by then. `first_id`: the ids of those that began later come after it."""
    sql = "SELECT id FROM runs WHERE id < ? AND completed_at < ?"
    return [run_id for (run_id,) in connection.execute(sql, (first_id, before))]


def crowded(connection: sqlite3.Connection, count: int, output: int) -> list[str]:
    """VMs that have more."""
    having = "count(*) > ? OR sum(out_bytes + err_bytes + coalesce(report_bytes, 0) - truncated) > ?"
    sql = f"SELECT vm_id FROM runs WHERE completed_at IS NOT NULL GROUP BY vm_id HAVING {having}"
    return [vm_id for (vm_id,) in connection.execute(sql, (count, output))]


_SURPLUS = """
    SELECT id FROM (
        SELECT id, row_number() OVER newest AS number,
            sum(out_bytes + err_bytes + coalesce(report_bytes, 0) - truncated) OVER newest AS total
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
