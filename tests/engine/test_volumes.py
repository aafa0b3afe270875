"""Volumes in live boxes: attached and taken away without a restart, shared, read-only, limited; what is refused."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxGone, EngineError, GuestError, NotHere
from boxwood.engine.host import HostEngine
from boxwood.engine.volumes.api import Attachment

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]
MIB = 1 << 20


async def made(engine: HostEngine, limit: int = 0) -> str:
    volume = new_id()
    await engine.volumes.make(volume, limit)
    return volume


async def attached(runner: Runner, volume: str, path: str = "/mnt/data", **more: object) -> str:
    mount = new_id()
    await runner.engine.volumes.attach(runner.box, Attachment(mount, volume, path, **more))  # type: ignore[arg-type]
    return mount


async def another(runner: Runner) -> Runner:
    other = Runner(runner.engine, runner.golden)
    await other.boot()
    return other


@pytest.mark.parametrize("limit", [0, 64 * MIB])
async def test_two_boxes_share_one_and_it_outlives_both(runner: Runner, limit: int) -> None:
    volume, second = await made(runner.engine, limit), await another(runner)
    await runner.run("echo before >/dev/null; cd /")  # its shell lives before the volume comes
    for one in (runner, second):
        await attached(one, volume, limit=limit)
    assert (await runner.run("echo hello > /mnt/data/a; chown 1000:1001 /mnt/data/a; chmod 751 /mnt/data/a")).code == 0
    seen = await second.run("cat /mnt/data/a; stat -c '%u %g %a' /mnt/data/a /mnt/data; echo 2 >> /mnt/data/a")
    assert seen.text == "hello\n1000 1001 751\n0 0 755\n", bytes(seen.err)
    assert (await runner.run("cat /mnt/data/a")).text == "hello\n2\n"
    await runner.box.kill()
    await second.box.kill()
    third = await another(runner)
    await attached(third, volume, "/elsewhere", limit=limit)
    assert (await third.run("cat /elsewhere/a")).text == "hello\n2\n"
    assert await runner.engine.volumes.size(volume) >= 4096


async def test_a_box_sees_its_own_volumes_alone(runner: Runner) -> None:
    one, two = await made(runner.engine), await made(runner.engine)
    second = await another(runner)
    await attached(runner, one)
    await attached(second, two)
    await runner.run("echo secret > /mnt/data/s")
    assert (
        await second.run("ls -A /mnt/data /mnt/data/.. | grep -c s$; ls /mnt/data/../..| grep -c volumes")
    ).text == "0\n0\n"


@pytest.mark.parametrize("limit", [0, 64 * MIB])
async def test_read_only_for_one_and_not_for_the_other(runner: Runner, limit: int) -> None:
    volume, second = await made(runner.engine, limit), await another(runner)
    await attached(runner, volume, read_only=True, limit=limit)
    await attached(second, volume, limit=limit)
    assert (await second.run("echo x > /mnt/data/x")).code == 0
    result = await runner.run("cat /mnt/data/x; echo y > /mnt/data/y; rm -f /mnt/data/x; chmod 777 /mnt/data")
    assert result.text == "x\n" and bytes(result.err).count(b"Read-only file system") == 3
    with pytest.raises(GuestError) as refused:
        await runner.box.write_file("/mnt/data/z", b"z")
    assert refused.value.errno == errno.EROFS and "is read-only" in refused.value.message


async def test_what_is_taken_away_is_gone_at_once(runner: Runner) -> None:
    volume = await made(runner.engine)
    mount = await attached(runner, volume)
    await runner.run("echo x > /mnt/data/x; cd /mnt/data; exec 9</mnt/data/x")
    assert mount in runner.box.mounts
    assert not await runner.engine.volumes.detach(runner.box, mount)  # only readers stay
    assert not runner.box.mounts and not await runner.engine.volumes.detach(runner.box, mount)
    result = await runner.run("ls -A /mnt/data; cat <&9; echo y > y; cd /")
    assert result.text == "x\n" and b"Read-only file system" in bytes(result.err)
    await attached(runner, volume)
    assert (await runner.run("cat /mnt/data/x")).text == "x\n"


async def test_who_writes_is_told_of(runner: Runner) -> None:
    mount = await attached(runner, await made(runner.engine))
    await runner.run("exec 9>/mnt/data/x")
    assert await runner.engine.volumes.detach(runner.box, mount)


async def test_a_renamed_place_is_found(runner: Runner) -> None:
    """The mount moves with the directories above it; what is where it was is not touched."""
    mount = await attached(runner, await made(runner.engine), "/deep/down/here")
    result = await runner.run(
        "touch /deep/down/here/f; mv /deep /moved && mkdir /deep && ln -s /proc /deep/down; ls /moved/down/here"
    )
    assert result.text == "f\n", bytes(result.err)
    await runner.engine.volumes.detach(runner.box, mount)
    assert (await runner.run("ls -A /moved/down/here; mountpoint -q /proc && echo still")).text == "still\n"


async def test_the_limit_holds(runner: Runner) -> None:
    limit = 20 * MIB
    volume = await made(runner.engine, limit)
    await attached(runner, volume, limit=limit)
    result = await runner.run("dd if=/dev/zero of=/mnt/data/big bs=1M count=40 status=none; stat -c %s /mnt/data/big")
    assert b"No space left" in bytes(result.err) and 15 * MIB < int(result.text) <= limit
    assert 15 * MIB < await runner.engine.volumes.size(volume) <= limit
    await runner.run("rm /mnt/data/big; echo x > /mnt/data/small")
    assert await runner.engine.volumes.size(volume) < MIB


REFUSED = [
    ("/link", errno.ELOOP), ("/link/below", errno.ELOOP), ("/deep/etc", errno.ELOOP), ("/file", errno.ENOTDIR),
    ("/file/below", errno.ENOTDIR), ("/proc/sys", errno.EXDEV), ("/dev/shm/x", errno.EXDEV), ("/run/x", errno.EXDEV),
    ("/sys", errno.EXDEV),
]  # fmt: skip


async def test_places_that_are_refused(runner: Runner) -> None:
    await runner.run("ln -s /etc /link; ln -s /proc/1/root /deep; echo > /file")
    volume = await made(runner.engine)
    for path, number in REFUSED:
        with pytest.raises(GuestError) as refused:
            await attached(runner, volume, path)
        assert refused.value.errno == number and path.split("/")[1] in refused.value.message, path
        assert not runner.box.mounts, path
        assert (await runner.run("grep -c volumes /proc/self/mountinfo")).text == "0\n", path


async def test_one_mount_at_a_place(runner: Runner) -> None:
    volume = await made(runner.engine)
    await attached(runner, volume)
    for path in ("/mnt/data", "/mnt/data/below"):
        with pytest.raises(GuestError) as refused:
            await attached(runner, volume, path)
        assert refused.value.errno == errno.EXDEV


async def test_a_volume_that_is_not_there(runner: Runner) -> None:
    with pytest.raises(NotHere):
        await attached(runner, new_id())
    with pytest.raises(EngineError):
        await attached(runner, await made(runner.engine), "/a/../b")


async def test_a_box_that_is_gone(runner: Runner) -> None:
    volume = await made(runner.engine)
    mount = await attached(runner, volume)
    await runner.box.kill()
    with pytest.raises(BoxGone):
        await attached(runner, volume)
    with pytest.raises(BoxGone):
        await runner.engine.volumes.detach(runner.box, mount)


async def test_files_of_a_volume_by_the_file_api(runner: Runner) -> None:
    await attached(runner, await made(runner.engine))
    assert await runner.box.write_file("/mnt/data/new/f", b"hello") == 5
    opened = await runner.box.read_file("/mnt/data/new/f")
    assert os.pread(opened.fd, 10, 0) == b"hello"
    os.close(opened.fd)
    assert [entry.path for entry in (await runner.box.manifest("/mnt/data")).entries] == ["new/f"]
    with pytest.raises(GuestError):
        await runner.box.read_file("/proc/version")


@pytest.mark.own_engine
async def test_a_new_server_finds_them(runner: Runner, data: Path, images: Path) -> None:
    volume = await made(runner.engine)
    mount = await attached(runner, volume)
    await runner.engine.close()
    (box,) = await runner.engine.start()
    assert box.mounts == {mount}
    opened = await box.read_file("/etc/passwd")
    os.close(opened.fd)
    await runner.engine.volumes.detach(box, mount)
    assert not box.mounts


@pytest.mark.own_engine
@pytest.mark.parametrize("limit", [0, 32 * MIB])
async def test_what_a_living_box_has_had_is_not_removed(runner: Runner, limit: int) -> None:
    volumes = runner.engine.volumes
    volume, unused = await made(runner.engine, limit), await made(runner.engine, limit)
    mount = await attached(runner, volume, limit=limit)
    await runner.run("cd /mnt/data && mkdir d && echo x > d/x")
    await volumes.detach(runner.box, mount)
    assert await volumes.stored() == {volume, unused}
    assert await volumes.remove([volume, unused]) == {unused} and await volumes.stored() == {volume}
    await runner.box.kill()
    assert await volumes.remove([volume]) == {volume} and not await volumes.stored()
