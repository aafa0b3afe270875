"""Filesystems and mounts as the contract has them, and as older clients know them."""

from __future__ import annotations

import asyncio

import pytest

import contract

OURS = ("size_mib", "read_only")


async def mounted(api, vm: str, mount_id: str) -> dict:
    async with asyncio.timeout(10):
        while True:
            answer = await api.ok("GET", f"/vms/{vm}/mounts")
            (found,) = [one for one in answer["mounts"] if one["mount_id"] == mount_id]
            if found["state"] != "attaching":
                return found
            await asyncio.sleep(0)


async def test_the_answers_are_the_contracts(api):
    vm = await api.fork()
    made = await api.ok("POST", "/filesystems", {"name": "data", "size_mib": 64})
    contract.check(made, "Filesystem", *OURS)
    assert (made["name"], made["size_mib"], made["size_bytes"]) == ("data", 64, None)
    listed = await api.ok("GET", "/filesystems?name_prefix=da&limit=1")
    assert listed == {"filesystems": [made], "next_cursor": None}
    contract.check(await api.ok("GET", "/filesystems/data"), "Filesystem", *OURS)
    body = {"filesystem_id": made["filesystem_id"], "path": "/data", "read_only": True}
    mount = await api.ok("POST", f"/vms/{vm}/mounts", body)
    contract.check(mount, "Mount", *OURS)
    assert (mount["state"], mount["path"], mount["read_only"]) == ("attaching", "/data", True)
    found = await mounted(api, vm, mount["mount_id"])
    assert found == {**mount, "state": "mounted"}
    only = await api.ok("GET", f"/vms/{vm}/mounts?filesystem_id={made['filesystem_id']}&limit=1")
    assert only == {"mounts": [found], "next_cursor": None}
    assert await api.ok("DELETE", f"/vms/{vm}/mounts/{mount['mount_id']}") == {"deleted": True}
    assert await api.ok("DELETE", "/filesystems/data") == {"deleted": True}


async def test_a_failure_is_told(api):
    vm = await api.fork()
    await api.ok("POST", "/filesystems", {"name": "data"})
    mount = await api.ok("POST", f"/vms/{vm}/mounts", {"filesystem_id": "data", "path": "/some/link"})
    found = await mounted(api, vm, mount["mount_id"])
    contract.check(found, "Mount", *OURS)
    assert (found["state"], found["state_detail"]) == ("failed", "/some/link is a symbolic link")


async def test_refusals(api):
    vm, gone = await api.fork(), "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    await api.ok("POST", "/filesystems", {"name": "data"})
    mounts = f"/vms/{vm}/mounts"
    mount = await api.ok("POST", mounts, {"filesystem_id": "data"})
    assert await api.ok("POST", mounts, {"filesystem_id": "data", "path": "/mnt/data"}) is not None
    for status, code, method, path, body, resource in (
        (409, "already_exists", "POST", "/filesystems", {"name": "data"}, "filesystem"),
        (409, "conflict", "DELETE", "/filesystems/data", None, "filesystem"),
        (409, "conflict", "POST", mounts, {"filesystem_id": "data", "path": "/other"}, "mount"),
        (404, "not_found", "GET", f"/filesystems/{gone}", None, "filesystem"),
        (404, "not_found", "DELETE", f"/filesystems/{gone}", None, "filesystem"),
        (404, "not_found", "POST", mounts, {"filesystem_id": gone}, "filesystem"),
        (404, "not_found", "DELETE", f"{mounts}/{gone}", None, "mount"),
        (404, "not_found", "GET", f"/vms/{gone}/mounts", None, "vm"),
    ):
        error = await api.refused(status, code, method, path, body)
        assert error["details"]["resource"] == resource
    for body in (
        {},
        {"name": ""},
        {"name": "a/b"},
        {"name": 1},
        {"name": "x", "size_mib": -1},
        {"name": "x", "more": 1},
    ):
        await api.refused(400, "bad_request", "POST", "/filesystems", body)
    await api.refused(400, "insufficient_resources", "POST", "/filesystems", {"name": "x", "size_mib": 1})
    for path in ("/", "/proc/x", "relative", "/a/../b", "", "/run"):
        await api.refused(400, "bad_request", "POST", mounts, {"filesystem_id": "data", "path": path})
    await api.refused(400, "bad_request", "GET", "/filesystems?cursor=x")
    await api.refused(400, "bad_request", "GET", f"{mounts}?limit=0")
    assert (await api.ok("GET", mounts))["mounts"][0]["mount_id"] == mount["mount_id"]


@pytest.mark.parametrize("agent", ["Python-urllib/3.12", "python-httpx/0.28.1"])
async def test_what_older_clients_get(api, agent):
    """The exact members of 0.8.4 to 0.8.7, which refuse any other."""
    vm, headers = await api.fork(), {"user-agent": agent}
    made = await api.ok("POST", "/filesystems", {"name": "data", "size_mib": 64}, headers=headers)
    strict = agent.startswith("python-httpx/")
    known = {"filesystem_id", "name", "owner_org_id", "created_at", "size_bytes", "region", "provider"}
    assert set(made) == known | (set() if strict else {"size_mib"})
    sync = await api.ok(
        "POST", f"/vms/{vm}/syncs", {"filesystem_id": made["filesystem_id"], "path": "/d"}, headers=headers
    )
    members = {"sync_id", "vm_id", "filesystem_id", "path", "region"}
    assert set(sync) == members | (set() if strict else {"status"})
    found = await mounted(api, vm, sync["sync_id"])
    assert found["path"] == "/d"
    (listed,) = (await api.ok("GET", f"/vms/{vm}/syncs", headers=headers))["syncs"]
    assert listed["sync_id"] == sync["sync_id"]
    assert await api.ok("DELETE", f"/vms/{vm}/syncs/{sync['sync_id']}", headers=headers) == {"deleted": True}
    error = await api.refused(404, "not_found", "DELETE", f"/vms/{vm}/syncs/{sync['sync_id']}")
    assert error["request"] == {"kind": "matched", "operation_id": "deleteMount"}
