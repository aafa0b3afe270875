"""`boxwood snapshot`, `snapshots`, `restore`, `diff`."""

from __future__ import annotations

import json

from unit.client.stub import VM, VM_ID, StubServer, error

SNAPSHOT = {
    "snapshot_id": "01KZ0000000000000000000003", "vm_id": VM_ID, "name": "s", "description": None,
    "created_at": "2026-11-21T00:00:00Z", "copied_bytes": 0,
}  # fmt: skip
CHANGES = [
    {"path": "/a", "change": "changed", "what": ["content"], "kind": "file", "diff": "--- a/a\n+++ b/a\n"},
    {"path": "/b", "change": "changed", "what": ["mode", "owner"], "kind": "file"},
    {"path": "/d", "change": "deleted", "what": [], "kind": "directory"},
    {"path": "/\ufffd\x1b", "path_base64": "L/8b", "change": "added", "what": [], "kind": "file"},
]


def test_snapshot_list_and_delete(server: StubServer, boxwood) -> None:
    server.script("POST /v1/vms/n/snapshots", (201, SNAPSHOT))
    assert boxwood("snapshot", "n", "s", "--description", "d").stdout.decode() == f"{SNAPSHOT['snapshot_id']}\n"
    assert server.last.body == {"name": "s", "description": "d"}
    server.script("GET /v1/vms/n/snapshots", (200, {"snapshots": [SNAPSHOT]}))
    assert boxwood("snapshots", "n").stdout.decode().split("\t")[:2] == ["s", SNAPSHOT["snapshot_id"]]
    assert json.loads(boxwood("snapshots", "n", "--json").stdout)[0]["name"] == "s"
    server.script("DELETE /v1/vms/n/snapshots/s", (200, {"deleted": True}))
    assert boxwood("snapshot", "n", "s", "--delete").returncode == 0


def test_restore(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms/n", (200, VM))
    server.script(f"POST /v1/vms/{VM_ID}/restore", (200, VM))
    assert boxwood("restore", "n", "s").returncode == 0
    assert server.last.body == {"snapshot": "s"}
    assert boxwood("restore", "n", "s", "--force").returncode == 0
    assert server.last.body == {"snapshot": "s", "force": True}
    server.script(
        f"POST /v1/vms/{VM_ID}/restore", (409, error("resource_busy", "something runs", details={"resource": "vm"}))
    )
    done = boxwood("restore", "n", "s")
    assert (done.returncode, done.stderr.decode()) == (1, "boxwood: something runs\n")


def test_diff(server: StubServer, boxwood) -> None:
    server.script("GET /v1/vms/n", (200, VM))
    server.script(f"GET /v1/vms/{VM_ID}/diff", (200, {"changes": CHANGES, "truncated": True}))
    done = boxwood("diff", "n", "s", "--limit", "4")
    assert done.stdout.decode() == "M /a\nM /b (mode, owner)\nD /d/\nA /\ufffd\\x1b\n"
    assert "more than 4" in done.stderr.decode()
    assert server.last.query == {"since": ["s"], "path": ["/"], "limit": ["4"]}
    done = boxwood("diff", "n", "-p", "--to", "t", "--path", "/etc")
    assert done.stdout.decode().startswith("--- a/a\n+++ b/a\nM /b")
    assert server.last.query == {"to": ["t"], "path": ["/etc"], "text": ["true"], "limit": ["10000"]}
