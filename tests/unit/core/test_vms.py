"""VMs: names, lists, changes, deletion; sessions; keys; who may see what."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fake_engine import FakeBox
from hypothesis import given
from hypothesis import strategies as st

from boxwood.core import errors, words
from boxwood.core.ids import has_id_shape, is_id, new_id
from boxwood.core.model import Resources, RunFilter, RunRequest, VMFilter
from boxwood.engine.api import EngineError
from boxwood.store import keys as key_rows


async def stranger(world):
    """A caller of another organisation."""
    await world.core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    return replace(world.caller, org_id="OTHER", org_name="other")


@pytest.mark.parametrize(
    "name",
    ["", " ", "-a", ".a", "_a", "a b", "a/b", "ü", "x" * 65, "list", "FORK", "a\n", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
     "01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FAV_d8c0", "../x", "\ud800"],
)  # fmt: skip
async def test_bad_names(world, name):
    with pytest.raises(errors.BadRequest):
        await world.fork(name=name)
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.core.vms.update(world.caller, vm.vm_id, name=name)


@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"))
def test_good_names(name):
    if name.lower() in ("list", "fork") or has_id_shape(name):
        with pytest.raises(errors.BadRequest):
            words.name(name)
    else:
        assert words.name(name) == name


@given(st.text(max_size=70))
def test_any_name_is_taken_or_refused(name):
    try:
        taken = words.name(name)
    except errors.BadRequest:
        return
    assert taken == name and name.isascii() and "/" not in name and 1 <= len(name) <= 64


@given(st.text(max_size=200))
def test_any_path_is_clean_or_refused(path):
    try:
        clean = words.path("/" + path)
    except errors.BadRequest:
        return
    parts = clean.split("/")[1:]
    assert clean.startswith("/") and "\0" not in clean
    assert clean == "/" or all(part not in ("", ".") for part in parts)


def test_ids_are_in_order_and_of_their_shape():
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(ids) and len(set(ids)) == 5000
    assert all(is_id(i) and has_id_shape(i) and i.upper() == i and len(i) == 26 for i in ids)
    for wrong in ("", ids[0].lower(), ids[0] + "\n", ids[0][:-1], "8" + ids[0][1:], "I" * 26):
        assert not is_id(wrong)


async def test_names_are_unique_until_deleted(world):
    vm = await world.fork(name="one")
    with pytest.raises(errors.AlreadyExists):
        await world.fork(name="one")
    other = await world.fork(name="two")
    with pytest.raises(errors.AlreadyExists):
        await world.core.vms.update(world.caller, "two", name="one")
    await world.core.vms.delete(world.caller, vm.vm_id)
    assert (await world.core.vms.update(world.caller, other.vm_id, name="one")).name == "one"
    assert (await world.core.vms.update(world.caller, "one", name=None)).name is None


async def test_descriptions(world):
    vm = await world.fork(description="  ")
    assert vm.description is None
    change = world.core.vms.update
    assert (await change(world.caller, vm.vm_id, description="x" * 1024)).description == "x" * 1024
    with pytest.raises(errors.BadRequest):
        await change(world.caller, vm.vm_id, description="x" * 1025)
    assert (await change(world.caller, vm.vm_id)).description == "x" * 1024
    assert (await change(world.caller, vm.vm_id, description=None)).description is None
    assert (await world.fork((await world.fork(description="kept")).vm_id)).description is None


async def test_resources_count_at_once(world):
    vm = await world.fork(name="before")
    change = world.core.vms.update
    await change(world.caller, vm.vm_id, resources=Resources(memory_mib=128))
    await world.out(vm, "pwd")
    run = await world.run(vm, "hang", wait=0)
    await change(world.caller, vm.vm_id, resources=Resources(memory_mib=256, vcpu=2))
    spec = world.machine.boxes[vm.vm_id].spec
    assert (spec.limits.memory_mib, spec.limits.vcpu, spec.hostname) == (256, 2, "before")
    await change(world.caller, vm.vm_id, name="after")
    assert world.machine.boxes[vm.vm_id].spec.hostname == "after"
    world.machine.fail["change"] = [EngineError("it uses more")]
    with pytest.raises(errors.ResourceBusy):
        await change(world.caller, vm.vm_id, resources=Resources(memory_mib=64))
    assert (await world.core.vms.get(world.caller, vm.vm_id)).resources.memory_mib == 256
    await world.fork(name="taken")
    with pytest.raises(errors.AlreadyExists):
        await change(world.caller, vm.vm_id, name="taken", resources=Resources(memory_mib=512))
    assert world.machine.boxes[vm.vm_id].spec.limits.memory_mib == 256
    assert len(world.machine.called("boot")) == 1
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "running"
    with pytest.raises(errors.ResourceBusy):
        await world.core.vms.update(world.caller, vm.vm_id, immutable=True)
    await world.release(vm)
    with pytest.raises(errors.BadRequest):
        await world.core.vms.update(world.caller, vm.vm_id, immutable=False)
    with pytest.raises(errors.BadRequest):
        await world.core.vms.update(world.caller, vm.vm_id, immutable=True, name="x")


async def test_a_run_that_comes_while_its_vm_becomes_immutable_is_not_begun(world, monkeypatch):
    vm = await world.fork()
    await world.out(vm, "echo before")
    parking, go = asyncio.Event(), asyncio.Event()
    settle = FakeBox.settle

    async def slow(box):
        parking.set()
        await go.wait()
        return await settle(box)

    monkeypatch.setattr(FakeBox, "settle", slow)
    change = asyncio.create_task(world.core.vms.update(world.caller, vm.vm_id, immutable=True))
    await parking.wait()
    run = asyncio.create_task(world.run(vm, "echo after"))
    while len((await world.core.runs.list(world.caller, vm.vm_id, RunFilter())).items) < 2:
        await asyncio.sleep(0)
    go.set()
    await change
    done = await run
    assert done.state == "failed" and "immutable" in done.fail_reason
    assert len(world.machine.called("boot")) == 1


async def test_of_two_changes_at_once_the_box_has_both(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    async with world.core._boxes.alone(vm.vm_id):
        wanted = Resources(vcpu=2), Resources(memory_mib=512)
        changes = [asyncio.create_task(world.core.vms.update(world.caller, vm.vm_id, resources=one)) for one in wanted]
        for _ in range(5):  # both wait for the VM
            await asyncio.sleep(0)
    await asyncio.gather(*changes)
    limits = world.machine.boxes[vm.vm_id].spec.limits
    assert (limits.vcpu, limits.memory_mib) == (2, 512)


async def test_lists(world):
    vms = [await world.fork(name=f"vm{i}", public=i % 2 == 0) for i in range(5)]
    await world.hang(vms[3])
    listed, count = world.core.vms.list, world.core.vms.count

    async def names(**members):
        where = VMFilter(**members)
        page = await listed(world.caller, where)
        assert await count(world.caller, where) == len(page.items)
        return [vm.name for vm in page.items]

    assert await names() == ["vm4", "vm3", "vm2", "vm1", "vm0"]
    assert await names(public=False) == ["vm3", "vm1"]
    assert await names(state="running") == ["vm3"]
    assert await names(state="idle", public=False) == ["vm1"]
    assert await names(name_contains="M2") == ["vm2"]
    assert await names(name_contains="%") == []
    assert await names(created_after=vms[2].created_at) == ["vm4", "vm3", "vm2"]
    assert await names(created_before=vms[2].created_at) == ["vm1", "vm0"]
    assert len(await names(org_id="ArkerHQ", public=True)) == 15
    assert await names(org_id="nobody") == []
    page = await listed(world.caller, limit=2)
    seen = [vm.name for vm in page.items]
    while page.next_cursor:
        page = await listed(world.caller, cursor=page.next_cursor, limit=2)
        seen += [vm.name for vm in page.items]
    assert seen == ["vm4", "vm3", "vm2", "vm1", "vm0"]
    assert [s.index for s in (await listed(world.caller, limit=1)).items[0].sessions] == [0]
    with pytest.raises(errors.BadRequest):
        await listed(world.caller, VMFilter(state="asleep"))
    with pytest.raises(errors.BadRequest):
        await listed(world.caller, cursor="x")
    await world.release(vms[3])


async def test_others_see_nothing_but_public_vms(world):
    other = await stranger(world)
    private, public = await world.fork(name="private"), await world.fork(name="public", public=True)
    run = await world.run(private, "echo secret")
    core, session = world.core, private.sessions[0].session_id
    for ref in (private.vm_id, "private", "public", new_id(), private.vm_id.lower()):
        for attempt in (
            core.vms.get(other, ref),
            core.vms.update(other, ref, name="x"),
            core.vms.delete(other, ref),
            core.vms.park(other, ref),
            core.runs.start(other, ref, RunRequest("echo")),
            core.runs.get(other, ref, run.run_id),
            core.runs.list(other, ref),
            core.runs.cancel(other, ref, run.run_id),
            core.runs.signal(other, ref, 2),
            core.runs.resume(other, ref),
            core.sessions.create(other, ref),
            core.sessions.list(other, ref),
            core.sessions.get(other, ref, session),
            core.sessions.delete(other, ref, session),
            core.files.read(other, ref, "/etc/passwd"),
            core.files.manifest(other, ref, "/etc"),
            core.files.stage(other, ref, "/x", 1),
        ):
            with pytest.raises(errors.NotFound) as refusal:
                await attempt
            assert refusal.value.resource == "vm"
    assert (await core.vms.get(other, public.vm_id)).name == "public"
    with pytest.raises(errors.Forbidden):
        await core.runs.start(other, public.vm_id, RunRequest("echo"))
    with pytest.raises(errors.Forbidden):
        await core.runs.list(other, public.vm_id)
    with pytest.raises(errors.Forbidden):
        await core.vms.delete(other, public.vm_id)
    assert [vm.name for vm in (await core.vms.list(other, VMFilter(org_id=world.caller.org_id))).items] == ["public"]
    assert (await core.vms.list(other)).items == ()
    mine = await core.vms.list(world.caller, limit=1)
    with pytest.raises(errors.BadRequest):
        await core.vms.list(other, cursor=mine.next_cursor)


async def test_delete(world):
    vm = await world.fork(name="gone")
    running = await world.hang(vm)
    pending = await world.run(vm, "echo", wait=0)
    waiters = [asyncio.create_task(world.core.runs.wait(world.caller, vm.vm_id, r.run_id)) for r in (running, pending)]
    await asyncio.sleep(0)
    both = await asyncio.gather(
        world.core.vms.delete(world.caller, "gone"),
        world.core.vms.delete(world.caller, vm.vm_id),
        return_exceptions=True,
    )
    assert sorted(type(x).__name__ for x in both) == ["NoneType", "NotFound"]
    assert [run.state for run in await asyncio.gather(*waiters)] == ["cancelled", "cancelled"]
    assert not world.machine.boxes
    for attempt in (
        world.core.vms.delete(world.caller, vm.vm_id),
        world.core.vms.get(world.caller, vm.vm_id),
        world.core.runs.get(world.caller, vm.vm_id, running.run_id),
    ):
        with pytest.raises(errors.NotFound):
            await attempt
    await world.fork(name="gone")
    await world.core.layers.settled()
    assert world.machine.layers == {}


async def test_uses_and_deletion_at_once(world):
    for _ in range(5):
        vm = await world.fork()
        results = await asyncio.gather(
            *[world.run(vm, "put /a 1; echo", session_index=i) for i in range(5)],
            world.core.vms.delete(world.caller, vm.vm_id),
            *[world.core.files.read(world.caller, vm.vm_id, "/a") for _ in range(5)],
            return_exceptions=True,
        )
        assert all(not isinstance(r, Exception) or isinstance(r, errors.CoreError) for r in results), results
    await world.core.layers.settled()
    assert not world.machine.boxes and world.machine.layers == {}


async def test_sessions(world):
    vm = await world.fork()
    sessions = world.core.sessions
    made = await sessions.create(world.caller, vm.vm_id, {"A": "b"}, "/srv/./x")
    assert (made.index, made.cwd, dict(made.env), made.state, made.started_at) == (
        1,
        "/srv/x",
        {"A": "b"},
        "idle",
        None,
    )
    at5 = await asyncio.gather(*[world.run(vm, "echo", session_index=5) for _ in range(5)])
    assert len({s.session_id for s in at5}) == 1
    assert (await sessions.create(world.caller, vm.vm_id)).index == 6
    page = await sessions.list(world.caller, vm.vm_id, limit=3)
    assert [s.index for s in page.items] == [0, 1, 5]
    rest = await sessions.list(world.caller, vm.vm_id, cursor=page.next_cursor)
    assert [s.index for s in rest.items] == [6] and rest.next_cursor is None
    run = await world.hang(vm, "hang", session_id=made.session_id)
    behind = await world.run(vm, "echo", session_id=made.session_id, wait=0)
    assert [s.index for s in (await sessions.list(world.caller, vm.vm_id, "running")).items] == [1]
    await sessions.delete(world.caller, vm.vm_id, made.session_id)
    for ended in (run, behind):
        assert (await world.core.runs.get(world.caller, vm.vm_id, ended.run_id)).state == "cancelled"
    for attempt in (
        sessions.delete(world.caller, vm.vm_id, made.session_id),
        sessions.get(world.caller, vm.vm_id, made.session_id),
        world.run(vm, "echo", session_id=made.session_id),
    ):
        with pytest.raises(errors.NotFound) as refusal:
            await attempt
        assert refusal.value.resource == "session"
    await sessions.delete(world.caller, vm.vm_id, vm.sessions[0].session_id)
    assert await world.out(vm, "pwd") == "/root\n"
    for bad in ({"env": {"a=b": "c"}}, {"cwd": "x"}, {"env": {"A": "x" * (1 << 20)}}):
        with pytest.raises(errors.BadRequest):
            await sessions.create(world.caller, vm.vm_id, **bad)


async def test_keys(world):
    keys, caller = world.core.keys, world.caller
    made = await keys.create(caller, "ci")
    assert made.key.startswith("bxw_") and len(made.key) == 47 and made.key.startswith(made.prefix)
    assert (await keys.authenticate(made.key)).key_id == made.key_id
    assert [key.name for key in await keys.list(caller)] == ["root", "ci"]
    assert all(key.key is None for key in await keys.list(caller))
    assert made.key not in repr(made)
    assert made.key.encode() not in b"".join(p.read_bytes() for p in world.config.data.glob("boxwood.db*"))
    member = await keys.create(caller, role="member")
    with pytest.raises(errors.Forbidden):
        await keys.create(await keys.authenticate(member.key))
    other = await stranger(world)
    with pytest.raises(errors.NotFound):
        await keys.revoke(other, made.key_id)
    await keys.revoke(caller, made.key_id)
    with pytest.raises(errors.NotFound):
        await keys.revoke(caller, made.key_id)
    for wrong in (made.key, "", "bxw_", made.key[:-1], "\ud800", "x" * 100_000):
        with pytest.raises(errors.Unauthorized):
            await keys.authenticate(wrong)
    with pytest.raises(errors.BadRequest):
        await keys.create(caller, role="god")


async def test_a_full_disk_fails_requests_and_the_server_lives_on(world):
    vm = await world.fork()
    await world.out(vm, "pwd")
    database = world.core._database
    pages = await database.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    for small in (True, False):
        await database.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone(), small=small)
    with pytest.raises(errors.CapacityUnavailable):
        for _ in range(200):
            await world.fork(description="x" * 1000)
    with pytest.raises(errors.Internal) as refusal:
        for _ in range(50):
            await world.run(vm, "flood 60000")
    context = refusal.value.recovery["context"]
    assert refusal.value.recovery["work"] == "stopped"
    for small in (True, False):
        await database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone(), small=small)
    ended = await world.core.runs.get(world.caller, vm.vm_id, context["run_id"])
    assert (ended.state, len(ended.stdout)) == ("completed", 60000)
    await world.restart()
    assert len((await world.core.runs.get(world.caller, vm.vm_id, context["run_id"])).stdout) == 60000
    await world.fork()
