"""What boxes with networks leave behind: nothing, however they end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

import guard
from boxwood.engine.host import HostEngine
from boxwood.engine.hostbox import HostBox
from internet import OTHER_PUBLIC, PUBLIC, Internet
from netfixtures import Wired, number_of, router_of, tried

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_500_come_and_go(own: HostEngine, golden: str, data: Path) -> None:
    async def one() -> str:
        runner = Wired(own, golden)
        await runner.boot()
        address = runner.box.address
        await runner.box.kill()
        return address

    addresses: list[str] = []
    for _ in range(25):
        at_once = await asyncio.gather(*(one() for _ in range(20)))
        assert len(set(at_once)) == 20 and all(at_once)
        addresses += at_once
    assert len(addresses) == 500
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
    runners = [Wired(own, golden) for _ in range(40)]
    boots = [asyncio.create_task(runner.boot()) for runner in runners]
    await asyncio.wait(boots[:5])
    os.kill(router_of(data), signal.SIGKILL)
    os.kill(json.loads((data / "zygote.json").read_text())["pid"], signal.SIGKILL)
    made = await asyncio.gather(*boots, return_exceptions=True)
    await asyncio.gather(first.box.gone, *(box.gone for box in made if isinstance(box, HostBox)))
    again = Wired(own, golden)
    await again.boot()
    assert (await tried(again, [("tcp", "4", OTHER_PUBLIC, 80)]))[0].endswith("hello")
    number = number_of(data)
    assert len(guard.of_router(number)) > 2  # what is ready
    await own.shutdown()
    assert guard.of_router(number) == []
