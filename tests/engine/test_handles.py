"""Files that stay open in a real box: what is opened, and where a name may lead."""

from __future__ import annotations

import errno

import pytest

from boxfixtures import Runner
from boxwood.engine.api import GuestError
from boxwood.engine.handleapi import Attributes, BoxHandles, Opening
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]
NEW = Opening(read=True, write=True, create=True, truncate=True)


async def refused(awaitable: object) -> int:
    with pytest.raises(GuestError) as error:
        await awaitable  # type: ignore[misc]
    return error.value.errno


async def test_nothing_but_files_of_the_disk_are_opened(runner: Runner) -> None:
    handles: BoxHandles = runner.box.handles
    await runner.run(
        "mkdir /w; cd /w; ln -s /proc/version v; ln -s /dev/null n; ln -s new d; ln -s loop loop; mkfifo p; echo x > f"
    )
    for path, number in {
        b"/w/v": errno.EACCES, b"/w/n": errno.EACCES, b"/dev/null": errno.EACCES, b"/proc/self/mem": errno.EACCES,
        b"/run/x": errno.EACCES, b"/dev/shm/x": errno.EACCES, b"/w": errno.EISDIR, b"/w/f/": errno.EISDIR,
        b"/": errno.EISDIR, b"/w/..": errno.EISDIR, b"/w/p": errno.EINVAL, b"/w/loop": errno.ELOOP,
        b"/w/f/x": errno.ENOTDIR,
    }.items():  # fmt: skip
        for how in (Opening(read=True), NEW):
            assert await refused(handles.open(path, how)) == number, (path, how)
    exclusive = Opening(write=True, create=True, exclusive=True)
    assert await refused(handles.open(b"/w/d", exclusive)) == errno.EEXIST, "a link that leads nowhere is there"
    file = await handles.open(b"/w/d", NEW)
    await file.write(0, b"by way of a link")
    assert (await runner.run("stat -c %a:%u new; cat new", cwd="/w")).text == "644:0\nby way of a link"
    assert await refused(handles.change(b"/proc/sys/kernel/hostname", Attributes(mode=0), follow=True)) == errno.EACCES
    assert await refused(handles.change(b"/w/n", Attributes(mode=0), follow=True)) == errno.EACCES
    assert await refused(handles.change(b"/w/n", Attributes(mode=0), follow=False)) == errno.EOPNOTSUPP
    assert await refused(handles.change(b"/w/p", Attributes(size=0), follow=True)) == errno.EINVAL
    assert await refused(handles.link(b"/proc/version", b"/w/version")) == errno.EACCES
    assert await refused(handles.symlink(b"/dev/shm/x", b"x")) == errno.EACCES


async def test_a_read_only_box_takes_files_in_its_memory_alone(engine: HostEngine, golden: str) -> None:
    runner = Runner(engine, golden)
    await runner.boot(read_only=True)
    handles: BoxHandles = runner.box.handles
    assert await refused(handles.open(b"/new", NEW)) == errno.EROFS
    assert await refused(handles.open(b"/etc/passwd", Opening(write=True))) == errno.EROFS
    assert await refused(handles.change(b"/etc/passwd", Attributes(modified=1, accessed=1), follow=True)) == errno.EROFS
    assert await refused(handles.symlink(b"/new", b"x")) == errno.EROFS
    file = await handles.open(b"/tmp/new", NEW)
    await file.write(0, b"in memory")
    assert await file.read(3, 100) == b"memory"
