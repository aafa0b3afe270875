"""Rows of VMs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class VMRow:
    id: str
    org_id: str
    name: str | None
    description: str | None
    public: bool
    immutable: bool
    base: str
    top: str
    written: bool
    box_base: str | None
    vcpu: float | None
    memory_mib: int | None
    disk_mib: int | None
    network: str | None
    root_source_id: str | None
    root_source_name: str | None
    origin: str | None
    created_at: int
    last_active_at: int | None
    expires_at: int | None = None
    stopped: bool = False
    labels: str | None = None  # JSON
    pool_id: str | None = None
    hidden: bool = False  # in no list
    read_only: bool = False
    pids: int | None = None
    nofile: int | None = None
    ends_by: int | None = None  # expires_at is not later, unless a key without a ceiling says so
    durable: bool = False
    parent_id: str | None = None  # that it was forked from
    fork_base: str | None = None  # the layer that shows what both had then
    ssh_keys: str | None = None  # JSON: see core/sshkeys.py
    delete_at: int | None = None  # by its rules: see core/schedules.py
    suspend_at: int | None = None
    running_since: int | None = None
    suspended: bool = False
    depth: int = 0  # of its base; not a column

    @property
    def end(self) -> int | None:
        """When it is deleted by itself, whatever says so."""
        return min((at for at in (self.expires_at, self.delete_at) if at is not None), default=None)


_COLUMNS = tuple(field.name for field in fields(VMRow) if field.name != "depth")
_SELECT = f"SELECT {', '.join('v.' + name for name in _COLUMNS)}, l.depth FROM vms v JOIN layers l ON l.id = v.base"
_INSERT = f"INSERT INTO vms ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_CHANGEABLE = frozenset({
    "name", "description", "immutable", "vcpu", "memory_mib", "disk_mib", "pids", "nofile", "expires_at", "stopped",
    "ssh_keys",
})  # fmt: skip


def _row(row: sqlite3.Row | None) -> VMRow | None:
    return None if row is None else VMRow(*row)


def by_id(connection: sqlite3.Connection, vm_id: str) -> VMRow | None:
    return _row(connection.execute(f"{_SELECT} WHERE v.id = ?", (vm_id,)).fetchone())


def by_name(connection: sqlite3.Connection, org_id: str, name: str) -> VMRow | None:
    return _row(connection.execute(f"{_SELECT} WHERE v.org_id = ? AND v.name = ?", (org_id, name)).fetchone())


def all_by_name(connection: sqlite3.Connection, name: str) -> list[VMRow]:
    """Of every organisation."""
    return [VMRow(*row) for row in connection.execute(f"{_SELECT} WHERE v.name = ? LIMIT 100", (name,))]


def insert(connection: sqlite3.Connection, row: VMRow) -> None:
    """sqlite3.IntegrityError if the name is taken."""
    connection.execute(_INSERT, tuple(getattr(row, name) for name in _COLUMNS))


def change(connection: sqlite3.Connection, vm_id: str, values: dict[str, Any]) -> None:
    """Set some of the columns that users may change. sqlite3.IntegrityError if the name is taken."""
    if not values.keys() <= _CHANGEABLE:
        raise ValueError(f"not to be changed: {values.keys() - _CHANGEABLE}")
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE vms SET {assignments} WHERE id = ?", (*values.values(), vm_id))


def delete(connection: sqlite3.Connection, vm_id: str) -> None:
    """With its sessions, runs and uploads, and what it moved over the network."""
    connection.execute("DELETE FROM vms WHERE id = ?", (vm_id,))


def claim(connection: sqlite3.Connection, vm_id: str, values: dict[str, Any]) -> bool:
    """A VM that waits in a pool becomes somebody's; False: it waits no longer. IntegrityError if the name is taken."""
    assignments = ", ".join(f"{name} = ?" for name in values)
    sql = f"UPDATE vms SET hidden = 0, {assignments} WHERE id = ? AND hidden"
    return connection.execute(sql, (*values.values(), vm_id)).rowcount == 1


def in_pools(connection: sqlite3.Connection) -> list[tuple[str, str, bool]]:
    """Of every VM of a pool: itself, the pool, and whether it is hidden."""
    sql = "SELECT id, pool_id, hidden FROM vms WHERE pool_id IS NOT NULL"
    return [(vm_id, pool_id, bool(hidden)) for vm_id, pool_id, hidden in connection.execute(sql)]


def boot(connection: sqlite3.Connection, vm_id: str, base: str, at: int) -> None:
    """A box is being made of this VM on this base, which is in use from now on."""
    sql = "UPDATE vms SET box_base = ?, written = 1, last_active_at = ?, running_since = ? WHERE id = ?"
    connection.execute(sql, (base, at, at, vm_id))


def active(connection: sqlite3.Connection, vm_id: str, at: int) -> None:
    connection.execute("UPDATE vms SET last_active_at = ? WHERE id = ?", (at, vm_id))


