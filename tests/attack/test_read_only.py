"""A read-only box: root in it writes to nothing but memory, however it tries, and nothing it writes there is executed."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

import syscalls
from amounts import amount
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import GuestError
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

# Ways to make the root writable again, or to write past it: (what, a C-like call through libc.syscall, its errnos).
CALLS = {
    "remount": ("165, 0, b'/', 0, 32, 0", {1}),
    "remount bind": ("165, 0, b'/', 0, 32 | 4096, 0", {1}),
    "bind over": ("165, b'/dev/shm', b'/usr', 0, 4096, 0", {1}),
    "overlay over": ("165, b'o', b'/usr', b'overlay', 0, b'lowerdir=/usr,upperdir=/tmp/u,workdir=/tmp/w'", {1}),
    "exec on /tmp": ("165, 0, b'/tmp', 0, 32 | 4096, 0", {1}),
    "umount /tmp": ("166, b'/tmp', 2", {1}),
    "mount_setattr": ("442, -100, b'/', 0, struct.pack('QQQQ', 0, 1, 0, 0), 32", {1}),
    "fsopen": ("430, b'overlay', 0", {1}),
    "fspick": ("433, -100, b'/', 0", {1}),
    "open_tree": ("428, -100, b'/', 1", {1}),
    "unshare": ("272, 0x10020000", {1}),
    "new user namespace": ("56, 0x10020011, 0, 0, 0, 0", {1}),
}
PRELUDE = f"""
{syscalls.SYS}
def attempt(name, work):
    try:
        print(name, '=', 'done', work())
    except OSError as e:
        print(name, '=', e.errno)
"""
WRITES = {
    "create": "os.open('/new', os.O_CREAT | os.O_WRONLY)",
    "create below": "os.open('/root/new', os.O_CREAT | os.O_WRONLY)",
    "append": "os.open('/etc/passwd', os.O_WRONLY | os.O_APPEND)",
    "truncate": "os.truncate('/etc/passwd', 0)",
    "through a descriptor": "os.open('/proc/self/fd/%d' % os.open('/etc/passwd', os.O_RDONLY), os.O_RDWR)",
    "through another root": "os.open('/proc/self/root/etc/passwd', os.O_RDWR)",
    "through the agent's root": "os.open('/proc/1/root/etc/passwd', os.O_RDWR)",
    "mkdir": "os.mkdir('/d')",
    "unlink": "os.unlink('/etc/passwd')",
    "rename": "os.rename('/etc/passwd', '/etc/p')",
    "link out": "os.link('/etc/passwd', '/etc/p')",
    "symlink": "os.symlink('/tmp', '/etc/p')",
    "chmod": "os.chmod('/etc/passwd', 0o777)",
    "chown": "os.chown('/etc/passwd', 1, 1)",
    "utime": "os.utime('/etc/passwd')",
    "xattr": "os.setxattr('/etc/passwd', 'user.x', b'')",
    "mknod": "os.mkfifo('/fifo')",
    "socket": "__import__('socket').socket(1).bind('/s')",
}


@pytest.fixture
async def box(engine: HostEngine, golden: str) -> Runner:
    runner = Runner(engine, golden)
    await runner.boot(read_only=True)
    return runner


async def python(runner: Runner, source: str) -> dict[str, str]:
    result = await runner.run("python3 -", stdin=(PRELUDE + source).encode(), timeout=60)
    assert result.code == 0, bytes(result.err).decode()
    return dict(line.split(" = ") for line in result.text.splitlines())


async def test_nothing_of_the_disk_can_be_written(box: Runner) -> None:
    answers = await python(box, "".join(f"attempt({name!r}, lambda: {call})\n" for name, call in WRITES.items()))
    assert answers == dict.fromkeys(WRITES, str(errno.EROFS)) | {"through the agent's root": str(errno.EACCES)}
    assert await box.engine.is_empty(box.stack.top)


async def test_it_cannot_be_made_writable(box: Runner) -> None:
    source = "os.mkdir('/tmp/u'); os.mkdir('/tmp/w')\n"
    source += "".join(
        f"r = SYS({args}); print({name!r}, '=', r, ctypes.get_errno())\n" for name, (args, _) in CALLS.items()
    )
    answers = await python(box, source)
    for name, (_, numbers) in CALLS.items():
        result, number = map(int, answers[name].split())
        assert result == -1 and number in numbers, (name, answers[name])
    assert (await box.run("echo x > /x")).code != 0
    options = dict(line.split()[:2] for line in (await box.run("findmnt -rno TARGET,OPTIONS")).text.splitlines())
    assert options["/"].startswith("ro,")
    for place in ("/tmp", "/run", "/dev/shm"):
        assert {"rw", "nosuid", "nodev", "noexec"} <= set(options[place].split(",")), place


async def test_places_that_can_be_written(box: Runner) -> None:
    """They are bounded, everybody's where they should be, and nothing in them is executed."""
    result = await box.run("stat -c '%a %u %g' /tmp; df --output=size /tmp | tail -1; cd /tmp; echo a > a; cat a")
    assert result.text.split() == ["1777", "0", "0", "65536", "a"]
    for place in ("/tmp", "/run", "/dev/shm"):
        script = f"cp /bin/true {place}/t && chmod 755 {place}/t && {place}/t; echo $?; rm {place}/t"
        assert (await box.run(script)).text == "126\n", place
    assert (await box.run("rm /tmp/a; head -c 70000000 /dev/zero > /tmp/big")).code != 0
    assert (await box.run("stat -c %s /tmp/big; rm /tmp/big")).text == f"{64 << 20}\n"
    assert (await box.run("cd /tmp; export X=1; echo $X; pwd", user="user")).text == "1\n/tmp\n"


