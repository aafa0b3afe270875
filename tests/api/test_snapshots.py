"""Snapshots: states of a VM that it can go back to, and others can be forked from."""

from __future__ import annotations

import asyncio

import pytest


async def take(api, vm, name, **members):
    return await api.ok("POST", f"/vms/{vm}/snapshots", {"name": name, **members})


async def names(api, vm):
    return [one["name"] for one in (await api.ok("GET", f"/vms/{vm}/snapshots"))["snapshots"]]


async def out(api, vm, command, **members):
    return (await api.run(vm, command, **members))["stdout"]


async def test_a_vm_goes_back_to_what_it_was(api):
    vm = await api.fork(name="mine")
    await api.run(vm, "put /a one")
    taken = await take(api, vm, "first", description="as it was")
    assert (taken["vm_id"], taken["name"], taken["description"]) == (vm, "first", "as it was")
    await api.run(vm, "put /a two; put /b more")
    back = await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "first"})
    assert (back["vm_id"], back["name"]) == (vm, "mine")
    assert await out(api, vm, "cat /a") == "one"
    assert (await api.run(vm, "cat /b"))["exit_code"] == 1
    await api.run(vm, "put /a three")
    await api.ok("POST", "/vms/mine/restore", {"snapshot": taken["snapshot_id"].lower()})
    assert await out(api, vm, "cat /a") == "one"


async def test_sessions_are_where_they_were_and_keep_their_ids(api):
    vm = await api.fork()
    await api.run(vm, "cd /srv; export K=old")
    lost = (await api.ok("POST", f"/vms/{vm}/sessions", {"cwd": "/lost"}))["session_id"]
    before = {one["session_id"] for one in (await api.ok("GET", f"/vms/{vm}/sessions"))["sessions"]}
    await take(api, vm, "here")
    await api.run(vm, "cd /tmp; export K=new")
    late = (await api.ok("POST", f"/vms/{vm}/sessions", {"cwd": "/late"}))["session_id"]
    await api.run(vm, "cd /elsewhere", session_id=late)
    await api.ok("DELETE", f"/vms/{vm}/sessions/{lost}")
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "here"})
    assert await out(api, vm, "pwd; env K") == "/srv\nold\n"
    after = {one["session_id"]: one["cwd"] for one in (await api.ok("GET", f"/vms/{vm}/sessions"))["sessions"]}
    assert before - after.keys() == {lost} and late in after
    assert "/lost" in [cwd for ident, cwd in after.items() if ident not in before]
    assert await out(api, vm, "pwd", session_id=late) == "/root\n"


async def test_what_runs_keeps_a_vm_from_going_back_unless_it_is_forced(api):
    vm = await api.fork()
    await take(api, vm, "s")
    running = await api.run(vm, "hang", time_to_background=0)
    refused = await api.refused(409, "resource_busy", "POST", f"/vms/{vm}/restore", {"snapshot": "s"})
    assert "force" in refused["message"]
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "s", "force": True})
    ended = await api.ok("GET", f"/vms/{vm}/runs/{running['run_id']}")
    assert ended["state"] == "cancelled"
    assert await out(api, vm, "echo goes on") == "goes on\n"


async def test_a_process_that_was_left_behind_counts_as_what_runs(api):
    vm = await api.fork()
    await take(api, vm, "s")
    await api.run(vm, "daemon")
    await api.refused(409, "resource_busy", "POST", f"/vms/{vm}/restore", {"snapshot": "s"})
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "s", "force": True})


async def test_a_snapshot_of_a_vm_at_work_holds_what_was_there(api):
    vm = await api.fork()
    await api.run(vm, "put /a one")
    await api.run(vm, "put /a two; hang", time_to_background=0)
    while b"two" not in api.machine.boxes[vm].tree().get("/a", b""):
        await asyncio.sleep(0)
    assert (await take(api, vm, "busy"))["copied_bytes"] == 3
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "busy", "force": True})
    assert await out(api, vm, "cat /a") == "two"


