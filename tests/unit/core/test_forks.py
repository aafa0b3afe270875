"""Forks: what the child sees, what the source keeps, what becomes of layers."""

from __future__ import annotations

import asyncio

import pytest

from boxwood.core import errors
from boxwood.core.model import ForkRequest, Resources


async def test_a_fork_of_a_golden_runs(world):
    vm = await world.fork("ubuntu", name="first")
    assert await world.out(vm, "cat /etc/os-release") == "fake"
    assert vm.root_source_name == "ubuntu" and vm.depth == 0 and vm.name == "first"
    assert [session.index for session in vm.sessions] == [0]


async def test_child_sees_what_the_source_had_and_both_diverge(world):
    source = await world.fork()
    await world.out(source, "put /a one; put /b two")
    child = await world.fork(source.vm_id)
    await world.out(source, "put /a changed")
    await world.out(child, "rm /b")
    assert await world.out(source, "cat /a; cat /b") == "changedtwo"
    assert await world.out(child, "cat /a") == "one"
    assert (await world.run(child, "cat /b")).exit_code == 1
    assert child.depth == 1
    assert child.root_source_name == "ubuntu" and child.root_source_id == source.root_source_id


async def test_an_unwritten_top_adds_no_layer_and_asks_no_engine(world):
    source = await world.fork()
    before = len(world.machine.calls)
    child = await world.fork(source.vm_id)
    grandchild = await world.fork(child.vm_id)
    assert (child.depth, grandchild.depth) == (0, 0)
    assert len(world.machine.calls) == before


async def test_a_booted_but_empty_top_adds_no_layer(world):
    source = await world.fork()
    await world.out(source, "pwd")
    assert (await world.fork(source.vm_id)).depth == 0


async def test_a_fork_of_a_vm_to_which_nothing_was_written_leaves_its_box(world):
    vm = await world.fork()
    await world.out(vm, "cd /srv ; export A=b")
    assert await world.core.vms.is_unchanged(world.caller, vm.vm_id)
    boots = len(world.machine.called("boot"))
    child = await world.fork(vm.vm_id)
    assert child.depth == vm.depth
    assert await world.out(vm, "pwd ; env A") == "/srv\nb\n"
    assert len(world.machine.called("boot")) == boots
    assert await world.out(child, "pwd ; env A") == "/srv\nb\n", "its shells are saved all the same"
    await world.out(vm, "put f a")
    assert not await world.core.vms.is_unchanged(world.caller, vm.vm_id)
    assert await world.core.vms.is_unchanged(world.caller, child.vm_id)


async def test_a_fork_of_an_idle_vm_puts_its_box_down(world):
    source = await world.fork()
    await world.out(source, "put /a 1")
    child = await world.fork(source.vm_id)
    assert not world.machine.boxes and child.copied is None
    assert await world.out(source, "cat /a") == "1"


async def test_a_busy_source_is_copied_and_not_disturbed(world):
    source = await world.fork()
    await world.out(source, "put /a 1")
    run = await world.run(source, "hang; echo done", wait=0)
    child = await world.fork(source.vm_id)
    assert child.copied is not None and child.copied.inodes == 1
    assert await world.out(child, "cat /a") == "1"
    await world.release(source)
    ended = await world.core.runs.wait(world.caller, source.vm_id, run.run_id)
    assert ended.stdout == b"done\n"
    assert len(world.machine.called("boot")) == 2


async def test_left_behind_processes_count_as_busy(world):
    source = await world.fork()
    await world.out(source, "daemon; put /a 1")
    child = await world.fork(source.vm_id)
    assert child.copied is not None
    assert source.vm_id in world.machine.boxes


async def test_sessions_go_on_in_both(world):
    source = await world.fork()
    other = await world.core.sessions.create(world.caller, source.vm_id, {"K": "given"}, "/srv")
    await world.out(source, "cd /work; export NAME=value")
    await world.out(source, "cd sub", session_id=other.session_id)
    child = await world.fork(source.vm_id)
    for vm in (source, child):
        assert await world.out(vm, "pwd; env NAME") == "/work\nvalue\n"
        assert await world.out(vm, "pwd; env K", session_index=1) == "/srv/sub\ngiven\n"
    ids = {session.session_id for session in child.sessions}
    assert not ids & {session.session_id for session in (await world.core.vms.get(world.caller, source.vm_id)).sessions}


async def test_a_long_chain_reads_right_at_every_depth(make_world):
    world = await make_world(layers_merged_above=5)
    vm = await world.fork()
    for step in range(40):
        await world.out(vm, f"put /f{step} {step}")
        vm = await world.fork(vm.vm_id)
        await world.core.layers.settled()
        assert await world.out(vm, f"cat /f0; cat /f{step}; cat /f{step // 2}") == f"0{step}{step // 2}"
    assert (await world.core.vms.get(world.caller, vm.vm_id)).depth <= 6
    assert len(world.machine.called("merge")) >= 6


