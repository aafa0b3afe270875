"""Rows of what organisations have asked for. What a run has come to since is read from its own row, if there is one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class ActivityRow:
    org_id: str
    key_id: str
    at: int
    request_id: str
    endpoint: str
    kind: str
    method: str
    status: int
    total_us: int
    queue_us: int
    vm_id: str
    run_id: str
    session_id: str
    source_vm_id: str
    path: str
    command: str
    bytes_in: int
    bytes_out: int
    state: str | None
    exit_code: int | None
    duration_us: int | None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known today beside the row: the VM's size and the key's beginning, if they are still there."""

    vcpu: int | None
    memory_mib: int | None
    key_prefix: str | None


_COLUMNS = tuple(field.name for field in fields(ActivityRow))
_INSERT = f"INSERT INTO activity ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_RUNS = {"state": "r.state", "exit_code": "r.exit_code", "duration_us": "r.duration_us"}
_SHOWN = ", ".join(f"coalesce({_RUNS[name]}, a.{name})" if name in _RUNS else f"a.{name}" for name in _COLUMNS)
_FROM = (
    "FROM activity a LEFT JOIN runs r ON r.id = a.run_id LEFT JOIN vms v ON v.id = a.vm_id"
    " LEFT JOIN api_keys k ON k.id = a.key_id"
)
ORDERS = {
    "when": "a.at", "status": "a.status", "path": "a.path", "total": "a.total_us", "queue": "a.queue_us",
    "your_code": "coalesce(r.duration_us, a.duration_us, 0)", "runtime": "a.kind",
}  # fmt: skip


def insert(connection: sqlite3.Connection, rows: Sequence[ActivityRow]) -> None:
    connection.executemany(_INSERT, map(astuple, rows))


def page(
    connection: sqlite3.Connection,
    conditions: Sequence[str],
    params: dict[str, Any],
    order: str,
    descending: bool,
    limit: int,
    offset: int,
) -> list[tuple[ActivityRow, Known]]:
    """`conditions`: SQL of this program's own making, about `a`; `order`: of `ORDERS`. Values belong into `params`."""
    direction = "DESC" if descending else "ASC"
    sql = (
        f"SELECT {_SHOWN}, v.vcpu, v.memory_mib, k.prefix {_FROM} WHERE {' AND '.join(conditions)}"
        f" ORDER BY {ORDERS[order]} {direction}, a.id {direction} LIMIT :limit OFFSET :offset"
    )
    found = connection.execute(sql, params | {"limit": limit, "offset": offset})
    return [(ActivityRow(*row[:-3]), Known(*row[-3:])) for row in found]


def expire(connection: sqlite3.Connection, before: int, most: int) -> None:
    """Forget what is older, and of what is left but the newest `most`."""
    connection.execute("DELETE FROM activity WHERE at < ?", (before,))
    connection.execute("DELETE FROM activity WHERE id <= (SELECT max(id) FROM activity) - ?", (most,))
