"""`boxwood prune`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from unit.client.stub import VM, StubServer


def _vm(number: int, days: float, **members: object) -> dict[str, object]:
    """Last used so many days ago."""
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    ident = f"01KZ00000000000000000000{number:02}"
    return VM | {"vm_id": ident, "name": None, "created_at": at, "last_active_at": at, **members}


OLD, NAMED, NEW = _vm(1, 8), _vm(2, 9, name="kept"), _vm(3, 1)
USED = _vm(4, 30) | {"last_active_at": NEW["last_active_at"]}
FIXED = _vm(5, 30, immutable=True)
ALL = {"vms": [OLD, NAMED, NEW, USED, FIXED], "next_cursor": None}


def test_prune(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms", (200, ALL))
    server.script(f"DELETE /v1/vms/{OLD['vm_id']}", (200, {"deleted": True}))
    assert boxwood("prune", "--dry-run").stdout.decode().split() == [OLD["vm_id"]]
    assert server.last.method == "GET" and server.last.query["state"] == ["idle"]
    assert boxwood("prune", stdin=b"n\n").returncode != 0
    assert server.last.method == "GET", "nothing without a yes"
    assert boxwood("prune", "--yes").stdout.decode().split() == [OLD["vm_id"]]
    assert server.last.method == "DELETE"


def test_prune_named_and_times(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms", (200, ALL))
    said = json.loads(boxwood("prune", "--dry-run", "--named", "--json").stdout)
    assert [one["vm_id"] for one in said] == [OLD["vm_id"], NAMED["vm_id"]]
    assert boxwood("prune", "--dry-run", "--idle-for", "12h").stdout.decode().split() == [
        OLD["vm_id"], NEW["vm_id"], USED["vm_id"],
    ]  # fmt: skip
    for wrong in ("7", "d", "1w", "-1d", "1.5h", ""):
        assert boxwood("prune", "--dry-run", "--idle-for", wrong).returncode == 2


def test_somebody_else_was_quicker(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms", (200, ALL))
    done = boxwood("prune", "--yes")
    assert (done.returncode, done.stdout) == (0, b"")
