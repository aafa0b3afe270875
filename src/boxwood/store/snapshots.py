"""Rows of snapshots: names for hidden VMs that hold what another VM held. And pins: layers that are being read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """`id`: of the VM that holds the state; `vm_id`: of the one whose state it is."""

    id: str
    vm_id: str
    name: str
    description: str | None
    created_at: int


_SELECT = "SELECT s.id, s.vm_id, s.name, v.description, s.created_at FROM snapshots s JOIN vms v ON v.id = s.id"


def insert(connection: sqlite3.Connection, snapshot_id: str, vm_id: str, name: str, at: int) -> None:
    """sqlite3.IntegrityError if the VM has one of this name."""
    connection.execute(
        "INSERT INTO snapshots (id, vm_id, name, created_at) VALUES (?, ?, ?, ?)", (snapshot_id, vm_id, name, at)
    )


def by_id(connection: sqlite3.Connection, snapshot_id: str) -> SnapshotRow | None:
    row = connection.execute(f"{_SELECT} WHERE s.id = ?", (snapshot_id,)).fetchone()
    return None if row is None else SnapshotRow(*row)


def by_name(connection: sqlite3.Connection, vm_id: str, name: str) -> SnapshotRow | None:
    row = connection.execute(f"{_SELECT} WHERE s.vm_id = ? AND s.name = ?", (vm_id, name)).fetchone()
    return None if row is None else SnapshotRow(*row)


def of_vm(connection: sqlite3.Connection, vm_id: str) -> list[SnapshotRow]:
    """The oldest first."""
    rows = connection.execute(f"{_SELECT} WHERE s.vm_id = ? ORDER BY s.created_at, s.id", (vm_id,))
    return [SnapshotRow(*row) for row in rows]


def count(connection: sqlite3.Connection, vm_id: str) -> int:
    found: int = connection.execute("SELECT count(*) FROM snapshots WHERE vm_id = ?", (vm_id,)).fetchone()[0]
    return found


def left_over(connection: sqlite3.Connection) -> list[str]:
    """Snapshots of VMs that are not there any more."""
    rows = connection.execute("SELECT id FROM snapshots WHERE vm_id NOT IN (SELECT id FROM vms)")
    return [row[0] for row in rows]


def pin(connection: sqlite3.Connection, pin_id: str, layer_ids: Iterable[str]) -> None:
    """Each of these layers: a merge may let another take the place of one in the middle."""
    rows = [(f"{pin_id}/{layer_id}", layer_id) for layer_id in layer_ids]
    connection.executemany("INSERT INTO pins (id, layer_id) VALUES (?, ?)", rows)


def unpin(connection: sqlite3.Connection, pin_id: str) -> None:
    connection.execute("DELETE FROM pins WHERE id > ? || '/' AND id < ? || '0'", (pin_id, pin_id))  # 0 is behind /


def unpin_all(connection: sqlite3.Connection) -> None:
    """At the start: whoever read has ended with the server before."""
    connection.execute("DELETE FROM pins")
