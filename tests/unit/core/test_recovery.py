"""What a server finds that comes after another one: boxes that live, boxes that died, work that was waiting."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

import fakebox
from boxwood.core import errors
from boxwood.core.core import Core, DataInUse
from boxwood.core.model import ForkRequest
from boxwood.engine.api import EngineError
from boxwood.store import vms as vm_rows


async def test_boxes_and_their_runs_are_taken_over(world):
    vm = await world.fork()
    await world.out(vm, "cd /w; export K=v; put /a 1")
    run = await world.hang(vm, "echo before; hang; echo after")
    behind = await world.run(vm, "pwd; env K; cat /a", wait=0)
    box = world.machine.boxes[vm.vm_id]
    await world.restart()
    assert world.machine.boxes[vm.vm_id] is box
    assert (await world.core.vms.get(world.caller, vm.vm_id)).state == "running"
    await world.release(vm)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.stdout, ended.state, ended.command) == (
        b"before\nafter\n",
        "completed",
        "echo before; hang; echo after",
    )
    assert (await world.core.runs.wait(world.caller, vm.vm_id, behind.run_id)).stdout == b"/w\nv\n1"
    assert len(world.machine.called("boot")) == 1


async def test_runs_that_ended_meanwhile_are_recorded_then_forgotten(world):
    vm = await world.fork()
    run = await world.hang(vm, "hang; echo meanwhile; cd /later")
    await world.core.close()
    await world.release(vm)
    box = world.machine.boxes[vm.vm_id]
    while box.runs[run.run_id].end is None:
        await asyncio.sleep(0)
    await world.start()
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.stdout, ended.exit_code) == (b"meanwhile\n", 0)
    assert not box.runs
    assert await world.out(vm, "pwd") == "/later\n"


async def test_spooled_output_goes_on_where_it_was(make_world):
    world = await make_world(output_bytes=8 << 20)
    vm = await world.fork()
    run = await world.run(vm, "flood 3000000; hang; flood 3000000", wait=0)
    box = world.machine.boxes.get(vm.vm_id)
    while box is None or run.run_id not in box.runs or box.runs[run.run_id].sent[1] < 3_000_000:
        await asyncio.sleep(0.001)
        box = world.machine.boxes.get(vm.vm_id)
    await world.restart()
    await world.release(vm)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert len(ended.stdout) == 6_000_000 and ended.truncated == 0


async def test_runs_of_boxes_that_are_gone_have_failed(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1; cd /w")
    run = await world.hang(vm)
    behind = await world.run(vm, "pwd; cat /a", wait=0)
    await world.core.close()
    world.machine.boxes[vm.vm_id].die("the host was restarted")
    await world.start()
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.state, ended.exit_code) == ("failed", None)
    assert "lost" in ended.fail_reason
    assert (await world.core.runs.wait(world.caller, vm.vm_id, behind.run_id)).stdout == b"/w\n1"


async def test_pending_runs_keep_all_their_options(world):
    vm = await world.fork()
    await world.run(vm, "hang", wait=0)
    pending = await world.run(vm, "stdin; env K; pwd", wait=0, stdin=b"\xff\x00", env={"K": "v"}, cwd="/c", timeout=9)
    await world.restart()
    await world.release(vm)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, pending.run_id)
    assert ended.stdout == b"\xff\x00v\n/c\n"
    assert world.machine.called("start_run")[-1].timeout == 9


async def test_a_run_that_had_no_box_yet_when_the_server_ended(world):
    vm = await world.fork()
    run = await world.run(vm, "echo still", wait=0)
    await world.restart()
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.state, ended.stdout) == ("completed", b"still\n")


async def test_boxes_of_no_vm_are_put_down(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    await world.core.close()
    stranger = world.machine.boxes.pop(vm.vm_id)
    stranger.spec = type(stranger.spec)("01ARZ3NDEKTSV4RRFFQ69G5FAV", stranger.spec.stack)
    world.machine.boxes[stranger.spec.vm_id] = stranger
    await world.start()
    assert not world.machine.boxes
    assert await world.out(vm, "echo new") == "new\n"


async def test_directories_without_a_row_are_removed(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    await world.core.close()
    world.machine.layers["01ARZ3NDEKTSV4RRFFQ69G5FAW"] = {"/junk": b""}
    (world.config.data / "uploads" / "junk").write_bytes(b"x")
    (world.config.data / "spool" / "01ARZ3NDEKTSV4RRFFQ69G5FAW").mkdir()
    await world.start()
    await world.core.layers.settled()
    assert "01ARZ3NDEKTSV4RRFFQ69G5FAW" not in world.machine.layers
    assert not list((world.config.data / "uploads").iterdir())
    assert not list((world.config.data / "spool").iterdir())
    assert await world.out(vm, "cat /a") == "1" and await world.out(child, "cat /a") == "1"


async def test_a_removal_that_failed_is_made_up_for(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    world.machine.fail["remove"] = [OSError(5, "input/output error")]
    await world.core.vms.delete(world.caller, vm.vm_id)
    await world.core.vms.delete(world.caller, child.vm_id)
    await world.core.layers.settled()
    await world.restart()
    await world.core.layers.settled()
    assert world.machine.layers == {}


async def test_shutdown_parks_everything(world):
    vm, busy = await world.fork(), await world.fork()
    await world.out(vm, "cd /w; put /a 1")
    run = await world.hang(busy, "echo some; hang")
    behind = await world.run(busy, "echo then", wait=0)
    waiting = asyncio.create_task(world.core.runs.wait(world.caller, busy.vm_id, run.run_id))
    await asyncio.sleep(0)
    await world.core.shutdown()
    assert not world.machine.boxes
    assert (await waiting).run_id == run.run_id
    await world.start()
    assert await world.out(vm, "pwd; cat /a") == "/w\n1"
    ended = await world.core.runs.get(world.caller, busy.vm_id, run.run_id)
    assert (ended.state, ended.stdout, ended.fail_reason) == ("failed", b"some\n", "the server was shut down")
    assert (await world.core.runs.wait(world.caller, busy.vm_id, behind.run_id)).stdout == b"then\n"


async def test_a_box_that_cannot_be_put_down_keeps_no_other_from_it(world):
    stubborn, vm = await world.fork(), await world.fork()
    await world.out(stubborn, "pwd")
    await world.out(vm, "cd /w; put /a 1")
    world.machine.fail["kill"] = [EngineError("it does not go")]
    await world.core.shutdown()
    assert not world.machine.boxes
    await world.start()
    assert await world.out(vm, "pwd; cat /a") == "/w\n1"


async def test_what_a_box_says_of_runs_of_others_counts_for_nothing(world):
    hostile, vm = await world.fork(), await world.fork()
    await world.out(hostile, "pwd")
    run = await world.hang(vm, "hang; echo after")
    await world.core.close()
    theirs = world.machine.boxes[vm.vm_id].runs[run.run_id]
    world.machine.boxes[hostile.vm_id].runs[run.run_id] = fakebox.Process(theirs.spec)
    await world.start()
    theirs.released.set()
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.state, ended.stdout) == ("completed", b"after\n")


async def test_names_keys_and_repeats_are_kept(world):
    request = ForkRequest(source_name="ubuntu", name="kept", description="d")
    vm = await world.core.vms.fork(world.caller, request, "key")
    key = await world.core.keys.create(world.caller, "second")
    await world.restart()
    assert (await world.core.vms.fork(world.caller, request, "key")).vm_id == vm.vm_id
    assert (await world.core.vms.get(world.caller, "kept")).description == "d"
    assert (await world.core.keys.authenticate(key.key)).org_id == world.caller.org_id
    with pytest.raises(errors.AlreadyExists):
        await world.fork(name="kept")


async def test_one_server_for_a_data_directory(world):
    import fake_engine

    with pytest.raises(DataInUse):
        await Core.open(world.config, fake_engine.FakeEngine(world.machine))
    assert (world.config.data / "root.key").stat().st_mode & 0o777 == 0o600
    assert world.config.data.stat().st_mode & 0o777 == 0o700


async def test_an_image_that_is_not_there(world, machine):
    vm = await world.fork()
    [layer] = machine.images
    (world.config.images / layer / "upper").rename(world.config.images / "elsewhere")
    machine.fail["boot"] = [EngineError("No such file or directory"), EngineError("No such file or directory")]
    run = await world.run(vm, "pwd")
    assert run.state == "failed"
    assert f"stands on ubuntu (image layer {layer}), which is not in {world.config.images}" in run.fail_reason
    with pytest.raises(errors.Conflict, match="put its directory back"):
        await world.core.files.read(world.caller, vm.vm_id, "/f")
    (world.config.images / "elsewhere").rename(world.config.images / layer / "upper")
    assert (await world.run(vm, "pwd")).state == "completed"


async def test_a_box_that_cannot_be_marked_is_put_down(world, machine, monkeypatch):
    vm = await world.fork()

    def full(connection, **mark):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(vm_rows, "boot", full)
        assert (await world.run(vm, "put /f lost")).state == "failed"
        assert not machine.boxes
    assert await world.out(vm, "put /f kept; cat /f") == "kept"


async def test_where_a_session_is(world, machine):
    vm = await world.fork()
    session = vm.sessions[0].session_id
    assert await world.core.sessions.directory(world.caller, vm.vm_id, session) == ""
    await world.run(vm, "cd /srv")
    assert await world.core.sessions.directory(world.caller, vm.vm_id, session) == "/srv"
    await world.restart()
    assert await world.core.sessions.directory(world.caller, vm.vm_id, session) == "/srv"
    await world.core.vms.park(world.caller, vm.vm_id)
    assert await world.core.sessions.directory(world.caller, vm.vm_id, session) == "/srv"
    with pytest.raises(errors.NotFound):
        await world.core.sessions.directory(world.caller, vm.vm_id, vm.vm_id)
