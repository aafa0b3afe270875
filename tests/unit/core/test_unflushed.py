"""Durable VMs whose flush fails: nobody is told of what may be lost, and nothing is left over."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.core import errors
from boxwood.core.model import ForkRequest, Resources
from boxwood.store import vms as vm_rows

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE0/YTfqTDOsqOmMZcDpY4XEuULzyNoHT8hRvMJvmW2S"


async def durable(world, source="ubuntu", **members):
    return await world.fork(source, durable=True, **members)


def fail_to_flush(world, monkeypatch, when):
    """The disk takes nothing more once `when` is so."""
    secure = world.core._database.secure

    async def failing():
        if when():
            raise errors.Internal("the disk did not take what was written")
        await secure()

    monkeypatch.setattr(world.core._database, "secure", failing)


async def test_a_commit_whose_flush_fails_leaves_the_vm_what_it_stands_on(world, machine, monkeypatch):
    parent = await durable(world)
    await world.run(parent, "put /a one")
    child = await world.fork(parent.vm_id)
    await world.run(parent, "put /p parent")
    await world.run(child, "put /c child")
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: machine.called("commit"))
        with pytest.raises(errors.Internal):
            await world.core.commits.commit(world.caller, child.vm_id)
    await world.core.layers.settled()
    assert await world.out(parent, "cat /a; cat /p; cat /c") == "oneparentchild"


async def test_a_vm_is_gone_though_its_end_could_not_be_flushed(world, machine, monkeypatch):
    vm = await durable(world)
    await world.run(vm, "put /a one")
    snapshot = await world.core.snapshots.take(world.caller, vm.vm_id, "s")
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await world.core.vms.delete(world.caller, vm.vm_id)
    near = world.core._database.near
    while vm_rows.by_id(near, snapshot.snapshot_id) is not None:
        await asyncio.sleep(0)
    await world.core.layers.settled()
    assert machine.layers == {}


async def test_a_vm_that_went_back_leaves_nothing_though_that_could_not_be_flushed(world, machine, monkeypatch):
    vm = await durable(world)
    await world.run(vm, "put /a one")
    await world.core.snapshots.take(world.caller, vm.vm_id, "s")
    await world.run(vm, "put /b two")
    top = vm_rows.by_id(world.core._database.near, vm.vm_id).top
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await world.core.snapshots.restore(world.caller, vm.vm_id, "s")
    await world.core.layers.settled()
    assert vm_rows.by_id(world.core._database.near, vm.vm_id).top != top and top not in machine.layers
    assert await world.out(vm, "cat /a") == "one"


async def test_what_was_to_be_looked_at_and_could_not_be_flushed_is_held_no_longer(world, machine, monkeypatch):
    vm = await durable(world)
    await world.run(vm, "put /a one")
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await world.core.states.diff(world.caller, vm.vm_id)
    await world.core.vms.delete(world.caller, vm.vm_id)
    await world.core.layers.settled()
    assert machine.layers == {}


async def test_what_was_copied_stays_where_a_vm_stands_on_it_though_that_could_not_be_flushed(
    world, machine, monkeypatch
):
    vm = await durable(world)
    await world.hang(vm, "put /a one; hang")
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await durable(world, vm.vm_id, name="child")
        with pytest.raises(errors.Internal):
            await world.core.states.diff(world.caller, vm.vm_id)
    await world.core.layers.settled()
    assert len(machine.called("copy_top")) == 2
    assert await world.out("child", "cat /a") == "one"
    assert len(machine.layers) == 3, "two tops, and one copy that nobody looks at any more is gone"


async def test_a_change_that_could_not_be_flushed_is_made_all_the_same(world, machine, monkeypatch):
    vm = await durable(world, ssh_keys=[KEY])
    await world.out(vm, "pwd")
    told = []
    world.core.vms.settings.keys_changed_hooks.append(told.append)
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await world.core.vms.update(world.caller, vm.vm_id, resources=Resources(vcpu=2), ssh_keys=[])
    assert (await world.core.vms.get(world.caller, vm.vm_id)).resources.vcpu == 2
    assert machine.boxes[vm.vm_id].spec.limits.vcpu == 2
    assert told == [vm.vm_id], "whoever has logged in with that key goes"


async def test_a_fork_that_could_not_be_flushed_ends_in_its_time(world, monkeypatch):
    changed = []
    monkeypatch.setattr(world.core.vms.forks, "_expiring", lambda: changed.append("expiring"))
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        with pytest.raises(errors.Internal):
            await durable(world, ttl=60)
    assert changed == ["expiring"]


async def test_whoever_asks_again_for_a_fork_that_was_not_flushed_is_told_once_it_is(world, machine, monkeypatch):
    source = await world.fork()
    await world.run(source, "put /a one")
    request = ForkRequest(source_id=source.vm_id, durable=True)
    with monkeypatch.context() as patch:
        fail_to_flush(world, patch, lambda: True)
        for _ in range(2):
            with pytest.raises(errors.Internal):
                await world.core.vms.fork(world.caller, request, "a-key")
    machine.calls.clear()
    made = await world.core.vms.fork(world.caller, request, "a-key")
    base = vm_rows.by_id(world.core._database.near, made.vm_id).base
    assert [base in layers for layers in machine.called("secure")] == [True]
    assert (await world.core.vms.fork(world.caller, request, "a-key")).vm_id == made.vm_id


@pytest.fixture
async def unflushed(world, monkeypatch):
    """A run of a durable VM that has ended, whose end comes to the disk when the gate opens."""
    vm = await durable(world)
    run = await world.hang(vm)
    secure, gate = world.core._database.secure, asyncio.Event()

    async def gated():
        await gate.wait()
        await secure()

    monkeypatch.setattr(world.core._database, "secure", gated)
    await world.release(vm)
    while not world.core._lanes.find(vm.vm_id, run.run_id).over:
        await asyncio.sleep(0)
    yield vm, run, gate
    gate.set()


async def test_nobody_is_told_of_an_end_because_the_server_stops(world, unflushed):
    vm, run, gate = unflushed
    asked = asyncio.create_task(world.core.runs.get(world.caller, vm.vm_id, run.run_id))
    while not world.core._lanes.find(vm.vm_id, run.run_id)._waiters:
        await asyncio.sleep(0)
    world.core._lanes.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asked.done()
    gate.set()
    assert (await asked).state == "completed"


async def test_an_end_that_comes_while_the_beginning_is_flushed_is_not_told_before_it_is(world, monkeypatch):
    vm = await durable(world)
    run = await world.hang(vm)
    live, told = world.core._lanes.find(vm.vm_id, run.run_id), []
    secure, begun = world.core._database.secure, asyncio.Event()

    async def slow():
        if not live.over:
            await begun.wait()
            return
        for _ in range(50):
            await asyncio.sleep(0)
        await secure()

    monkeypatch.setattr(world.core._database, "secure", slow)
    asked = asyncio.create_task(world.core.runs.get(world.caller, vm.vm_id, run.run_id))
    asked.add_done_callback(lambda _: told.append(live.recorded))
    await world.release(vm)
    while not live.over:
        await asyncio.sleep(0)
    begun.set()
    assert (await asked).state == "completed"
    assert told == [True]


async def test_nobody_is_told_of_an_end_because_the_disk_is_slow(world, unflushed, monkeypatch):
    vm, run, gate = unflushed
    monkeypatch.setattr("boxwood.core.ends.END_SECONDS", 0.02)
    with pytest.raises(errors.Unavailable, match="not on record"):
        await world.core.runs.get(world.caller, vm.vm_id, run.run_id)
    gate.set()
    while world.core._lanes.find(vm.vm_id, run.run_id) is not None:
        await asyncio.sleep(0)
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "completed"
