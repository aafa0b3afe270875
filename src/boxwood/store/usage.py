"""Rows of what VMs have moved over the network."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Of all boxes of a VM that have ended: bytes, connections, attempts that were refused; the latest of these."""

    sent: int
    received: int
    connections: int
    denied: int
    denials: list[dict[str, Any]]


def find(connection: sqlite3.Connection, vm_id: str) -> UsageRow | None:
    row = connection.execute(
        "SELECT sent, received, connections, denied, denials FROM usage WHERE vm_id = ?", (vm_id,)
    ).fetchone()
    if row is None:
        return None
    sent, received, connections, denied, denials = row
    return UsageRow(sent, received, connections, denied, json.loads(denials))


def put(connection: sqlite3.Connection, vm_id: str, row: UsageRow) -> None:
    """Insert or replace; nothing of a VM that is not there any more."""
    connection.execute(
        "INSERT OR REPLACE INTO usage (vm_id, sent, received, connections, denied, denials)"
        " SELECT id, ?, ?, ?, ?, ? FROM vms WHERE id = ?",
        (row.sent, row.received, row.connections, row.denied, json.dumps(row.denials), vm_id),
    )
