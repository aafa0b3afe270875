"""File work while what it works on is swapped, and archives that mean harm: attacks.md, items 17 to 22."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from amounts import amount
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import GuestError, RunSpec
from boxwood.engine.fileapi import TextQuery

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

FLIP = """
import os, shutil, sys
os.makedirs('/w/real/deep', exist_ok=True)
open('/w/real/secret', 'w').write('of the vm\\n')
os.mkdir('/w/keep'); os.makedirs('/w/keep/flip/deep'); open('/w/keep/flip/secret', 'w').close()
print('flipping', flush=True)
def instead(make):
    make('/w/new')
    try:
        os.rename('/w/new', '/w/flip')
    except OSError:
        shutil.rmtree('/w/flip', ignore_errors=True)
        os.rename('/w/new', '/w/flip')
while True:
    try:  # what the work moves and removes, lest it find nothing for ever
        os.makedirs('/w/real/deep', exist_ok=True)
        if not os.path.exists('/w/real/secret'):
            open('/w/real/secret', 'w').close()
    except OSError:
        pass
    for target in (sys.argv[1], 'real', '/proc/self', '/dev/shm', '/proc/1/root', '/proc/self/fd', '..', '/', None, 'pipe'):
        try:
            if target is None:
                os.unlink('/w/flip'); os.rename('/w/keep/flip', '/w/flip'); os.rename('/w/flip', '/w/keep/flip')
            else:
                instead(os.mkfifo if target == 'pipe' else lambda new: os.symlink(target, new))
        except OSError:
            for left in ('/w/new', '/w/flip'):
                try: os.unlink(left)
                except OSError: shutil.rmtree(left, ignore_errors=True)
            try: os.makedirs('/w/keep/flip/deep', exist_ok=True)
            except OSError: pass
