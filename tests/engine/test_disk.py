"""Tops with a limit: what a VM may write ends there, and nothing of it stays on the host when nobody uses it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxSpec, EngineError, Limits, RunSpec, SessionSpec, Stack
from boxwood.engine.disk import IMAGE, MIB, files, image
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine, pytest.mark.timeout(120)]
LIMIT = 20 * MIB
# Again in smaller pieces: for large ones more is kept back, until they have been written.
FILL = """for size in 64k 4k; do
dd if=/dev/zero of=/root/full bs=$size oflag=append conv=notrunc 2>&1 | grep -o 'No space left'; sync
done; stat -c %s /root/full"""


def limited(size: int = LIMIT) -> Limits:
    return Limits(disk=size)


def attached(data: Path) -> list[str]:
    """What loop devices of this host stand for, of a data directory's layers."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(path.read_text().strip())
        except OSError:
            continue  # it went away meanwhile
    return [name for name in found if name.endswith(IMAGE) and any(i in name for i in os.listdir(data / "layers"))]


@pytest.fixture
async def small(engine: HostEngine, golden: str) -> AsyncIterator[Runner]:
    runner = Runner(engine, golden)
    await runner.boot(limits=limited())
    yield runner


async def filled(runner: Runner) -> int:
    """Bytes that went into one file before the disk was full."""
    said = (await runner.run(FILL)).text.split("\n")
    assert said[:2] == ["No space left"] * 2
    return int(said[2])


async def test_bytes_end_at_the_limit(small: Runner) -> None:
    assert LIMIT - MIB < await filled(small) <= LIMIT
    assert (await small.run("echo more > /root/more")).code == 1
    assert (await small.run("rm /root/full && echo more > /root/more && cat /root/more")).text == "more\n"


async def test_what_is_copied_up_counts(small: Runner) -> None:
    assert (await small.run("size=$(stat -Lc %s /usr/bin/python3); cp /usr/bin/python3 /root/x; echo $?")).text == "0\n"
    await filled(small)
    said = await small.run("echo >> /usr/bin/python3.11 || echo >> $(readlink -f /usr/bin/python3)")
    assert b"No space left" in said.err


async def test_inodes_end_too(small: Runner) -> None:
    said = await small.run("mkdir /root/many && cd /root/many && seq 5000 | xargs touch 2>&1 | grep -c 'No space left'")
    assert int(said.text) > 0
    made = int((await small.run("ls /root/many | wc -l")).text)
    assert 1000 < made <= files.size_for(LIMIT) // (16 << 10)
    assert (await small.run("rm -r /root/many && touch /root/file && echo room")).text == "room\n"


async def test_holes_and_reservations(small: Runner) -> None:
    assert (await small.run("truncate -s 1T /root/hole && stat -c %b /root/hole")).text == "0\n"
    assert (await small.run("fallocate -l 100M /root/reserved")).code == 1
    await small.run("rm -f /root/reserved")
    assert LIMIT - MIB < await filled(small) <= LIMIT


async def test_df_tells_what_is_left(small: Runner) -> None:
    said = await small.run("df --output=avail -B1 / | tail -1")
    assert LIMIT - MIB < int(said.text) <= LIMIT
    await filled(small)
    assert int((await small.run("df --output=avail -B1 / | tail -1")).text) < 16384


async def test_find_meets_one_device(small: Runner) -> None:
    await small.run("echo x > /root/file")
    said = await small.run(
        "find / -xdev -maxdepth 2 -name passwd; stat -c %d / /root/file /etc/passwd | sort -u | wc -l"
    )
    assert said.text == "/etc/passwd\n1\n"


async def test_another_limit_counts_at_once(engine: HostEngine, small: Runner) -> None:
    await filled(small)
    await engine.change(small.box, "testbox", limited(LIMIT + 8 * MIB))
    assert LIMIT + 7 * MIB < await filled(small) <= LIMIT + 8 * MIB
    with pytest.raises(EngineError, match="its disk holds 28 MiB"):
        await engine.change(small.box, "testbox", limited(LIMIT))
    with pytest.raises(EngineError, match="while it runs"):
        await engine.change(small.box, "testbox", limited(500 * MIB))
    await small.run("rm /root/full")
    await engine.change(small.box, "testbox", limited(4 * MIB))
    assert 3 * MIB < await filled(small) <= 4 * MIB


