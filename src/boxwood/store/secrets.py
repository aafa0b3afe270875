"""Rows of secrets. What they hold can be read with a key alone that is not in the database."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SecretRow:
    """`vm_id`: whose alone it is; None: it is for all VMs of the organisation."""

    org_id: str
    vm_id: str | None
    name: str
    sealed: bytes
    created_at: int
    updated_at: int

    @property
    def scope(self) -> str:
        return self.vm_id or self.org_id


_COLUMNS = "org_id, vm_id, name, sealed, created_at, updated_at"


def of_scope(connection: sqlite3.Connection, scope: str) -> list[SecretRow]:
    """Of a VM, or of an organisation, by name."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM secrets WHERE coalesce(vm_id, org_id) = ? ORDER BY name", (scope,)
    )
    return [SecretRow(*row) for row in rows]


def put(connection: sqlite3.Connection, row: SecretRow) -> None:
    """Insert, or replace all but `created_at`."""
    connection.execute(
        f"INSERT INTO secrets ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (coalesce(vm_id, org_id), name)"
        " DO UPDATE SET sealed = excluded.sealed, updated_at = excluded.updated_at",
        (row.org_id, row.vm_id, row.name, row.sealed, row.created_at, row.updated_at),
    )


def delete(connection: sqlite3.Connection, scope: str, name: str) -> bool:
    """False: there was none."""
    found = connection.execute("DELETE FROM secrets WHERE coalesce(vm_id, org_id) = ? AND name = ?", (scope, name))
    return found.rowcount > 0
