"""VMs that expire, VMs that have been stopped, what they are labelled with; runs beside sessions, and their output."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from boxwood.core import clock, errors, lifetimes
from boxwood.core.model import ClaimRequest, ForkRequest, PoolRequest, RunFilter
from boxwood.engine.api import EngineError
from boxwood.store import vms as vm_rows


async def until_gone(world, vm) -> None:
    while True:
        try:
            await world.core.vms.get(world.caller, vm.vm_id)
        except errors.NotFound:
            return
        await asyncio.sleep(0.002)


# Time


async def test_a_vm_expires(world):
    vm = await world.fork(ttl=0.05, name="short")
    assert vm.expires_at is not None
    other = await world.fork(ttl=3600)
    run = await world.run(vm, "hang", wait=0)
    await until_gone(world, vm)
    assert vm.vm_id not in world.machine.boxes
    with pytest.raises(errors.NotFound):
        await world.core.runs.get(world.caller, vm.vm_id, run.run_id)
    assert (await world.core.vms.get(world.caller, other.vm_id)).expires_at == other.expires_at
    assert (await world.fork()).expires_at is None
    assert (await world.fork(source=other.vm_id)).expires_at is None, "a fork has a time of its own"


async def test_a_vm_whose_time_ended_while_no_server_ran(world):
    vm = await world.fork(ttl=3600)
    await world.out(vm, "pwd")
    await world.core.close()
    with sqlite3.connect(world.config.data / "boxwood.db") as database:
        database.execute("UPDATE vms SET expires_at = 1 WHERE id = ?", (vm.vm_id,))
    database.close()
    assert vm.vm_id in world.machine.boxes
    await world.start()
    await until_gone(world, vm)
    assert not world.machine.boxes


async def test_an_expiry_that_fails_is_tried_again(world, monkeypatch):
    monkeypatch.setattr("boxwood.core.expiry.MOST_SECONDS", 0.01)
    vm = await world.fork()
    await world.out(vm, "pwd")
    world.machine.fail["kill"] = [EngineError("not now")] * 2
    await world.core.vms.extend(world.caller, vm.vm_id, 0)
    await until_gone(world, vm)
    assert not world.machine.fail["kill"]


async def test_extending(world):
    vm = await world.fork(ttl=1000)
    longer = await world.core.vms.extend(world.caller, vm.vm_id, 500)
    assert (longer.expires_at - vm.expires_at).total_seconds() == 500
    short = await world.fork()
    assert (await world.core.vms.extend(world.caller, short.vm_id, 0.02)).expires_at is not None
    await until_gone(world, short)
    for wrong in (-1, float("nan"), 1e12):
        with pytest.raises(errors.BadRequest):
            await world.core.vms.extend(world.caller, vm.vm_id, wrong)
    with pytest.raises(errors.NotFound):
        await world.core.vms.extend(world.caller, short.vm_id, 1)
    with pytest.raises(errors.Forbidden):
        await world.core.vms.extend(world.caller, "ubuntu", 1)


async def test_extended_in_the_last_moment(world):
    """Between the look at who has expired and the deletion."""
    vm = await world.fork(ttl=3600)
    await world.core.vms._expire(vm.vm_id)
    assert (await world.core.vms.get(world.caller, vm.vm_id)).vm_id == vm.vm_id


# Stopped


async def test_stopped_until_started(world):
    vm = await world.fork(name="a")
    await world.out(vm, "cd /w; put /f kept")
    run = await world.run(vm, "hang", wait=0)
    behind = await world.run(vm, "pwd", wait=0)
    await world.core.vms.stop(world.caller, "a")
    for one in (run, behind):
        assert (await world.core.runs.wait(world.caller, "a", one.run_id)).state == "cancelled"
    assert not world.machine.boxes
    await world.restart()
    assert (await world.core.vms.get(world.caller, "a")).stopped
    with pytest.raises(errors.InvalidState, match="stopped"):
        await world.run(vm, "pwd")
    with pytest.raises(errors.InvalidState, match="stopped"):
        await world.core.files.read(world.caller, "a", "/f")
    assert not world.machine.boxes
    child = await world.fork(source=vm.vm_id)
    assert not child.stopped and await world.out(child, "pwd; cat /f") == "/w\nkept"
    await world.core.vms.start(world.caller, "a")
    assert vm.vm_id in world.machine.boxes
    assert await world.out(vm, "pwd; cat /f") == "/w\nkept"


async def test_what_is_on_its_way_does_not_boot_a_stopped_vm(world):
    vm = await world.fork()
    row = world.core._database
    await row.write(lambda connection: connection.execute("UPDATE vms SET stopped = 1"))
    with pytest.raises(errors.InvalidState, match="stopped"):
        await world.core._boxes.enter(vm.vm_id)


async def test_the_box_of_a_stopped_vm_is_not_taken_over(world):
    """The server died between the mark and the end of the box."""
    vm = await world.fork()
    run = await world.hang(vm)
    await world.core.close()
    with sqlite3.connect(world.config.data / "boxwood.db") as database:
        database.execute("UPDATE vms SET stopped = 1")
    database.close()
    await world.start()
    assert not world.machine.boxes
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "failed"
    assert (await world.core.vms.update(world.caller, vm.vm_id, name="still-mine")).stopped


async def test_stop_twice_start_twice_and_what_cannot_be_stopped(world):
    vm = await world.fork()
    await asyncio.gather(*(world.core.vms.stop(world.caller, vm.vm_id) for _ in range(3)))
    await asyncio.gather(*(world.core.vms.start(world.caller, vm.vm_id) for _ in range(3)))
    assert len(world.machine.called("boot")) == 1
    await world.core.vms.update(world.caller, vm.vm_id, immutable=True)
    for change in (world.core.vms.stop, world.core.vms.start):
        with pytest.raises(errors.InvalidState):
            await change(world.caller, vm.vm_id)
        with pytest.raises(errors.Forbidden):
            await change(world.caller, "ubuntu")


# Labels and names


async def test_labels_and_own_names(world):
    vm = await world.fork(name="ubuntu", labels={"a/b": "c"})
    assert vm.labels == {"a/b": "c"}
    assert (await world.core.vms.named(world.caller, "ubuntu")).vm_id == vm.vm_id
    assert (await world.core.vms.get(world.caller, "ubuntu")).vm_id != vm.vm_id
    await world.restart()
    assert (await world.core.vms.get(world.caller, vm.vm_id)).labels == {"a/b": "c"}
    assert (await world.fork(source=vm.vm_id)).labels == {}
    for wrong in ({"a": "\0"}, {"a": "x" * 20_000}, {"\ud800": "x"}):
        with pytest.raises(errors.BadRequest):
            await world.fork(labels=wrong)
    with pytest.raises(errors.NotFound):
        await world.core.vms.named(world.caller, "arkuntu")
    with pytest.raises(errors.NotFound):
        await world.core.vms.named(world.caller, "ü")


async def test_discard(world):
    vm = await world.fork(name="a")
    world.core.vms.discard(world.caller, vm.vm_id)
    world.core.vms.discard(world.caller, vm.vm_id)
    await until_gone(world, vm)
    with pytest.raises(errors.NotFound):
        world.core.vms.discard(world.caller, vm.vm_id)


# Runs beside sessions


async def test_runs_beside_wait_for_nobody_and_change_nothing(world):
    vm = await world.fork()
    await world.out(vm, "cd /w; export K=v")
    hanging = [await world.run(vm, "hang", wait=0, beside=True) for _ in range(3)]
    assert await world.out(vm, "pwd; env K; cd /x", beside=True) == "/root\n\n"
    assert await world.out(vm, "pwd; env K") == "/w\nv\n"
    assert len({run.session_id for run in hanging}) == 3
    await world.release(vm)
    for run in hanging:
        await world.core.runs.ended(world.caller, vm.vm_id, run.run_id)
    again = [await world.run(vm, "pwd", beside=True) for _ in range(5)]
    assert {run.session_id for run in again} <= {run.session_id for run in hanging} | {again[0].session_id}
    shown = (await world.core.vms.get(world.caller, vm.vm_id)).sessions
    assert [session.index for session in shown] == [0]
    assert (await world.core.sessions.create(world.caller, vm.vm_id)).index == 1
    child = await world.fork(source=vm.vm_id)
    assert [session.index for session in child.sessions] == [0, 1]


async def test_many_beside_at_once(world):
    vm = await world.fork()
    runs = await asyncio.gather(*(world.run(vm, f"echo {number}", beside=True) for number in range(50)))
    assert [run.stdout for run in runs] == [f"{number}\n".encode() for number in range(50)]


async def test_tags(world):
    vm = await world.fork()
    tagged = await world.run(vm, "hang", tag="mine", wait=0)
    await world.run(vm, "pwd", beside=True)
    assert tagged.tag == "mine"

    async def found():
        page = await world.core.runs.list(world.caller, vm.vm_id, RunFilter(tag="mine"))
        return [(run.run_id, run.tag) for run in page.items]

    assert await found() == [(tagged.run_id, "mine")]
    await world.restart()
    assert await found() == [(tagged.run_id, "mine")]
    assert (await world.core.runs.get(world.caller, vm.vm_id, tagged.run_id)).tag == "mine"
    await world.release(vm)
    await world.core.runs.ended(world.caller, vm.vm_id, tagged.run_id)
    assert await found() == [(tagged.run_id, "mine")]


# Output while it comes


async def read_all(world, vm, run_id, seconds=60.0):
    out, err, out_at, err_at = b"", b"", 0, 0
    while True:
        piece = await world.core.runs.output(world.caller, vm.vm_id, run_id, out_at, err_at, seconds)
        out, err = out + piece.stdout, err + piece.stderr
        out_at, err_at = piece.out_at, piece.err_at
        assert (len(out), len(err)) == (out_at, err_at)
        if piece.ended:
            return out, err


async def test_output_comes_as_soon_as_it_is_there(world):
    vm = await world.fork()
    run = await world.run(vm, "echo a; hang; err b", wait=0)
    piece = await world.core.runs.output(world.caller, vm.vm_id, run.run_id, 0, 0, 60)
    assert (piece.stdout, piece.stderr, piece.ended) == (b"a\n", b"", False)
    nothing = await world.core.runs.output(world.caller, vm.vm_id, run.run_id, 2, 0, 0.01)
    assert (nothing.stdout, nothing.stderr, nothing.ended, nothing.out_at) == (b"", b"", False, 2)
    waiting = asyncio.create_task(world.core.runs.output(world.caller, vm.vm_id, run.run_id, 2, 0, 60))
    await world.release(vm)
    assert (await waiting).stderr == b"b\n"
    assert await read_all(world, vm, run.run_id) == (b"a\n", b"b\n")
    with pytest.raises(errors.NotFound):
        await world.core.runs.output(world.caller, vm.vm_id, "nope", 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
async def test_all_of_the_output_is_read_while_it_comes_and_afterwards(world, size):
    vm = await world.fork()
    run = await world.run(vm, f"flood {size}; err end", wait=0)
    assert await read_all(world, vm, run.run_id) == (b"x" * size, b"end\n")
    assert await read_all(world, vm, run.run_id) == (b"x" * size, b"end\n")


async def test_the_end_of_the_server_is_no_end_of_a_run(world):
    vm = await world.fork()
    run = await world.run(vm, "hang", wait=0)
    waiting = asyncio.create_task(world.core.runs.ended(world.caller, vm.vm_id, run.run_id))
    await asyncio.sleep(0)
    world.core._lanes.stop()
    with pytest.raises(errors.Unavailable, match="goes on"):
        await waiting


# Bounds of keys


async def with_key(world, **times):
    """The caller that a new key makes of whoever has it."""
    made = await world.core.keys.create(world.caller, "bounded", **times)
    return await world.core.keys.authenticate(made.key), made


def lives(vm) -> float:
    return (vm.expires_at - vm.created_at).total_seconds()


async def test_a_key_has_a_default_and_a_ceiling_for_what_is_made_with_it(world):
    caller, made = await with_key(world, ttl_default=100.0, ttl_most=1000.0)
    assert (made.ttl_default, made.ttl_most) == (100, 1000)
    world.caller, root = caller, world.caller
    assert lives(await world.fork()) == 100
    vm = await world.fork(ttl=1000)
    assert lives(vm) == 1000
    assert lives(await world.fork(ttl=5000)) == 1000, "what a protocol wants of its own accord is cut"
    with pytest.raises(errors.BadRequest, match="1000 seconds at most"):
        lifetimes.check_new(caller, 1001)
    assert lives(await world.core.vms.extend(caller, vm.vm_id, 500)) == 1000
    assert lives(await world.core.vms.expire_in(caller, vm.vm_id, None)) == 1000
    for ttl in (None, 2000.0):
        with pytest.raises(errors.BadRequest, match="1000 seconds at most"):
            await world.core.vms.update(caller, vm.vm_id, ttl=ttl, description="changed")
    assert (await world.core.vms.get(caller, vm.vm_id)).description is None
    assert lives(await world.core.vms.update(caller, vm.vm_id, ttl=500.0)) < 1000
    assert (await world.core.vms.update(root, vm.vm_id, ttl=None)).expires_at is None, "another key has no ceiling"


async def test_a_ceiling_alone_is_the_default_too(world):
    caller, _ = await with_key(world, ttl_most=60.0)
    vm = await world.core.vms.fork(caller, ForkRequest(source_name="ubuntu"))
    assert lives(vm) == 60


async def test_what_is_claimed_from_a_pool_has_the_bounds_of_the_key_too(world):
    await world.core.pools.create(world.caller, PoolRequest("workers", source_name="ubuntu"))
    caller, _ = await with_key(world, ttl_default=100.0, ttl_most=200.0)
    assert lives(await world.core.pools.claim(caller, "workers")) == 100
    assert lives(await world.core.pools.claim(caller, "workers", request=ClaimRequest(ttl=201))) == 200


async def test_keys_that_a_key_makes_are_bound_as_it_is(world):
    caller, _ = await with_key(world, ttl_most=60.0, expires_in=3600.0)
    made = await world.core.keys.create(caller, "second")
    first = next(key for key in await world.core.keys.list(world.caller) if key.name == "bounded")
    assert (made.ttl_most, made.expires_at) == (60, first.expires_at)
    for times in ({"ttl_most": 61.0}, {"ttl_default": 61.0}, {"expires_in": 3601.0}, {"ttl_most": float("nan")}):
        with pytest.raises(errors.BadRequest):
            await world.core.keys.create(caller, "third", **times)


async def test_bounds_of_keys_outlive_the_server(world):
    made = await world.core.keys.create(world.caller, "ci", ttl_default=5.0, ttl_most=7.0, expires_in=1000.0)
    await world.restart()
    caller = await world.core.keys.authenticate(made.key)
    assert (caller.ttl_default, caller.ttl_most) == (5, 7)
    (again,) = [key for key in await world.core.keys.list(world.caller) if key.key_id == made.key_id]
    assert again.expires_at == made.expires_at


async def test_a_key_expires(world):
    told = []
    world.core.keys.revoked_hooks.append(told.append)
    made = await world.core.keys.create(world.caller, "short", expires_in=0.02)
    while not told:
        await asyncio.sleep(0.002)
    assert told == [made.key_id]
    assert [key.name for key in await world.core.keys.list(world.caller)] == ["root"]
    with pytest.raises(errors.Unauthorized):
        await world.core.keys.authenticate(made.key)


async def test_a_key_whose_time_is_over_opens_nothing_also_before_it_is_forgotten(world, monkeypatch):
    made = await world.core.keys.create(world.caller, "short", expires_in=3600.0)
    await world.core.keys.authenticate(made.key)
    later = clock.now() + 3601 * 1_000_000
    monkeypatch.setattr(clock, "now", lambda: later)
    with pytest.raises(errors.Unauthorized, match="expired"):
        await world.core.keys.authenticate(made.key)


async def test_a_box_that_could_not_be_fitted_out_holds_no_layers(world, monkeypatch):
    vm = await world.fork()

    async def failing(vm_id, box):
        raise errors.Internal("the database failed")

    with monkeypatch.context() as patch:
        patch.setattr(world.core._boxes.making, "made_hook", failing)
        assert (await world.run(vm, "echo hi")).fail_reason == "the database failed"
    await world.core._database.flush()
    assert world.machine.boxes == {} and vm_rows.by_id(world.core._database.near, vm.vm_id).box_base is None
    assert await world.out(vm, "echo hi") == "hi\n"
