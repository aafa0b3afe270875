"""Rows of pools."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class PoolRow:
    id: str
    org_id: str
    namespace: str
    name: str
    template: str
    replicas: int
    labels: str | None  # JSON
    about: str | None  # JSON
    created_at: int


_COLUMNS = ", ".join(field.name for field in fields(PoolRow))
_INSERT = f"INSERT INTO pools ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(PoolRow)))})"
_CHANGEABLE = frozenset({"replicas", "labels", "about"})


def every(connection: sqlite3.Connection) -> list[PoolRow]:
    return [PoolRow(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM pools ORDER BY namespace, name")]


def insert(connection: sqlite3.Connection, row: PoolRow) -> None:
    """sqlite3.IntegrityError if the name is taken."""
    connection.execute(_INSERT, tuple(getattr(row, field.name) for field in fields(PoolRow)))


def change(connection: sqlite3.Connection, pool_id: str, values: dict[str, Any]) -> None:
    if not values.keys() <= _CHANGEABLE:
        raise ValueError(f"not to be changed: {values.keys() - _CHANGEABLE}")
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE pools SET {assignments} WHERE id = ?", (*values.values(), pool_id))


def delete(connection: sqlite3.Connection, pool_id: str) -> None:
    """What was claimed from it is no pool's any more; what waits in it keeps its mark, to be removed."""
    connection.execute("UPDATE vms SET pool_id = NULL WHERE pool_id = ? AND NOT hidden", (pool_id,))
    connection.execute("DELETE FROM pools WHERE id = ?", (pool_id,))
