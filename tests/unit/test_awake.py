"""Processors are kept awake after a request, and only then: against a device and states of the test's own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from boxwood.server import awake
from boxwood.server.awake import Awake

pytestmark = pytest.mark.anyio
NO_BOUND = 2_000_000_000


class Host:
    def __init__(self, place: Path, driver: str, latency: str = "2") -> None:
        self.device = place / "cpu_dma_latency"
        self.device.write_bytes(b"")
        self.cpuidle = place / "cpu"
        (self.cpuidle / "cpuidle").mkdir(parents=True)
        (self.cpuidle / "cpu0/cpuidle/state1").mkdir(parents=True)
        (self.cpuidle / "cpuidle/current_driver").write_text(driver + "\n")
        (self.cpuidle / "cpu0/cpuidle/state1/latency").write_text(latency + "\n")

    def awake(self, seconds: float) -> Awake:
        return Awake(seconds, device=self.device, cpuidle=self.cpuidle)

    @property
    def bound(self) -> int:
        """Microseconds that the kernel was told last."""
        return int.from_bytes(self.device.read_bytes(), "little", signed=True)


async def rests(one: Awake) -> None:
    async with asyncio.timeout(30):
        while one.held:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("driver", "bound"), [("haltpoll", 0), ("intel_idle", 2), ("acpi_idle", 2)])
async def test_bound_from_a_request_until_a_while_after_the_last(
    tmp_path: Path, driver: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake.os, "cpu_count", lambda: 2)
    host = Host(tmp_path, driver)
    one = host.awake(0.02)
    assert host.bound == NO_BOUND and not one.held, "as the kernel has it by itself"
    for _ in range(2):
        one.stir()
        assert host.bound == bound and one.held
        one.stir()
        await rests(one)
        assert host.bound == NO_BOUND
    one.close()
    one.stir()
    assert not one.held


async def test_whoever_comes_meanwhile_makes_it_last(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    host = Host(tmp_path, "intel_idle")
    one = host.awake(0.05)
    began = loop.time()
    one.stir()
    while loop.time() < began + 0.04:
        await asyncio.sleep(0)
    last = loop.time()
    one.stir()
    await rests(one)
    assert loop.time() >= last + 0.05
    one.close()


@pytest.mark.parametrize(
    ("seconds", "driver", "latency", "processors"),
    [(0, "haltpoll", "2", 2), (0.02, "haltpoll", "2", 9), (0.02, "none", "what?", 2)],
)
async def test_where_it_is_not_wanted_nobody_is_asked(
    tmp_path: Path, seconds: float, driver: str, latency: str, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where it would have many processors of a virtual machine go round in circles."""
    monkeypatch.setattr(awake.os, "cpu_count", lambda: processors)
    host = Host(tmp_path, driver, latency)
    one = host.awake(seconds)
    one.stir()
    assert not one.held and host.device.read_bytes() == b""


async def test_a_host_without_the_device(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel_idle")
    host.device.unlink()
    one = host.awake(0.02)
    one.stir()
    assert not one.held


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    host = Host(tmp_path, "intel_idle")
    before = os.listdir("/proc/self/fd")
    one = host.awake(0.02)
    one.close()
    one.close()
    assert os.listdir("/proc/self/fd") == before
