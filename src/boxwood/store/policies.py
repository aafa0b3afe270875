"""Rows of VMs' policies: their rules as text."""

from __future__ import annotations

import sqlite3


def find(connection: sqlite3.Connection, vm_id: str) -> str | None:
    row = connection.execute("SELECT rules FROM policies WHERE vm_id = ?", (vm_id,)).fetchone()
    return None if row is None else row[0]


def of_org(connection: sqlite3.Connection, org_id: str) -> list[tuple[str, str]]:
    """Of all VMs of an organisation that have some: their ids and rules."""
    query = "SELECT vm_id, rules FROM policies JOIN vms ON vms.id = vm_id WHERE org_id = ? ORDER BY vm_id"
    return connection.execute(query, (org_id,)).fetchall()


def put(connection: sqlite3.Connection, vm_id: str, rules: str) -> None:
    """Insert or replace; nothing of a VM that is not there any more."""
    connection.execute(
        "INSERT OR REPLACE INTO policies (vm_id, rules) SELECT id, ? FROM vms WHERE id = ?", (rules, vm_id)
    )


def delete(connection: sqlite3.Connection, vm_id: str) -> None:
    connection.execute("DELETE FROM policies WHERE vm_id = ?", (vm_id,))


def copy(connection: sqlite3.Connection, source_id: str, vm_id: str) -> bool:
    """False: there are none."""
    sql = "INSERT INTO policies SELECT ?, rules FROM policies WHERE vm_id = ?"
    return connection.execute(sql, (vm_id, source_id)).rowcount > 0
