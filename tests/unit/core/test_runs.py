"""Runs: what they answer, how they queue, end, grow and are cancelled."""

from __future__ import annotations

import asyncio
import signal

import pytest

from boxwood.core import errors
from boxwood.core.model import RunFilter, RunRequest
from boxwood.engine.api import BoxGone, EngineError


async def test_streams_and_exit_codes(world):
    vm = await world.fork()
    run = await world.run(vm, "echo out; err oops; exit 3")
    assert (run.stdout, run.stderr, run.exit_code, run.state) == (b"out\n", b"oops\n", 3, "completed")
    assert run.ended and run.duration_ms is not None and run.completed_at >= run.started_at
    again = await world.core.runs.get(world.caller, vm.vm_id, run.run_id)
    assert again == run


async def test_state_lives_on_and_sessions_are_apart(world):
    vm = await world.fork()
    await world.out(vm, "cd /a; export K=1")
    assert await world.out(vm, "pwd; env K") == "/a\n1\n"
    assert await world.out(vm, "pwd; env K", session_index=7) == "/root\n\n"
    assert await world.out(vm, "pwd; env K", env={"K": "2"}, cwd="/b") == "/b\n2\n"
    assert await world.out(vm, "pwd; env K") == "/a\n1\n"
    assert await world.out(vm, "stdin", stdin=b"given") == "given"


async def test_one_at_a_time_in_a_session_in_order(world):
    vm = await world.fork()
    first = await world.run(vm, "hang; put /order 1", wait=0)
    second = await world.run(vm, "cat /order; put /order 2", wait=0)
    third = await world.run(vm, "cat /order", wait=0)
    other = await world.run(vm, "echo beside", session_index=1)
    assert other.stdout == b"beside\n"
    assert [first.state, second.state, third.state] == ["running", "pending", "pending"]
    states = [s.state for s in (await world.core.sessions.list(world.caller, vm.vm_id)).items]
    assert states == ["running", "idle"]
    assert (await world.core.vms.get(world.caller, vm.vm_id)).state == "running"
    await world.release(vm)
    assert (await world.core.runs.wait(world.caller, vm.vm_id, third.run_id)).stdout == b"2"
    assert (await world.core.runs.get(world.caller, vm.vm_id, second.run_id)).stdout == b"1"
    assert (await world.core.vms.get(world.caller, vm.vm_id)).state == "idle"


async def test_waiting_shorter_than_the_run(world):
    vm = await world.fork()
    run = await world.hang(vm, "echo early; hang; echo late")
    run = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id, seconds=0.02)
    assert run.state == "running" and run.stdout == b"early\n" and not run.ended
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).stdout == b"early\n"
    waiting = asyncio.create_task(world.core.runs.wait(world.caller, vm.vm_id, run.run_id))
    await asyncio.sleep(0)
    await world.release(vm)
    assert (await waiting).stdout == b"early\nlate\n"


async def test_a_waiter_that_goes_away_harms_no_run(world):
    vm = await world.fork()
    started = await world.run(vm, "hang; echo done", wait=0)
    waiter = asyncio.create_task(world.core.runs.wait(world.caller, vm.vm_id, started.run_id))
    await asyncio.sleep(0)
    waiter.cancel()
    await world.release(vm)
    assert (await world.core.runs.wait(world.caller, vm.vm_id, started.run_id)).stdout == b"done\n"


async def test_timeout_and_prompt(world):
    vm = await world.fork()
    run = await world.run(vm, "echo before; hang", timeout=0.01)
    assert (run.state, run.stdout, run.exit_code) == ("failed", b"before\n", 137)
    assert run.fail_reason.startswith("timed out")
    run = await world.run(vm, "prompt")
    assert (run.state, run.exit_code) == ("completed", None)


