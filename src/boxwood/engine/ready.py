"""Boxes that are up, with a shell that waits, before there is a VM for them: of the stacks that are forked these days.

A box depends on its VM only by name, limits and the name of its top, and all three can be changed later (whether its
root can be written cannot, nor is a top made for another limit of the disk: there are boxes of each kind); so a VM that
has never had a box, and so no top, can be given one that is ready. They are booted when nobody has wanted a box for a
moment: whoever waits for one comes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from boxwood.engine.api import BoxSpec, EngineError, Limits, Stack
from boxwood.engine.hostbox import HostBox
from boxwood.engine.ulid import new_ulid

_QUIET = 0.03  # seconds without a demand after which boxes are booted ahead
_RECENT = 60.0  # stacks that were asked for within so many seconds share the places
_KEPT = 600.0  # seconds without a demand after which ready boxes are put down
_MOST_STACKS = 64  # that are remembered
# The layers, whether there is a network, whether it is read-only, and the limit of the disk, which a top is made for.
_Kind = tuple[tuple[str, ...], bool, bool, int]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shelf:
    """The ready boxes of one stack."""

    layers: tuple[str, ...]
    images: frozenset[str]
    network: bool
    read_only: bool
    limits: Limits = Limits()  # of who asked last: the next one most likely wants the same
    asked: int = 0
    asked_at: float = 0.0
    boxes: list[HostBox] = field(default_factory=list)

    @property
    def kind(self) -> _Kind:
        return self.layers, self.network, self.read_only, self.limits.disk

    @property
    def wanted(self) -> bool:
        """An image is forked again and again. Of another stack that is known with the third demand: a fork makes two,
        if the source goes on too."""
        return self.asked > (0 if self.images.issuperset(self.layers) else 2)


class ReadyBoxes:
    """`boot` makes a box, `discard` puts some down and removes their tops; `most`: how many there are at once."""

    def __init__(
        self,
        boot: Callable[[BoxSpec], Awaitable[HostBox]],
        discard: Callable[[Sequence[HostBox]], Awaitable[None]],
        most: int,
    ) -> None:
        self._boot = boot
        self._discard = discard
        self._most = most
        self._shelves: dict[_Kind, _Shelf] = {}  # the one asked for last is the last
        self._work: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, spec: BoxSpec) -> HostBox | None:
        """A ready box with these layers and this network, read-only or not, if there is one. The demand is
        remembered."""
        if not self._most or self._closed:
            return None
        stack = spec.stack
        kind = stack.layers, spec.network, spec.read_only, spec.limits.disk
        shelf = self._shelves.pop(kind, None) or _Shelf(
            stack.layers, stack.images, spec.network, spec.read_only, spec.limits
        )
        self._shelves[kind] = shelf
        shelf.limits = spec.limits
        shelf.asked, shelf.asked_at = shelf.asked + 1, asyncio.get_running_loop().time()
        self._look_after(_QUIET)
        while shelf.boxes:
            box = shelf.boxes.pop(0)
            if not box.gone.done():
                return box
        return None

    async def drop(self, layers: Sequence[str]) -> None:
        """These layers are about to be removed: nothing stands on them any more."""
        gone = set(layers)
        for shelf in [shelf for shelf in self._shelves.values() if gone.intersection(shelf.layers)]:
            del self._shelves[shelf.kind]
            await self._put_down(shelf.boxes)

    async def close(self) -> None:
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        if self._work is not None:
            await asyncio.wait({self._work})
        shelves, self._shelves = self._shelves, {}
        await self._put_down([box for shelf in shelves.values() for box in shelf.boxes])

    # --- keeping the shelves

    def _look_after(self, seconds: float) -> None:
        """See to the shelves so much later; a demand in between puts it off."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._again = None
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._tidy())

    async def _tidy(self) -> None:
        """One step of work, unless there is none: then look again when the first box has become old."""
        now = asyncio.get_running_loop().time()
        try:
            await self._forget(now)
            shelf = self._short(now)
            if shelf is not None and not self._closed:
                await self._add(shelf)
        except EngineError as error:
            log.warning("a box could not be booted ahead: %s", error)
        except Exception:
            log.exception("ready boxes")
        if not self._closed and self._again is None and self._shelves:
            self._look_after(0 if self._short(now) is not None else _RECENT)

    async def _forget(self, now: float) -> None:
        old = [shelf for shelf in self._shelves.values() if shelf.asked_at + _KEPT < now]
        for shelf in [*old, *list(self._shelves.values())[:-_MOST_STACKS]]:
            if self._shelves.pop(shelf.kind, None) is not None:
                await self._put_down(shelf.boxes)

    def _short(self, now: float) -> _Shelf | None:
        """The stack to boot a box of, if one is: of those that are asked for these days the one with the fewest."""
        wanted = [shelf for shelf in self._shelves.values() if shelf.wanted and shelf.asked_at + _RECENT > now]
        if not wanted:
            return None
        shelf = min(wanted, key=lambda shelf: len(shelf.boxes))
        return shelf if len(shelf.boxes) < max(1, self._most // len(wanted)) else None

    async def _add(self, shelf: _Shelf) -> None:
        if sum(len(other.boxes) for other in self._shelves.values()) >= self._most:
            fullest = max(self._shelves.values(), key=lambda other: (len(other.boxes), -other.asked_at))
            await self._put_down([fullest.boxes.pop(0)])
        try:
            stack = Stack(shelf.layers, new_ulid(), shelf.images)
            spec = BoxSpec("", stack, limits=shelf.limits, network=shelf.network, read_only=shelf.read_only)
            box = await self._boot(spec)
        except Exception:
            shelf.asked = 0  # until it is asked for again
            raise
        if self._closed or self._shelves.get(shelf.kind) is not shelf:
            await self._put_down([box])
        else:
            shelf.boxes.append(box)

    async def _put_down(self, boxes: list[HostBox]) -> None:
        if boxes:
            try:
                await self._discard(boxes)
            except EngineError as error:
                log.warning("ready boxes could not be put down: %s", error)
