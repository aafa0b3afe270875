"""Commit: what a fork has changed goes back to where it came from, if nothing collides."""

from __future__ import annotations

import asyncio

import pytest


async def pair(api, setup="put /a one"):
    """A VM and a fork of it."""
    parent = await api.fork()
    await api.run(parent, setup)
    return parent, (await api.ok("POST", "/fork", {"source_vm_id": parent}))["vm_id"]


async def out(api, vm, command):
    return (await api.run(vm, command))["stdout"]


async def commit(api, vm, **members):
    return await api.ok("POST", f"/vms/{vm}/commit", members)


async def test_a_parent_that_has_not_changed_gets_the_forks_layers(api):
    parent, child = await pair(api)
    await api.run(child, "put /a two; put /b new")
    assert (await commit(api, child))["vm_id"] == parent
    assert api.machine.called("commit") == []
    assert await out(api, parent, "cat /a; cat /b") == "twonew"
    await api.run(child, "put /b newer")
    await commit(api, child)
    assert api.machine.called("commit") == []
    assert await out(api, parent, "cat /b") == "newer"
    assert await out(api, child, "cat /a; cat /b") == "twonewer"


async def test_changes_on_both_sides_are_united(api):
    parent, child = await pair(api, "put /a one; put /b one; put /c one")
    await api.run(parent, "put /a parent; put /p new")
    await api.run(child, "put /b child; rm /c")
    await commit(api, child)
    assert await out(api, parent, "cat /a; cat /b; cat /p") == "parentchildnew"
    assert (await api.run(parent, "cat /c"))["exit_code"] == 1
    await api.run(child, "put /d more")
    await commit(api, child)
    assert await out(api, parent, "cat /d") == "more"


async def test_collisions_are_told_and_nothing_changes(api):
    parent, child = await pair(api)
    await api.run(parent, "put /a parent; put /p x")
    await api.run(child, "put /a child; put /b child")
    refused = await api("POST", f"/vms/{child}/commit", {})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert refused.json()["collisions"] == ["/a"]
    assert await out(api, parent, "cat /a") == "parent"
    assert (await api.run(parent, "cat /b"))["exit_code"] == 1
    await api.run(child, "put /a parent")
    await commit(api, child)
    assert await out(api, parent, "cat /b") == "child"


async def test_into_another_vm_and_from_a_fork_of_a_snapshot(api):
    parent, child = await pair(api)
    other = (await api.ok("POST", "/fork", {"source_vm_id": parent, "name": "other"}))["vm_id"]
    await api.run(child, "put /b new")
    assert (await commit(api, child, into="other"))["vm_id"] == other
    assert await out(api, other, "cat /b") == "new"
    taken = (await api.ok("POST", f"/vms/{parent}/snapshots", {"name": "s"}))["snapshot_id"]
    of_it = (await api.ok("POST", "/fork", {"source_vm_id": taken}))["vm_id"]
    await api.run(of_it, "put /s from-snapshot")
    assert (await commit(api, of_it))["vm_id"] == parent
    assert await out(api, parent, "cat /s") == "from-snapshot"


async def test_a_fork_of_a_vm_at_work(api):
    parent = await api.fork()
    running = await api.run(parent, "put /a one; hang", time_to_background=0)
    while not api.machine.boxes.get(parent) or "/a" not in api.machine.boxes[parent].tree():
        await asyncio.sleep(0)
    child = (await api.ok("POST", "/fork", {"source_vm_id": parent}))["vm_id"]
    await api.run(child, "put /b child")
    await api.refused(409, "resource_busy", "POST", f"/vms/{child}/commit", {})
    await commit(api, child, force=True)
    assert (await api.ok("GET", f"/vms/{parent}/runs/{running['run_id']}"))["state"] == "cancelled"
    assert await out(api, parent, "cat /a; cat /b") == "onechild"


async def test_what_cannot_be_committed(api):
    parent, child = await pair(api)
    golden = await api.fork()
    await api.refused(403, "forbidden", "POST", f"/vms/{golden}/commit", {})
    await api.refused(400, "bad_request", "POST", f"/vms/{child}/commit", {"into": child})
    await api.refused(404, "not_found", "POST", f"/vms/{child}/commit", {"into": "nobody"})
    await api.refused(403, "forbidden", "POST", f"/vms/{child}/commit", {"into": "ubuntu"})
    await api.refused(400, "bad_request", "POST", f"/vms/{child}/commit", {"later": 1})
    await api.ok("PATCH", f"/vms/{parent}", {"immutable": True})
    await api.refused(409, "invalid_state", "POST", f"/vms/{child}/commit", {})
    parent, child = await pair(api)
    await api.ok("DELETE", f"/vms/{parent}")
    refused = await api.refused(404, "not_found", "POST", f"/vms/{child}/commit", {})
    assert "name the VM" in refused["message"]


async def test_a_commit_waits_for_nobody_else_and_leaves_nothing_behind(api):
    parent, child = await pair(api)
    await api.run(parent, "put /p x")
    await api.run(child, "put /b x")
    api.machine.merge_gate = asyncio.Event()
    asked = asyncio.create_task(commit(api, child))
    while not api.machine.called("commit"):
        await asyncio.sleep(0)
    assert await out(api, child, "cat /b") == "x"
    waiting = asyncio.create_task(out(api, parent, "cat /b"))
    api.machine.merge_gate.set()
    await asked
    assert await waiting == "x"
    for vm in (parent, child):
        await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    assert api.machine.layers == {}


@pytest.mark.parametrize("what", ["commit"])
async def test_an_engine_that_fails_leaves_the_parent_as_it_was(api, what):
    from boxwood.engine.api import EngineError

    parent, child = await pair(api)
    await api.run(parent, "put /p x")
    await api.run(child, "put /b x")
    api.machine.fail[what] = [EngineError("no")]
    await api.refused(500, "internal", "POST", f"/vms/{child}/commit", {})
    assert await out(api, parent, "cat /p") == "x"
    assert (await api.run(parent, "cat /b"))["exit_code"] == 1
    await commit(api, child)
    assert await out(api, parent, "cat /b") == "x"