async def test_cancel(world):
    vm = await world.fork()
    running = await world.run(vm, "echo some; hang", wait=0)
    while not (await world.core.runs.get(world.caller, vm.vm_id, running.run_id)).stdout:
        await asyncio.sleep(0)
    pending = await world.run(vm, "put /never x", wait=0)
    cancel = world.core.runs.cancel
    assert await cancel(world.caller, vm.vm_id, pending.run_id)
    assert await cancel(world.caller, vm.vm_id, running.run_id)
    assert not await cancel(world.caller, vm.vm_id, running.run_id)
    ended = await world.core.runs.get(world.caller, vm.vm_id, running.run_id)
    assert (ended.state, ended.exit_code, ended.stdout) == ("cancelled", None, b"some\n")
    assert (await world.core.runs.get(world.caller, vm.vm_id, pending.run_id)).state == "cancelled"
    assert (await world.run(vm, "cat /never")).exit_code == 1
    for unknown in ("nothing", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "\ud800"):
        with pytest.raises(errors.NotFound) as refusal:
            await cancel(world.caller, vm.vm_id, unknown)
        assert refusal.value.resource == "run"


async def test_cancel_before_the_box_is_there(world):
    vm = await world.fork()
    started = await world.run(vm, "put /x 1", wait=0)
    assert await world.core.runs.cancel(world.caller, vm.vm_id, started.run_id)
    assert (await world.run(vm, "cat /x")).exit_code == 1


async def test_signals(world):
    vm = await world.fork()
    send = world.core.runs.signal
    with pytest.raises(errors.InvalidState):
        await send(world.caller, vm.vm_id, signal.SIGINT)
    await world.out(vm, "pwd")
    with pytest.raises(errors.NotFound):
        await send(world.caller, vm.vm_id, signal.SIGINT)
    run = await world.hang(vm)
    await send(world.caller, vm.vm_id, signal.SIGTERM)
    assert (await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)).exit_code == 128 + 15


async def test_large_output_is_spooled_and_bounded(make_world):
    world = await make_world(output_bytes=3 << 20)
    vm = await world.fork()
    run = await world.run(vm, "flood 5000000; echo; err e")
    assert len(run.stdout) == 3 << 20 and run.truncated == 5_000_001 - (3 << 20)
    assert run.stderr == b"e\n"
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).stdout == run.stdout
    file = world.config.data / "spool" / vm.vm_id / f"{run.run_id}.out"
    assert file.stat().st_size == 3 << 20 and file.stat().st_mode & 0o777 == 0o600
    assert not file.with_suffix(".err").exists()


async def test_output_just_around_the_bound_of_memory(world):
    vm = await world.fork()
    for size in (65535, 65536, 65537, 200_000):
        run = await world.run(vm, f"flood {size}")
        assert len(run.stdout) == size
        assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).stdout == run.stdout


async def test_lost_spool_is_said_to_be_lost(world):
    vm = await world.fork()
    run = await world.run(vm, "flood 100000")
    (world.config.data / "spool" / vm.vm_id / f"{run.run_id}.out").unlink()
    with pytest.raises(errors.Unrecoverable):
        await world.core.runs.get(world.caller, vm.vm_id, run.run_id)


async def test_a_box_that_dies_fails_its_runs_and_comes_back(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1; cd /w")
    run = await world.hang(vm, "echo so far; hang")
    behind = await world.run(vm, "pwd; cat /a", wait=0)
    world.machine.boxes[vm.vm_id].die("out of memory")
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.state, ended.stdout, ended.exit_code) == ("failed", b"so far\n", None)
    assert "out of memory" in ended.fail_reason
    assert (await world.core.runs.wait(world.caller, vm.vm_id, behind.run_id)).stdout == b"/w\n1"


async def test_a_box_that_died_unnoticed_is_tried_once_more(world):
    vm = await world.fork()
    await world.out(vm, "pwd", session_index=1)
    world.machine.fail["open_session"] = [BoxGone("gone")]
    assert await world.out(vm, "echo here") == "here\n"
    world.machine.fail["start_run"] = [BoxGone("gone")]  # the command may have been on its way: never twice
    run = await world.run(vm, "echo here")
    assert run.state == "failed" and "gone" in run.fail_reason


async def test_a_host_that_makes_no_boxes(world):
    vm = await world.fork()
    world.machine.fail["boot"] = [EngineError("no more processes")]
    run = await world.run(vm, "echo")
    assert run.state == "failed" and "no more processes" in run.fail_reason
    assert await world.out(vm, "echo fine") == "fine\n"


