"""A pool with quotas that `boxwood storage` makes, and engines that live on it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from boxwood.core.ids import new_id
from boxwood.engine import quota, storage
from boxwood.engine.api import Box, BoxSpec, EngineError, EngineUnavailable, Limits, RunEnd, RunSpec, SessionSpec, Stack
from boxwood.engine.host import HostEngine
from boxwood.engine.volumes.api import Attachment
from quotachecks.ground import DATA, DISKS, IMAGES, MIB, SECONDS, Disk, fill, once, wait_until


@once
def a_file_system_without_quotas_says_so() -> None:
    active, why, fix = quota.told(DATA / "layers")
    assert not active and "without project quotas" in why and "boxwood storage init" in fix, (why, fix)
    active, why, fix = quota.told(Path("/tmp/not/there"))
    assert not active and "XFS and ext4" in why, why


@once
def a_pool_is_made_and_limits_tops() -> None:
    found = asked("init", "--size", "1")
    assert found["quotas"] == "xfs" and found["mounted"] and found["pool"] == str(DATA / "pool.xfs"), found
    assert 900 * MIB < found["size"] <= 1024 * MIB and found["free"] > 800 * MIB
    made = os.stat(DATA / "pool.xfs")
    assert made.st_blocks * 512 >= 1 << 30 and made.st_mode & 0o777 == 0o600, "it is allocated, and root's"
    assert os.stat(DATA / "layers").st_mode & 0o777 == 0o700
    disk = Disk("xfs", DATA)
    top, _ = disk.top(4 * MIB, None)
    assert disk.boxed(top, lambda: fill("/big", 10)) != 10 * MIB
    shutil.rmtree(disk.layers / top)
    os.close(disk.fd)


@once
def a_pool_is_made_once() -> None:
    before = os.stat(DATA / "pool.xfs")
    assert asked("init", "--size", "1")["mounted"]
    assert os.stat(DATA / "pool.xfs").st_ino == before.st_ino


@once
def a_pool_comes_and_goes_with_the_engine() -> None:
    storage.detach(DATA)
    assert not os.path.ismount(DATA / "layers") and not loops()
    found = asked("show")
    assert not found["mounted"] and "boxwood up" in found["fix"]
    (DATA / "layers/stray").touch()
    try:
        storage.attach(DATA)
    except EngineUnavailable as error:
        assert "not empty" in str(error)
    else:
        raise AssertionError("it was mounted over what lay there")
    (DATA / "layers/stray").unlink()
    storage.attach(DATA)
    storage.attach(DATA)
    assert asked("show")["mounted"] and len(loops()) == 1
    with open(DATA / "layers/held", "w"):
        storage.detach(DATA)
        assert os.path.ismount(DATA / "layers"), "what is in use stays"
    os.unlink(DATA / "layers/held")
    storage.detach(DATA)


@once
def a_pool_can_grow() -> None:
    """As docs/storage.md says."""
    subprocess.run(["fallocate", "-l", str(1200 * MIB), DATA / "pool.xfs"], check=True)
    storage.attach(DATA)
    before = os.statvfs(DATA / "layers")
    subprocess.run(["xfs_growfs", DATA / "layers"], check=True, stdout=subprocess.DEVNULL)
    after = os.statvfs(DATA / "layers")
    assert (after.f_blocks - before.f_blocks) * after.f_frsize > 150 * MIB
    storage.detach(DATA)


@once
def a_pool_is_not_made_over_layers_or_beside_a_server() -> None:
    place = DATA / "other"
    (place / "layers" / new_id()).mkdir(parents=True)
    assert "holds layers" in asked("init", "--size", "1", data=place)["error"]
    shutil.rmtree(place / "layers")
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "a server runs" in asked("init", "--size", "1", data=place)["error"]
    assert "too much" in asked("init", "--size", "900", data=place)["error"]
    assert sorted(os.listdir(place)) == ["layers", "lock"]
    xfs = DISKS["xfs"].place / "boxwood"
    assert asked("init", data=xfs)["pool"] is None, "it lies on quotas"


@once
def an_engine_lives_on_a_pool() -> None:
    asyncio.run(_live())


async def _live() -> None:
    image = make_image()
    engine = HostEngine(DATA, IMAGES, network=False)
    await engine.start()
    assert os.path.ismount(DATA / "layers")
    assert engine.free_disk() < 1200 * MIB < shutil.disk_usage(DATA).free
    told = {one.name: (one.active, one.why) async for one in engine.features()}
    assert told["disk limit"] == (True, "each VM with disk_mib is limited by project quotas of xfs"), told
    top = new_id()
    vm = await Vm.boot(engine, image, top, Limits())
    assert await vm.run("echo kept > /note; cat /note") == "kept\n"
    await engine.shutdown()
    assert not os.path.ismount(DATA / "layers") and not loops()
    await engine.start()
    assert (DATA / "layers" / top / "upper" / "note").read_text() == "kept\n"
    await engine.shutdown()


@once
def an_engine_limits_disks_by_quotas() -> None:
    asyncio.run(_limited())


async def _limited() -> None:
    image, top, copy = make_image(), new_id(), new_id()
    engine = HostEngine(DATA, IMAGES, network=False)
    await engine.start()
    assert engine.disk_problem() == "" and await engine.disk_capacity(top) is None
    vm = await Vm.boot(engine, image, top, Limits(disk=8 * MIB))
    filling = "dd if=/dev/zero of=/big bs=64k count=400 2>/dev/null; wc -c < /big"
    assert 7 * MIB < int(await vm.run(filling)) <= 8 * MIB
    assert await vm.run("touch /more 2>/dev/null; echo still here") == "still here\n"
    await engine.change(vm.box, "testbox", Limits(disk=16 * MIB))
    assert 15 * MIB < int(await vm.run(filling)) <= 16 * MIB
    try:
        await engine.change(vm.box, "testbox", Limits(disk=4 * MIB))
    except EngineError as error:
        assert "holds 16 MiB" in str(error), error
    else:
        raise AssertionError("the limit is below what is used")
    await engine.copy_top(vm.box, top, copy)
    for layer in (top, copy):
        assert 15 * MIB < (await engine.contents(layer)).bytes < 17 * MIB
    assert not await engine.in_files() and (await engine.disk_capacity(top) or 0) > 1 << 40
    await vm.box.kill()
    vm = await Vm.boot(engine, image, top, Limits(disk=2 * MIB))
    assert await vm.run("echo x > /more || rm /big /bin/env; echo kept > /note; cat /note") == "kept\n"
    await vm.box.kill()
    fd = os.open(DATA / "layers" / top, os.O_RDONLY)
    project = quota.project_of(fd)[0]
    os.close(fd)
    await engine.remove([top, copy])
    layers = os.open(DATA / "layers", os.O_RDONLY)
    wait_until(lambda: quota.usage(layers, project) == quota.Usage())
    os.close(layers)
    await engine.shutdown()
    assert not os.path.ismount(DATA / "layers") and not loops()


@once
def volumes_are_limited_by_quotas() -> None:
    asyncio.run(_volumes(DATA))


@once
def volumes_are_limited_by_files() -> None:
    """Where nothing counts; on this kernel nothing of a mount that is detached can be cloned."""
    asyncio.run(_volumes(Path("/plain/volumes")))


async def _volumes(data: Path) -> None:
    image, volume, plain = make_image(), new_id(), new_id()
    engine = HostEngine(data, IMAGES, network=False)
    await engine.start()
    vms = [await Vm.boot(engine, image, new_id(), Limits()) for _ in range(2)]
    for ident, limit in ((volume, 16 * MIB), (plain, 0)):
        await engine.volumes.make(ident, limit)
        for number, vm in enumerate(vms):
            wanted = Attachment(new_id(), ident, f"/v/{ident}", read_only=bool(number), limit=limit)
            await engine.volumes.attach(vm.box, wanted)
    first, second = vms
    size = int(
        await first.run(f"dd if=/dev/zero of=/v/{volume}/big bs=64k count=400 2>/dev/null; wc -c < /v/{volume}/big")
    )
    assert 14 * MIB < size <= 16 * MIB and int(await second.run(f"wc -c < /v/{volume}/big")) == size
    assert await first.run(f"echo kept > /v/{plain}/note; cat /v/{plain}/note") == "kept\n"
    assert await second.run(f"echo no 2>/dev/null > /v/{plain}/note; cat /v/{plain}/note") == "kept\n"
    assert 14 * MIB < await engine.volumes.size(volume) <= 16 * MIB and await engine.volumes.size(plain) >= 4096
    await engine.volumes.detach(first.box, sorted(first.box.mounts)[1])
    assert await first.run(f"cat /v/{plain}/note 2>/dev/null; wc -c < /v/{volume}/big") == f"{size}\n"
    assert await engine.volumes.remove([volume, plain]) == set()
    for vm in vms:
        await vm.box.kill()
    assert await engine.volumes.remove([volume, plain]) == {volume, plain}
    await engine.shutdown()
    assert not loops()


def make_image() -> str:
    """An image that is busybox."""
    image = new_id()
    programs = IMAGES / image / "upper" / "bin"
    programs.mkdir(parents=True)
    shutil.copy("/bin/busybox", programs)
    for name in ("sh", "cat", "echo", "env", "true", "dd", "wc", "rm", "touch"):
        os.symlink("busybox", programs / name)
    for name in ("proc", "dev", "run", "sys", "tmp", "root"):
        (programs.parent / name).mkdir()
    for directory in (programs.parent, *programs.parent.iterdir()):
        directory.chmod(0o755)
    return image


class Vm:
    """A box with one session."""

    def __init__(self, box: Box) -> None:
        self.box, self._session = box, new_id()
        self._said, self._over = bytearray(), asyncio.Event()

    @staticmethod
    async def boot(engine: HostEngine, image: str, top: str, limits: Limits) -> Vm:
        stack = Stack((image,), top, frozenset({image}))
        vm = Vm(await engine.boot(BoxSpec(new_id(), stack, limits=limits, network=False)))
        vm.box.listen(vm)
        await vm.box.open_session(SessionSpec(vm._session))
        return vm

    async def run(self, command: str) -> str:
        self._said.clear()
        self._over.clear()
        await self.box.start_run(RunSpec(new_id(), self._session, command.encode()), self)
        async with asyncio.timeout(SECONDS):
            await self._over.wait()
        return self._said.decode()

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        return None

    def output(self, stream: int, offset: int, data: bytes) -> None:
        if stream == 1:
            self._said += data

    def finished(self, end: RunEnd) -> None:
        self._over.set()


def asked(*words: str, data: Path = DATA) -> dict[str, object]:
    """What `boxwood storage` is told."""
    command = [sys.executable, "-I", "-m", "boxwood.engine.storage", *words, "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def loops() -> list[str]:
    return [str(file) for file in Path("/sys/block").glob("loop*/loop/backing_file")]
