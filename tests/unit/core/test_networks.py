"""The network of VMs: who has it, what is inherited, and what is counted, once and for good."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from boxwood.core import errors
from boxwood.core.model import ForkRequest
from boxwood.engine.api import MOST_DENIALS, Denial, EngineError, Usage
from boxwood.images import host
from boxwood.store import keys as key_rows
from boxwood.store import usage as usage_rows


def wired(world) -> list[bool]:
    """Which of the boxes booted so far were given the network."""
    return [spec.network for spec in world.machine.called("boot")]


async def moved(world, vm) -> Usage:
    return (await world.core.networks.get(world.caller, vm.vm_id)).usage


async def test_the_internet_unless_told_otherwise(world):
    vm = await world.fork()
    assert (vm.network, vm.address) == ("internet", None)
    await world.out(vm, "pwd")
    assert wired(world) == [True]


async def test_a_vm_without_network(world):
    vm = await world.fork(network="none")
    assert (await world.run(vm, "fetch 10")).exit_code == 7
    shown = await world.core.vms.get(world.caller, vm.vm_id)
    assert (wired(world), shown.network, shown.address) == ([False], "none", None)


async def test_a_fork_has_what_its_source_has(world):
    source = await world.fork(network="none")
    child = await world.fork(source.vm_id)
    grandchild = await world.fork(child.vm_id, network="internet")
    assert [vm.network for vm in (child, grandchild)] == ["none", "internet"]
    assert (await world.fork(grandchild.vm_id)).network == "internet"
    for vm in (child, grandchild):
        await world.out(vm, "pwd")
    assert wired(world) == [False, True]


async def test_the_configured_network_is_of_all_that_were_not_told(make_world):
    world = await make_world(network="none")
    untold, told = await world.fork(), await world.fork(network="internet")
    heir = await world.fork(untold.vm_id)
    assert [vm.network for vm in (untold, told, heir)] == ["none", "internet", "none"]
    for vm in (untold, told, heir):
        await world.out(vm, "pwd")
        await world.core.vms.park(world.caller, vm.vm_id)
    await world.restart(network="internet")
    for vm in (untold, heir):
        assert (await world.core.vms.get(world.caller, vm.vm_id)).network == "internet"
        await world.out(vm, "pwd")
    assert wired(world) == [False, True, False, True, True]


@pytest.mark.parametrize("mode", ["", "None", "host", "bridge", " none"])
async def test_a_fork_with_another_word_is_refused(world, mode):
    with pytest.raises(errors.BadRequest, match="internet or none"):
        await world.fork(network=mode)


async def test_the_network_is_part_of_a_repeated_request(world):
    fork = world.core.vms.fork
    made = await fork(world.caller, ForkRequest(source_name="ubuntu", network="none"), "k")
    assert (await fork(world.caller, ForkRequest(source_name="ubuntu", network="none"), "k")).vm_id == made.vm_id
    with pytest.raises(errors.IdempotencyConflict):
        await fork(world.caller, ForkRequest(source_name="ubuntu", network="internet"), "k")


async def test_the_address_is_that_of_the_box_of_the_moment(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    address = world.machine.boxes[vm.vm_id].address
    assert address
    assert (await world.core.vms.get(world.caller, vm.vm_id)).address == address
    assert (await world.core.networks.get(world.caller, vm.vm_id)).address == address
    await world.restart()
    assert (await world.core.vms.get(world.caller, vm.vm_id)).address == address
    await world.core.vms.park(world.caller, vm.vm_id)
    assert (await world.core.vms.get(world.caller, vm.vm_id)).address is None
    assert (await world.core.networks.get(world.caller, vm.vm_id)).address is None


async def test_what_all_boxes_moved_is_counted_once(world):
    vm = await world.fork()
    assert await moved(world, vm) == Usage()
    await world.out(vm, "fetch 10; fetch 20")
    assert await moved(world, vm) == Usage(200, 30, 2)
    await world.core.vms.park(world.caller, vm.vm_id)
    assert await moved(world, vm) == Usage(200, 30, 2)
    await world.out(vm, "fetch 1")
    assert await moved(world, vm) == Usage(300, 31, 3)
    await world.restart()
    assert await moved(world, vm) == Usage(300, 31, 3)
    world.machine.boxes[vm.vm_id].die("killed from outside")
    assert await moved(world, vm) == Usage(300, 31, 3)
    await world.core.shutdown()
    await world.start()
    assert await moved(world, vm) == Usage(300, 31, 3)


async def test_each_box_that_has_ended_is_added_by_itself(world):
    vm = await world.fork()
    for _ in range(3):
        world.core.networks.ended(vm.vm_id, Usage(1, 2, 3, 4))
    assert await moved(world, vm) == Usage(3, 6, 9, 12)


async def test_a_fork_begins_with_nothing(world):
    vm = await world.fork()
    await world.out(vm, "fetch 10")
    await world.core.vms.park(world.caller, vm.vm_id)
    assert await moved(world, await world.fork(vm.vm_id)) == Usage()


async def test_boxes_that_moved_nothing_cost_no_row(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    await world.core.vms.park(world.caller, vm.vm_id)
    assert await world.core._database.read(lambda c: usage_rows.find(c, vm.vm_id)) is None


async def test_what_a_deleted_vm_moved_is_forgotten(world, caplog):
    vm = await world.fork()
    await world.out(vm, "fetch 10; knock private.example")
    await world.core.vms.park(world.caller, vm.vm_id)
    await world.out(vm, "fetch 10")
    await world.core.vms.delete(world.caller, vm.vm_id)
    world.core.networks.ended(vm.vm_id, Usage(sent=1))  # who is late is ignored
    count = await world.core._database.read(lambda c: c.execute("SELECT count(*) FROM usage").fetchone()[0])
    assert (count, caplog.records) == (0, [])


async def test_a_box_that_ends_while_it_is_asked_is_neither_lost_nor_counted_twice(world, monkeypatch):
    vm = await world.fork()
    await world.out(vm, "fetch 10")
    box, ask, read = world.machine.boxes[vm.vm_id], world.core.engine.usage, world.core._database.read

    async def asked(vm_id):
        said = await ask(vm_id)
        if box.dead is None:
            box.die("between the two looks")
        return said

    monkeypatch.setattr(world.core.engine, "usage", asked)
    assert await moved(world, vm) == Usage(100, 10, 1)
    monkeypatch.undo()
    await world.out(vm, "fetch 5")
    again = world.machine.boxes[vm.vm_id]

    async def read_late(work):
        found = await read(work)
        if again.dead is None:
            again.die("after both")
        return found

    monkeypatch.setattr(world.core._database, "read", read_late)
    assert await moved(world, vm) == Usage(200, 15, 2)


async def test_another_vm_s_end_is_no_reason_to_ask_again(world):
    vm, other = await world.fork(), await world.fork()
    await world.out(vm, "fetch 1")
    asked = len(world.machine.called("usage"))
    ask = world.core.engine.usage

    async def busy(vm_id):
        if len(world.machine.called("usage")) == asked:
            world.core.networks.ended(other.vm_id, Usage(sent=1))
        return await ask(vm_id)

    world.core.engine.usage = busy
    await moved(world, vm)
    assert len(world.machine.called("usage")) == asked + 1


async def test_the_latest_denials_are_kept(world):
    vm = await world.fork()
    for number in range(MOST_DENIALS):
        await world.run(vm, f"knock n{number}.example")
    await world.core.vms.park(world.caller, vm.vm_id)
    for number in range(3):
        await world.run(vm, f"knock later{number}.example")
    usage = await moved(world, vm)
    names = [denial.name for denial in usage.denials]
    assert (usage.denied, len(names)) == (MOST_DENIALS + 3, MOST_DENIALS)
    assert (names[0], names[-1]) == ("n3.example", "later2.example")
    await world.core.vms.park(world.caller, vm.vm_id)
    assert [denial.name for denial in (await moved(world, vm)).denials] == names


HOSTILE = "a\x1b[2J\r\n\x00\u202eb\ud800" + "x" * 10_000


@pytest.mark.parametrize("parked", [False, True])
async def test_a_vm_s_texts_are_harmless(world, parked):
    vm = await world.fork()
    await world.out(vm, "pwd")
    denial = Denial(time.time(), HOSTILE, HOSTILE, 53, HOSTILE, HOSTILE)
    world.machine.boxes[vm.vm_id].moved = Usage(denied=1, denials=(denial,))
    if parked:
        await world.core.vms.park(world.caller, vm.vm_id)
    (shown,) = (await moved(world, vm)).denials
    for text in (shown.protocol, shown.address, shown.name, shown.reason):
        assert text.startswith("a?[2J????b?x") and text.isprintable() and len(text) <= 255
    assert (shown.at, shown.port) == (denial.at, 53)


async def test_only_its_owner_may_know(world):
    await world.core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    other = replace(world.caller, org_id="OTHER", org_name="other")
    private, public = await world.fork(), await world.fork(public=True)
    with pytest.raises(errors.NotFound):
        await world.core.networks.get(other, private.vm_id)
    for vm in (public.vm_id, "ubuntu"):
        with pytest.raises(errors.Forbidden):
            await world.core.networks.get(other, vm)


async def test_an_engine_that_cannot_tell(world):
    vm = await world.fork()
    world.machine.fail["usage"] = [EngineError("the router is gone")]
    with pytest.raises(errors.Internal, match="router"):
        await moved(world, vm)
    assert await moved(world, vm) == Usage()
    assert not world.core.networks._readings


@pytest.mark.parametrize("share", [False, True])
async def test_the_host_image_is_asked_for_with_what_is_to_be_shared(make_world, monkeypatch, share):
    asked = []
    made = host.ensure

    def ensure(directory, progress, **settings):
        asked.append(settings)
        return made(directory, progress)

    monkeypatch.setattr(host, "ensure", ensure)
    await make_world(share_client_config=share)
    assert asked == [{"share_client_config": share}]
