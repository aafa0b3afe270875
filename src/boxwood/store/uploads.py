"""Rows of uploads: which bytes of a file have come so far."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, fields

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class UploadRow:
    vm_id: str
    id: str
    staged: bool
    path: str
    size: int
    sha256: str | None
    ranges: Ranges
    file: str | None
    complete: bool
    created_at: int


_COLUMNS = tuple(field.name for field in fields(UploadRow))
_ALL = ", ".join(_COLUMNS)


def _row(row: sqlite3.Row | None) -> UploadRow | None:
    if row is None:
        return None
    values = dict(zip(_COLUMNS, row, strict=True))
    values["ranges"] = tuple((start, end) for start, end in json.loads(values["ranges"]))
    return UploadRow(**values)


def put(connection: sqlite3.Connection, row: UploadRow) -> None:
    """Insert or replace."""
    values = [getattr(row, name) for name in _COLUMNS]
    values[_COLUMNS.index("ranges")] = json.dumps(row.ranges)
    connection.execute(f"INSERT OR REPLACE INTO uploads ({_ALL}) VALUES ({', '.join('?' * len(_COLUMNS))})", values)


def by_id(connection: sqlite3.Connection, vm_id: str, upload_id: str) -> UploadRow | None:
    return _row(
        connection.execute(f"SELECT {_ALL} FROM uploads WHERE vm_id = ? AND id = ?", (vm_id, upload_id)).fetchone()
    )


def staged(connection: sqlite3.Connection, upload_id: str) -> UploadRow | None:
    """One that was announced, whatever its VM."""
    return _row(connection.execute(f"SELECT {_ALL} FROM uploads WHERE id = ? AND staged", (upload_id,)).fetchone())


def unfinished(connection: sqlite3.Connection, vm_id: str) -> int:
    row = connection.execute("SELECT count(*) FROM uploads WHERE vm_id = ? AND NOT complete", (vm_id,)).fetchone()
    found: int = row[0]
    return found


def delete(connection: sqlite3.Connection, vm_id: str, upload_id: str) -> None:
    connection.execute("DELETE FROM uploads WHERE vm_id = ? AND id = ?", (vm_id, upload_id))


def expire(connection: sqlite3.Connection, before: int) -> None:
    connection.execute("DELETE FROM uploads WHERE created_at < ?", (before,))


def files_of(connection: sqlite3.Connection, vm_id: str) -> list[str]:
    rows = connection.execute("SELECT file FROM uploads WHERE vm_id = ? AND file IS NOT NULL", (vm_id,))
    return [row[0] for row in rows]


def files(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT file FROM uploads WHERE file IS NOT NULL")}
