"""Boxes that are ready before there is a VM: whoever gets one cannot tell, and those that nobody gets leave nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from boxfixtures import Runner, started
from boxwood.core.ids import new_id
from boxwood.engine import ready
from boxwood.engine.api import BoxSpec, Limits, SessionSpec, Stack
from boxwood.engine.host import HostEngine
from boxwood.engine.hostbox import HostBox

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]
BOOTED: list[Runner] = []  # by the test


@pytest.fixture
async def busy(data: Path, images: Path) -> AsyncIterator[HostEngine]:
    """An engine that makes two boxes ahead."""
    async with started(HostEngine(data, images, 2, network=False)) as engine:
        yield engine


@pytest.fixture(scope="module")
async def busy_for_all(tmp_path_factory: pytest.TempPathFactory, images: Path) -> AsyncIterator[HostEngine]:
    async with started(HostEngine(tmp_path_factory.mktemp("busy") / "data", images, 2, network=False)) as engine:
        yield engine


@pytest.fixture
async def shared_busy(busy_for_all: HostEngine) -> AsyncIterator[HostEngine]:
    """One for the tests that hurt no box that is ready: VMs of theirs end with each."""
    yield busy_for_all
    await asyncio.gather(*(runner.box.kill() for runner in BOOTED if runner.engine is busy_for_all))
    BOOTED.clear()


def waiting(engine: HostEngine) -> set[HostBox]:
    return {box for shelf in engine._ready._shelves.values() for box in shelf.boxes}


async def fill(engine: HostEngine, count: int = 2) -> set[HostBox]:
    while len(waiting(engine)) < count:
        await asyncio.sleep(0.005)  # until they are made
    return waiting(engine)


async def booted(engine: HostEngine, golden: str, name: str, limits: Limits = Limits()) -> Runner:
    runner = Runner(engine, golden)
    runner.stack = Stack((golden,), new_id(), frozenset({golden}))
    vm = new_id()
    runner.box = await engine.boot(BoxSpec(vm, runner.stack, name, limits, network=False))
    assert runner.box.vm_id == vm, "whoever puts a policy in force says whose it is"
    runner.box.listen(runner)
    await runner.box.open_session(SessionSpec(runner.session))
    BOOTED.append(runner)
    return runner


async def test_a_ready_box_becomes_the_vm_s(busy: HostEngine, golden: str, data: Path) -> None:
    await booted(busy, golden, "first")
    made = await fill(busy)
    runner = await booted(busy, golden, "second", Limits(vcpu=1, memory_mib=128, pids=64))
    assert runner.box in made
    said = await runner.run("uname -n; echo $HOSTNAME; hostname; touch /root/here; id -u; pwd")
    assert said.text == "second\nsecond\nsecond\n0\n/root\n"
    assert (data / "layers" / runner.stack.top / "upper/root/here").exists()
    assert (await runner.run("python3 -c 'x = bytearray(400 << 20)'")).code == 137
    rows = {row["box"]: row for row in await busy._living()}
    row = rows[runner.box.box_id]  # type: ignore[attr-defined]
    assert (row["vm"], row["top"]) == (runner.box.vm_id, runner.stack.top)


async def test_limits_are_the_vm_s_own(shared_busy: HostEngine, golden: str) -> None:
    await booted(shared_busy, golden, "box", Limits(memory_mib=64, pids=20))
    await fill(shared_busy)
    runner = await booted(shared_busy, golden, "box", Limits(pids=0))
    assert (await runner.run("python3 -c 'x = bytearray(200 << 20)'; echo $?")).text == "0\n"
    assert (await runner.run("for i in $(seq 40); do sleep 1 & done 2>&1; wait")).text == ""


async def test_what_is_there_already_gets_a_box_of_its_own(shared_busy: HostEngine, golden: str) -> None:
    runner = await booted(shared_busy, golden, "box")
    await runner.run("echo kept > /root/file")
    made = await fill(shared_busy)
    await runner.box.kill()
    await runner.boot(top=runner.stack.top)
    assert runner.box not in made
    assert (await runner.run("cat /root/file")).text == "kept\n"


async def test_many_at_once(shared_busy: HostEngine, golden: str) -> None:
    await booted(shared_busy, golden, "box")
    await fill(shared_busy)
    runners = await asyncio.gather(*(booted(shared_busy, golden, f"box{n}") for n in range(6)))
    said = await asyncio.gather(*(runner.run("hostname; echo $HOSTNAME") for runner in runners))
    assert [one.text for one in said] == [f"box{n}\nbox{n}\n" for n in range(6)]


async def test_one_that_has_died_is_given_to_nobody(busy: HostEngine, golden: str) -> None:
    await booted(busy, golden, "box")
    for box in list(await fill(busy)):
        await box.kill()
    runner = await booted(busy, golden, "box")
    assert (await runner.run("echo alive")).text == "alive\n"


async def test_one_that_cannot_be_given_away_is_replaced(busy: HostEngine, golden: str, data: Path) -> None:
    """Its own top is gone, so it cannot get the VM's name."""
    await booted(busy, golden, "box")
    made = await fill(busy)
    for box in made:
        (data / "layers" / box.top).rename(data / "layers" / new_id())
    runner = await booted(busy, golden, "another")
    assert (await runner.run("hostname")).text == "another\n"
    assert runner.box not in made


async def test_they_leave_nothing(busy: HostEngine, golden: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = await booted(busy, golden, "box")
    made = await fill(busy)
    await busy.remove([golden[:-1] + ("0" if golden[-1] != "0" else "1")])
    assert waiting(busy) == made
    monkeypatch.setattr(ready, "_KEPT", -1.0)
    busy._ready._begin()
    while not all(box.gone.done() for box in made):
        await asyncio.sleep(0.005)
    while len(list((data / "layers").iterdir())) > 1:
        await asyncio.sleep(0.005)
    assert [path.name for path in (data / "layers").iterdir()] == [runner.stack.top]
    assert [row["vm"] for row in await busy._living()] == [runner.box.vm_id]


async def test_another_server_puts_them_down(busy: HostEngine, golden: str, data: Path, images: Path) -> None:
    """The first one was killed: the next finds boxes that no VM has."""
    runner = await booted(busy, golden, "box")
    await fill(busy)
    busy._ready._closed = True
    for box in busy._boxes.values():
        box.let_go()
    busy._zygote.close()
    again = HostEngine(data, images, network=False)
    try:
        adopted = await again.start()
        assert [box.vm_id for box in adopted] == [runner.box.vm_id]
        assert [row["vm"] for row in await again._living()] == [runner.box.vm_id]
        assert [path.name for path in (data / "layers").iterdir()] == [runner.stack.top]
    finally:
        again._zygote.close()
        busy._ready._shelves.clear()
        busy._boxes.clear()
