"""A box that nobody wants any more: nothing runs in it from then on, and a moment later nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import Limits, RunSpec
from boxwood.engine.dismissed import MOST
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]
# It writes as long as it runs, and is not to be stopped by signals that can be ignored.
BUSY = b"trap '' TERM HUP INT STOP; while :; do echo x >> /root/log; done"


async def begun(runner: Runner, data: Path) -> Path:
    """What it writes to, once it does."""
    log = data / "layers" / runner.stack.top / "upper/root/log"
    await runner.box.start_run(RunSpec(new_id(), runner.session, BUSY), Result())
    await grown(log, 1)
    return log


async def grown(log: Path, size: int) -> None:
    async with asyncio.timeout(30):
        while not log.exists() or log.stat().st_size < size:
            await asyncio.sleep(0.001)


async def test_nothing_runs_any_more_and_it_ends_by_itself(runner: Runner, data: Path) -> None:
    """While whoever is to end it is held up, another box writes and it does not."""
    other = Runner(runner.engine, runner.golden)
    await other.boot()
    log, clock, zygote = (
        await begun(runner, data),
        await begun(other, data),
        int(json.loads((data / "zygote.json").read_text())["pid"]),
    )
    await runner.box.dismiss()
    os.kill(zygote, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            size = -1
            while log.stat().st_size != size:  # a call that it was in the middle of goes through
                size = log.stat().st_size
                await grown(clock, clock.stat().st_size + 1000)
    finally:
        os.kill(zygote, signal.SIGCONT)
    async with asyncio.timeout(30):
        assert "deleted" in await asyncio.shield(runner.box.gone)
    assert [row["box"] for row in await runner.engine._living()] == [other.box.box_id]


@pytest.mark.lent_engine
async def test_a_crowd(engine: HostEngine, golden: str) -> None:
    """More than are kept: all of them end, in whatever order, and what lives is not harmed."""
    runners = [Runner(engine, golden) for _ in range(MOST + 4)]
    for runner in runners:
        await runner.boot()
    crowd, alive = runners[1:], runners[0]
    await asyncio.gather(*(runner.box.dismiss() for runner in crowd))
    assert (await alive.run("echo alive")).text == "alive\n"
    async with asyncio.timeout(60):
        await asyncio.gather(*(asyncio.shield(runner.box.gone) for runner in crowd))
    assert [row["box"] for row in await engine._living()] == [alive.box.box_id]


async def test_it_is_no_box_of_the_next_server(engine: HostEngine, runner: Runner, data: Path) -> None:
    """It is told of neither now nor later."""
    await runner.box.dismiss()
    assert runner.box.box_id not in [row["box"] for row in await engine._living()]
    engine._zygote._lost("for a test")
    assert runner.box.gone.done()
    other = Runner(engine, runner.golden)
    await other.boot()
    async with asyncio.timeout(30):
        while [row["box"] for row in await engine._living()] != [other.box.box_id]:
            await asyncio.sleep(0.01)


@pytest.mark.lent_engine
async def test_twice_and_after_its_end(runner: Runner) -> None:
    await asyncio.gather(runner.box.dismiss(), runner.box.dismiss(), runner.box.kill())
    async with asyncio.timeout(30):
        await asyncio.shield(runner.box.gone)
    await runner.box.dismiss()


@pytest.mark.lent_engine
async def test_one_with_a_disk_of_its_own_is_gone_at_once(engine: HostEngine, golden: str) -> None:
    """Its file goes, and its room is there again."""
    runner = Runner(engine, golden)
    await runner.boot(limits=Limits(disk=20 << 20))
    await runner.box.dismiss()
    assert runner.box.gone.done()


async def test_the_end_of_the_zygote_waits_for_none(engine: HostEngine, golden: str) -> None:
    runners = [Runner(engine, golden) for _ in range(3)]
    for runner in runners:
        await runner.boot()
        await runner.box.dismiss()
    await engine.shutdown()
    assert all(runner.box.gone.done() for runner in runners)


async def test_it_dies_with_the_zygote(runner: Runner, data: Path) -> None:
    """However that ends: a box that stood still for ever would keep its memory and its network."""
    zygote = int(json.loads((data / "zygote.json").read_text())["pid"])
    boxes = set(Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split())
    await begun(runner, data)
    await runner.box.dismiss()
    os.kill(zygote, signal.SIGKILL)
    async with asyncio.timeout(30):
        while any(map(lives, boxes)):
            await asyncio.sleep(0.01)


def lives(pid: str) -> bool:
    """Dead is also what nobody has reaped yet: whoever has inherited it from the zygote may take his time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
