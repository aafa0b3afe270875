"""Which boxes are made ready, and when they go: with boxes that are only names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from boxwood.engine import ready as module
from boxwood.engine.api import BoxGone, BoxSpec, EngineError, Limits, Stack
from boxwood.engine.ready import ReadyBoxes

pytestmark = pytest.mark.anyio

IMAGE = Stack(("I" * 26,), "T" * 26, frozenset({"I" * 26}))
OTHER = Stack(("J" * 26,), "T" * 26, frozenset({"J" * 26}))
GROWN = Stack(("L" * 26, "I" * 26), "T" * 26, frozenset({"I" * 26}))


class Box:
    def __init__(self, spec: BoxSpec) -> None:
        self.spec = spec
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class House:
    """Where the boxes are made and put down."""

    def __init__(self, most: int) -> None:
        self.made: list[Box] = []
        self.discarded: list[Box] = []
        self.failure: Exception | None = None
        self.slow: asyncio.Event | None = None
        self.ready = ReadyBoxes(self.boot, self.discard, most)  # type: ignore[arg-type]

    async def boot(self, spec: BoxSpec) -> Box:
        if self.slow is not None:
            await self.slow.wait()
        if self.failure is not None:
            raise self.failure
        self.made.append(Box(spec))
        return self.made[-1]

    async def discard(self, boxes: Any) -> None:
        self.discarded += boxes

    def of(self, stack: Stack) -> list[Box]:
        return [box for box in self.made if box.spec.stack.layers == stack.layers and box not in self.discarded]

    async def rest(self) -> None:
        """Until nothing more is made."""
        before = -1
        while before != len(self.made):
            before = len(self.made)
            for _ in range(50):
                await asyncio.sleep(0)


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "_QUIET", 0)
    house = House(4)
    yield house
    await house.ready.close()


def take(house: House, stack: Stack, limits: Limits = Limits()) -> Box | None:
    return house.ready.take(BoxSpec("", stack, limits=limits))  # type: ignore[return-value]


async def test_an_image_is_made_ready_with_the_first_demand(house: House) -> None:
    assert take(house, IMAGE, Limits(memory_mib=99)) is None
    await house.rest()
    assert len(house.made) == 4
    assert {box.spec.vm_id for box in house.made} == {""}
    assert {box.spec.limits for box in house.made} == {Limits(memory_mib=99)}
    assert len({box.spec.stack.top for box in house.made}) == 4
    first = house.made[0]
    assert take(house, IMAGE) is first
    assert take(house, IMAGE) is house.made[1]
    await house.rest()
    assert len(house.made) == 6
    assert take(house, OTHER) is None


async def test_another_stack_only_with_the_third(house: House) -> None:
    for _ in range(2):  # a VM that was forked, and its child
        assert take(house, GROWN) is None
    await house.rest()
    assert not house.made
    assert take(house, GROWN) is None
    await house.rest()
    assert len(house.made) == 4
    assert take(house, GROWN) is house.made[0]


async def test_two_stacks_share_the_places(house: House) -> None:
    take(house, IMAGE)
    await house.rest()
    take(house, OTHER)
    await house.rest()
    assert (len(house.of(IMAGE)), len(house.of(OTHER))) == (2, 2)
    assert take(house, OTHER) in house.of(OTHER)


async def test_a_dead_one_is_given_to_nobody(house: House) -> None:
    take(house, IMAGE)
    await house.rest()
    house.made[0].gone.set_result("died")
    assert take(house, IMAGE) is house.made[1]


async def test_what_stands_on_a_removed_layer_goes(house: House) -> None:
    for _ in range(3):
        take(house, GROWN)
    await house.rest()
    made = list(house.made)
    await house.ready.drop(["X" * 26])
    assert not house.discarded
    await house.ready.drop(["L" * 26])
    assert house.discarded == made
    assert take(house, GROWN) is None


async def test_a_stack_whose_boxes_cannot_be_made_is_left_alone(house: House) -> None:
    for failure in (EngineError("no"), BoxGone("died"), RuntimeError("a bug")):
        house.failure = failure
        assert take(house, IMAGE) is None
        await house.rest()
        assert not house.made
    house.failure = None
    await house.rest()
    assert not house.made  # until it is asked for
    assert take(house, IMAGE) is None
    await house.rest()
    assert len(house.made) == 4


async def test_what_nobody_asks_for_any_more_goes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    take(house, IMAGE)
    await house.rest()
    monkeypatch.setattr(module, "_KEPT", -1.0)
    house.ready._begin()  # as the clock would
    await house.rest()
    assert len(house.discarded) == 4


async def test_the_end_takes_all_even_one_that_is_being_made(house: House) -> None:
    take(house, IMAGE)
    await house.rest()
    house.slow = asyncio.Event()
    take(house, IMAGE)
    await house.rest()
    end = asyncio.ensure_future(house.ready.close())
    await asyncio.sleep(0)
    house.slow.set()
    await end
    assert len(house.made) == 5 and set(house.discarded) == set(house.made[1:])
    assert take(house, IMAGE) is None


async def test_none_at_all() -> None:
    house = House(0)
    assert take(house, IMAGE) is None and take(house, IMAGE) is None
    await house.rest()
    assert not house.made
    await house.ready.close()