async def test_first_uses_at_once_make_one_box(world):
    vm = await world.fork()
    runs = await asyncio.gather(*[world.run(vm, "echo", session_index=i) for i in range(20)])
    assert {run.state for run in runs} == {"completed"}
    assert len(world.machine.called("boot")) == 1


async def test_idle_boxes_are_parked_and_busy_ones_are_not(make_world):
    world = await make_world(idle_seconds=0.01)
    vm, busy = await world.fork(), await world.fork()
    await world.out(busy, "daemon")
    await world.out(vm, "cd /w; export K=v")
    while vm.vm_id in world.machine.boxes:
        await asyncio.sleep(0.005)
    assert not (await world.core.vms.get(world.caller, vm.vm_id)).live
    assert await world.out(vm, "pwd; env K") == "/w\nv\n"
    run = await world.hang(vm)
    assert run.state == "running" and vm.vm_id in world.machine.boxes and busy.vm_id in world.machine.boxes
    with pytest.raises(errors.ResourceBusy):
        await world.core.vms.park(world.caller, vm.vm_id)
    await world.release(vm)


async def test_queueing_timeout(world):
    vm = await world.fork()
    await world.run(vm, "hang", wait=0)
    with pytest.raises(errors.Unavailable) as refusal:
        await world.run(vm, "put /x 1", queueing_timeout=0.01)
    assert refusal.value.recovery == {"work": "not_started"}
    await world.release(vm)
    assert (await world.run(vm, "cat /x")).exit_code == 1


async def test_idempotent_runs(world):
    vm = await world.fork()
    start, request = world.core.runs.start, RunRequest("echo once", wait=5)
    first = await start(world.caller, vm.vm_id, request, "key")
    assert await start(world.caller, vm.vm_id, RunRequest("echo once", wait=1, queueing_timeout=3), "key") == first
    with pytest.raises(errors.IdempotencyConflict):
        await start(world.caller, vm.vm_id, RunRequest("echo twice"), "key")
    other = await world.fork()
    assert (await start(world.caller, other.vm_id, request, "key")).run_id != first.run_id
    assert len(world.machine.called("start_run")) == 2


async def test_the_empty_request_resumes_what_is_pending(world):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.core.runs.resume(world.caller, vm.vm_id)
    await world.run(vm, "hang", wait=0)
    pending = await world.run(vm, "echo p", wait=0)
    resumed = asyncio.create_task(world.core.runs.resume(world.caller, vm.vm_id))
    await asyncio.sleep(0)
    await world.release(vm)
    assert ((await resumed).run_id, (await resumed).stdout) == (pending.run_id, b"p\n")


async def test_lists(world):
    vm = await world.fork()
    runs = [await world.run(vm, f"echo {i}") for i in range(5)]
    hanging = await world.run(vm, "hang", wait=0)
    listed = world.core.runs.list
    page = await listed(world.caller, vm.vm_id, limit=4)
    assert [r.run_id for r in page.items] == [r.run_id for r in [hanging, *reversed(runs)]][:4]
    assert all(r.stdout == b"" for r in page.items)
    rest = await listed(world.caller, vm.vm_id, cursor=page.next_cursor, limit=4)
    assert [r.run_id for r in rest.items] == [runs[1].run_id, runs[0].run_id] and rest.next_cursor is None
    assert [r.run_id for r in (await listed(world.caller, vm.vm_id, RunFilter("running"))).items] == [hanging.run_id]
    middle = runs[2].started_at
    assert len((await listed(world.caller, vm.vm_id, RunFilter(started_after=middle))).items) == 4
    assert len((await listed(world.caller, vm.vm_id, RunFilter(started_before=middle))).items) == 3
    assert len((await listed(world.caller, vm.vm_id, RunFilter(completed_after=runs[4].completed_at))).items) == 1
    other = await world.fork()
    for cursor in ("", "x", "AAAA", page.next_cursor[:-1] + "é", page.next_cursor + "A", "\ud800"):
        with pytest.raises(errors.BadRequest):
            await listed(world.caller, vm.vm_id, cursor=cursor)
    with pytest.raises(errors.BadRequest):
        await listed(world.caller, other.vm_id, cursor=page.next_cursor)
    with pytest.raises(errors.BadRequest):
        await listed(world.caller, vm.vm_id, RunFilter("sleeping"))
    for limit in (0, 1001, -1):
        with pytest.raises(errors.BadRequest):
            await listed(world.caller, vm.vm_id, limit=limit)


