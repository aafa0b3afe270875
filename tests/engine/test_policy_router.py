"""Policies of boxes when the router, the server or the firewall go and come again: what is in force, and what remains."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

import netfixtures
from amounts import amount
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import SessionSpec
from boxwood.engine.host import HostEngine
from boxwood.engine.network.ruleset import chain_of
from boxwood.engine.network.table import NftError, listed
from internet import PUBLIC, Internet
from netfixtures import REFUSED, Wired, beside, number_of, python, router_of, tried, visits
from policing import OTHER, TCP, YES, names_asked, police, resolves

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]

own, data = netfixtures.battered, netfixtures.battered_data


def left_of(data: Path, runner: Runner | None = None) -> set[str]:
    """What the table has of policies, or of a box's: chains, sets, and boxes in the map."""
    found = set()
    for item in listed("table", "inet", f"boxwood_{number_of(data)}"):
        for kind in ("chain", "set"):
            if (name := item.get(kind, {}).get("name", "")).startswith(("policy_", "divert_", "hosts_")):
                found.add(name)
        if item.get("map", {}).get("name") in ("policies", "diverted"):
            found |= {element[0] for element in item["map"].get("elem", ())}
    if runner is None:
        return found
    address = runner.box.address
    mark = chain_of(address).removeprefix("policy_")  # what others have left may still be going
    return {one for one in found if one == address or mark in one}


async def test_nothing_of_a_policy_outlives_its_box(own: HostEngine, golden: str, data: Path) -> None:
    """An address is used again, and then by a VM that has no policy."""
    had = set()
    for _ in range(2):
        runner = Wired(own, golden)
        await runner.boot()
        await police(runner, ("allow", {"hosts": ["other.test"]}), ("allow", {"hosts": ["x.test"], "ports": [80]}))
        await police(runner, ("allow", {"hosts": ["other.test", "y.test"]}))
        address = runner.box.address
        assert len(left_of(data, runner)) == 4
        had.add(address)
        await runner.box.kill()
    async with asyncio.timeout(20):
        while left_of(data):
            await asyncio.sleep(0.02)
    boxes = []
    while had:
        boxes.append(Wired(own, golden))
        await boxes[-1].boot()
        assert (await tried(boxes[-1], [TCP]))[0] == YES
        had.discard(boxes[-1].box.address)
        assert len(boxes) < 50


async def test_a_router_that_dies_takes_no_policy_with_it(own_vm: Runner, data: Path, world: Internet) -> None:
    await police(own_vm, ("allow", {"hosts": ["other.test"]}))
    assert await resolves(own_vm, "other.test")
    world.seen()
    pid = router_of(data)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (router_started_after(data, pid) and await resolves(own_vm, "other.test")):
            assert (await tried(own_vm, [TCP]))[0] in REFUSED | {"TimeoutError"}
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES
    assert not await resolves(own_vm, "public.test")
    assert all(visit[1] != PUBLIC for visit in names_asked(world)[1])


def router_started_after(data: Path, pid: int) -> bool:
    try:
        return router_of(data) != pid
    except StopIteration:
        return False


async def test_a_policy_that_comes_while_no_router_lives(own_vm: Runner, data: Path) -> None:
    os.kill(router_of(data), signal.SIGKILL)
    await police(own_vm, ("deny", {"ips": [PUBLIC]}))  # as soon as there is one
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES


async def test_a_new_server_brings_what_is_in_force(
    own_vm: Runner, own: HostEngine, data: Path, images: Path, world: Internet
) -> None:
    await police(own_vm, ("deny", {"ips": [PUBLIC]}))
    await own.close()
    again = HostEngine(data, images, resolv_conf=world.resolv_conf)
    (box,) = await again.start()
    own_vm.box, own_vm.engine = box, again
    box.listen(own_vm)
    own_vm.session = new_id()
    await box.open_session(SessionSpec(own_vm.session))
    assert (await tried(own_vm, [TCP]))[0] in REFUSED  # before anybody has said so again
    await police(own_vm)  # what this one knows of is that there is none
    assert (await tried(own_vm, [TCP]))[0] == YES
    await again.close()
    await own.start()


async def test_a_firewall_that_is_flushed_has_its_policies_again(own_vm: Runner, data: Path) -> None:
    await police(own_vm, ("allow", {"hosts": ["other.test"]}))
    assert await resolves(own_vm, "other.test")
    before = left_of(data, own_vm)
    subprocess.run(["nft", "delete", "table", "inet", f"boxwood_{number_of(data)}"], check=True)
    async with asyncio.timeout(10):
        while not there_again(data, own_vm, before):
            await asyncio.sleep(0.01)
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES


def there_again(data: Path, runner: Runner, before: set[str]) -> bool:
    try:
        return left_of(data, runner) == before
    except NftError:
        return False


STORM = f"""
while True:
    s = socket.socket(); s.settimeout(2)
    try: s.connect(({PUBLIC!r}, 80))
    except OSError: pass
    finally: s.close()
"""


async def test_under_load_nothing_forbidden_goes_out(own_vm: Runner, world: Internet) -> None:
    """Programs that never stop trying, while the policy changes back and forth."""
    storms = [await beside(own_vm) for _ in range(amount(2, 4))]
    running = [asyncio.create_task(python(storm, STORM)) for storm in storms]
    came = 0
    rounds = amount(3, 20)
    for _ in range(rounds):
        await police(own_vm, ("deny", {"ips": [PUBLIC]}))
        world.seen(), world.seen()  # who had come before, and was not told of yet
        refused = (await own_vm.engine.usage(own_vm.box.vm_id)).denied
        while (await own_vm.engine.usage(own_vm.box.vm_id)).denied < refused + 50:
            await asyncio.sleep(0)
        assert visits(world) == []
        await police(own_vm, ("allow", {"ips": [PUBLIC]}))
        while not (now := len(visits(world))):
            await asyncio.sleep(0)
        came += now
    assert came >= rounds
    await own_vm.box.kill()
    await asyncio.gather(*running, return_exceptions=True)
