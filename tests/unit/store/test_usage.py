"""Rows of usage, and what becomes of a database that had none."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from boxwood.store import database as module
from boxwood.store import usage, vms
from boxwood.store.database import Database, connect, migrations
from boxwood.store.usage import UsageRow

VM = "01KZ0000000000000000000000"
ROW = UsageRow(1, 1 << 62, 3, 4, [{"at": 1.5, "protocol": "dns", "name": "\u202ea"}])


def add_vm(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO orgs VALUES ('o', 'o', 0)")
    connection.execute("INSERT INTO layers (id, place, depth) VALUES ('l', 'data', 1)")
    connection.execute(
        "INSERT INTO vms (id, org_id, public, immutable, base, top, written, created_at)"
        f" VALUES ('{VM}', 'o', 0, 0, 'l', 't', 0, 0)"
    )


@pytest.fixture
def connection(tmp_path: Path):
    module._migrate(tmp_path / "boxwood.db")
    opened = connect(tmp_path / "boxwood.db")
    add_vm(opened)
    yield opened
    opened.close()


def test_what_is_put_is_found(connection):
    assert usage.find(connection, VM) is None
    usage.put(connection, VM, ROW)
    assert usage.find(connection, VM) == ROW
    usage.put(connection, VM, UsageRow(9, 9, 9, 9, []))
    assert usage.find(connection, VM) == UsageRow(9, 9, 9, 9, [])


def test_nothing_is_kept_of_a_vm_that_is_gone(connection):
    usage.put(connection, VM, ROW)
    vms.delete(connection, VM)
    usage.put(connection, VM, ROW)
    assert connection.execute("SELECT count(*) FROM usage").fetchone()[0] == 0


def test_a_vm_has_one_of_the_known_networks(connection):
    for mode in ("none", "internet", None):
        connection.execute("UPDATE vms SET network = ?", (mode,))
        row = vms.by_id(connection, VM)
        assert row is not None and row.network == mode
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE vms SET network = 'host'")


async def test_vms_of_before_have_what_is_configured(tmp_path: Path, monkeypatch):
    path = tmp_path / "boxwood.db"
    steps = migrations()
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: steps[:1])
        module._migrate(path)
    old = connect(path)
    add_vm(old)
    old.close()
    database = await Database.open(path)
    row = vms.by_id(database.near, VM)
    assert row is not None and row.network is None
    await database.write(lambda connection: usage.put(connection, VM, ROW))
    assert usage.find(database.near, VM) == ROW
    await database.close()
