"""What a VM can be given at most, and what its box has: in defaults, forks, changes and pools."""

from __future__ import annotations

import pytest

from boxwood.core import errors
from boxwood.core.config import Config, ConfigError
from boxwood.core.model import PoolRequest, Resources
from boxwood.engine.api import Limits

CEILINGS = {"vcpu_most": 2, "memory_mib_most": 1024, "pids_most": 500, "nofile_most": 4096}
TOO_MUCH = [("vcpu", 3), ("memory_mib", 1025), ("pids", 501), ("nofile", 4097)]


def limits_of(world, vm) -> Limits:
    return world.machine.boxes[vm.vm_id].spec.limits


async def test_what_a_box_has_that_was_not_told_otherwise(make_world):
    world = await make_world(vcpu=1, memory_mib=512, pids=100, nofile=2048)
    vm = await world.fork()
    await world.out(vm, "pwd")
    assert limits_of(world, vm) == Limits(1, 512, 100, 2048)


async def test_no_bound_is_the_ceiling_where_there_is_one(make_world):
    world = await make_world(memory_mib=0, pids=400, **CEILINGS)
    vm = await world.fork()
    await world.out(vm, "pwd")
    assert limits_of(world, vm) == Limits(2, 1024, 400, 4096)


@pytest.mark.parametrize(("name", "value"), TOO_MUCH)
async def test_more_than_the_ceiling_is_refused_by_name(make_world, name, value):
    world = await make_world(memory_mib=1024, pids=500, **CEILINGS)
    wanted = Resources(**{name: value})
    vm = await world.fork(resources=Resources(**{name: value - 1}))
    await world.out(vm, "pwd")
    for refused in (
        world.fork(resources=wanted, name="more"),
        world.core.vms.update(world.caller, vm.vm_id, resources=wanted),
        world.core.pools.create(world.caller, PoolRequest("workers", source_name="ubuntu", resources=wanted)),
    ):
        with pytest.raises(errors.BadRequest, match=rf"^{name}: at most {value - 1} .*\({name}_most\)"):
            await refused
    assert getattr(limits_of(world, vm), name) == value - 1
    with pytest.raises(errors.NotFound):
        await world.core.vms.named(world.caller, "more")


async def test_sizes_are_inherited_and_changed_at_once(world):
    parent = await world.fork(resources=Resources(pids=300, nofile=2000))
    child = await world.fork(source=parent.vm_id)
    assert (child.resources.pids, child.resources.nofile) == (300, 2000)
    await world.out(child, "pwd")
    await world.core.vms.update(world.caller, child.vm_id, resources=Resources(pids=50, nofile=1024))
    assert (limits_of(world, child).pids, limits_of(world, child).nofile) == (50, 1024)


async def test_a_ceiling_that_came_later_holds_for_what_is_there(world):
    vm = await world.fork(resources=Resources(vcpu=8, memory_mib=2048, pids=4000, nofile=9000))
    await world.restart(memory_mib=64, pids=16, **CEILINGS)
    await world.out(vm, "pwd")
    assert limits_of(world, vm) == Limits(2, 1024, 500, 4096)


@pytest.mark.parametrize(("name", "value"), [("pids", 15), ("nofile", 1023)])
async def test_too_little_to_be_of_use(world, name, value):
    with pytest.raises(errors.BadRequest, match=f"{name}: at least {value + 1}"):
        await world.fork(resources=Resources(**{name: value}))


@pytest.mark.parametrize(
    "settings",
    [{"memory_mib": 2048, "memory_mib_most": 1024}, {"pids_most": 8}, {"nofile": 100}, {"nofile_most": 1000}, {"vcpu": 4, "vcpu_most": 2}],
)  # fmt: skip
def test_defaults_must_fit_under_ceilings(tmp_path, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Config.load(tmp_path, environ={}, **settings)