async def test_files_over_the_api(box: Runner) -> None:
    for path in ("/root/f", "/new/dir/f", "/etc/passwd", "/tmp/../etc/passwd"):
        with pytest.raises(GuestError, match="read-only") as refused:
            await box.box.write_file(path, b"x")
        assert refused.value.errno == errno.EROFS
    for place in ("/run/f", "/dev/shm/f"):
        with pytest.raises(GuestError, match="not on the VM's disk"):
            await box.box.write_file(place, b"x")
    big = bytes(3 << 20)
    for path, data in ("/tmp/a/b", b"small"), ("/tmp/big", big):
        assert await box.box.write_file(path, data) == len(data)
        opened = await box.box.read_file(path)
        with open(opened.fd, "rb") as file:
            assert file.read() == data
    manifest = await box.box.manifest("/tmp")
    assert sorted(entry.path for entry in manifest.entries) == ["a/b", "big"]
    await box.run("ln -s /etc/passwd /tmp/link; ln -s /dev/shm /tmp/shm; echo 1 > /dev/shm/x")
    for path in ("/tmp/link", "/tmp/shm/x"):
        with pytest.raises(GuestError):
            await box.box.write_file(path, b"x")
    with pytest.raises(GuestError):
        await box.box.write_file("/tmp/full", bytes(62 << 20))
    assert not box.box.gone.done()


async def test_streams_that_fill_the_disk(box: Runner) -> None:
    """They are told so, and what there was of them is given back."""
    for _ in range(2):
        feed = await box.box.receive_file("/tmp/f")
        with pytest.raises(GuestError) as refused:
            for _ in range(80):
                await feed.give(bytes(1 << 20))
            await feed.place()
        feed.abandon()
        assert refused.value.errno == errno.ENOSPC
        assert (await box.run("ls -A /tmp; df --output=used /tmp | tail -1")).text.split() == ["0"]
    with pytest.raises(GuestError, match="read-only"):
        await box.box.receive_file("/root/f")
    with pytest.raises(GuestError, match="read-only"):
        archive = await box.box.receive_archive("/root", False, 1 << 30)
        await archive.unpacked()
    feed = await box.box.receive_file("/tmp/f")
    for _ in range(50):
        await feed.give(bytes(1 << 20))
    assert await feed.place() == 50 << 20
    await box.run("rm /tmp/f")


async def test_a_place_that_is_no_directory(engine: HostEngine, golden: str, data: Path) -> None:
    """What a VM has made of its /tmp before leads the mount nowhere."""
    maker = Runner(engine, golden)
    for script in ("rm -rf /tmp; ln -s /etc /tmp", "rm -rf /tmp", "rm -rf /tmp; echo > /tmp"):
        await maker.boot()
        assert (await maker.run(script)).code == 0
        await maker.box.kill()
        runner = Runner(engine, golden)
        await runner.boot((maker.stack.top,), read_only=True)
        assert (await runner.run("findmnt -rno TARGET | grep -c -e tmp -e etc")).text == "0\n", script
        assert (await runner.run("echo > /etc/x || echo > /tmp/x")).code != 0
        assert (await runner.box.settle()).idle
        await runner.box.kill()
        maker.session = new_id()


async def test_what_is_in_memory_keeps_the_box(box: Runner) -> None:
    await box.run("cd /tmp; echo a > a")
    activity = await box.box.settle()
    assert (activity.runs, activity.processes, activity.files, activity.idle) == (0, 0, True, False)
    await box.run("rm a")
    assert (await box.box.settle()).idle


@pytest.mark.own_engine
async def test_ready_boxes_are_of_one_kind(data: Path, images: Path, golden: str) -> None:
    engine = HostEngine(data, images, 4, network=False)
    await engine.start()
    try:
        for read_only in (True, False) * amount(2, 4):
            runner = Runner(engine, golden)
            await runner.boot(read_only=read_only)
            assert (await runner.run("touch /x")).code == int(read_only)
            await runner.box.kill()
            async with asyncio.timeout(30):
                while not engine._ready._shelves[runner.stack.layers, False, read_only, 0].boxes:
                    await asyncio.sleep(0.01)
    finally:
        await engine.shutdown()
