"""Files and archives that come into a box through pipes."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
from pathlib import Path

import pytest

from amounts import amount
from archives import archive
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxGone, GuestError, RunSpec

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]
MIB = 1 << 20


async def give(runner: Runner, path: str, *pieces: bytes, mode: int | None = None) -> int:
    feed = await runner.box.receive_file(path, mode)
    try:
        for piece in pieces:
            await feed.give(piece)
        return await feed.place()
    finally:
        feed.abandon()


async def content(runner: Runner, path: str) -> bytes:
    opened = await runner.box.read_file(path)
    with open(opened.fd, "rb") as file:
        return file.read()


async def test_files_of_any_length(runner: Runner) -> None:
    for size in (0, 1, 65536, 5 * MIB + 1):
        data = os.urandom(size)
        assert await give(runner, "/a/new/file", data[:1000], data[1000:]) == size
        assert await content(runner, "/a/new/file") == data
    assert (await runner.run("stat -c %a /a/new/file; ls -A /a/new")).text == "644\nfile\n"


async def test_mode_and_owner(runner: Runner) -> None:
    await runner.run("echo old > /tmp/f; chmod 750 /tmp/f; chown user:user /tmp/f")
    await give(runner, "/tmp/f", b"new")
    assert (await runner.run("stat -c '%a %u' /tmp/f; cat /tmp/f")).text == "750 1000\nnew"
    await give(runner, "/tmp/f", b"new", mode=0o6711)
    assert (await runner.run("stat -c '%a' /tmp/f")).text == "711\n", "nothing that is uploaded runs as somebody else"


async def test_nothing_is_seen_before_all_is_there(runner: Runner) -> None:
    await runner.run("mkdir /w; echo before > /w/f")
    feed = await runner.box.receive_file("/w/f")
    await feed.give(os.urandom(3 * MIB))
    assert (await runner.run("cat /w/f; ls -A /w")).text == "before\nf\n"
    feed.abandon()
    assert (await runner.run("cat /w/f; ls -A /w; ls /proc/1/fd 2>/dev/null | wc -l")).text.startswith("before\nf\n")


async def test_many_at_once_and_no_more(runner: Runner) -> None:
    feeds = [await runner.box.receive_file(f"/w/{number}") for number in range(64)]
    with pytest.raises(GuestError) as refused:
        await runner.box.receive_file("/w/more")
    assert refused.value.errno == errno.EAGAIN
    await asyncio.gather(*(feed.give(str(number).encode() * 100_000) for number, feed in enumerate(feeds)))
    assert len(set(await asyncio.gather(*(feed.place() for feed in feeds)))) == 2
    assert await content(runner, "/w/63") == b"63" * 100_000
    assert await give(runner, "/w/more", b"now") == 3


async def test_what_cannot_be_written_is_refused(runner: Runner) -> None:
    for path in ("/proc/x", "/dev/shm/x", "/run/x", "/sys/x", "/tmp", "/tmp/", "/dev/null", "x", "/n\0"):
        with pytest.raises(GuestError):
            await runner.box.receive_file(path)
            pytest.fail(path)


async def test_a_box_that_dies(runner: Runner) -> None:
    feed = await runner.box.receive_file("/w/f")
    await feed.give(b"x" * MIB)
    await runner.box.kill()
    with pytest.raises(BoxGone):
        for _ in range(100):
            await feed.give(b"x" * MIB)
    feed.abandon()


async def unpack(runner: Runner, path: str, *pieces: bytes, packed: bool = False, limit: int = 1 << 30):
    feed = await runner.box.receive_archive(path, packed, limit)
    try:
        for piece in pieces:
            await feed.give(piece)
        return await feed.unpacked()
    finally:
        feed.abandon()


async def test_an_archive(runner: Runner) -> None:
    data = archive(**{"a": b"1", "d/e/f": os.urandom(3 * MIB)})
    done = await unpack(runner, "/w/tree", data[:700], data[700:])
    assert (done.files, done.bytes) == (2, 3 * MIB + 1)
    done = await unpack(runner, "/w/tree", gzip.compress(data), packed=True)
    assert (await runner.run("cat /w/tree/a; stat -c %s /w/tree/d/e/f; ls -A /w/tree")).text == f"1{3 * MIB}\na\nd\n"


async def test_archives_that_are_refused(runner: Runner) -> None:
    await runner.run("mkdir -p /w; ln -s /etc /w/out")
    for data, packed in (
        (b"nonsense" * 1000, False),
        (b"nonsense" * 1000, True),
        (archive(a=b"x" * 9999)[:5000], False),
    ):
        with pytest.raises(GuestError) as refused:
            await unpack(runner, "/w", data, packed=packed)
        assert refused.value.errno == errno.EINVAL
    with pytest.raises(GuestError, match="links are not followed"):
        await unpack(runner, "/w", archive(**{"out/evil": b"x"}))
    with pytest.raises(GuestError, match="more than is taken"):
        await unpack(runner, "/w", gzip.compress(archive(bomb=bytes(8 * MIB))), packed=True, limit=MIB)
    for path in ("/proc", "/dev/shm", "/run/x", "/etc/passwd"):
        with pytest.raises(GuestError):
            await unpack(runner, path, archive(a=b"x"))
    assert (await runner.run("ls /etc/evil /w/bomb 2>&1 | grep -c 'No such'; ls -A /w")).text == "2\nout\n"


SWAPPING = """
import os
os.makedirs('/w/real', exist_ok=True)
print('swapping', flush=True)
while True:
    for target in ('{outside}', '/proc/self', '/dev/shm', 'real'):
        os.symlink(target, '/w/new')
        os.rename('/w/new', '/w/flip')
    os.unlink('/w/flip'); os.mkdir('/w/flip')
    for name in os.listdir('/w/flip'): os.unlink('/w/flip/' + name)
    try: os.rmdir('/w/flip')
    except OSError: os.system('rm -rf /w/flip')
"""


async def test_links_that_change_while_files_come(runner: Runner, tmp_path: Path) -> None:
    """Attack items 17 and 18: a directory is swapped for links as fast as can be, under streams and archives."""
    outside = tmp_path / "outside"
    outside.mkdir()
    os.chmod(tmp_path, 0o755)
    os.chmod(outside, 0o777)
    await runner.box.write_file("/tmp/swap.py", SWAPPING.format(outside=outside).encode())
    swapping, run_id = Result(), new_id()
    await runner.box.start_run(RunSpec(run_id, runner.session, b"python3 /tmp/swap.py"), swapping)
    async with asyncio.timeout(30):
        while b"swapping" not in swapping.out:
            await asyncio.sleep(0.01)
    ended = 0
    for _ in range(amount(25, 60)):
        for work in (give(runner, "/w/flip/f", b"x" * MIB, b"y"), unpack(runner, "/w", archive(**{"flip/g": b"x"}))):
            try:
                await work
                ended += 1
            except GuestError:
                pass
    await runner.box.kill_run(run_id)
    await swapping.wait(runner.box)
    assert ended, "the probe: some must have found a directory"
    assert os.listdir(outside) == []
    assert (await runner.run("ls -A /dev/shm /proc/self/f /proc/self/g 2>/dev/null | grep -v '^/'")).text.split() == []
