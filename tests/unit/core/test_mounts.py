"""Filesystems and their mounts over an engine in memory: names, states, sharing, parking, forks, ends, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fake_engine import Machine

from boxwood.core import filesystems as filesystems_module
from boxwood.core import mounts as mounts_module
from boxwood.core.errors import (
    AlreadyExists,
    BadRequest,
    CapacityUnavailable,
    Conflict,
    Forbidden,
    InsufficientResources,
    InvalidState,
    NotFound,
    Unsupported,
)
from boxwood.core.filesystems import Filesystem
from boxwood.core.ids import new_id
from boxwood.core.model import VM, Caller, ClaimRequest, PoolRequest
from boxwood.core.mounts import Mount, mount_point
from boxwood.engine.api import EngineError

pytestmark = pytest.mark.anyio


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def mounted(world, vm: VM, filesystem: Filesystem, path: str | None = None, **more: bool) -> Mount:
    made = await world.core.mounts.create(world.caller, vm.vm_id, filesystem.filesystem_id, path, **more)
    return await settled(world, vm, made.mount_id)


async def settled(world, vm: VM, mount_id: str, state: str = "mounted") -> Mount:
    async with asyncio.timeout(10):
        while True:
            page = await world.core.mounts.list(world.caller, vm.vm_id)
            found = next(one for one in page.items if one.mount_id == mount_id)
            if found.state == state:
                return found
            await asyncio.sleep(0.001)


async def stranger(world) -> Caller:
    await world.core._database.write(lambda c: c.execute("INSERT INTO orgs VALUES ('o2', 'Others', 0)"))
    return Caller(org_id="o2", org_name="Others", key_id="k2")


async def test_made_listed_and_deleted(world, machine: Machine) -> None:
    core, caller = world.core, world.caller
    for name in ("data-1", "data_2", "other"):
        await core.filesystems.create(caller, name)
    first = await core.filesystems.list(caller, limit=2)
    rest = await core.filesystems.list(caller, first.next_cursor, limit=2)
    assert [one.name for one in (*first.items, *rest.items)] == ["data-1", "data_2", "other"]
    assert rest.next_cursor is None
    assert [one.name for one in (await core.filesystems.list(caller, name_prefix="data_")).items] == ["data_2"]
    made = first.items[0]
    assert (await core.filesystems.get(caller, made.name)).filesystem_id == made.filesystem_id
    assert (await core.filesystems.get(caller, made.filesystem_id.lower())).size_bytes == 0
    with pytest.raises(AlreadyExists):
        await core.filesystems.create(caller, "data-1")
    await core.filesystems.delete(caller, made.filesystem_id)
    for reference in (made.filesystem_id, "data-1", "no such", "x" * 300, "ü"):
        with pytest.raises(NotFound):
            await core.filesystems.get(caller, reference)
    await core.filesystems.create(caller, "data-1")  # its name is free
    await core.filesystems.settled()
    assert len(machine.volumes) == 3 and made.filesystem_id not in machine.volumes


async def test_names_and_sizes_that_are_refused(world, machine: Machine) -> None:
    for name in ("", "a/b", "..", "x" * 65, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "a\n"):
        with pytest.raises(BadRequest):
            await world.core.filesystems.create(world.caller, name)
    with pytest.raises(InsufficientResources):
        await world.core.filesystems.create(world.caller, "small", 15)
    with pytest.raises(BadRequest):
        await world.core.filesystems.create(world.caller, "large", (1 << 23) + 1)
    machine.disk_problem = "no quotas"
    with pytest.raises(Unsupported, match="size_mib"):
        await world.core.filesystems.create(world.caller, "bound", 64)
    machine.free_disk = 0
    with pytest.raises(CapacityUnavailable):
        await world.core.filesystems.create(world.caller, "x")
    assert not machine.volumes


async def test_what_bounds_the_disks_of_vms_bounds_filesystems(make_world, machine: Machine) -> None:
    world = await make_world(disk_mib=64, disk_mib_most=128)
    made = await world.core.filesystems.create(world.caller, "a")
    assert made.size_mib == 64 and machine.called("make_volume") == [(made.filesystem_id, 64 << 20)]
    with pytest.raises(BadRequest):
        await world.core.filesystems.create(world.caller, "b", 129)


async def test_no_more_than_so_many(world, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setattr(filesystems_module, "MOST", 1)
    monkeypatch.setattr(mounts_module, "MOST", 1)
    one = await world.core.filesystems.create(world.caller, "one")
    with pytest.raises(Conflict):
        await world.core.filesystems.create(world.caller, "two")
    await world.core.filesystems.settled()
    assert set(machine.volumes) == {one.filesystem_id}  # nothing is left of the other
    monkeypatch.undo()
    monkeypatch.setattr(mounts_module, "MOST", 1)
    two, vm = await world.core.filesystems.create(world.caller, "two"), await world.fork()
    await mounted(world, vm, one)
    with pytest.raises(Conflict):
        await mounted(world, vm, two)


async def test_two_vms_share_one_and_it_outlives_them(world) -> None:
    shared = await world.core.filesystems.create(world.caller, "shared")
    one, two = await world.fork(), await world.fork()
    await world.out(one, "echo lives already")
    made = await world.core.mounts.create(world.caller, one.vm_id, "shared")
    assert (made.state, made.path) == ("attaching", "/mnt/shared")
    await settled(world, one, made.mount_id)
    await mounted(world, two, shared, "/data", read_only=True)
    await world.out(one, "put /mnt/shared/f hello")
    assert await world.out(two, "cat /data/f") == "hello"
    assert (await world.run(two, "put /data/g no")).exit_code == 1
    for vm in (one, two):
        await world.core.vms.delete(world.caller, vm.vm_id)
    three = await world.fork()
    await mounted(world, three, shared)
    assert await world.out(three, "cat /mnt/shared/f") == "hello"
    assert (await world.core.filesystems.get(world.caller, "shared")).size_bytes == 5


async def test_parked_it_comes_back_before_anything_runs(world, machine: Machine) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    await mounted(world, vm, volume, "/v")
    await world.out(vm, "put /v/f kept")
    await world.core.vms.park(world.caller, vm.vm_id)
    assert (await world.core.mounts.list(world.caller, vm.vm_id)).items[0].state == "mounted"
    machine.calls.clear()
    assert await world.out(vm, "cat /v/f") == "kept"
    order = [name for name, _ in machine.calls if name in ("boot", "attach", "open_session", "start_run")]
    assert order == ["boot", "attach", "open_session", "start_run"]


async def test_a_stopped_vm_gets_it_when_it_is_started(world, machine: Machine) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    await world.core.vms.stop(world.caller, vm.vm_id)
    made = await world.core.mounts.create(world.caller, vm.vm_id, "v")
    await until(lambda: not world.core.mounts._trying)
    assert (await settled(world, vm, made.mount_id, "attaching")).detail is None and not machine.boxes
    await world.core.vms.start(world.caller, vm.vm_id)
    await settled(world, vm, made.mount_id)
    assert volume.filesystem_id in machine.boxes[vm.vm_id].volumes_had


async def test_a_fork_has_none_of_them(world) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    await mounted(world, vm, volume, "/v")
    await world.out(vm, "put /v/f shared; put /own mine")
    child = await world.fork(vm.vm_id)
    assert not (await world.core.mounts.list(world.caller, child.vm_id)).items
    assert await world.out(child, "cat /own") == "mine"
    assert (await world.run(child, "cat /v/f")).exit_code == 1
    assert await world.out(vm, "cat /v/f") == "shared"


async def test_nor_has_what_waits_in_a_pool(world) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork(name="source")
    await mounted(world, vm, volume, "/v")
    await world.core.pools.create(world.caller, PoolRequest(name="p", source_name="source", replicas=1))
    claimed = await world.core.pools.claim(world.caller, "p", "default", ClaimRequest())
    assert not (await world.core.mounts.list(world.caller, claimed.vm_id)).items
    await world.out(claimed, "echo up")
    assert not world.machine.boxes[claimed.vm_id].volumes_had


async def test_asked_twice_and_asked_otherwise(world) -> None:
    one, two = [await world.core.filesystems.create(world.caller, name) for name in ("one", "two")]
    vm = await world.fork()
    made = await mounted(world, vm, one, "/a/b")
    create = world.core.mounts.create
    for path in ("/a/b", "/a//b/.", None):
        assert await create(world.caller, vm.vm_id, one.filesystem_id, path) == made
    for filesystem, path, read_only in (
        (two, "/a/b", False), (one, "/c", False), (one, "/a/b", True), (two, "/a", False), (two, "/a/b/c", False),
    ):  # fmt: skip
        with pytest.raises(Conflict):
            await create(world.caller, vm.vm_id, filesystem.filesystem_id, path, read_only)
    await mounted(world, vm, two, "/a/bc")
    page = await world.core.mounts.list(world.caller, vm.vm_id, limit=1)
    rest = await world.core.mounts.list(world.caller, vm.vm_id, page.next_cursor)
    assert [one.path for one in (*page.items, *rest.items)] == ["/a/b", "/a/bc"] and rest.next_cursor is None
    only = await world.core.mounts.list(world.caller, vm.vm_id, filesystem=two.filesystem_id)
    assert [one.path for one in only.items] == ["/a/bc"]
    assert not (await world.core.mounts.list(world.caller, vm.vm_id, filesystem=new_id())).items


async def test_a_filesystem_is_deleted_when_it_is_mounted_nowhere(world, machine: Machine) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork(name="user")
    made = await mounted(world, vm, volume)
    with pytest.raises(Conflict, match="mounted in user"):
        await world.core.filesystems.delete(world.caller, "v")
    await world.core.mounts.delete(world.caller, vm.vm_id, made.mount_id)
    assert not machine.boxes[vm.vm_id].mounts
    with pytest.raises(NotFound):
        await world.core.mounts.delete(world.caller, vm.vm_id, made.mount_id)
    await world.core.filesystems.delete(world.caller, "v")
    await world.core.filesystems.settled()
    assert volume.filesystem_id in machine.volumes  # processes of the box may be in there
    await world.core.vms.park(world.caller, vm.vm_id)
    await world.core.filesystems.settled()
    assert not machine.volumes


async def test_a_place_that_cannot_be_had(world, machine: Machine) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    made = await world.core.mounts.create(world.caller, vm.vm_id, "v", "/a/link")
    failed = await settled(world, vm, made.mount_id, "failed")
    assert failed.detail == "/a/link is a symbolic link"
    again = await world.core.mounts.create(world.caller, vm.vm_id, "v", "/a/link")  # tried once more
    assert (again.mount_id, again.state, again.detail) == (made.mount_id, "attaching", None)
    await settled(world, vm, made.mount_id, "failed")
    assert await world.out(vm, "echo up") == "up\n"
    machine.volumes.pop(volume.filesystem_id)
    lost = await world.fork()
    made = await world.core.mounts.create(world.caller, lost.vm_id, "v", "/a")
    assert "not on this host" in ((await settled(world, lost, made.mount_id, "failed")).detail or "")


async def test_trouble_that_passes(world, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts_module, "FIRST_PAUSE", 0.001)
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    machine.fail["attach"] = [EngineError("busy"), EngineError("busy")]
    await mounted(world, vm, volume)
    assert len(machine.called("attach")) == 3


@pytest.mark.parametrize(
    "path",
    ["", "relative", "/", "//", "/.", "/tmp", "/proc", "/proc/1", "/sys/fs", "/dev/shm/x", "/run", "/a/../etc", "/a\0", "/" + "x" * 256, "/a" * 600],
)  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(BadRequest):
        mount_point(path)


def test_paths_in_their_proper_form() -> None:
    assert mount_point("//mnt/./data/") == "/mnt/data" and mount_point("/procs") == "/procs"
    assert mount_point("/tmp/x") == "/tmp/x"


async def test_other_organisations_see_nothing(world) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork(public=True)
    made = await mounted(world, vm, volume)
    other, core = await stranger(world), world.core
    for work in (
        lambda: core.filesystems.get(other, volume.filesystem_id), lambda: core.filesystems.get(other, "v"),
        lambda: core.filesystems.delete(other, volume.filesystem_id),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await work()
    for work in (
        lambda: core.mounts.list(other, vm.vm_id), lambda: core.mounts.delete(other, vm.vm_id, made.mount_id),
        lambda: core.mounts.create(other, vm.vm_id, volume.filesystem_id),
    ):  # fmt: skip
        with pytest.raises(Forbidden):  # a public VM is seen; a private one would be NotFound
            await work()
    assert not (await core.filesystems.list(other)).items
    await core.filesystems.create(other, "v")  # names are an organisation's own


async def test_an_immutable_vm_is_not_touched(world) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    made = await mounted(world, vm, volume)
    await world.core.vms.update(world.caller, vm.vm_id, immutable=True)
    with pytest.raises(InvalidState):
        await world.core.mounts.delete(world.caller, vm.vm_id, made.mount_id)
    with pytest.raises(InvalidState):
        await world.core.mounts.create(world.caller, vm.vm_id, "v")
    await world.core.vms.delete(world.caller, vm.vm_id)
    await world.core.filesystems.delete(world.caller, "v")


async def test_a_restart_takes_over_what_is_mounted(world, machine: Machine) -> None:
    volume, vm = await world.core.filesystems.create(world.caller, "v"), await world.fork()
    made = await mounted(world, vm, volume, "/v")
    await world.out(vm, "put /v/f kept")
    await world.restart()
    assert await world.out(vm, "cat /v/f") == "kept"
    assert len(machine.called("attach")) == 1
    await world.core.mounts.delete(world.caller, vm.vm_id, made.mount_id)
    assert not machine.boxes[vm.vm_id].mounts


async def test_a_server_that_died_in_the_midst_is_caught_up_with(world, machine: Machine) -> None:
    """One mount was asked for and not made, one was made that no row has any more."""
    one, two = [await world.core.filesystems.create(world.caller, name) for name in ("one", "two")]
    vm, parked = await world.fork(), await world.fork()
    stale = await mounted(world, vm, one, "/one")
    machine.fail["attach"] = [EngineError("killed"), EngineError("killed")]
    waiting = await world.core.mounts.create(world.caller, vm.vm_id, two.filesystem_id)
    also = await world.core.mounts.create(world.caller, parked.vm_id, two.filesystem_id)
    await until(lambda: not machine.fail["attach"])
    await world.core._database.write(lambda c: c.execute("DELETE FROM mounts WHERE id = ?", (stale.mount_id,)))
    await world.core.vms.park(world.caller, parked.vm_id)
    await world.restart()
    await settled(world, vm, waiting.mount_id)
    await settled(world, parked, also.mount_id)
    assert list(machine.boxes[vm.vm_id].mounts) == [waiting.mount_id]


async def test_directories_without_a_row_are_removed_after_a_grace(
    world, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.core.filesystems.create(world.caller, "v")
    lost = new_id()
    machine.volumes[lost] = {}
    await world.restart()
    await world.core.filesystems.settled()
    assert lost in machine.volumes
    monkeypatch.setattr(filesystems_module, "GRACE_SECONDS", 0)
    await world.restart()
    await world.core.filesystems.settled()
    assert lost not in machine.volumes and len(machine.volumes) == 1


async def test_what_was_deleted_when_the_server_died_is_removed_by_the_next(world, machine: Machine) -> None:
    volume = await world.core.filesystems.create(world.caller, "v")
    machine.fail["remove_volumes"] = [EngineError("killed")]
    await world.core.filesystems.delete(world.caller, "v")
    await world.core.filesystems.settled()
    assert volume.filesystem_id in machine.volumes
    await world.restart()
    await world.core.filesystems.settled()
    assert not machine.volumes


async def test_of_many_deletions_and_creations_none_is_lost(world, machine: Machine) -> None:
    vm = await world.fork()
    volume = await world.core.filesystems.create(world.caller, "v")
    for _ in range(20):
        made = await world.core.mounts.create(world.caller, vm.vm_id, volume.filesystem_id)
        await world.core.mounts.delete(world.caller, vm.vm_id, made.mount_id)
    await until(lambda: not world.core.mounts._trying)
    assert not machine.boxes[vm.vm_id].mounts
    made = await mounted(world, vm, volume)
    assert list(machine.boxes[vm.vm_id].mounts) == [made.mount_id]
