"""Rows of organisations and their API keys."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyRow:
    id: str
    org_id: str
    hash: bytes
    prefix: str
    role: str
    name: str | None
    created_at: int


_COLUMNS = "id, org_id, hash, prefix, role, name, created_at"


def insert_org(connection: sqlite3.Connection, org_id: str, name: str, at: int) -> None:
    """There already: nothing."""
    connection.execute(
        "INSERT INTO orgs (id, name, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (org_id, name, at)
    )


def orgs(connection: sqlite3.Connection) -> dict[str, str]:
    """Names by id."""
    return dict(connection.execute("SELECT id, name FROM orgs").fetchall())


def org_by_id_or_name(connection: sqlite3.Connection, ref: str) -> str | None:
    row = connection.execute(
        "SELECT id FROM orgs WHERE id = ? OR name = ? ORDER BY id = ? DESC", (ref, ref, ref)
    ).fetchone()
    return None if row is None else row[0]


def insert(connection: sqlite3.Connection, row: KeyRow) -> None:
    connection.execute(
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row.id, row.org_id, row.hash, row.prefix, row.role, row.name, row.created_at),
    )


def all_keys(connection: sqlite3.Connection) -> list[KeyRow]:
    return [KeyRow(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM api_keys ORDER BY id")]


def delete(connection: sqlite3.Connection, key_id: str) -> None:
    connection.execute("DELETE FROM api_keys WHERE id = ?", (key_id,))
