"""Filesystems and mounts in both forms of the SDK."""

from __future__ import annotations

import asyncio

import pytest

from boxwood import AsyncBoxwood, Boxwood, Conflict, Filesystem, NotFound, OperationFailed, Timeout
from unit.client.stub import KEY, VM_ID, StubServer, error

ONE = {"filesystem_id": "F", "name": "data", "owner_org_id": "o", "created_at": "2026-01-01T00:00:00Z", "size_bytes": 5}
MOUNT = {"mount_id": "M", "vm_id": VM_ID, "filesystem_id": "F", "path": "/mnt/data", "state": "attaching"}
MOUNTS = f"/v1/vms/{VM_ID}/mounts"


def test_filesystems(server: StubServer) -> None:
    with Boxwood(server.url, KEY) as box:
        server.script("POST /v1/filesystems", (200, ONE | {"size_mib": 64}))
        made = box.filesystems.create("data", size_mib=64)
        assert (made.id, made.size_mib, server.last.body) == ("F", 64, {"name": "data", "size_mib": 64})
        page = {"filesystems": [ONE], "next_cursor": "c"}
        server.script("GET /v1/filesystems", (200, page), (200, page | {"next_cursor": None}))
        assert [one.name for one in box.filesystems.list(prefix="d", page_size=1)] == ["data", "data"]
        assert server.last.query == {"cursor": ["c"], "name_prefix": ["d"], "limit": ["1"]}
        server.script("GET /v1/filesystems/F", (200, ONE))
        assert box.filesystems.get(made) == box.filesystems.get("F")
        assert isinstance(box.filesystems.get("F"), Filesystem) and box.filesystems.get("F").size_bytes == 5
        server.script("DELETE /v1/filesystems/F", (409, error("conflict", "mounted")), (200, {"deleted": True}))
        with pytest.raises(Conflict):
            box.filesystems.delete(made)
        box.filesystems.delete("F")


def test_a_mount_is_waited_for(server: StubServer) -> None:
    server.script(f"POST {MOUNTS}", (200, MOUNT))
    told = {"mounts": [MOUNT], "next_cursor": None}
    done = {"mounts": [MOUNT | {"state": "mounted", "read_only": True}], "next_cursor": None}
    server.script(f"GET {MOUNTS}", (200, told), (200, told), (200, done))
    with Boxwood(server.url, KEY) as box:
        mount = box.vm(VM_ID).mounts.create("data", "/mnt/data", read_only=True)
        assert (mount.state, mount.read_only, mount.id) == ("mounted", True, "M")
        posted = next(one for one in server.requests if one.method == "POST")
        assert posted.body == {"filesystem_id": "data", "path": "/mnt/data", "read_only": True}
        assert box.vm(VM_ID).mounts.list("F")[0] == mount and server.last.query == {"filesystem_id": ["F"]}
        server.script(f"DELETE {MOUNTS}/M", (200, {"deleted": True}))
        box.vm(VM_ID).mounts.delete(mount)


def test_a_mount_that_does_not_come(server: StubServer) -> None:
    server.script(f"POST {MOUNTS}", (200, MOUNT))
    with Boxwood(server.url, KEY) as box:
        mounts = box.vm(VM_ID).mounts
        assert mounts.create("data", timeout=0).state == "attaching"
        server.script(f"GET {MOUNTS}", (200, {"mounts": [MOUNT], "next_cursor": None}))
        with pytest.raises(Timeout, match="goes on trying"):
            mounts.create("data", timeout=0.001)
        failed = MOUNT | {"state": "failed", "state_detail": "a symbolic link"}
        server.script(f"GET {MOUNTS}", (200, {"mounts": [failed], "next_cursor": None}))
        with pytest.raises(OperationFailed, match="a symbolic link"):
            mounts.create("data")
        server.script(f"GET {MOUNTS}", (200, {"mounts": [], "next_cursor": None}))
        with pytest.raises(NotFound):
            mounts.create("data")


def test_the_awaitable_form(server: StubServer) -> None:
    async def use() -> None:
        async with AsyncBoxwood(server.url, KEY) as box:
            server.script("GET /v1/filesystems", (200, {"filesystems": [ONE], "next_cursor": None}))
            assert [one.name async for one in box.filesystems.list()] == ["data"]
            server.script(f"POST {MOUNTS}", (200, MOUNT | {"state": "mounted"}))
            assert (await box.vm(VM_ID).mounts.create("data")).path == "/mnt/data"

    asyncio.run(use())
