"""Whether there is room for one more: refused is what was not started."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.core import errors
from boxwood.core.model import PoolRequest
from boxwood.engine.api import EngineError

GIB = 1 << 30


def refused(match):
    return pytest.raises(errors.CapacityUnavailable, match=match)


async def test_so_many_vms(make_world):
    world = await make_world(vms_most=2)
    made = [await world.fork() for _ in range(2)]
    with refused("vms_most") as caught:
        await world.fork(name="third")
    assert caught.value.recovery == {"work": "not_started"} and caught.value.retry_after
    with pytest.raises(errors.NotFound):
        await world.core.vms.named(world.caller, "third")
    await world.core.vms.delete(world.caller, made[0].vm_id)
    await world.fork(name="third")
    await world.restart()
    with refused("vms_most"):
        await world.fork()


async def test_a_disk_that_is_nearly_full(world):
    world.machine.free_disk = 10 << 20
    with refused("disk_spare_mib"):
        await world.fork()
    world.machine.free_disk = GIB
    await world.fork()


async def test_so_many_boxes(make_world):
    world = await make_world(boxes_most=2)
    busy = await world.fork()
    await world.run(busy, "hang", wait=0)
    vms = [await world.fork() for _ in range(3)]
    for vm in vms:  # each in place of the one before, which is idle
        assert await world.out(vm, "put /x y; cat /x") == "y"
        assert len(world.machine.boxes) == 2
    await world.run(vms[0], "hang", wait=0)
    run = await world.run(vms[1], "echo")
    assert (run.state, "boxes_most" in run.fail_reason) == ("failed", True)
    await world.release(busy)
    while (await world.core.vms.get(world.caller, busy.vm_id)).state == "running":
        await asyncio.sleep(0)
    assert await world.out(vms[1], "cat /x") == "y"


async def test_something_lives_in_the_idle_one(make_world):
    world = await make_world(boxes_most=1)
    vm, other = await world.fork(), await world.fork()
    await world.out(vm, "daemon")
    run = await world.run(other, "echo")
    assert run.state == "failed" and vm.vm_id in world.machine.boxes


@pytest.mark.parametrize("what", ["settle", "kill"])
async def test_a_box_that_cannot_be_parked_is_passed_over(make_world, what):
    world = await make_world(boxes_most=2)
    stubborn, other, new = [await world.fork() for _ in range(3)]
    await world.out(stubborn, "pwd")
    await world.out(other, "pwd")
    world.machine.fail[what] = [EngineError("it does not answer")]
    assert await world.out(new, "echo hi") == "hi\n"
    assert world.machine.boxes.keys() == {stubborn.vm_id, new.vm_id}


async def test_memory_that_is_short(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    other = await world.fork()
    world.machine.free_memory = 10 << 20
    run = await world.run(other, "echo")
    assert "memory_spare_mib" in run.fail_reason
    assert not world.machine.boxes, "who is idle makes room first"
    world.machine.free_memory = GIB
    assert await world.out(other, "echo x") == "x\n"


async def test_what_waits_in_a_pool_gives_way_to_what_is_used(make_world):
    world = await make_world(boxes_most=2)
    pools, caller = world.core.pools, world.caller
    await pools.create(caller, PoolRequest("p", source_name="ubuntu", replicas=2))
    while pools.get(caller, "p").ready < 2:
        await asyncio.sleep(0)
    used = await world.fork()
    assert (await world.run(used, "daemon")).state == "completed"
    while not (problem := pools.get(caller, "p").problem):
        await asyncio.sleep(0)
    assert "boxes_most" in problem and used.vm_id in world.machine.boxes
    assert pools.get(caller, "p").ready == 1, "one that waits does not give way to another that would"
    assert (await world.run(await world.fork(), "daemon")).state == "completed"
    refused = await world.run(await world.fork(), "echo")
    assert (refused.state, pools.get(caller, "p").ready) == ("failed", 0)
    claimed = await pools.claim(caller, "p")
    assert not claimed.live, "an empty pool forks"
