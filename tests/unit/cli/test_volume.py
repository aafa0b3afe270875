"""`boxwood volume`, `mount` and `unmount`."""

from __future__ import annotations

import json

from unit.client.stub import VM_ID, StubServer

ONE = {
    "filesystem_id": "01KZ0000000000000000000003", "name": "data", "owner_org_id": "o", "size_bytes": 2048,
    "size_mib": 64, "created_at": "2026-11-21T00:00:00Z", "region": "local", "provider": None,
}  # fmt: skip
MOUNT = {
    "mount_id": "01KZ0000000000000000000004", "vm_id": VM_ID, "filesystem_id": ONE["filesystem_id"], "path": "/data",
    "state": "mounted", "region": "local",
}  # fmt: skip
MOUNTS = "/v1/vms/work/mounts"


def test_volumes(server: StubServer, boxwood) -> None:
    server.script("POST /v1/filesystems", (200, ONE))
    assert boxwood("volume", "create", "data", "--size", "64").stdout.decode().strip() == ONE["filesystem_id"]
    assert server.last.body == {"name": "data", "size_mib": 64}
    server.script(
        "GET /v1/filesystems", (200, {"filesystems": [ONE], "next_cursor": "c"}),
        (200, {"filesystems": [ONE | {"name": "other", "size_bytes": None}], "next_cursor": None}),
    )  # fmt: skip
    lines = boxwood("volume", "ls", "--prefix", "d").stdout.decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["data", "other"]
    assert server.last.query == {"cursor": ["c"], "name_prefix": ["d"]}
    server.script("GET /v1/filesystems/data", (200, ONE))
    assert json.loads(boxwood("volume", "get", "data", "--json").stdout)["size_bytes"] == 2048
    server.script("DELETE /v1/filesystems/data", (200, {"deleted": True}))
    assert boxwood("volume", "rm", "data").returncode == 0


def test_mounts(server: StubServer, boxwood) -> None:
    server.script(f"POST {MOUNTS}", (200, MOUNT | {"state": "attaching"}))
    server.script(f"GET {MOUNTS}", (200, {"mounts": [MOUNT], "next_cursor": None}))
    assert boxwood("mount", "work", "data:/data", "--read-only").stdout == b"/data\n"
    posted = next(one for one in server.requests if one.method == "POST")
    assert posted.body == {"filesystem_id": "data", "path": "/data", "read_only": True}
    assert boxwood("mount", "work", "data").returncode == 0
    assert server.requests[-2].body == {"filesystem_id": "data"}
    assert boxwood("mount", "work").stdout.decode().split("\t")[:4] == ["/data", ONE["filesystem_id"], "rw", "mounted"]
    server.script(f"DELETE {MOUNTS}/{MOUNT['mount_id']}", (200, {"deleted": True}))
    assert boxwood("unmount", "work", "/data/").returncode == 0
    server.script("GET /v1/filesystems/data", (200, ONE))
    assert boxwood("unmount", "work", "data").returncode == 0
    done = boxwood("unmount", "work", "/elsewhere")
    assert done.returncode == 1 and b"/elsewhere is not mounted in work" in done.stderr
    assert [one.method for one in server.requests].count("DELETE") == 2


def test_what_fails_is_told(server: StubServer, boxwood) -> None:
    server.script(f"POST {MOUNTS}", (200, MOUNT | {"state": "failed", "state_detail": "/data is a symbolic link"}))
    done = boxwood("mount", "work", "data:/data")
    assert done.returncode == 1 and b"/data is a symbolic link" in done.stderr
    assert boxwood("volume", "create", "data", "--size", "-1").returncode == 2