async def test_forks_are_made_of_snapshots_and_snapshots_are_in_no_list(api):
    vm = await api.fork()
    await api.run(vm, "put /a one")
    ident = (await take(api, vm, "s"))["snapshot_id"]
    await api.run(vm, "put /a two")
    child = (await api.ok("POST", "/fork", {"source_vm_id": ident}))["vm_id"]
    assert await out(api, child, "cat /a") == "one"
    listed = [one["vm_id"] for one in (await api.ok("GET", "/vms"))["vms"]]
    assert ident not in listed and {vm, child} <= set(listed)
    await api.refused(409, "invalid_state", "POST", f"/vms/{ident}/runs", {"command": "echo"})


async def test_names(api):
    vm, other = await api.fork(), await api.fork()
    await take(api, vm, "b")
    await take(api, vm, "a")
    await take(api, other, "a")
    assert await names(api, vm) == ["b", "a"]
    await api.refused(409, "already_exists", "POST", f"/vms/{vm}/snapshots", {"name": "a"})
    for bad in ("", "a b", "../x", "0" * 26, "x" * 300):
        await api.refused(400, "bad_request", "POST", f"/vms/{vm}/snapshots", {"name": bad})
    assert (await api.ok("GET", f"/vms/{vm}/snapshots/a"))["name"] == "a"
    await api.ok("DELETE", f"/vms/{vm}/snapshots/a")
    assert await names(api, vm) == ["b"] and await names(api, other) == ["a"]
    await api.refused(404, "not_found", "DELETE", f"/vms/{vm}/snapshots/a")
    await api.refused(404, "not_found", "POST", f"/vms/{vm}/restore", {"snapshot": "a"})
    await take(api, vm, "a")


async def test_a_snapshot_is_of_its_own_vm_only(api):
    vm, other = await api.fork(), await api.fork()
    ident = (await take(api, vm, "s"))["snapshot_id"]
    for name in ("s", ident):
        await api.refused(404, "not_found", "POST", f"/vms/{other}/restore", {"snapshot": name})
        await api.refused(404, "not_found", "GET", f"/vms/{other}/snapshots/{name}")


async def test_public_and_immutable_vms(api):
    await api.refused(403, "forbidden", "POST", "/vms/ubuntu/snapshots", {"name": "s"})
    await api.refused(403, "forbidden", "GET", "/vms/ubuntu/snapshots")
    vm = await api.fork()
    await take(api, vm, "s")
    await api.ok("PATCH", f"/vms/{vm}", {"immutable": True})
    await take(api, vm, "t")
    await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/restore", {"snapshot": "s"})


async def test_snapshots_go_with_their_vm_and_their_forks_stay(api):
    vm = await api.fork()
    await api.run(vm, "put /a one")
    ident = (await take(api, vm, "s"))["snapshot_id"]
    child = (await api.ok("POST", "/fork", {"source_vm_id": ident}))["vm_id"]
    await api.ok("DELETE", f"/vms/{vm}")
    while (await api("GET", f"/vms/{ident}")).status_code != 404:
        await asyncio.sleep(0)
    await api.app.core.layers.settled()
    assert await out(api, child, "cat /a") == "one"
    await api.ok("DELETE", f"/vms/{child}")
    await api.app.core.layers.settled()
    assert api.machine.layers == {}


async def test_what_a_vm_had_written_is_removed_when_it_goes_back(api):
    vm = await api.fork()
    await take(api, vm, "clean")
    await api.run(vm, "put /a one")
    assert any(api.machine.layers.values())
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "clean"})
    await api.app.core.layers.settled()
    assert not any(api.machine.layers.values())


async def test_snapshots_of_a_vm_whose_deletion_was_cut_off_are_removed_at_the_next_start(api):
    vm = await api.fork()
    ident = (await take(api, vm, "s"))["snapshot_id"]
    core = api.app.core
    await core._database.write(lambda connection: connection.execute("DELETE FROM vms WHERE id = ?", (vm,)))
    core.snapshots.start()
    while (await api("GET", f"/vms/{ident}")).status_code != 404:
        await asyncio.sleep(0)


@pytest.mark.parametrize("body", [{}, {"snapshot": "s", "later": 1}, {"snapshot": 7}])
async def test_a_body_that_makes_no_sense(api, body):
    vm = await api.fork()
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/restore", body)


# What has changed


async def changes(api, vm, **query):
    found = await api.ok("GET", f"/vms/{vm}/diff", params=query)
    return {one["path"]: one["change"] for one in found["changes"]}


