"""A volume in hostile hands: it leads nowhere but to itself, and what is mounted is mounted in that box alone.
attacks.md, items 1, 3, 4, 17 to 19."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxGone, EngineError, GuestError, RunSpec
from boxwood.engine.host import HostEngine
from boxwood.engine.volumes.api import Attachment

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]
LINKS = (
    "/", "/etc", "/proc", "/proc/1/root", "/proc/1/root/etc", "/proc/self/cwd", "/dev", "/proc/sys", "../..", "/run/boxwood",
)  # fmt: skip


async def made(engine: HostEngine) -> str:
    volume = new_id()
    await engine.volumes.make(volume, 0)
    return volume


async def attached(runner: Runner, volume: str, path: str = "/v", *, read_only: bool = False) -> str:
    mount = new_id()
    await runner.engine.volumes.attach(runner.box, Attachment(mount, volume, path, read_only))
    return mount


async def mounts(runner: Runner) -> list[str]:
    lines = (await runner.run("cat /proc/self/mountinfo")).text.splitlines()
    return [line.split()[4] for line in lines if "/volumes/" in line]


async def test_a_link_as_the_place_or_on_the_way_is_refused(runner: Runner) -> None:
    volume = await made(runner.engine)
    for number, target in enumerate(LINKS):
        await runner.run(f"ln -s {target} /l{number}")
        for path in (f"/l{number}", f"/l{number}/x"):
            with pytest.raises(GuestError) as refused:
                await attached(runner, volume, path)
            assert refused.value.errno == errno.ELOOP
    assert not await mounts(runner)


async def test_a_place_that_changes_while_it_is_looked_for(runner: Runner) -> None:
    """A directory on the way is a link to what must not be covered every other moment: whatever the answer, a mount is at
    a place of the VM's disk, and gone when it is taken away."""
    volume = await made(runner.engine)
    flip = (
        # Each round begins anew: who looks for the place makes directories where there are none, which stand in the way.
        "cd /; while :; do rm -rf /keep /kept; mkdir -p /a/b; mv -T /a /keep && ln -s /proc /a; rm -rf /a; mv -T /keep /a; "
        "mv -T /a/b /kept && ln -s /proc/sys /a/b; rm -rf /a/b; mv -T /kept /a/b; done 2> /dev/null"
    )
    flipping = Result()
    spec = RunSpec(new_id(), runner.session, flip.encode(), timeout=100)
    await runner.box.start_run(spec, flipping)
    outcomes: set[int] = set()
    for tried in range(400):
        if tried >= amount(15, 60) and outcomes & {errno.ELOOP, errno.ENOENT}:
            break
        try:
            mount = await attached(runner, volume, "/a/b")
        except GuestError as error:
            outcomes.add(error.errno)
        else:
            outcomes.add(0)
            await runner.engine.volumes.detach(runner.box, mount)
    await runner.box.kill_run(spec.run_id)
    await flipping.wait(runner.box)
    assert outcomes & {errno.ELOOP, errno.ENOENT} and outcomes <= {
        0,
        errno.ELOOP,
        errno.ENOENT,
        errno.EXDEV,
        errno.ENOTDIR,
    }
    assert not await mounts(runner)
    assert (await runner.run("cat /proc/sys/kernel/ostype; echo 1 > /proc/sys/kernel/hostname")).text == "Linux\n"


async def test_setuid_devices_and_capabilities_are_nothing(runner: Runner) -> None:
    other = Runner(runner.engine, runner.golden)
    await other.boot()
    volume = await made(runner.engine)
    for one in (runner, other):
        await attached(one, volume)
    result = await runner.run(
        "cp /usr/bin/id /v/id; chown 0:0 /v/id; chmod 6755 /v/id; setcap cap_net_admin+ep /v/id 2>/dev/null; "
        "mknod /v/null c 1 3; mknod /v/disk b 254 0; mount --bind / /v; echo done"
    )
    assert result.text == "done\n" and bytes(result.err).count(b"ermitted") + bytes(result.err).count(b"enied") >= 3
    script = "su user -s /bin/sh -c '/v/id -u; /v/id -g' 2>/dev/null || setpriv --reuid 1000 --regid 1000 --clear-groups /v/id -u"
    seen = (await other.run(script)).text.split()
    assert seen and "0" not in seen
    options = (await other.run("grep ' /v ' /proc/self/mounts")).text.split()[3]
    assert {"nosuid", "nodev"} <= set(options.split(","))