def parked(connection: sqlite3.Connection, vm_id: str) -> None:
    connection.execute("UPDATE vms SET box_base = NULL, suspended = 0 WHERE id = ?", (vm_id,))
    connection.execute("DELETE FROM held WHERE vm_id = ?", (vm_id,))


def parked_but(connection: sqlite3.Connection, live: Iterable[str]) -> None:
    """Only these VMs have a box."""
    alive = set(live)
    for (vm_id,) in connection.execute("SELECT id FROM vms WHERE box_base IS NOT NULL").fetchall():
        if vm_id not in alive:
            parked(connection, vm_id)


def retop(connection: sqlite3.Connection, vm_id: str, base: str, top: str) -> None:
    """Its top has been sealed, or turned out to be empty: from now on it is this base and an unwritten top."""
    connection.execute(
        "UPDATE vms SET base = ?, top = ?, written = 0, box_base = NULL, suspended = 0 WHERE id = ?",
        (base, top, vm_id),
    )
    connection.execute("DELETE FROM held WHERE vm_id = ?", (vm_id,))


def forked_at(connection: sqlite3.Connection, vm_id: str, parent_id: str, layer_id: str) -> None:
    """What a VM was forked from has become what it is: as if it were forked from it again."""
    connection.execute("UPDATE vms SET fork_base = ? WHERE id = ? AND parent_id = ?", (layer_id, vm_id, parent_id))


def expired(connection: sqlite3.Connection, now: int) -> list[str]:
    """Those whose time is over."""
    sql = "SELECT id FROM vms WHERE expires_at <= ?1 UNION SELECT id FROM vms WHERE delete_at <= ?1"
    return [vm_id for (vm_id,) in connection.execute(sql, (now,))]


def next_expiry(connection: sqlite3.Connection, now: int) -> int | None:
    """When the next one's will be."""
    return min(filter(None, (_next(connection, name, now) for name in ("expires_at", "delete_at"))), default=None)


def _next(connection: sqlite3.Connection, column: str, now: int) -> int | None:
    found: int | None = connection.execute(f"SELECT min({column}) FROM vms WHERE {column} > ?", (now,)).fetchone()[0]
    return found


def set_clocks(connection: sqlite3.Connection, vm_id: str, delete_at: int | None, suspend_at: int | None) -> None:
    """When its rules delete and suspend a VM next."""
    connection.execute("UPDATE vms SET delete_at = ?, suspend_at = ? WHERE id = ?", (delete_at, suspend_at, vm_id))


def to_suspend(connection: sqlite3.Connection, now: int) -> list[str]:
    """Those that are to be suspended by now."""
    return [vm_id for (vm_id,) in connection.execute("SELECT id FROM vms WHERE suspend_at <= ?", (now,))]


def next_suspension(connection: sqlite3.Connection, now: int) -> int | None:
    """When the next one is to be."""
    return _next(connection, "suspend_at", now)


def suspend(connection: sqlite3.Connection, vm_id: str, suspended: bool = True) -> None:
    connection.execute("UPDATE vms SET suspended = ? WHERE id = ?", (suspended, vm_id))


def wake(connection: sqlite3.Connection, vm_id: str, at: int) -> None:
    """It runs again, from now on."""
    connection.execute("UPDATE vms SET suspended = 0, running_since = ? WHERE id = ?", (at, vm_id))


def is_suspended(connection: sqlite3.Connection, vm_id: str) -> bool:
    return connection.execute("SELECT 1 FROM vms WHERE id = ? AND suspended", (vm_id,)).fetchone() is not None


def is_durable(connection: sqlite3.Connection, vm_id: str) -> bool:
    return connection.execute("SELECT 1 FROM vms WHERE id = ? AND durable", (vm_id,)).fetchone() is not None


def any_durable(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM vms WHERE durable LIMIT 1").fetchone() is not None


def tops(connection: sqlite3.Connection) -> set[str]:
    return {top for (top,) in connection.execute("SELECT top FROM vms WHERE written")}


def set_base(connection: sqlite3.Connection, vm_id: str, base: str, origin: str) -> None:
    """Of a golden, which has no box and nothing in its top."""
    connection.execute("UPDATE vms SET base = ?, origin = ? WHERE id = ?", (base, origin, vm_id))


def page(connection: sqlite3.Connection, conditions: list[str], params: dict[str, Any], limit: int) -> list[VMRow]:
    """Newest first. `conditions` are SQL over `v`, of this program's own making; values belong into `params`."""
    where = " AND ".join(conditions) or "1"
    rows = connection.execute(f"{_SELECT} WHERE {where} ORDER BY v.id DESC LIMIT :limit", params | {"limit": limit})
    return [VMRow(*row) for row in rows]


def count(connection: sqlite3.Connection, conditions: list[str], params: dict[str, Any]) -> int:
    where = " AND ".join(conditions) or "1"
    found: int = connection.execute(f"SELECT count(*) FROM vms v WHERE {where}", params).fetchone()[0]
    return found
