"""The columns of VMs' lifetimes, in a database that was made before there were any."""

from __future__ import annotations

import sqlite3

from boxwood.store import runs, vms
from boxwood.store.database import Database, migrations


async def test_an_older_database_is_brought_up(tmp_path):
    path = tmp_path / "db"
    connection = sqlite3.connect(path)
    for number, _, sql in migrations()[:2]:
        connection.executescript(f"{sql}\nPRAGMA user_version = {number};")
    connection.executescript(
        "INSERT INTO orgs VALUES ('o', 'o', 0);"
        "INSERT INTO layers (id, parent, place, depth) VALUES ('l', NULL, 'image', 0);"
        "INSERT INTO vms (id, org_id, name, public, immutable, base, top, written, created_at)"
        " VALUES ('v', 'o', 'n', 0, 0, 'l', 't', 0, 7);"
        "INSERT INTO runs (id, vm_id, session_id, command, state, started_at) VALUES ('r', 'v', 's', 'true', 'completed', 8);"
    )
    connection.close()
    database = await Database.open(path)
    try:
        found = vms.by_id(database.near, "v")
        assert found is not None
        assert (found.expires_at, found.stopped, found.labels, found.created_at) == (None, 0, None, 7)
        run = runs.by_id(database.near, "v", "r")
        assert run is not None and run.tag is None
        assert (vms.expired(database.near, 1 << 60), vms.next_expiry(database.near, 0)) == ([], None)
        await database.write(lambda connection: vms.change(connection, "v", {"expires_at": 5, "stopped": True}))
        assert (vms.expired(database.near, 4), vms.expired(database.near, 5)) == ([], ["v"])
        assert (vms.next_expiry(database.near, 4), vms.next_expiry(database.near, 5)) == (5, None)
    finally:
        await database.close()
