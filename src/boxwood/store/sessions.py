"""Rows of sessions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

BESIDE = 1 << 32  # from this index on: the places of runs that belong to no session of a user's


@dataclass(frozen=True, slots=True)
class SessionRow:
    """All but the saved shell. `env` and `exported` are JSON objects or None."""

    id: str
    vm_id: str
    idx: int
    cwd: str
    env: str | None
    exported: str | None
    created_at: int
    started_at: int | None
    kind: str = "shell"  # shell | python


_COLUMNS = "id, vm_id, idx, cwd, env, exported, created_at, started_at, kind"


def env_of(text: str | None) -> dict[str, str] | None:
    return None if text is None else cast("dict[str, str]", json.loads(text))


def env_text(env: Mapping[str, str] | None) -> str | None:
    return None if env is None else json.dumps(dict(env))


def insert(connection: sqlite3.Connection, row: SessionRow) -> None:
    """sqlite3.IntegrityError if the index is taken."""
    connection.execute(
        f"INSERT INTO sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, row.vm_id, row.idx, row.cwd, row.env, row.exported, row.created_at, row.started_at, row.kind),
    )


def by_id(connection: sqlite3.Connection, vm_id: str, session_id: str) -> SessionRow | None:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE id = ? AND vm_id = ?", (session_id, vm_id)
    ).fetchone()
    return None if row is None else SessionRow(*row)


def by_index(connection: sqlite3.Connection, vm_id: str, index: int) -> SessionRow | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM sessions WHERE vm_id = ? AND idx = ?", (vm_id, index)).fetchone()
    return None if row is None else SessionRow(*row)


def of_vm(connection: sqlite3.Connection, vm_id: str, after: int = -1) -> list[SessionRow]:
    """By index, those above `after`."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE vm_id = ? AND idx > ? ORDER BY idx", (vm_id, after)
    )
    return [SessionRow(*row) for row in rows]


def of_vms(connection: sqlite3.Connection, vm_ids: list[str]) -> dict[str, list[SessionRow]]:
    found: dict[str, list[SessionRow]] = {}
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM sessions WHERE vm_id IN (SELECT value FROM json_each(?)) ORDER BY vm_id, idx",
        (json.dumps(vm_ids),),
    )
    for row in rows:
        found.setdefault(row[1], []).append(SessionRow(*row))
    return found


def count(connection: sqlite3.Connection, vm_id: str) -> int:
    found: int = connection.execute("SELECT count(*) FROM sessions WHERE vm_id = ?", (vm_id,)).fetchone()[0]
    return found


def next_index(connection: sqlite3.Connection, vm_id: str, *, beside: bool = False) -> int:
    """From 1 on: 0 is the default session. `beside`: of one that nobody asked for by name."""
    low, high = (BESIDE, 1 << 62) if beside else (0, BESIDE)
    found = "SELECT max(idx) FROM sessions WHERE vm_id = ? AND idx >= ? AND idx < ?"
    row = connection.execute(found, (vm_id, low, high)).fetchone()
    return low if beside and row[0] is None else (row[0] or 0) + 1


def saved_state(connection: sqlite3.Connection, session_id: str) -> bytes | None:
    row = connection.execute("SELECT state FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else row[0]


def save(
    connection: sqlite3.Connection, vm_id: str, session_id: str, cwd: str, env: Mapping[str, str], state: bytes
) -> None:
    """What its shell looked like when it was last saved."""
    connection.execute(
        "UPDATE sessions SET cwd = ?, exported = ?, state = ? WHERE id = ? AND vm_id = ?",
        (cwd, env_text(env), state, session_id, vm_id),
    )


def started(connection: sqlite3.Connection, session_id: str, at: int) -> None:
    connection.execute("UPDATE sessions SET started_at = ? WHERE id = ? AND started_at IS NULL", (at, session_id))


def delete(connection: sqlite3.Connection, session_id: str) -> None:
    connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))


def state_bytes(connection: sqlite3.Connection, vm_id: str) -> int:
    """What the saved shells of a VM take up, all together."""
    found = connection.execute("SELECT coalesce(sum(length(state)), 0) FROM sessions WHERE vm_id = ?", (vm_id,))
    count: int = found.fetchone()[0]
    return count


def restore(connection: sqlite3.Connection, source_vm: str, target_vm: str, new_id: Callable[[], str], at: int) -> None:
    """Let a VM's sessions be where those of another one are, by index. Those that only the VM has keep their ids and
    begin anew; those that it has lost come back with ids of their own."""
    connection.execute("UPDATE sessions SET cwd = '', exported = NULL, state = NULL WHERE vm_id = ?", (target_vm,))
    connection.execute(
        "UPDATE sessions SET (cwd, env, exported, state, kind) = (SELECT s.cwd, s.env, s.exported, s.state, s.kind"
        " FROM sessions s WHERE s.vm_id = ? AND s.idx = sessions.idx)"
        " WHERE vm_id = ? AND idx IN (SELECT idx FROM sessions WHERE vm_id = ?)",
        (source_vm, target_vm, source_vm),
    )
    there = {row.idx for row in of_vm(connection, target_vm)}
    for row in of_vm(connection, source_vm):
        if row.idx not in there and row.idx < BESIDE:
            connection.execute(
                "INSERT INTO sessions (id, vm_id, idx, cwd, env, exported, state, created_at, kind)"
                " SELECT ?, ?, idx, cwd, env, exported, state, ?, kind FROM sessions WHERE id = ?",
                (new_id(), target_vm, at, row.id),
            )


def copy(
    connection: sqlite3.Connection, source_vm: str, target_vm: str, new_id: Callable[[], str], at: int
) -> list[SessionRow]:
    """Give a VM sessions of its own that go on where those of another one are."""
    copies = []
    for row in of_vm(connection, source_vm):
        if row.idx >= BESIDE:
            continue
        session_id = new_id()
        connection.execute(
            "INSERT INTO sessions (id, vm_id, idx, cwd, env, exported, state, created_at, kind)"
            " SELECT ?, ?, idx, cwd, env, exported, state, ?, kind FROM sessions WHERE id = ?",
            (session_id, target_vm, at, row.id),
        )
        copies.append(SessionRow(session_id, target_vm, row.idx, row.cwd, row.env, row.exported, at, None, row.kind))
    return copies
