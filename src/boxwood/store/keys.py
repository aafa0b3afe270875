"""Rows of organisations and their API keys."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class KeyRow:
    id: str
    org_id: str
    hash: bytes
    prefix: str
    role: str
    name: str | None
    created_at: int
    ttl_default: float | None = None
    ttl_most: float | None = None
    expires_at: int | None = None


_NAMES = tuple(field.name for field in fields(KeyRow))
_COLUMNS = ", ".join(_NAMES)


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
        f"INSERT INTO api_keys ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})",
        tuple(getattr(row, name) for name in _NAMES),
    )


def all_keys(connection: sqlite3.Connection) -> list[KeyRow]:
    return [KeyRow(*row) for row in connection.execute(f"SELECT {_COLUMNS} FROM api_keys ORDER BY id")]


def delete(connection: sqlite3.Connection, key_id: str) -> None:
    connection.execute("DELETE FROM api_keys WHERE id = ?", (key_id,))


def expired(connection: sqlite3.Connection, now: int) -> list[str]:
    """Those whose time is over."""
    return [key_id for (key_id,) in connection.execute("SELECT id FROM api_keys WHERE expires_at <= ?", (now,))]


def next_expiry(connection: sqlite3.Connection, now: int) -> int | None:
    """When the next one's will be."""
    sql = "SELECT min(expires_at) FROM api_keys WHERE expires_at > ?"
    found: int | None = connection.execute(sql, (now,)).fetchone()[0]
    return found