async def test_a_device_that_the_host_puts_there_is_none(runner: Runner, data: Path) -> None:
    """As if an image of a volume had been made elsewhere: the mount itself knows no devices and no setuid."""
    volume = await made(runner.engine)
    upper = data / "layers/volumes" / volume / "upper"
    os.mknod(upper / "zero", 0o20666, os.makedev(1, 5))
    await attached(runner, volume)
    assert b"ermission denied" in bytes((await runner.run("head -c 1 /v/zero")).err)


async def test_nothing_but_the_volume_can_be_reached(runner: Runner, data: Path) -> None:
    volume, other = await made(runner.engine), await made(runner.engine)
    (data / "layers/volumes" / other / "upper/secret").write_text("of another")
    (data / "layers/secret").write_text("of the host")
    await attached(runner, volume)
    looks = (
        f"cd /v; cat ../secret ../../secret ../../{other}/upper/secret ../../../secret {data}/layers/secret; "
        f"ln -s {data}/layers/secret there && cat there; ln /etc/passwd /v/hard; ls -A .. | grep -c volumes; "
        'python3 -c \'import os\nfor n in range(2, 40):\n  try: os.open("/v/" + "../" * n + "secret", 0)\n  except OSError: pass\n  else: print("opened")\''
    )
    result = await runner.run(looks)
    assert result.text == "0\n" and b"ross-device" in bytes(result.err)
    handles = (
        "import ctypes, os; l = ctypes.CDLL(None, use_errno=True); h = (ctypes.c_char * 136)(); "
        "h[0:8] = bytes([128, 0, 0, 0, 0, 0, 0, 0]); m = ctypes.c_int(); "
        "r = l.name_to_handle_at(-100, b'/v', h, ctypes.byref(m), 0); "
        "f = os.open('/v', 0); print(l.open_by_handle_at(f, h, 0))"
    )
    assert (await runner.run(f'python3 -c "{handles}"')).text.strip() in ("-1", "")


async def test_a_mount_is_not_the_boxs_to_change(runner: Runner) -> None:
    volume = await made(runner.engine)
    await attached(runner, volume, read_only=True)
    result = await runner.run(
        "umount /v; umount -l /v; mount -o remount,rw /v; mount -o remount,bind,rw /v; mv /v /w; rmdir /v; touch /v/x; "
        "unshare -m true; nsenter -t 1 -m true; echo ended"
    )
    assert result.text == "ended\n" and len(bytes(result.err).splitlines()) >= 9
    assert await mounts(runner) == ["/v"]


async def test_what_the_host_mounts_in_a_volume_stays_there(runner: Runner, data: Path) -> None:
    """The box's mount is in no peer group with the host's."""
    await attached(runner, await made(runner.engine))
    shared = (await runner.run("grep ' /v ' /proc/self/mountinfo")).text
    assert "shared:" not in shared and "master:" not in shared


async def test_a_box_that_dies_while_something_is_mounted(engine: HostEngine, golden: str) -> None:
    volume = await made(engine)
    for _ in range(10):
        runner = Runner(engine, golden)
        await runner.boot()
        attaching = asyncio.ensure_future(attached(runner, volume))
        await asyncio.sleep(0)
        await runner.box.kill()
        try:
            await attaching
        except (BoxGone, EngineError):
            pass
    assert await engine.volumes.remove([volume]) == {volume}