async def test_all_limits_or_none(engine: HostEngine, small: Runner) -> None:
    with pytest.raises(EngineError):
        await engine.change(small.box, "testbox", Limits(memory_mib=1, disk=4 * MIB))
    assert LIMIT - MIB < await filled(small) <= LIMIT


async def test_what_was_made_without_a_limit_gets_none(engine: HostEngine, runner: Runner) -> None:
    with pytest.raises(EngineError, match="without a limit"):
        await engine.change(runner.box, "testbox", limited())
    assert await engine.disk_capacity(runner.stack.top) == 0 and await engine.disk_capacity(new_id()) is None
    await runner.box.kill()
    with pytest.raises(EngineError, match="without a limit"):
        await runner.boot(top=runner.stack.top, limits=limited())


async def test_a_full_vm_boots_and_deletes(small: Runner) -> None:
    for _ in range(2):
        await filled(small)
        await small.box.kill()
        await small.boot(top=small.stack.top, limits=limited())
        assert (await small.run("echo x > /root/no")).code == 1
        # The kernel takes the box of before apart in its own time, and until then that one's overlay holds what is deleted.
        assert (await small.run("rm -f /root/full")).code == 0
        gone = "until rm -f /etc/passwd && echo gone > /root/yes; do sleep 0.05; done 2> /dev/null; cat /root/yes"
        assert (await small.run(gone)).text == "gone\n"
        await small.run("rm -f /root/yes")


async def test_layers_in_files_are_stood_on(engine: HostEngine, small: Runner) -> None:
    """The child of a child: whatever lies below in files, limited or not."""
    await small.run("echo first > /root/first; rm /etc/hostname; mkdir /root/dir; echo a > /root/dir/a")
    first = small.stack.top
    await small.box.kill()
    await small.boot(layers=(first,), limits=limited())
    assert (await small.run("cat /root/first; ls /etc/hostname")).text == "first\n"
    await small.run("echo second >> /root/first; rm -r /root/dir; mkdir /root/dir")
    second = small.stack.top
    await small.box.kill()
    for limits in (limited(), Limits()):
        others = [Runner(engine, small.golden) for _ in range(2)]
        for other in others:  # at once
            await other.boot(layers=(second, first), limits=limits)
        for other in others:
            assert (await other.run("cat /root/first; ls /root/dir; echo x > /root/new")).text == "first\nsecond\n"
            await other.box.kill()


async def test_contents(engine: HostEngine, small: Runner) -> None:
    before = await engine.contents(small.stack.top)
    assert before.empty and before.bytes < MIB and await engine.is_empty(small.stack.top)
    await small.run("head -c 5M /dev/urandom > /root/five; sync")
    while_it_lives = await engine.contents(small.stack.top)
    await small.box.kill()
    assert await engine.contents(small.stack.top) == while_it_lives
    assert not while_it_lives.empty and 5 * MIB <= while_it_lives.bytes < 6 * MIB
    assert (await engine.contents(new_id())).empty
    plain = Runner(engine, small.golden)
    await plain.boot()
    await plain.run("head -c 3M /dev/urandom > /root/three; ln /root/three /root/same; truncate -s 1G /root/hole; sync")
    assert 3 * MIB <= (await engine.contents(plain.stack.top)).bytes < 4 * MIB


async def test_a_copy_of_a_live_top(engine: HostEngine, small: Runner) -> None:
    await small.run("echo kept > /root/file; head -c 2M /dev/urandom > /root/big")
    writing = "python3 -c \"while True: open('/root/log', 'a').write('x\\n')\" &"
    writer = Result()
    await small.box.start_run(RunSpec(new_id(), small.session, writing.encode()), writer)
    async with asyncio.timeout(60):
        while not (await engine.contents(small.stack.top)).bytes or not (await small.box.settle()).processes:
            pass
    target = new_id()
    await engine.copy_top(small.box, small.stack.top, target)
    assert writer.end is None and not (await engine.in_files()) & {target}
    other = Runner(engine, small.golden)
    await other.boot(layers=(target,), limits=limited())
    assert (await other.run("cat /root/file; stat -c %s /root/big")).text == "kept\n2097152\n"


