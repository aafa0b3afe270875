"""Rows of idempotency keys: which request was answered with what."""

from __future__ import annotations

import sqlite3


def find(connection: sqlite3.Connection, scope: str, key: str) -> tuple[bytes, str] | None:
    """(fingerprint of the request, id of what it made)."""
    row = connection.execute(
        "SELECT fingerprint, target FROM idempotency WHERE scope = ? AND key = ?", (scope, key)
    ).fetchone()
    return None if row is None else (row[0], row[1])


def insert(connection: sqlite3.Connection, scope: str, key: str, fingerprint: bytes, target: str, at: int) -> None:
    connection.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)", (scope, key, fingerprint, target, at))


def expire(connection: sqlite3.Connection, before: int) -> None:
    connection.execute("DELETE FROM idempotency WHERE created_at < ?", (before,))