"""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "secret").write_text("of the host\n")
    return directory


@contextlib.asynccontextmanager
async def flipping(runner: Runner, outside: Path) -> AsyncIterator[None]:
    """A process in the box swaps /w/flip, as fast as it can: for links that lead everywhere, a directory, a FIFO."""
    await runner.box.write_file("/tmp/flip.py", FLIP.encode())
    result, run_id = Result(), new_id()
    await runner.box.start_run(RunSpec(run_id, runner.session, f"python3 /tmp/flip.py {outside}".encode()), result)
    async with asyncio.timeout(30):
        while b"flipping" not in result.out:
            await asyncio.sleep(0.01)
    yield
    assert result.end is None, f"it did not flip to the end: {bytes(result.err)!r}"
    await runner.box.kill_run(run_id)
    await result.wait(runner.box)


async def archived(box: Any) -> None:
    """Whatever it is that moment, the whole VM too: the beginning of it."""
    data = b""
    async with aclosing(await box.files.pack(b"/w/flip")) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > 1 << 20:
                break
    assert b"of the host" not in data


async def unarchived(box: Any) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("flip/deep/x", "flip/secret"):
            member = tarfile.TarInfo(name)
            member.size = 11
            tar.addfile(member, io.BytesIO(b"overwritten"))
    unpacking = await box.files.unpack(b"/w", owners=False)
    try:
        await unpacking.feed(data.getvalue())
        await unpacking.finish()
    finally:
        unpacking.close()


async def watched(box: Any) -> None:
    watch = await box.files.watch(b"/w/flip", recursive=True, most=50)
    await anext(watch)
    await watch.aclose()


async def searched(box: Any) -> None:
    found = await box.files.search(b"/w/flip/deep", TextQuery("of the host"), limit=10, seconds=5)
    assert not found.matches


WORK: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "stat": lambda box: box.files.stat(b"/w/flip/secret", follow=True),
    "list": lambda box: box.files.list(b"/w/flip", after=b"", limit=100),
    "mkdir": lambda box: box.files.mkdir(b"/w/flip/deep/made/more", parents=True, mode=0o700),
    "chmod": lambda box: box.files.chmod(b"/w/flip/secret", 0o777),
    "move": lambda box: box.files.move(b"/w/flip/secret", b"/w/flip/deep/secret", replace=True),
    "remove": lambda box: box.files.remove(b"/w/flip/deep", recursive=True),
    "remove the link": lambda box: box.files.remove(b"/w/real/deep/flip", recursive=True),
    "glob": lambda box: box.files.glob(b"/w/flip", "*/*", limit=100, seconds=5),
    "search": searched,
    "pack": archived,
    "unpack": unarchived,
    "watch": watched,
}


async def test_nothing_leads_out_while_all_is_swapped(runner: Runner, outside: Path) -> None:
    """Item 18, 22. Whatever becomes of each, the box and its agent go on, and nothing outside is read or changed."""
    before = sorted((str(path), path.stat().st_mode) for path in outside.rglob("*"))
    async with flipping(runner, outside):
        done, rounds = dict.fromkeys(WORK, 0), 0
        while rounds < amount(4, 25) or not (done["stat"] and done["list"] and done["mkdir"]):
            rounds += 1
            for name, work in WORK.items():
                with contextlib.suppress(GuestError):
                    await work(runner.box)
                    done[name] += 1
    assert sorted((str(path), path.stat().st_mode) for path in outside.rglob("*")) == before
    assert (outside / "secret").read_text() == "of the host\n"
    assert (await runner.run("echo on; test -d /etc && test -e /dev/null && echo whole")).text == "on\nwhole\n"


async def test_a_tree_that_changes_while_it_is_deleted(runner: Runner) -> None:
    """Links to what must stay are put in place of directories; what they lead to stays."""
    keep = "mkdir /keep && for i in $(seq 50); do touch /keep/$i; done"
    await runner.run(keep)
    churn = (
        "import os,random\nprint('on',flush=True)\nn=0\nwhile True:\n n+=1\n"
        " try:\n  os.makedirs('/w/%d/x/y' % (n%20), exist_ok=True)\n  os.rename('/w/%d/x' % (n%20), '/w/%d/z' % (n%20))\n"
        "  os.symlink('/keep', '/w/%d/x' % (n%20))\n  os.symlink('/keep', '/w/%d/z/k' % (n%20))\n except OSError: pass\n"
    )
    await runner.box.write_file("/tmp/churn.py", churn.encode())
    result, run_id = Result(), new_id()
    await runner.box.start_run(RunSpec(run_id, runner.session, b"python3 /tmp/churn.py"), result)
    while b"on" not in result.out:
        await asyncio.sleep(0.01)
    for _ in range(amount(4, 30)):
        with contextlib.suppress(GuestError):
            await runner.box.files.remove(b"/w", recursive=True)
    await runner.box.kill_run(run_id)
    await result.wait(runner.box)
    assert (await runner.run("ls -d /keep/[0-9]* | wc -l")).text == "50\n"


def archive(*members: tuple[str, bytes, Any]) -> bytes:
    """(name, type, what it leads to or holds)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, more in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o6777
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = more
            content = more if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


FILE, LINK, HARD, FIFO, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE


HOSTILE: list[list[tuple[str, bytes, Any]]] = [
        [("../evil", FILE, b"x")],
        [("a/../../evil", FILE, b"x")],
        [("/evil", FILE, b"x")],
        [("link", LINK, "/"), ("link/evil", FILE, b"x")],
        [("link", LINK, "../.."), ("link/evil", FILE, b"x")],
        [("own/evil", FILE, b"x")],
        [("hard", HARD, "/etc/passwd")],
        [("hard", HARD, "../etc/passwd")],
        [("hard", HARD, "own/passwd")],
        [("link", LINK, "/etc"), ("hard", HARD, "link/passwd")],
        [("", FILE, b"x")],
        [(".", LINK, "/etc")],
        [("directory", FILE, b"x")],
        [("file/x", FILE, b"x")],
]  # fmt: skip


async def test_archives_write_nothing_outside(runner: Runner) -> None:
    """Item 20: by names, and through links, be they the archive's or there before."""
    for number, members in enumerate(HOSTILE):
        place = f"/w{number}"
        await runner.run(f"mkdir -p {place}/directory; ln -s /etc {place}/own; echo x > {place}/file")
        unpacking = await runner.box.files.unpack(place.encode(), owners=False)
        try:
            with pytest.raises(GuestError):
                await unpacking.feed(archive(*members))
                await unpacking.finish()
                pytest.fail(f"unpacked: {members}")
        finally:
            unpacking.close()
        look = f"ls / /etc | grep -c evil; cat {place}/file; stat -c %h /etc/passwd; ls -A {place} | grep boxwood"
        assert (await runner.run(look)).text == "0\nx\n1\n", members


