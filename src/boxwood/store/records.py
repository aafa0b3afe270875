"""Rows of records: the dialects' own documents."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class RecordRow:
    id: str
    org_id: str
    kind: str
    namespace: str
    name: str
    body: str  # JSON
    vm_id: str | None
    revision: int
    created_at: int
    expires_at: int | None
    size: int  # bytes of the body


_COLUMNS = ", ".join(field.name for field in fields(RecordRow))
_SELECT = f"SELECT {_COLUMNS} FROM records"
_INSERT = f"INSERT INTO records ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(RecordRow)))})"


def _row(row: sqlite3.Row | None) -> RecordRow | None:
    return None if row is None else RecordRow(*row)


def _values(row: RecordRow) -> tuple[object, ...]:
    return tuple(getattr(row, field.name) for field in fields(RecordRow))


def by_name(connection: sqlite3.Connection, org_id: str, kind: str, namespace: str, name: str) -> RecordRow | None:
    where = "org_id = ? AND kind = ? AND namespace = ? AND name = ?"
    return _row(connection.execute(f"{_SELECT} WHERE {where}", (org_id, kind, namespace, name)).fetchone())


def by_id(connection: sqlite3.Connection, org_id: str, record_id: str) -> RecordRow | None:
    return _row(connection.execute(f"{_SELECT} WHERE id = ? AND org_id = ?", (record_id, org_id)).fetchone())


def insert(connection: sqlite3.Connection, row: RecordRow) -> None:
    """sqlite3.IntegrityError if the name is taken."""
    connection.execute(_INSERT, _values(row))


def replace(connection: sqlite3.Connection, row: RecordRow) -> None:
    values = (row.body, row.size, row.vm_id, row.revision, row.expires_at, row.id)
    changed = "body = ?, size = ?, vm_id = ?, revision = ?, expires_at = ?"
    connection.execute(f"UPDATE records SET {changed} WHERE id = ?", values)


def delete(connection: sqlite3.Connection, record_id: str) -> RecordRow | None:
    """The row that was there."""
    return _row(connection.execute(f"DELETE FROM records WHERE id = ? RETURNING {_COLUMNS}", (record_id,)).fetchone())


def delete_expired(connection: sqlite3.Connection, record_id: str, now: int) -> RecordRow | None:
    sql = f"DELETE FROM records WHERE id = ? AND expires_at <= ? RETURNING {_COLUMNS}"
    return _row(connection.execute(sql, (record_id, now)).fetchone())


def delete_soonest(connection: sqlite3.Connection, org_id: str, before: int, limit: int) -> list[RecordRow]:
    """Those that would go by themselves before that, the soonest first."""
    chosen = "SELECT id FROM records WHERE org_id = ? AND vm_id IS NULL AND expires_at < ? ORDER BY expires_at LIMIT ?"
    sql = f"DELETE FROM records WHERE id IN ({chosen}) RETURNING {_COLUMNS}"
    return [RecordRow(*row) for row in connection.execute(sql, (org_id, before, limit)).fetchall()]


def delete_of_vm(connection: sqlite3.Connection, vm_id: str) -> list[RecordRow]:
    rows = connection.execute(f"DELETE FROM records WHERE vm_id = ? RETURNING {_COLUMNS}", (vm_id,)).fetchall()
    return [RecordRow(*row) for row in rows]


def page(
    connection: sqlite3.Connection,
    org_id: str,
    kind: str,
    namespace: str | None,
    prefix: str,
    limit: int,
    *,
    after: tuple[str, str] | None = None,
    most_bytes: int | None = None,
) -> list[RecordRow]:
    """By namespace and name, behind `after`. With the one that makes it `most_bytes` it ends."""
    conditions, params = ["org_id = ?", "kind = ?"], [org_id, kind]  # type: tuple[list[str], list[object]]
    if namespace is not None:
        conditions.append("namespace = ?")
        params.append(namespace)
    if prefix:
        conditions.append("substr(name, 1, ?) = ?")
        params += [len(prefix), prefix]
    if after is not None:
        conditions.append("(namespace, name) > (?, ?)")
        params += after
    sql = f"{_SELECT} WHERE {' AND '.join(conditions)} ORDER BY namespace, name LIMIT ?"
    found: list[RecordRow] = []
    size = 0
    for row in connection.execute(sql, (*params, limit)):
        found.append(RecordRow(*row))
        size += found[-1].size
        if most_bytes is not None and size >= most_bytes:
            break
    return found


def of_kind(connection: sqlite3.Connection, kind: str, *, lasting: bool) -> list[RecordRow]:
    """`lasting`: only those that are not to go by themselves."""
    where = "kind = ? AND expires_at IS NULL" if lasting else "kind = ?"
    return [RecordRow(*row) for row in connection.execute(f"{_SELECT} WHERE {where} ORDER BY id", (kind,))]


def totals(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
    """Of each organisation: itself, how many it has, and how many bytes their bodies have."""
    return connection.execute("SELECT org_id, count(*), sum(size) FROM records GROUP BY org_id").fetchall()


def newest_revision(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("SELECT coalesce(max(revision), 0) FROM records").fetchone()[0]
    return found


def expired(connection: sqlite3.Connection, now: int) -> list[str]:
    return [ident for (ident,) in connection.execute("SELECT id FROM records WHERE expires_at <= ?", (now,))]


def next_expiry(connection: sqlite3.Connection, now: int) -> int | None:
    sql = "SELECT min(expires_at) FROM records WHERE expires_at > ?"
    found: int | None = connection.execute(sql, (now,)).fetchone()[0]
    return found
