"""Rows of filesystems, and of their mounts in VMs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class FilesystemRow:
    id: str
    org_id: str
    name: str
    size_mib: int | None
    bytes: int | None
    measured_at: int | None
    created_at: int


@dataclass(frozen=True, slots=True)
class MountRow:
    id: str
    vm_id: str
    filesystem_id: str
    path: str
    read_only: bool
    state: str
    detail: str | None
    created_at: int


_COLUMNS = ", ".join(field.name for field in fields(FilesystemRow))
_MOUNT_COLUMNS = ", ".join(field.name for field in fields(MountRow))
_INSERT = f"INSERT INTO filesystems ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(FilesystemRow)))})"
_INSERT_MOUNT = f"INSERT INTO mounts ({_MOUNT_COLUMNS}) VALUES ({', '.join('?' * len(fields(MountRow)))})"


def _found(row: Any) -> FilesystemRow | None:
    return None if row is None else FilesystemRow(*row)


def _mount(row: Any) -> MountRow:
    ident, vm_id, filesystem_id, path, read_only, state, detail, created_at = row
    return MountRow(ident, vm_id, filesystem_id, path, bool(read_only), state, detail, created_at)


def insert(connection: sqlite3.Connection, row: FilesystemRow) -> None:
    """sqlite3.IntegrityError if the name is taken."""
    connection.execute(_INSERT, tuple(getattr(row, field.name) for field in fields(FilesystemRow)))


def by_id(connection: sqlite3.Connection, ident: str) -> FilesystemRow | None:
    sql = f"SELECT {_COLUMNS} FROM filesystems WHERE id = ? AND NOT doomed"
    return _found(connection.execute(sql, (ident,)).fetchone())


def by_name(connection: sqlite3.Connection, org_id: str, name: str) -> FilesystemRow | None:
    sql = f"SELECT {_COLUMNS} FROM filesystems WHERE org_id = ? AND name = ? AND NOT doomed"
    return _found(connection.execute(sql, (org_id, name)).fetchone())


def count(connection: sqlite3.Connection, org_id: str) -> int:
    sql = "SELECT count(*) FROM filesystems WHERE org_id = ? AND NOT doomed"
    found: int = connection.execute(sql, (org_id,)).fetchone()[0]
    return found


def page(connection: sqlite3.Connection, org_id: str, prefix: str, after: str, limit: int) -> list[FilesystemRow]:
    """By name, those behind `after` whose names begin with `prefix`."""
    sql = (
        f"SELECT {_COLUMNS} FROM filesystems WHERE org_id = ? AND NOT doomed AND name > ? "
        "AND substr(name, 1, length(?)) = ? ORDER BY name LIMIT ?"
    )
    return [FilesystemRow(*row) for row in connection.execute(sql, (org_id, after, prefix, prefix, limit))]


def measured(connection: sqlite3.Connection, ident: str, size: int, at: int) -> None:
    connection.execute("UPDATE filesystems SET bytes = ?, measured_at = ? WHERE id = ?", (size, at, ident))


def doom(connection: sqlite3.Connection, ident: str) -> None:
    connection.execute("UPDATE filesystems SET doomed = 1 WHERE id = ?", (ident,))


def doomed(connection: sqlite3.Connection) -> set[str]:
    return {ident for (ident,) in connection.execute("SELECT id FROM filesystems WHERE doomed")}


def forget(connection: sqlite3.Connection, idents: Iterable[str]) -> None:
    """Their directories are gone."""
    for ident in idents:
        connection.execute("DELETE FROM filesystems WHERE id = ? AND doomed", (ident,))
        connection.execute("DELETE FROM lost_volumes WHERE id = ?", (ident,))


def seen_lost(connection: sqlite3.Connection, stored: Iterable[str], at: int, before: int) -> set[str]:
    """Of the directories that there are, those that no row knows; since when that is so is remembered. Answers which
    were seen so before `before`."""
    known = {ident for (ident,) in connection.execute("SELECT id FROM filesystems")}
    lost = set(stored) - known
    for (ident,) in connection.execute("SELECT id FROM lost_volumes").fetchall():
        if ident not in lost:
            connection.execute("DELETE FROM lost_volumes WHERE id = ?", (ident,))
    for ident in lost:
        connection.execute("INSERT INTO lost_volumes (id, seen_at) VALUES (?, ?) ON CONFLICT DO NOTHING", (ident, at))
    old = connection.execute("SELECT id FROM lost_volumes WHERE seen_at <= ?", (before,))
    return {ident for (ident,) in old}


# --- mounts


def insert_mount(connection: sqlite3.Connection, row: MountRow) -> None:
    """sqlite3.IntegrityError if the VM has the filesystem, or something at the path; or either is gone."""
    connection.execute(_INSERT_MOUNT, tuple(getattr(row, field.name) for field in fields(MountRow)))


def mount(connection: sqlite3.Connection, vm_id: str, mount_id: str) -> MountRow | None:
    sql = f"SELECT {_MOUNT_COLUMNS} FROM mounts WHERE vm_id = ? AND id = ?"
    row = connection.execute(sql, (vm_id, mount_id)).fetchone()
    return None if row is None else _mount(row)


def mounts_of(connection: sqlite3.Connection, vm_id: str) -> list[MountRow]:
    """In the order in which they were made."""
    sql = f"SELECT {_MOUNT_COLUMNS} FROM mounts WHERE vm_id = ? ORDER BY id"
    return [_mount(row) for row in connection.execute(sql, (vm_id,))]


def vms_with(connection: sqlite3.Connection, filesystem_id: str, most: int) -> list[str]:
    """The names, or ids, of VMs that have it."""
    sql = "SELECT coalesce(v.name, v.id) FROM mounts m JOIN vms v ON v.id = m.vm_id WHERE m.filesystem_id = ? LIMIT ?"
    return [name for (name,) in connection.execute(sql, (filesystem_id, most))]


def attaching(connection: sqlite3.Connection) -> list[str]:
    """VMs that have something to be attached."""
    return [vm_id for (vm_id,) in connection.execute("SELECT DISTINCT vm_id FROM mounts WHERE state = 'attaching'")]


def set_state(connection: sqlite3.Connection, mount_id: str, state: str, detail: str | None) -> None:
    connection.execute("UPDATE mounts SET state = ?, detail = ? WHERE id = ?", (state, detail, mount_id))


def delete_mount(connection: sqlite3.Connection, mount_id: str) -> None:
    connection.execute("DELETE FROM mounts WHERE id = ?", (mount_id,))