async def test_what_is_unpacked_runs_as_nobody_else(runner: Runner) -> None:
    """Items 20, 21: neither setuid nor a device; a link that leads out stays a link, and what it leads to as it was."""
    data = archive(
        ("f", FILE, b"x"), ("d", tarfile.DIRTYPE, None), ("dev", DEVICE, None), ("fifo", FIFO, None),
        ("l", LINK, "/etc/passwd"), ("l", FILE, b"now a file"),
    )  # fmt: skip
    unpacking = await runner.box.files.unpack(b"/w", owners=False)
    await unpacking.feed(data)
    assert (await unpacking.finish()).skipped == 2
    unpacking.close()
    said = await runner.run("cd /w; stat -c '%a %F' f d l; ls; head -c 4 /etc/passwd")
    assert said.text == "777 regular file\n777 directory\n777 regular file\nd\nf\nl\nroot"


def broken() -> dict[str, bytes]:
    whole = archive(("f", FILE, b"x" * 5000))
    huge = bytearray(archive(("f", FILE, b"x")))
    huge[124:136] = b"\x80" + bytes(3) + (1 << 60).to_bytes(8, "big")
    huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + 8 * 32 + sum(huge[156:512]))
    long = bytearray(archive(("f", FILE, b"x")))
    long[156:157], long[124:136] = b"x", b"%011o\0" % (1 << 30)
    long[148:156] = b"%06o\0 " % (sum(long[:148]) + 8 * 32 + sum(long[156:512]))
    return {
        "nothing": b"", "noise": os.urandom(4096), "short": whole[:1000], "no end": whole[: 512 + 5120], "gzip": b"\x1f\x8b" + bytes(600),
        "a size of an exabyte": bytes(huge), "a gigabyte of names": bytes(long), "wrong sum": b"a" + whole[1:],
    }  # fmt: skip


async def test_archives_that_are_none(runner: Runner) -> None:
    for what, data in broken().items():
        unpacking = await runner.box.files.unpack(b"/w", owners=False)
        try:
            with pytest.raises(GuestError, match="not a tar archive"):
                await unpacking.feed(data)
                await unpacking.finish()
                pytest.fail(f"unpacked: {what}")
        finally:
            unpacking.close()
        assert (await runner.run("ls -A /w | grep -c boxwood")).text == "0\n", what


async def test_a_client_that_goes_in_the_middle(runner: Runner) -> None:
    """Files that were whole by then stay; of the one that was coming nothing is seen, and no helper is left."""
    data = archive(("whole", FILE, b"w" * 3000), ("half", FILE, b"h" * 100_000))
    unpacking = await runner.box.files.unpack(b"/w", owners=False)
    await unpacking.feed(data[:50_000])
    unpacking.close()
    async with asyncio.timeout(30):
        while not (await runner.box.settle()).idle:
            await asyncio.sleep(0.01)
    assert (await runner.run("ls -A /w; cat /w/whole | wc -c")).text == "whole\n3000\n"


async def test_special_files_hold_nobody_up(runner: Runner) -> None:
    """Item 19: FIFOs, sockets, endless and sparse files, unreadable ones."""
    await runner.run(
        "mkdir /w; cd /w; mkfifo p; python3 -c \"import socket; socket.socket(1).bind('s')\"; truncate -s 1T sparse; echo x > secret; chmod 0 secret"
    )
    files = runner.box.files
    assert {entry.path: entry.status.kind for entry in (await files.list(b"/w", after=b"", limit=10)).entries} == {
        b"p": "fifo", b"s": "socket", b"secret": "file", b"sparse": "file",
    }  # fmt: skip
    found = await files.search(b"/w", TextQuery("x"), limit=10, seconds=10)
    assert [match.path for match in found.matches] == [b"secret"]
    pieces, size = await files.pack(b"/w"), 0
    async for piece in pieces:
        size += len(piece)
        if size > 64 << 20:
            break
    await pieces.aclose()
    async with asyncio.timeout(30):
        while not (await runner.box.settle()).idle:
            await asyncio.sleep(0.01)
    assert await files.remove(b"/w", recursive=True) == 5
