"""What is looked at stays as long as that takes, whatever is merged and removed meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.core.states import fork_point


@pytest.fixture
async def deep(make_world):
    """A world in which longer chains than of two layers are merged, and a chain of three VMs, each with a layer more
    than the one that it was forked from. Nothing has been merged yet."""
    world = await make_world(layers_merged_above=2)
    world.machine.merge_gate = asyncio.Event()
    vms = [await world.fork()]
    for step in range(4):
        await world.out(vms[-1], f"put /f{step} {step}")
        vms.append(await world.fork(vms[-1].vm_id))
    await world.out(vms[-1], "put /last one")
    return world, vms


async def merge(world):
    world.machine.merge_gate.set()
    await world.core.layers.settled()
    world.machine.merge_gate = None


def row(world, vm):
    return world.core.states._access.row(vm.vm_id)


async def test_layers_that_a_merge_has_replaced_beneath_a_view_stay_until_it_is_let_go_of(deep):
    world, vms = deep
    async with world.core.states._views.of(row(world, vms[-1])) as view:
        await merge(world)
        assert world.machine.called("merge")
        assert {layer for place, layer in view.layers if place == "data"} <= world.machine.layers.keys()
        assert fork_point(view) == view.layers[1:], "as it was when it was looked at"
    await world.core.layers.settled()
    assert not {layer for place, layer in view.layers if place == "data"} <= world.machine.layers.keys()
    for step in range(4):
        assert await world.out(vms[-1], f"cat /f{step}") == str(step)


async def test_what_is_written_while_somebody_waits_for_his_turn_is_seen(world):
    vm = await world.fork()
    turn = world.core.states.turn(world.caller.org_id)
    async with turn, turn:
        asked = asyncio.create_task(world.core.states.diff(world.caller, vm.vm_id))
        await asyncio.sleep(0)
        await world.out(vm, "put /a 1")
        await world.core.vms.park(world.caller, vm.vm_id)
    assert [change.path for change in (await asked).changes] == ["/a"]
