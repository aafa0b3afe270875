"""What a VM may keep above its image: what its top is given, what is refused, what becomes of layers in files."""

from __future__ import annotations

import pytest

from boxwood.core import errors
from boxwood.core.model import Resources
from boxwood.engine.api import BoxSpec, EngineError

MIB = 1 << 20


def limited(size: int) -> Resources:
    return Resources(disk_mib=size)


def limits(world) -> list[int]:
    """Of the tops of all boxes that were booted, in bytes."""
    specs = world.machine.called("boot")
    assert all(isinstance(spec, BoxSpec) for spec in specs)
    return [spec.limits.disk for spec in specs]


def big(world, vm, size: int, name: str = "/big") -> None:
    world.machine.boxes[vm.vm_id].top[name] = bytes(size)


async def test_a_top_has_what_the_layers_leave(world):
    vm = await world.fork(resources=limited(20))
    await world.out(vm, "put /a 1")
    big(world, vm, 5 * MIB)
    child = await world.fork(vm.vm_id)
    assert child.resources.disk_mib == 20
    await world.out(child, "cat /a")
    await world.out(vm, "cat /a")
    left = 15 * MIB - 1
    assert limits(world) == [20 * MIB, left, left]
    asked = len(world.machine.called("contents"))
    await world.out(await world.fork(child.vm_id), "pwd")
    assert limits(world)[-1] == left and len(world.machine.called("contents")) == asked + 1, (
        "it stands in the layer's row"
    )


async def test_a_full_vm_is_given_a_little(world):
    vm = await world.fork(resources=limited(16))
    await world.out(vm, "put /a 1")
    big(world, vm, 16 * MIB)
    await world.out(await world.fork(vm.vm_id), "pwd")
    assert limits(world) == [16 * MIB, MIB]


async def test_without_a_limit_nothing_is_asked(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    await world.out(await world.fork(vm.vm_id), "pwd")
    assert limits(world) == [0, 0] and not world.machine.called("contents")


async def test_less_than_the_source_holds_is_refused(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    big(world, vm, 20 * MIB)
    with pytest.raises(errors.InsufficientResources, match="holds 21 MiB above its image") as caught:
        await world.fork(vm.vm_id, resources=limited(20))
    assert caught.value.details["minimum"] == {"unit": "bytes", "value": 21 * MIB}
    await world.out(vm, "pwd")
    run = await world.run(vm, "hang", wait=0)
    with pytest.raises(errors.InsufficientResources):
        await world.fork(vm.vm_id, resources=limited(20))
    await world.core.layers.settled()
    ((_, copy),) = world.machine.called("copy_top")
    assert copy not in world.machine.layers
    assert (await world.fork(vm.vm_id, resources=limited(21))).resources.disk_mib == 21
    await world.core.runs.cancel(world.caller, vm.vm_id, run.run_id)


async def test_a_live_box_is_given_another_limit(world):
    vm = await world.fork(resources=limited(20))
    await world.out(vm, "put /a 1")
    big(world, vm, 5 * MIB)
    await world.core.vms.update(world.caller, vm.vm_id, resources=limited(30))
    assert world.machine.called("change")[-1][1].disk == 30 * MIB
    with pytest.raises(errors.InsufficientResources):
        big(world, vm, 25 * MIB)
        await world.core.vms.update(world.caller, vm.vm_id, resources=limited(20))
    assert (await world.core.vms.get(world.caller, vm.vm_id)).resources.disk_mib == 30


async def test_a_box_that_cannot_have_it_goes_unless_something_runs(world):
    vm = await world.fork(resources=limited(20))
    await world.out(vm, "put /a 1")
    run = await world.run(vm, "hang", wait=0)
    with pytest.raises(errors.ResourceBusy):
        await world.core.vms.update(world.caller, vm.vm_id, resources=limited(500))
    await world.core.runs.cancel(world.caller, vm.vm_id, run.run_id)
    await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    await world.core.vms.update(world.caller, vm.vm_id, resources=limited(500))
    assert await world.out(vm, "cat /a") == "1"
    assert limits(world)[-1] == 500 * MIB - 1


async def test_a_first_limit_seals_what_was_written_without(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    await world.core.vms.update(world.caller, vm.vm_id, resources=limited(20))
    assert await world.out(vm, "cat /a") == "1"
    assert limits(world) == [0, 20 * MIB - 1]
    assert (await world.core.vms.get(world.caller, vm.vm_id)).depth == 1


async def test_a_read_only_vm_needs_none(world):
    vm = await world.fork(resources=limited(20), read_only=True)
    await world.out(vm, "pwd")
    assert limits(world) == [0]


async def test_where_disks_cannot_be_limited_it_is_said(world):
    vm = await world.fork()
    world.machine.disk_problem = "no loop devices; load the module"
    with pytest.raises(errors.Unsupported, match="load the module"):
        await world.fork(resources=limited(20))
    with pytest.raises(errors.Unsupported, match="load the module"):
        await world.core.vms.update(world.caller, vm.vm_id, resources=limited(20))
    await world.fork(vm.vm_id)


@pytest.mark.parametrize(("size", "error"), [(15, errors.InsufficientResources), ((8 << 20) + 1, errors.BadRequest)])
async def test_sizes_that_make_no_sense(world, size, error):
    with pytest.raises(error):
        await world.fork(resources=limited(size))


async def test_sealed_layers_are_moved_out_of_their_files(world):
    vm = await world.fork(resources=limited(20))
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    await world.core.layers.settled()
    assert world.machine.disks == {} and len(world.machine.called("merge")) == 1
    assert await world.out(child, "cat /a") == await world.out(vm, "cat /a") == "1"
    assert limits(world)[1:] == [20 * MIB - 1] * 2
    assert child.depth == 1


async def test_those_that_a_crash_has_left_are_moved_at_the_start(world):
    world.machine.fail["merge"] = [EngineError("no room")]
    vm = await world.fork(resources=limited(20))
    await world.out(vm, "put /a 1")
    await world.fork(vm.vm_id)
    await world.core.layers.settled()
    assert len(world.machine.disks) == 1, "it stays where it is, and can be stood on"
    assert await world.out(vm, "cat /a") == "1"
    await world.restart()
    await world.core.layers.settled()
    assert len(world.machine.called("merge")) == 2
    assert await world.out(vm, "cat /a") == "1"