@pytest.mark.parametrize(
    "members",
    [
        {"command": "a\0b"},
        {"command": "\ud800"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"wait": -1},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "c\0"}},
        {"user": "root;id"},
        {"user": "-x"},
        {"cwd": "relative"},
        {"cwd": "/a\0"},
        {"prompt": "sometimes"},
        {"session_index": -1},
        {"session_index": 1 << 32},
    ],
)
async def test_bad_requests(world, members):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.run(vm, **{"command": "echo"} | members)
    assert not (await world.core.runs.list(world.caller, vm.vm_id)).items


async def test_too_large(world):
    vm = await world.fork()
    with pytest.raises(errors.PayloadTooLarge):
        await world.run(vm, "x" * ((4 << 20) + 1))
    run = await world.run(vm, "echo " + "x" * ((4 << 20) - 5))
    assert len(run.stdout) == (4 << 20) - 4


async def test_unknown_sessions(world):
    vm, other = await world.fork(), await world.fork()
    for session in ("nothing", other.sessions[0].session_id):
        with pytest.raises(errors.NotFound) as refusal:
            await world.run(vm, "echo", session_id=session)
        assert refusal.value.resource == "session"


async def test_an_agent_that_floods_is_put_down(world):
    vm = await world.fork()
    run = await world.hang(vm)
    process = world.machine.boxes[vm.vm_id].runs[run.run_id]
    for piece in range(40):
        if process.sink is None:
            break
        process.sink.output(1, piece << 20, b"x" * (1 << 20))
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert ended.state == "failed" and vm.vm_id not in world.machine.boxes


async def test_states_of_a_hostile_box_are_kept_out(world):
    vm, other = await world.fork(), await world.fork()
    await world.out(other, "cd /mine")
    await world.out(vm, "pwd")
    sink = world.machine.boxes[vm.vm_id].handle.sink
    sink.state(other.sessions[0].session_id, "/stolen", {}, b"{}")
    sink.state(vm.sessions[0].session_id, "/big", {}, b"x" * (9 << 20))
    sink.state(vm.sessions[0].session_id, "/odd\udcff", {"K": "\udcff"}, b'["/odd", {}]')
    await world.core.vms.park(world.caller, other.vm_id)
    assert await world.out(other, "pwd") == "/mine\n"
    assert (await world.core.sessions.get(world.caller, vm.vm_id, vm.sessions[0].session_id)).cwd == "/odd?"


async def test_what_was_killed_for_want_of_memory(world):
    vm = await world.fork()
    plain = await world.run(vm, "exit 137")
    assert (plain.exit_code, plain.fail_reason) == (137, None)
    world.machine.boxes[vm.vm_id].memory_kills = 2
    killed = await world.run(vm, "exit 137")
    assert killed.state == "completed" and "out of memory: 2 of" in killed.fail_reason
    assert (await world.run(vm, "exit 137")).fail_reason is None, "that was told already"
    assert (await world.core.runs.get(world.caller, vm.vm_id, killed.run_id)).fail_reason == killed.fail_reason


async def test_a_run_that_has_begun_or_ended_is_not_kept_for_its_queueing_timeout(world):
    vm = await world.fork()
    await world.run(vm, "hang", wait=0)
    begins = await world.run(vm, "echo hi", wait=0, queueing_timeout=1e6)
    cancelled = await world.run(vm, "echo hi", wait=0, queueing_timeout=1e6)
    runs = [world.core._lanes.find(vm.vm_id, run.run_id) for run in (begins, cancelled)]
    timers = [run.patience for run in runs]
    await world.core.runs.cancel(world.caller, vm.vm_id, cancelled.run_id)
    await world.release(vm)
    assert (await world.core.runs.wait(world.caller, vm.vm_id, begins.run_id)).state == "completed"
    assert all(timer.cancelled() for timer in timers)
