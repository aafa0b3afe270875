"""Read-only VMs: which boxes are, what is inherited, what is kept, and cores that are not whole."""

from __future__ import annotations

import pytest

from boxwood.core import errors
from boxwood.core.model import Chunk, Resources


def read_only(world):
    """Which of the boxes booted so far were."""
    return [spec.read_only for spec in world.machine.called("boot")]


async def test_nothing_is_written_but_to_memory(world):
    vm = await world.fork(read_only=True)
    assert vm.read_only and (await world.core.vms.get(world.caller, vm.vm_id)).read_only
    run = await world.run(vm, "put /a x")
    assert (run.exit_code, read_only(world)) == (1, [True])
    with pytest.raises(errors.BadRequest, match="read-only"):
        await world.core.files.write(world.caller, vm.vm_id, Chunk("/a", 1, "u", 0, b"x"))
    await world.core.files.write(world.caller, vm.vm_id, Chunk("/tmp/a", 1, "u", 0, b"x"))
    assert (await world.core.files.read(world.caller, vm.vm_id, "/tmp/a")).data == b"x"


async def test_a_box_with_files_in_memory_is_not_parked(world):
    vm = await world.fork(read_only=True)
    await world.out(vm, "put /tmp/a x")
    with pytest.raises(errors.ResourceBusy):
        await world.core.vms.park(world.caller, vm.vm_id)
    assert await world.out(vm, "cat /tmp/a") == "x"
    await world.out(vm, "rm /tmp/a")
    await world.core.vms.park(world.caller, vm.vm_id)
    assert not (await world.core.vms.get(world.caller, vm.vm_id)).live


async def test_a_fork_is_what_its_source_is_unless_it_is_told(world):
    source = await world.fork()
    await world.out(source, "put /a one")
    child = await world.fork(source.vm_id, read_only=True)
    await world.out(child, "put /tmp/a two")
    grandchild = await world.fork(child.vm_id)
    writable = await world.fork(grandchild.vm_id, read_only=False)
    assert [vm.read_only for vm in (source, child, grandchild, writable)] == [False, True, True, False]
    for vm in (child, grandchild, writable):
        assert await world.out(vm, "cat /a") == "one"
    assert (await world.run(grandchild, "cat /tmp/a")).exit_code == 1, "what is in memory is not forked"
    await world.out(writable, "put /a three")
    await world.restart()
    assert [(await world.core.vms.get(world.caller, vm.vm_id)).read_only for vm in (child, writable)] == [True, False]


@pytest.mark.parametrize("cores", [0.5, 2, 1.25])
async def test_cores_need_not_be_whole(world, cores):
    vm = await world.fork(resources=Resources(vcpu=cores))
    await world.out(vm, "pwd")
    assert world.machine.called("boot")[-1].limits.vcpu == cores
    child = await world.fork(vm.vm_id)
    assert child.resources.vcpu == cores and type(child.resources.vcpu) is type(cores)


@pytest.mark.parametrize("cores", [float("nan"), float("inf"), -0.5, 255.5])
async def test_cores_that_are_none(world, cores):
    with pytest.raises(errors.BadRequest):
        await world.fork(resources=Resources(vcpu=cores))
