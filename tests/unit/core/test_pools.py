"""Pools: VMs that are booted ahead of demand, each claimed once, and the numbers that are told of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from boxwood.core import errors
from boxwood.core.model import ClaimRequest, PoolRequest, Resources
from boxwood.engine.api import EngineError


async def made(world, name="p", replicas=2, **members):
    await world.core.pools.create(world.caller, PoolRequest(name, source_name="ubuntu", replicas=replicas, **members))
    return await full(world, name)


async def full(world, name="p", namespace="default"):
    return await until(world, lambda pool: pool.ready == pool.replicas and not pool.starting, name, namespace)


async def until(world, condition, name="p", namespace="default"):
    def look():
        pool = world.core.pools.get(world.caller, name, namespace)
        return pool if condition(pool) else None

    with world.core.changes.subscribe(world.caller.org_id, ["pool"]) as changes:
        pool = await changes.wait(look, 20)
    assert pool is not None, look()
    return pool


def booted(world) -> int:
    return len(world.machine.called("boot"))


async def vms(world):
    return [vm.vm_id for vm in (await world.core.vms.list(world.caller)).items]


async def test_a_pool_is_filled(world):
    pool = await world.core.pools.create(world.caller, PoolRequest("p", source_name="ubuntu", replicas=3))
    assert (pool.name, pool.namespace, pool.source_name, pool.replicas, pool.ready) == ("p", "default", "ubuntu", 3, 0)
    pool = await full(world)
    assert (pool.ready, pool.starting, pool.allocated, pool.problem, pool.state) == (3, 0, 0, None, "running")
    assert booted(world) == len(world.machine.boxes) == 3
    assert all(spec.ahead for spec in world.machine.called("boot"))
    assert await vms(world) == [], "what waits is nobody's"


async def test_a_claim_asks_nothing_of_the_engine(world):
    await made(world)
    ready = set(world.machine.boxes)
    calls = len(world.machine.calls)
    vm = await world.core.pools.claim(world.caller, "p", request=ClaimRequest(ttl=60, labels={"a": "b"}))
    assert len(world.machine.calls) == calls
    assert vm.vm_id in ready and vm.live
    assert (vm.labels, vm.root_source_name) == ({"a": "b"}, "ubuntu")
    assert vm.expires_at is not None
    assert vm.pool_id == world.core.pools.get(world.caller, "p").pool_id
    assert await vms(world) == [vm.vm_id]
    assert await world.out(vm, "put /x y; cat /x") == "y"
    pool = await full(world)
    assert (pool.ready, pool.allocated) == (2, 1)
    assert await claimed(world) == {vm.vm_id}
    await world.core.vms.delete(world.caller, vm.vm_id)
    assert world.core.pools.get(world.caller, "p").allocated == 0


async def test_a_claim_with_a_name_names_the_box(world):
    await made(world)
    vm = await world.core.pools.claim(world.caller, "p", request=ClaimRequest(name="worker-1"))
    assert world.machine.boxes[vm.vm_id].spec.hostname == "worker-1"


async def test_what_waits_is_out_of_sight(world):
    await made(world)
    waiting = next(iter(world.machine.boxes))
    for ask in (world.core.vms.get, world.core.vms.delete, world.core.vms.park):
        with pytest.raises(errors.NotFound):
            await ask(world.caller, waiting)
    with pytest.raises(errors.NotFound):
        await world.fork(source=waiting)
    with pytest.raises(errors.NotFound):
        await world.run(waiting, "pwd")


async def test_an_empty_pool_forks_there_and_then(world):
    pool = await made(world, replicas=0)
    assert pool.state == "stopped" and not booted(world)
    vm = await world.core.pools.claim(world.caller, "p")
    assert not vm.live and vm.pool_id == pool.pool_id
    assert world.core.pools.get(world.caller, "p").allocated == 1
    assert await world.out(vm, "pwd") == "/root\n"


async def test_nobody_gets_what_another_has(world):
    await made(world, replicas=5)
    claims = await asyncio.gather(*(world.core.pools.claim(world.caller, "p") for _ in range(20)))
    assert len({vm.vm_id for vm in claims}) == 20
    assert sum(vm.live for vm in claims) == 5
    pool = await full(world)
    assert (pool.ready, pool.allocated) == (5, 20)
    assert not {vm.vm_id for vm in claims} & set(await _waiting(world))


async def _waiting(world):
    return set(world.machine.boxes) - await claimed(world)


async def claimed(world):
    page = await world.core.vms.list(world.caller, limit=1000)
    return {vm.vm_id for vm in page.items if vm.pool_id is not None}


async def test_the_numbers_add_up_at_every_moment(world):
    await made(world, replicas=10)
    seen = []
    with world.core.changes.subscribe(world.caller.org_id, ["pool"]) as changes:
        for _ in range(3):
            claims = [world.core.pools.claim(world.caller, "p") for _ in range(12)]
            claimed = await asyncio.gather(*claims)
            await asyncio.gather(*(world.core.vms.delete(world.caller, vm.vm_id) for vm in claimed[::2]))
        await full(world)
        await world.core.pools.delete(world.caller, "p")
        async for change in changes:
            if change.type == "deleted":
                break
            seen.append(change.item)
    assert all(0 <= pool.ready + pool.starting <= pool.replicas for pool in seen)
    assert all(0 <= pool.allocated <= 36 for pool in seen)
    assert seen[-1].allocated == 18
    revisions = [pool.revision for pool in seen]
    assert revisions == sorted(set(revisions))


async def test_a_pool_stands_on_what_its_source_was(world):
    source = await world.fork()
    await world.out(source, "put /x before")
    await world.core.pools.create(world.caller, PoolRequest("p", source_id=source.vm_id, replicas=1))
    await world.out(source, "put /x after")
    vm = await world.core.pools.claim(world.caller, "p")
    assert await world.out(vm, "cat /x") == "before"
    await world.core.vms.delete(world.caller, source.vm_id)
    assert await world.out(await world.core.pools.claim(world.caller, "p"), "cat /x") == "before"


async def test_its_size_and_network(world):
    pool = await made(world, resources=Resources(2, 512), network="none")
    assert (pool.resources, pool.network) == (Resources(2, 512), "none")
    spec = world.machine.called("boot")[0]
    assert (spec.limits.vcpu, spec.limits.memory_mib, spec.network) == (2, 512, False)
    vm = await world.core.pools.claim(world.caller, "p")
    assert (vm.resources, vm.network) == (Resources(2, 512), "none")


async def test_scaling(world):
    await made(world, replicas=1)
    await world.core.pools.change(world.caller, "p", replicas=4, about={"a": [1]}, labels={"x": "y"})
    pool = await full(world)
    assert (pool.ready, pool.about, pool.labels) == (4, {"a": [1]}, {"x": "y"})
    await world.core.pools.change(world.caller, "p", replicas=1)
    assert (await full(world)).ready == 1
    while len(world.machine.boxes) > 1:
        await asyncio.sleep(0)
    await world.core.pools.change(world.caller, "p", replicas=0)
    while world.machine.boxes:
        await asyncio.sleep(0)
    assert world.core.pools.get(world.caller, "p").state == "stopped"


async def test_ready_ones_are_not_parked(make_world):
    world = await make_world(idle_seconds=0.01)
    await made(world, replicas=1)
    ready = set(world.machine.boxes)
    other = await world.fork()
    await world.out(other, "pwd")
    while other.vm_id in world.machine.boxes:
        await asyncio.sleep(0.005)
    assert set(world.machine.boxes) == ready
    vm = await world.core.pools.claim(world.caller, "p")
    while vm.vm_id in world.machine.boxes:
        await asyncio.sleep(0.005)


async def test_one_that_dies_is_replaced(world):
    await made(world)
    dead = next(iter(world.machine.boxes))
    world.machine.boxes[dead].die("killed")
    pool = await full(world)
    assert pool.ready == 2 and dead not in world.machine.boxes
    claimed = {(await world.core.pools.claim(world.caller, "p")).vm_id for _ in range(2)}
    assert dead not in claimed


async def test_a_pool_whose_vms_cannot_be_made(world, monkeypatch):
    monkeypatch.setattr("boxwood.core.filling.RETRY_SECONDS", (0.01,))
    world.machine.fail["boot"] = [EngineError("no room")] * 2
    await world.core.pools.create(world.caller, PoolRequest("p", source_name="ubuntu", replicas=1))
    pool = await until(world, lambda pool: pool.problem is not None)
    assert "no room" in pool.problem and (pool.ready, pool.starting) == (0, 0)
    pool = await full(world)
    assert pool.problem is None and len(world.machine.boxes) == 1


async def test_deletion(world):
    await made(world)
    vm = await world.core.pools.claim(world.caller, "p")
    pool = await world.core.pools.delete(world.caller, "p")
    assert pool.name == "p"
    for ask in (world.core.pools.claim, world.core.pools.delete, world.core.pools.change):
        with pytest.raises(errors.NotFound):
            await ask(world.caller, "p")
    while set(world.machine.boxes) != {vm.vm_id}:
        await asyncio.sleep(0)
    assert (await world.core.vms.get(world.caller, vm.vm_id)).pool_id is None
    again = await made(world)
    assert (again.allocated, again.ready) == (0, 2)


async def test_deletion_with_its_vms(world):
    await made(world)
    await world.core.pools.claim(world.caller, "p", request=ClaimRequest(name="mine"))
    await world.core.pools.delete(world.caller, "p", vms=True)
    assert await vms(world) == []
    while world.machine.boxes:
        await asyncio.sleep(0)


async def test_a_restart_keeps_what_waits(world):
    await made(world, replicas=3)
    vm = await world.core.pools.claim(world.caller, "p")
    await full(world)
    boots = booted(world)
    await world.restart()
    pool = await full(world)
    assert (pool.ready, pool.allocated, booted(world)) == (3, 1, boots)
    other = await world.core.pools.claim(world.caller, "p")
    assert other.vm_id != vm.vm_id and other.live


async def test_after_down_they_are_made_anew(world):
    await made(world, replicas=2)
    before = set(world.machine.boxes)
    await world.core.shutdown()
    assert not world.machine.boxes
    await world.start()
    assert (await full(world)).ready == 2
    assert not before & set(world.machine.boxes)


async def test_boxes_that_died_while_no_server_ran(world):
    await made(world, replicas=2)
    await world.core.close()
    for box in list(world.machine.boxes.values()):
        box.die("power")
    await world.start()
    assert (await full(world)).ready == 2
    assert len(world.machine.boxes) == 2


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"name": "p"}, errors.BadRequest),
        ({"name": "p", "source_name": "ubuntu", "source_id": "x"}, errors.BadRequest),
        ({"name": "", "source_name": "ubuntu"}, errors.BadRequest),
        ({"name": "a/b", "source_name": "ubuntu"}, errors.BadRequest),
        ({"name": "p", "namespace": "..", "source_name": "ubuntu"}, errors.BadRequest),
        ({"name": "p", "source_name": "ubuntu", "replicas": -1}, errors.BadRequest),
        ({"name": "p", "source_name": "ubuntu", "replicas": 513}, errors.BadRequest),
        ({"name": "p", "source_name": "nowhere"}, errors.NotFound),
        ({"name": "p", "source_name": "ubuntu", "network": "lan"}, errors.BadRequest),
        ({"name": "p", "source_name": "ubuntu", "resources": Resources(memory_mib=1)}, errors.InsufficientResources),
        ({"name": "p", "source_name": "ubuntu", "about": {"x": "\ud800"}}, errors.BadRequest),
    ],
)
async def test_pools_that_are_none(world, members, error):
    with pytest.raises(error):
        await world.core.pools.create(world.caller, PoolRequest(**members))
    assert await world.core.pools.list(world.caller) == ()


async def test_a_name_is_taken_once_in_a_namespace(world):
    await made(world, replicas=0)
    with pytest.raises(errors.AlreadyExists):
        await made(world, replicas=0)
    await world.core.pools.create(world.caller, PoolRequest("p", "other", source_name="ubuntu", replicas=0))
    made_twice = [
        world.core.pools.create(world.caller, PoolRequest("q", source_name="ubuntu", replicas=0)) for _ in range(2)
    ]
    results = await asyncio.gather(*made_twice, return_exceptions=True)
    assert sum(isinstance(result, errors.AlreadyExists) for result in results) == 1
    assert [(p.namespace, p.name) for p in await world.core.pools.list(world.caller)] == [
        ("default", "p"), ("default", "q"), ("other", "p"),
    ]  # fmt: skip
    assert [p.name for p in await world.core.pools.list(world.caller, "other")] == ["p"]


async def test_all_pools_together_are_bounded(make_world):
    world = await make_world(pool_vms=5)
    await made(world, "a", replicas=3)
    with pytest.raises(errors.BadRequest, match="pool_vms"):
        await made(world, "b", replicas=3)
    await made(world, "b", replicas=2)
    with pytest.raises(errors.BadRequest, match="pool_vms"):
        await world.core.pools.change(world.caller, "b", replicas=3)


async def test_those_of_one_organisation_are_bounded(make_world):
    world = await make_world(pool_vms=8, pool_vms_each=3)
    with pytest.raises(errors.BadRequest, match="0 to 3"):
        await made(world, "a", replicas=4)
    await made(world, "a", replicas=2)
    made_at_once = [
        world.core.pools.create(world.caller, PoolRequest(name, source_name="ubuntu", replicas=1)) for name in "bc"
    ]
    results = await asyncio.gather(*made_at_once, return_exceptions=True)
    assert [isinstance(result, errors.BadRequest) for result in results] == [False, True], results
    assert "pool_vms_each" in str(results[1])
    await world.core.pools.change(world.caller, "a", replicas=0)
    await world.core.pools.change(world.caller, "b", replicas=3)


async def test_a_pool_that_is_claimed_from_all_the_time_keeps_no_other_waiting(world):
    await made(world, "busy", replicas=1)
    await world.core.pools.create(world.caller, PoolRequest("other", source_name="ubuntu", replicas=3))
    while world.core.pools.get(world.caller, "other").ready < 3:
        await world.core.pools.claim(world.caller, "busy")
        await until(world, lambda pool: pool.ready, "busy")


async def test_a_name_of_a_vm_that_is_taken(world):
    await made(world, replicas=1)
    await world.fork(name="mine")
    with pytest.raises(errors.AlreadyExists):
        await world.core.pools.claim(world.caller, "p", request=ClaimRequest(name="mine"))
    pool = await full(world)
    assert (pool.ready, pool.allocated) == (1, 0)


async def test_a_claim_binds_its_record(world):
    await made(world, replicas=1)
    records, caller = world.core.records, world.caller
    for name, live in (("first", True), ("second", False)):
        record = await records.create(caller, "thing", "default", name, {"n": 1})
        vm = await world.core.pools.claim(caller, "p", request=ClaimRequest(record=record.record_id))
        assert records.get(caller, "thing", "default", name).vm_id == vm.vm_id
        assert vm.live is live
    with pytest.raises(errors.NotFound):
        await world.core.pools.claim(caller, "p", request=ClaimRequest(record="01ARZ3NDEKTSV4RRFFQ69G5FAV"))
    with pytest.raises(errors.Conflict):
        await world.core.pools.claim(caller, "p", request=ClaimRequest(record=record.record_id))
    assert (await full(world)).allocated == 2
    await world.core.vms.delete(caller, vm.vm_id)
    with pytest.raises(errors.NotFound):
        records.get(caller, "thing", "default", "second")


async def test_pools_are_filled_although_something_unforeseen_went_wrong(world):
    world.machine.fail["boot"] = [RuntimeError("nobody thought of this")]
    await world.core.pools.create(world.caller, PoolRequest("p", source_name="ubuntu", replicas=1))
    failing = await until(world, lambda pool: pool.problem is not None)
    assert (failing.ready, failing.problem) == (0, "its VMs cannot be made: the log says why")
    await made(world, "q", replicas=1)
    assert (await full(world)).problem is None


async def test_another_organisation_has_none_of_it(world):
    await made(world, replicas=1)
    other = replace(world.caller, org_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert await world.core.pools.list(other) == ()
    with pytest.raises(errors.NotFound):
        await world.core.pools.claim(other, "p")
    with pytest.raises(errors.NotFound):
        world.core.pools.by_id(other, world.core.pools.get(world.caller, "p").pool_id)