async def test_moved_out_of_its_file(engine: HostEngine, small: Runner, data: Path) -> None:
    await small.run(
        "echo kept > /root/file; ln /root/file /root/same; rm -r /etc/apt; mkdir /etc/apt; rm /etc/hostname"
    )
    await small.box.kill()
    target = new_id()
    await engine.merge([small.stack.top], target)
    assert (data / "layers" / target / "upper/root/file").read_text() == "kept\n"
    assert small.stack.top in await engine.in_files() and target not in await engine.in_files()
    await small.boot(layers=(target,))
    said = await small.run("cat /root/file; ls /etc/apt; ls /etc/hostname")
    assert said.text == "kept\n"
    # What only the merge needed, another name of it say, goes in its own time.
    assert (await small.run("until [ $(stat -c %h /root/same) -eq 2 ]; do sleep 0.01; done", timeout=60)).code == 0


@pytest.mark.own_engine
async def test_nothing_is_left(engine: HostEngine, small: Runner, data: Path) -> None:
    assert len(attached(data)) == 1
    for signalled in (False, True):
        if signalled:
            rows = await engine._living()
            os.kill(rows[0]["pid"], signal.SIGKILL)
            await small.box.gone
        else:
            await small.box.kill()
        await engine.contents(small.stack.top)  # which waits until the file is let go of
        while attached(data):
            await asyncio.sleep(0.01)  # until what has looked at it has let go too
        await small.boot(top=small.stack.top, limits=limited())
    await engine.remove([small.stack.top])
    assert not (data / "layers" / small.stack.top).exists()


async def test_a_check_after_a_loss_of_power(engine: HostEngine, small: Runner, data: Path) -> None:
    """What is on the disk at a moment at which the file system is in use: it is put in order, and stays limited."""
    await small.run("echo kept > /root/file; sync")
    live, torn = data / "layers" / small.stack.top / IMAGE, new_id()
    (data / "layers" / torn).mkdir()
    files.copy_holes(live, data / "layers" / torn / IMAGE)
    other = Runner(engine, small.golden)
    await other.boot(top=torn, limits=limited())
    assert (await other.run("cat /root/file")).text == "kept\n"
    assert LIMIT - 2 * MIB < await filled(other) <= LIMIT


@pytest.mark.own_engine
async def test_ready_boxes_have_the_limit(data: Path, images: Path, golden: str) -> None:
    engine = HostEngine(data, images, 2, network=False)
    await engine.start()
    try:
        made: list[object] = []
        for size in (LIMIT, LIMIT, 2 * LIMIT):
            runner = Runner(engine, golden)
            runner.stack = Stack((golden,), new_id(), frozenset({golden}))
            ready = {box for shelf in engine._ready._shelves.values() for box in shelf.boxes}
            box = await engine.boot(BoxSpec(new_id(), runner.stack, "box", limited(size), network=False))
            made.append(box in ready)
            runner.box = box
            box.listen(runner)
            await box.open_session(SessionSpec(runner.session))
            assert size - MIB < await filled(runner) <= size
            while sum(len(shelf.boxes) for shelf in engine._ready._shelves.values()) < 2:
                await asyncio.sleep(0.005)  # until they are made
        assert made == [False, True, False]
    finally:
        await engine.shutdown()