async def test_merging_beside_live_boxes_keeps_their_layers(make_world):
    world = await make_world(layers_merged_above=3)
    chain = [await world.fork()]
    for step in range(4):
        await world.out(chain[-1], f"put /f{step} {step}")
        if step == 3:
            world.machine.merge_gate = asyncio.Event()
        chain.append(await world.fork(chain[-1].vm_id))
    last = chain[-1]
    await world.out(last, "pwd")  # a box on the old chain
    world.machine.merge_gate.set()
    await world.core.layers.settled()
    assert (await world.core.vms.get(world.caller, last.vm_id)).depth == 1
    for vm in chain[:-1]:
        await world.core.vms.delete(world.caller, vm.vm_id)
    await world.core.layers.settled()
    assert await world.out(last, "cat /f0; cat /f3") == "03"  # the fake refuses to remove what a box stands on
    await world.restart()
    await world.core.layers.settled()
    await world.core.vms.park(world.caller, last.vm_id)
    await world.core.layers.settled()
    assert await world.out(last, "cat /f0; cat /f3") == "03"
    assert len(world.machine.layers) == 2


async def test_too_many_layers_are_refused(make_world):
    world = await make_world(layers_merged_above=400, layers_refused_above=3)
    vm = await world.fork()
    for step in range(3):
        await world.out(vm, f"put /f {step}")
        vm = await world.fork(vm.vm_id)
    await world.out(vm, "put /f x")
    with pytest.raises(errors.ResourceBusy):
        await world.fork(vm.vm_id)
    assert await world.out(vm, "cat /f") == "x"


async def test_deleting_frees_what_no_child_needs(world):
    source = await world.fork()
    await world.out(source, "put /a 1")
    child = await world.fork(source.vm_id)
    await world.out(child, "put /b 2")
    await world.core.vms.delete(world.caller, source.vm_id)
    await world.core.layers.settled()
    assert await world.out(child, "cat /a; cat /b") == "12"
    await world.core.vms.delete(world.caller, child.vm_id)
    await world.core.layers.settled()
    assert world.machine.layers == {} and world.machine.boxes == {}
    assert not list((world.config.data / "spool").iterdir())


async def test_many_forks_of_one_source_at_once(world):
    source = await world.fork()
    await world.out(source, "put /a 1")
    children = await asyncio.gather(*[world.fork(source.vm_id) for _ in range(30)])
    assert {child.depth for child in children} == {1}
    outs = await asyncio.gather(*[world.out(child, "cat /a") for child in children])
    assert set(outs) == {"1"}


async def test_a_source_whose_box_dies_during_the_fork(world):
    from boxwood.engine.api import BoxGone

    source = await world.fork()
    await world.out(source, "put /a 1")
    world.machine.fail["settle"] = [BoxGone("killed")]
    child = await world.fork(source.vm_id)
    assert await world.out(child, "cat /a") == "1"
    assert await world.out(source, "cat /a") == "1"


async def test_a_fork_that_fails_leaves_nothing(world):
    source = await world.fork(name="taken")
    await world.out(source, "put /a 1")
    await world.run(source, "hang", wait=0)
    with pytest.raises(errors.AlreadyExists) as refusal:
        await world.fork(source.vm_id, name="taken")
    assert refusal.value.details == {"resource": "vm"}
    await world.core.layers.settled()
    assert len(world.machine.layers) == 1


async def test_fork_with_a_command_runs_it_in_the_background(world):
    vm = await world.fork(command="echo hello")
    runs = await world.core.runs.list(world.caller, vm.vm_id)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, runs.items[0].run_id)
    assert ended.stdout == b"hello\n"


async def test_resources_are_inherited_and_checked(world):
    vm = await world.fork(resources=Resources(vcpu=2, memory_mib=512))
    child = await world.fork(vm.vm_id, resources=Resources(memory_mib=1024))
    assert child.resources == Resources(2, 1024, None)
    await world.out(child, "pwd")
    spec = world.machine.called("boot")[-1]
    assert (spec.limits.vcpu, spec.limits.memory_mib) == (2, 1024)
    with pytest.raises(errors.InsufficientResources):
        await world.fork(resources=Resources(memory_mib=1))
    with pytest.raises(errors.InsufficientResources):
        await world.fork(resources=Resources(vcpu=0))