async def test_what_has_changed_since_a_snapshot_the_fork_and_the_image(api):
    first = await api.fork()
    await api.run(first, "put /a one; put /b one")
    vm = (await api.ok("POST", "/fork", {"source_vm_id": first}))["vm_id"]
    await api.run(vm, "put /a two")
    await take(api, vm, "s")
    await api.run(vm, "rm /b; put /c three")
    assert await changes(api, vm, since="s") == {"/b": "deleted", "/c": "added"}
    assert await changes(api, vm) == {"/a": "changed", "/b": "deleted", "/c": "added"}
    assert await changes(api, vm, since="image") == {"/a": "added", "/c": "added"}
    assert await changes(api, vm, since=first) == await changes(api, vm)
    assert await changes(api, vm, to="s") == {"/a": "changed"}
    assert await changes(api, vm, since="s", to="s") == {}
    told = (await api.ok("GET", f"/vms/{vm}/diff", params={"text": "true", "path": "/a", "limit": 1}))["changes"]
    assert told == [] and (await api.ok("GET", f"/vms/{vm}/diff", params={"limit": 1}))["truncated"]


async def test_a_comparison_of_a_vm_at_work_takes_what_is_there_and_leaves_it_alone(api):
    vm = await api.fork()
    running = await api.run(vm, "put /a one; hang", time_to_background=0)
    while not api.machine.boxes.get(vm) or "/a" not in api.machine.boxes[vm].tree():
        await asyncio.sleep(0)
    assert await changes(api, vm) == {"/a": "added"}
    assert (await api.ok("GET", f"/vms/{vm}/runs/{running['run_id']}"))["state"] == "running"
    await api.app.core.layers.settled()
    top = api.machine.boxes[vm].spec.stack.top
    assert set(api.machine.layers) == {top}, "the copy that was compared has gone"


async def test_what_is_compared_stays_until_it_has_been(api):
    vm = await api.fork()
    await api.run(vm, "put /a one")
    api.machine.merge_gate = asyncio.Event()
    asked = asyncio.create_task(changes(api, vm))
    while not api.machine.called("diff"):
        await asyncio.sleep(0)
    await api.ok("DELETE", f"/vms/{vm}")
    await api.app.core.layers.settled()
    assert any(api.machine.layers.values())
    api.machine.merge_gate.set()
    assert await asked == {"/a": "added"}
    await api.app.core.layers.settled()
    assert api.machine.layers == {}


async def test_odd_paths_are_told_in_full(api):
    vm = await api.fork()
    await api.run(vm, "echo")
    api.machine.boxes[vm].top["/\udcff"] = b"x"
    (told,) = (await api.ok("GET", f"/vms/{vm}/diff"))["changes"]
    assert (told["path"], told["path_base64"]) == ("/\ufffd", "L/8=")


async def test_comparisons_that_cannot_be(api):
    vm, other = await api.fork(), await api.fork()
    await take(api, other, "s")
    for query in ({"since": "s"}, {"since": "nobody"}, {"to": "s"}, {"since": "0" * 26}):
        await api.refused(404, "not_found", "GET", f"/vms/{vm}/diff", params=query)
    for query in ({"limit": 0}, {"limit": 10_001}, {"path": "x"}, {"path": "/../etc"}, {"path": "/" + "x" * 5000}):
        await api.refused(400, "bad_request", "GET", f"/vms/{vm}/diff", params=query)
    await api.refused(403, "forbidden", "GET", "/vms/ubuntu/diff")
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/snapshots", {"name": "image"})


async def test_a_session_comes_back_as_what_it_was(api):
    vm = await api.fork()
    python = await api.ok("POST", f"/vms/{vm}/sessions", {"kind": "python"})
    shell = await api.ok("POST", f"/vms/{vm}/sessions", {})
    await take(api, vm, "s")
    for session in (python, shell):
        await api.ok("DELETE", f"/vms/{vm}/sessions/{session['session_id']}")
    await api.ok("POST", f"/vms/{vm}/sessions", {})  # a shell, where the context was
    await api.ok("POST", f"/vms/{vm}/restore", {"snapshot": "s"})
    found = (await api.ok("GET", f"/vms/{vm}/sessions"))["sessions"]
    assert [(one["session_idx"], one.get("kind", "shell")) for one in found] == [
        (0, "shell"),
        (1, "python"),
        (2, "shell"),
    ]