@pytest.mark.own_engine
async def test_which_layers_lie_in_files_is_known(data: Path, images: Path, golden: str) -> None:
    """To whoever made them, to who has them of a ready box, and to the next server; nobody asks the disk at a boot."""
    first = HostEngine(data, images, 1, network=False)
    await first.start()
    runners = [Runner(first, golden) for _ in range(2)]
    await runners[0].boot(limits=limited())
    while not (ready := [box for shelf in first._ready._shelves.values() for box in shelf.boxes]):
        await asyncio.sleep(0.005)  # until it is made
    assert await first.in_files() == {runners[0].stack.top, ready[0].top}
    assert await runners[1].boot(limits=limited()) is ready[0]
    await runners[1].run("echo of a ready box > /root/file")
    tops = [runner.stack.top for runner in runners]
    assert set(tops) <= await first.in_files()
    plain = Runner(first, golden)
    await plain.boot()
    await first.shutdown()
    second = HostEngine(data, images, network=False)
    await second.start()
    try:
        assert await second.in_files() == set(tops)
        runner = Runner(second, golden)
        await runner.boot(layers=(tops[1], plain.stack.top, tops[0]))
        assert (await runner.run("cat /root/file")).text == "of a ready box\n"
        await runner.box.kill()
        await second.remove([tops[0]])
        assert await second.in_files() == {tops[1]}
    finally:
        await second.shutdown()


@pytest.mark.own_engine
async def test_a_top_that_could_not_be_made_is_not_remembered(engine: HostEngine, runner: Runner) -> None:
    await runner.box.kill()
    with pytest.raises(EngineError, match="without a limit"):
        await runner.boot(top=runner.stack.top, limits=limited())
    assert not await engine.in_files() and await engine.is_empty(runner.stack.top)
    await runner.boot(top=runner.stack.top)


async def test_who_still_reads_is_in_nobodys_way(engine: HostEngine, small: Runner) -> None:
    """A download goes on while its VM is parked and used again: it holds the file system, which they share."""
    await small.run("head -c 3M /dev/urandom > /root/three; sha256sum < /root/three")
    opened = await small.box.read_file("/root/three")
    top = small.stack.top
    await small.box.kill()
    await small.boot(top=top, limits=limited())
    assert (await small.run("echo more > /root/more; stat -c %s /root/three")).text == f"{3 * MIB}\n"
    await small.box.kill()
    others = [Runner(engine, small.golden) for _ in range(2)]
    for other in others:
        await other.boot(layers=(top,), limits=limited())
        assert (await other.run("cat /root/more; echo x > /root/more; rm /root/three; ls /root")).text == "more\nmore\n"
    target = new_id()
    await engine.merge([top], target)
    assert len(os.pread(opened.fd, 4 * MIB, 0)) == 3 * MIB
    os.close(opened.fd)


async def test_what_was_written_is_there_for_who_comes_next(engine: HostEngine, small: Runner) -> None:
    """Time and again: park, boot, seal; with data that nobody has written out."""
    layers: tuple[str, ...] = ()
    for number in range(amount(3, 6)):
        await small.run(f"head -c 1M /dev/urandom > /root/{number}; sha256sum /root/{number} >> /root/sums")
        top = small.stack.top
        await small.box.kill()
        if number % 2:
            layers = (top, *layers)
            await small.boot(layers=layers, limits=limited())
        else:
            await small.boot(layers=layers, top=top, limits=limited())
        assert (await small.run("sha256sum --quiet -c /root/sums && wc -l < /root/sums")).text == f"{number + 1}\n"


def test_a_device_that_has_got_the_number_of_another(tmp_path: Path) -> None:
    """What is remembered is a number: what it stands for is looked at."""
    layers = tmp_path / "layers"
    layers.mkdir()
    first, second = new_id(), new_id()
    for layer in (first, second):
        files.make(layers, tmp_path / "disks", layer, LIMIT)
    at = os.open(layers, os.O_RDONLY | os.O_DIRECTORY)
    looking = image.Disks(at).attach(first, read_only=True)
    assert looking is not None and looking.ours and looking.sealed
    disks = image.Disks(at, {first: looking.number, second: looking.number})
    other = disks.attach(second, read_only=True)
    assert other is not None and other.number != looking.number
    same = disks.attach(first, read_only=True)
    assert same is not None and (same.number, same.sealed) == (looking.number, True)
    writing = disks.attach(first, read_only=False)
    assert writing is not None and writing.number != looking.number and not writing.ours, "who writes waits"
    for one in (looking, other, same, writing):
        one.close()
    os.close(at)