async def test_sources(world):
    with pytest.raises(errors.BadRequest):
        await world.core.vms.fork(world.caller, ForkRequest())
    with pytest.raises(errors.BadRequest):
        await world.core.vms.fork(world.caller, ForkRequest(source_id="x", source_name="y"))
    for missing in ("nothing", "../../etc", "\ud800", "x" * 10_000, "01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        with pytest.raises(errors.NotFound) as refusal:
            await world.fork(missing)
        assert refusal.value.resource == "source"
    assert (await world.fork("ubuntu", name_org="ArkerHQ")).root_source_name == "ubuntu"
    with pytest.raises(errors.NotFound):
        await world.fork("ubuntu", name_org=world.caller.org_id)
    with pytest.raises(errors.NotFound):
        await world.fork("ubuntu", name_org="nobody")


async def test_own_names_come_first_in_a_fork_and_last_in_a_path(world):
    mine = await world.fork("arkuntu", name="ubuntu")
    await world.out(mine.vm_id, "put /mine yes")
    assert await world.out(await world.fork("ubuntu"), "cat /mine") == "yes"
    assert (await world.core.vms.get(world.caller, "ubuntu")).org_id == "ArkerHQ"


async def test_goldens_are_forked_only(world):
    with pytest.raises(errors.Forbidden):
        await world.run("ubuntu", "echo")
    with pytest.raises(errors.Forbidden):
        await world.core.vms.delete(world.caller, "ubuntu")
    with pytest.raises(errors.Forbidden):
        await world.core.files.read(world.caller, "ubuntu", "/etc/passwd")
    with pytest.raises(errors.Forbidden):
        await world.core.vms.park(world.caller, "ubuntu")
    assert not world.machine.called("boot")
    assert len(await world.core.goldens.list()) == 15


async def test_immutable_vms_are_looked_at_forked_and_deleted_only(world):
    vm = await world.fork(name="frozen")
    await world.out(vm, "put /a 1")
    assert (await world.core.vms.update(world.caller, "frozen", immutable=True)).immutable
    assert (await world.core.vms.update(world.caller, "frozen", immutable=True)).immutable
    with pytest.raises(errors.InvalidState) as refusal:
        await world.run("frozen", "pwd")
    assert refusal.value.details["requirement"] == "mutable"
    with pytest.raises(errors.InvalidState):
        await world.core.vms.update(world.caller, "frozen", description="x")
    assert await world.out(await world.fork("frozen"), "cat /a") == "1"
    await world.core.vms.delete(world.caller, "frozen")


async def test_idempotent_forks(world):
    request = ForkRequest(source_name="ubuntu", description="d")
    fork = world.core.vms.fork
    first = await fork(world.caller, request, "key")
    assert (await fork(world.caller, request, "key")).vm_id == first.vm_id
    with pytest.raises(errors.IdempotencyConflict):
        await fork(world.caller, ForkRequest(source_name="ubuntu"), "key")
    await world.core.vms.delete(world.caller, first.vm_id)
    with pytest.raises(errors.NotFound):
        await fork(world.caller, request, "key")
    both = await asyncio.gather(
        fork(world.caller, request, "other"), fork(world.caller, request, "other"), return_exceptions=True
    )
    assert isinstance(both[1], errors.Unavailable)
    assert (await fork(world.caller, request, "other")).vm_id == both[0].vm_id
    for bad in ("", "x" * 65, "ü", "a\nb"):
        with pytest.raises(errors.BadRequest):
            await fork(world.caller, request, bad)


async def test_a_golden_is_not_there_before_its_image(make_world, world, monkeypatch):
    await world.core.close()
    for path in (world.config.images / "01ARZ3NDEKTSV4RRFFQ69G5FAV").iterdir():
        path.rmdir()
    await world.start()
    assert not world.core.goldens.ready
    with pytest.raises(errors.Unavailable):
        await world.fork("ubuntu")
    await world.core.goldens.ensure_host()
    assert world.core.goldens.ready
    await world.fork("ubuntu")


async def test_a_hidden_fork_is_in_no_list(world):
    source = await world.fork()
    await world.out(source, "put /x 1")
    hidden = await world.fork(source.vm_id, hidden=True)
    assert [vm.vm_id for vm in (await world.core.vms.list(world.caller)).items] == [source.vm_id]
    assert await world.core.vms.count(world.caller) == 1
    assert (await world.core.vms.get(world.caller, hidden.vm_id)).vm_id == hidden.vm_id
    assert await world.out(await world.fork(hidden.vm_id), "cat /x") == "1"
    assert await world.core.vms.count(world.caller) == 2, "a fork of it is as others are"
    await world.restart()
    await world.core.vms.delete(world.caller, hidden.vm_id)


async def test_a_copy_that_was_made_in_vain_goes(world):
    vm = await world.fork(name="taken")
    await world.hang(vm, "put /a 1; hang")
    before = set(world.machine.layers)
    with pytest.raises(errors.AlreadyExists):
        await world.fork(vm.vm_id, name="taken")
    await world.core.layers.settled()
    assert world.machine.called("copy_top") and set(world.machine.layers) == before
