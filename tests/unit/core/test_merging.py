"""Merges beside forks: who waits for them, and what happens where they fail or find no room."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from boxwood.core import errors, merging
from boxwood.core.model import Resources
from boxwood.engine.api import EngineError
from boxwood.store import layers as rows

MIB = 1 << 20


async def grown(world, vm, count):
    """The last of a chain of so many forks, each of which had something written."""
    for step in range(count):
        await world.out(vm, f"put /f{step} {step}")
        vm = await world.fork(vm.vm_id)
    return vm


async def depth(world, vm):
    return (await world.core.vms.get(world.caller, vm.vm_id)).depth


async def test_a_fork_waits_for_the_merge_that_it_needs(make_world):
    world = await make_world(layers_merged_above=2, layers_refused_above=4)
    world.machine.merge_gate = asyncio.Event()
    vm = await grown(world, await world.fork(), 4)
    assert await depth(world, vm) == 4
    waiting = asyncio.ensure_future(world.fork(vm.vm_id))
    assert await world.out(vm, "cat /f0; cat /f3") == "03"  # the source goes on
    assert not waiting.done()
    world.machine.merge_gate.set()
    child = await waiting
    assert await depth(world, child) <= 2
    assert await world.out(child, "cat /f0; cat /f3") == "03"


async def test_layers_beneath_the_top_of_a_live_box_stay(make_world):
    """What was grown upon while it was merged: the merged layer takes its place beneath what boxes live on."""
    world = await make_world(layers_merged_above=2, layers_refused_above=100)
    world.machine.merge_gate = asyncio.Event()
    vm = await grown(world, await world.fork(), 8)
    assert await world.out(vm, "cat /f0; cat /f7") == "07"
    world.machine.merge_gate.set()
    await world.core.layers.settled()
    for one in (await world.core.upkeep.usage()).vms:
        if one.vm_id != vm.vm_id and one.name is None:
            await world.core.vms.delete(world.caller, one.vm_id)
    await world.core.layers.settled()
    assert await world.out(vm, "cat /f0; cat /f3; cat /f7") == "037"  # the fake refuses to remove what a box stands on
    await world.restart()
    await world.core.layers.settled()
    assert (await world.core.upkeep.collect(dry_run=True)).layers == []
    assert await world.out(vm, "cat /f0; cat /f3; cat /f7") == "037"
    await world.core.vms.park(world.caller, vm.vm_id)
    await world.core.layers.settled()
    assert await world.out(vm, "cat /f0; cat /f3; cat /f7") == "037"
    assert len(world.machine.layers) <= 4


async def test_who_waits_comes_first(make_world):
    world = await make_world(layers_merged_above=2, layers_refused_above=4)
    world.machine.merge_gate = asyncio.Event()
    others = [await grown(world, await world.fork(), 3) for _ in range(5)]
    vm = await grown(world, await world.fork(), 4)
    waiting = asyncio.ensure_future(world.fork(vm.vm_id))
    await asyncio.sleep(0)
    world.machine.merge_gate.set()
    await waiting
    assert [len(chain) for chain in world.machine.called("merge")][:3] == [3, 4, 3], "beside what was on its way"
    await world.core.layers.settled()
    for other in others:
        assert await depth(world, other) <= 2


async def test_who_waits_does_not_wait_for_layers_that_are_moved(make_world):
    world = await make_world(layers_merged_above=2, layers_refused_above=4)
    limited = [await world.fork(resources=Resources(disk_mib=20)) for _ in range(2)]
    deep = await grown(world, await world.fork(), 2)
    world.machine.merge_gate = asyncio.Event()
    for vm in limited:
        await world.out(vm, "put /b x")
        await world.fork(vm.vm_id)
    while not world.machine.called("merge"):
        await asyncio.sleep(0)
    deep = await grown(world, deep, 2)
    waiting = asyncio.ensure_future(world.fork(deep.vm_id))
    await asyncio.sleep(0)
    world.machine.merge_gate.set()
    await waiting
    assert [len(chain) for chain in world.machine.called("merge")][:2] == [1, 4]


async def test_who_cannot_be_merged_is_refused_with_the_reason_and_goes_on(make_world):
    world = await make_world(layers_merged_above=2, layers_refused_above=4)
    world.machine.fail["merge"] = [EngineError("no space left on the device")]
    vm = await grown(world, await world.fork(), 4)
    with pytest.raises(errors.ResourceBusy, match="cannot be merged now: no space left"):
        await world.fork(vm.vm_id)
    assert len(world.machine.called("merge")) == 1, "after a failure there is a pause"
    assert await world.out(vm, "cat /f0; put /f0 x; cat /f0") == "0x"
    await world.core.layers.settled()
    assert set(world.machine.layers) == await world.core.engine.stored()


async def test_after_the_pause_it_is_tried_again(make_world, monkeypatch):
    monkeypatch.setattr(merging, "PAUSE_SECONDS", 0.0)
    world = await make_world(layers_merged_above=2, layers_refused_above=4)
    world.machine.fail["merge"] = [EngineError("no space left on the device")]
    vm = await grown(world, await world.fork(), 4)
    async with asyncio.timeout(30):
        while await depth(world, vm) > 2:
            await asyncio.sleep(0)
    assert await world.out(await world.fork(vm.vm_id), "cat /f0; cat /f3") == "03"


async def test_a_merge_leaves_the_disk_what_is_to_stay_free(make_world, monkeypatch):
    monkeypatch.setattr(merging, "PAUSE_SECONDS", 0.0)
    world = await make_world(layers_merged_above=400, disk_spare_mib=100)
    vm = await grown(world, await world.fork(), 3)
    world.machine.free_disk = 49 * MIB
    await world.restart(layers_merged_above=2)
    await world.core.layers.settled()
    with pytest.raises(errors.CapacityUnavailable, match="49 MiB left, and 100 are to stay free"):
        await world.fork(vm.vm_id)
    assert await depth(world, vm) == 3 and not world.machine.called("merge")
    world.machine.free_disk = 51 * MIB
    async with asyncio.timeout(30):
        while await depth(world, vm) > 2:
            await asyncio.sleep(0)
    assert await world.out(vm, "cat /f0; cat /f2") == "02"


async def test_a_top_is_moved_out_of_its_file_when_there_is_room(make_world, monkeypatch):
    monkeypatch.setattr(merging, "PAUSE_SECONDS", 0.0)
    world = await make_world(disk_spare_mib=100)
    vm = await world.fork(resources=Resources(disk_mib=20))
    await world.out(vm, f"put /b {'x' * 2 * MIB}")
    world.machine.fail["merge"] = [EngineError("cut off")]
    child = await world.fork(vm.vm_id)
    await world.core.layers.settled()
    world.machine.free_disk = 51 * MIB
    await world.restart()
    await world.core.layers.settled()
    merges = len(world.machine.called("merge"))
    assert len(world.machine.disks) == 1, "2 MiB are needed beside the 50 that stay free"
    assert len(await world.out(child, "cat /b")) == 2 * MIB
    world.machine.free_disk = 53 * MIB
    async with asyncio.timeout(30):
        while len(world.machine.called("merge")) == merges:
            await asyncio.sleep(0)


async def test_a_merge_that_the_database_does_not_take_is_tried_again(make_world, monkeypatch):
    monkeypatch.setattr(merging, "PAUSE_SECONDS", 0.0)
    world = await make_world(layers_merged_above=3)
    merged, failures = merging.rows.merged, iter([sqlite3.OperationalError("database or disk is full")])

    def failing(connection, top, target):
        for error in failures:
            raise error
        return merged(connection, top, target)

    monkeypatch.setattr(merging.rows, "merged", failing)
    vm = await grown(world, await world.fork(), 4)
    async with asyncio.timeout(30):
        while await depth(world, vm) > 3:
            await asyncio.sleep(0)
    assert next(failures, None) is None
    assert await world.out(vm, "cat /f0; cat /f3") == "03"


async def test_what_is_merged_of_layers_that_were_let_go_of_meanwhile_is_not_kept(make_world, monkeypatch):
    """The last VM goes while the merge is made, and before what it stood on is collected: no layer stays that nothing
    will ever let go of."""
    monkeypatch.setattr("boxwood.core.layers.COLLECT_SECONDS", 3600.0)
    world = await make_world(layers_merged_above=3)
    world.machine.merge_gate = asyncio.Event()
    vm = await grown(world, await world.fork(), 4)
    async with asyncio.timeout(30):
        while not world.machine.called("merge"):
            await asyncio.sleep(0)
    for one in (await world.core.upkeep.usage()).vms:
        if one.vm_id == vm.vm_id or one.name is None:
            await world.core.vms.delete(world.caller, one.vm_id)
    before = rows.data_ids(world.core._database.near)
    world.machine.merge_gate.set()
    async with asyncio.timeout(30):
        while not world.core.layers._orphans & world.machine.layers.keys() - before:
            await asyncio.sleep(0)
    assert rows.data_ids(world.core._database.near) == before
