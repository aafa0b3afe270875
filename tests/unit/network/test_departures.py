"""What is done about boxes that have ended: together, once, and for no address sooner than its wire is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import pytest

from boxwood.engine.api import Denial, Usage
from boxwood.engine.network import departures as module
from boxwood.engine.network import wire
from boxwood.engine.network.departures import Departures
from boxwood.engine.network.ledger import Ledger
from boxwood.engine.network.netlink import Link
from boxwood.engine.network.table import Count, NftError

pytestmark = pytest.mark.anyio
X, Y, Z = "198.18.0.7", "198.18.0.8", "198.18.0.9"
DENIED = Denial(1.0, "tcp", "10.0.0.1", 80, "", "private")


class World:
    """Kernel, policies, server and zygote, as departures know them. `steps`: what was done, in order; `breaks`: how often
    the table of connections cannot be asked; `nft`: does it answer?"""

    def __init__(self) -> None:
        self.steps: list[tuple[str, tuple[str, ...]]] = []
        self.told: list[dict[str, Any]] = []
        self.links: list[Link] = []
        self.counts: dict[str, Count] = {}
        self.breaks, self.nft = 0, True
        self.looks = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.ledger = Ledger()
        self.free: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()

    def departures(self, *, counts_all: bool = True) -> Departures:
        connections, table, policing = _Connections(self), _Table(self), _Policing(self)
        return Departures(
            9, table, self.ledger, connections, policing, asyncio.Lock(),  # type: ignore[arg-type]
            begin=self.begin, hear_denials=self.hear_denials, tell=self.told.append, let_go=self.let_go,
            counts_all=counts_all,
        )  # fmt: skip

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def hear_denials(self) -> None:
        """What the last packets of X have come to is heard of late."""
        if self.ledger.knows(X):
            self.ledger.denied(X, DENIED)

    def let_go(self, addresses: Sequence[str]) -> None:
        self.free.put_nowait(tuple(addresses))

    def plug(self, address: str) -> None:
        self.links.append(Link(len(self.links) + 1, wire.name_of(address), wire.group_of(9)))

    def unplug(self, address: str) -> None:
        self.links = [link for link in self.links if wire.address_in(link.name) != address]

    def did(self, what: str) -> list[tuple[str, ...]]:
        return [of for step, of in self.steps if step == what]

    async def next_free(self) -> tuple[str, ...]:
        return await asyncio.wait_for(self.free.get(), 20)


class _Table:
    def __init__(self, world: World) -> None:
        self._world = world

    def counted(self) -> dict[str, Count]:
        self._world.steps.append(("count", ()))
        if not self._world.nft:
            raise NftError("no memory")
        return dict(self._world.counts)

    def forget(self, addresses: Iterable[str]) -> None:
        self._world.steps.append(("table", tuple(addresses)))
        if not self._world.nft:
            raise NftError("no memory")


class _Connections:
    def __init__(self, world: World) -> None:
        self._world = world

    def forget(self, addresses: Sequence[str]) -> None:
        if self._world.breaks:
            self._world.breaks -= 1
            raise OSError("no room")
        self._world.steps.append(("connections", tuple(addresses)))


class _Policing:
    def __init__(self, world: World) -> None:
        self._world = world

    async def forget(self, addresses: Iterable[str]) -> None:
        self._world.steps.append(("policies", tuple(addresses)))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    def links_of(number: int) -> list[Link]:
        made.looks += 1
        return list(made.links)

    def cut(number: int) -> list[Link]:
        made.links.clear()
        return links_of(number)

    monkeypatch.setattr(module, "links_of", links_of)
    monkeypatch.setattr(module, "cut", cut)
    monkeypatch.setattr(module, "_AGAIN", 0.001)
    return made


async def test_those_that_go_together_are_settled_together(world: World) -> None:
    """nft is asked once; whose wire is there waits, and is not told of; and who has sent nothing costs no search."""
    departures = world.departures()
    world.counts = {X: Count(sent=60, refused=1), Z: Count(sent=40)}
    world.plug(Z)
    for address in (X, Y, Z):
        world.ledger.belongs(address, f"vm of {address}")
        departures.ended(address)
    assert await world.next_free() == (X, Y)
    assert world.steps == [("count", ()), ("connections", (X,)), ("table", (X,)), ("policies", (X, Y))]
    assert world.told == [
        {"ended": f"vm of {X}", "usage": Usage(60, 0, 0, 1, (DENIED,))},
        {"ended": f"vm of {Y}", "usage": Usage()},
    ]
    assert Z in departures and X not in departures and Y not in departures
    world.unplug(Z)
    departures.settle_soon()
    assert await world.next_free() == (Z,)
    assert world.did("connections") == [(X,), (Z,)] and [one["ended"] for one in world.told[2:]] == [f"vm of {Z}"]


async def test_one_that_goes_later_is_waited_for_but_not_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins the wait anew, up to a bound."""
    monkeypatch.setattr(module, "_LONGEST", 0.001)
    departures = world.departures()
    for address in (X, Y):
        departures.ended(address)
        departures.settle_soon(3600.0)
    assert await world.next_free() == (X, Y)
    assert world.looks == 1 and world.free.empty()


@pytest.mark.parametrize("why", ["nft is silent", "the table was put up later", "it was away for a moment"])
async def test_where_counts_are_not_all_everything_is_forgotten(world: World, why: str) -> None:
    world.nft = why != "nft is silent"
    departures = world.departures(counts_all=why != "the table was put up later")
    if why == "it was away for a moment":
        departures.counts_all = False
    world.counts = {X: Count(sent=60)}
    for address in (X, Y):
        world.ledger.belongs(address, f"vm of {address}")
        departures.ended(address)
    assert await world.next_free() == (X, Y)
    assert world.did("connections") == world.did("table") == [(X, Y)]
    assert world.told[0]["usage"].sent == (60 if world.nft else 0) and len(world.told) == 2


async def test_what_fails_is_done_again_and_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    departures = world.departures()
    world.breaks, world.counts = 2, {X: Count(sent=60)}
    world.ledger.belongs(X, "vm")
    departures.ended(X)
    assert await world.next_free() == (X,)
    assert world.told == [{"ended": "vm", "usage": Usage(60, 0, 0, 0, (DENIED,))}] and X not in departures
    assert not world.ledger.knows(X) and world.did("policies") == [(X,)]


async def test_the_last_wires_are_cut_and_then_it_is_over(world: World) -> None:
    departures = world.departures()
    world.plug(X)
    departures.ended(X)
    assert await asyncio.wait_for(departures.last(), 20) is None
    assert await world.next_free() == (X,) and not world.links
    await asyncio.gather(*world.tasks)


async def test_what_a_vm_has_used_is_of_all_its_boxes_that_are_not_settled() -> None:
    """One may have ended a moment ago, and its account be open, while the next one is at work."""
    ledger = Ledger()
    for address in (X, Y):
        ledger.belongs(address, "vm")
    ledger.belongs(Z, "another")
    counts = {X: Count(sent=1), Y: Count(sent=20), Z: Count(sent=300)}
    assert ledger.usage(ledger.addresses_of("vm"), counts) == {"vm": Usage(sent=21)}
    ledger.close([X])
    assert ledger.usage(ledger.addresses_of("vm"), counts) == {"vm": Usage(sent=20)}
