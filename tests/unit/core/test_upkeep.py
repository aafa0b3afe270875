"""What an operator is told of the storage, and what is removed for him."""

from __future__ import annotations

import asyncio
import json
import os

from boxwood.core import archives, ids, upkeep

OLD = "01ARZ3NDEKTSV4RRFFQ69G5FAW"  # of 2016


async def used(world, vm):
    (found,) = [one for one in (await world.core.upkeep.usage()).vms if one.vm_id == vm.vm_id]
    assert found.measured
    return found.layers, found.own, found.shared


async def test_own_and_shared_bytes(world):
    vm = await world.fork(name="first")
    assert await used(world, vm) == (0, 0, 0)
    await world.out(vm, "put /a 12345")
    assert await used(world, vm) == (0, 5, 0)
    child = await world.fork(vm.vm_id)
    await world.out(child, "put /b 123")
    assert await used(world, vm) == (1, 0, 5) and await used(world, child) == (1, 3, 5)
    usage = await world.core.upkeep.usage()
    assert usage.vms[0].vm_id == child.vm_id, "the most of their own first"
    assert usage.free == world.machine.free_disk
    await world.core.vms.delete(world.caller, vm.vm_id)
    await world.core.layers.settled()
    assert await used(world, child) == (1, 8, 0)


async def test_a_layer_is_measured_once(world):
    vm = await world.fork()
    await world.out(vm, "put /a 12345")
    await world.fork(vm.vm_id)
    await world.core.upkeep.usage()
    looked = len(world.machine.called("contents"))
    await world.core.upkeep.usage()
    assert len(world.machine.called("contents")) == looked


async def test_verify(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    await world.out(child, "put /b 1")
    assert await world.core.upkeep.verify() == (1, [])
    (sealed,) = world.machine.called("check_layer")
    kept = world.machine.layers.pop(sealed)
    count, (problem,) = await world.core.upkeep.verify()
    assert (count, problem.layer_id, problem.problem) == (1, sealed, "FileNotFoundError")
    assert set(problem.vms) == {vm.vm_id, child.vm_id}
    world.machine.layers[sealed] = kept
    top = next(layer for layer in world.machine.layers if layer != sealed)
    del world.machine.layers[top]
    _, (problem,) = await world.core.upkeep.verify()
    assert (problem.layer_id, problem.problem) == (top, "the VM's top has no directory")


async def test_gc_removes_what_nothing_refers_to_and_nothing_else(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    await world.out(child, "put /b 1")
    before = dict(world.machine.layers)
    young = ids.new_id()
    world.machine.layers |= {OLD: {"/x": b"1234"}, young: {}}
    for _ in range(2):
        garbage = await world.core.upkeep.collect(dry_run=True)
        assert (garbage.layers, garbage.bytes) == ([OLD], 4), "what is young may be about to get a row"
    assert OLD in world.machine.layers
    assert (await world.core.upkeep.collect(dry_run=False)).layers == [OLD]
    assert world.machine.layers == before | {young: {}}
    assert (await world.core.upkeep.collect(dry_run=False)).layers == []
    assert await world.out(child, "cat /a; cat /b") == "11"


async def test_gc_leaves_what_comes_slowly(world, monkeypatch):
    monkeypatch.setattr(upkeep, "YOUNG_SECONDS", -3600.0)  # as if hours had passed
    (image,) = world.machine.images
    writer = archives.Writer({"format": 1, "full": False, "image": {"layer": image, "name": "ubuntu"}, "vm": {}})
    text = os.urandom(150_000).hex()
    tree = json.dumps({"/a": text.encode().hex()}).encode() + b"\n"
    data = writer.begin() + writer.more(tree) + writer.end()
    half, rest = asyncio.Event(), asyncio.Event()

    async def pieces():
        yield data[:-1000]
        half.set()
        await rest.wait()
        yield data[-1000:]

    coming = asyncio.create_task(world.core.exports.import_(world.caller, pieces()))
    await half.wait()
    assert world.machine.called("unpack")
    assert (await world.core.upkeep.collect(dry_run=False)).layers == []
    rest.set()
    assert await world.out(await coming, "cat /a") == text


async def test_gc_tries_again_what_could_not_be_removed(world):
    vm = await world.fork()
    await world.out(vm, "put /a 1")
    child = await world.fork(vm.vm_id)
    world.machine.fail["remove"] = [OSError("busy")]
    for one in (child, vm):
        await world.core.vms.delete(world.caller, one.vm_id)
    await world.core.layers.settled()
    left = set(world.machine.layers)
    assert left and set((await world.core.upkeep.collect(dry_run=True)).layers) <= left
    await world.core.upkeep.collect(dry_run=False)
    assert not world.machine.layers
