"""What boxes with networks leave behind: nothing, however they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

import guard
from amounts import amount
from boxwood.engine.host import HostEngine
from internet import OTHER_PUBLIC, PUBLIC, Internet
from netfixtures import Wired, number_of, python, router_of, tried, visits

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]
ROUNDS, AT_ONCE = amount((2, 8), (25, 20))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_many_come_and_go(own: HostEngine, golden: str, data: Path) -> None:
    async def one() -> str:
        runner = Wired(own, golden)
        await runner.boot()
        address = runner.box.address
        await runner.box.kill()
        return address

    addresses: list[str] = []
    for _ in range(ROUNDS):
        at_once = await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        assert len(set(at_once)) == AT_ONCE and all(at_once)
        addresses += at_once
    assert len(addresses) == AT_ONCE * ROUNDS
    number = number_of(data)
    assert len(guard.of_router(number)) > 2  # what is ready
    await own.shutdown()
    assert guard.of_router(number) == []


@pytest.mark.slow
async def test_nothing_remains_after_a_kill(own: HostEngine, golden: str, data: Path, world: Internet) -> None:
    """In the middle: some boxes live and talk, others are being made."""
    first = Wired(own, golden)
    await first.boot()
    await tried(first, [("tcp", "4", PUBLIC, 80)])
    runners = [Wired(own, golden) for _ in range(amount(9, 40))]
    boots = [asyncio.create_task(runner.boot()) for runner in runners]
    await asyncio.wait(boots[:5])
    made = [boot.result() for boot in boots[:5]]
    os.kill(router_of(data), signal.SIGKILL)
    os.kill(json.loads((data / "zygote.json").read_text())["pid"], signal.SIGKILL)
    await asyncio.gather(*boots, return_exceptions=True)  # some are made by the next zygote
    await asyncio.gather(first.box.gone, *(box.gone for box in made))
    again = Wired(own, golden)
    await again.boot()
    assert (await tried(again, [("tcp", "4", OTHER_PUBLIC, 80)]))[0].endswith("hello")
    number = number_of(data)
    assert len(guard.of_router(number)) > 2  # what is ready
    await own.shutdown()
    assert guard.of_router(number) == []


async def test_a_connection_that_nobody_answers_keeps_no_wire(
    own: HostEngine, golden: str, data: Path, world: Internet
) -> None:
    """It outlives its box by minutes: its kernel goes on asking whether the last bytes have come."""
    runner = Wired(own, golden)
    await runner.boot()
    hold = f"s = socket.create_connection(({OTHER_PUBLIC!r}, 80)); s.recv(1)"
    held = asyncio.create_task(python(runner, hold))
    while ("tcp", OTHER_PUBLIC, 80) not in visits(world):
        await asyncio.sleep(0.01)
    number = number_of(data)
    subprocess.run(["ip", "route", "replace", "blackhole", f"{OTHER_PUBLIC}/32"], check=True)
    try:
        await own.shutdown()
        assert guard.of_router(number) == []
    finally:
        way = ["dev", world.link, "src", "192.0.2.129"]
        subprocess.run(["ip", "route", "replace", f"{OTHER_PUBLIC}/32", *way], check=True)
        await asyncio.gather(held, return_exceptions=True)
