"""Which box was given which address for which names, the oldest first. Bounded: what is forgotten was never given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from boxwood.engine.network.addresses import Address

_MOST_BOXES, _MOST_ADDRESSES, _MOST_NAMES = 512, 2048, 16
_Names = OrderedDict[str, float]  # with the time until which each holds, the one given last at the end


class Pins:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._boxes: OrderedDict[str, OrderedDict[str, _Names]] = OrderedDict()

    def add(self, box: str, name: str, given: Iterable[tuple[Address, int]]) -> None:
        """`given`: addresses, each with its TTL."""
        now = self._clock()
        for address, ttl in given:
            if address.is_loopback:
                continue
            pins = self._boxes.setdefault(box, OrderedDict())
            self._boxes.move_to_end(box)
            names = pins.pop(str(address), None) or OrderedDict()
            pins[str(address)] = names
            names[name] = max(now + ttl, names.pop(name, 0.0))
            if len(names) > _MOST_NAMES:
                names.popitem(last=False)
            if len(pins) > _MOST_ADDRESSES:
                pins.popitem(last=False)
        if len(self._boxes) > _MOST_BOXES:
            self._boxes.popitem(last=False)

    def last(self, box: str) -> dict[str, tuple[str, float]]:
        """By address: the name for which the box was given it last, and until when that holds."""
        return {address: next(reversed(names.items())) for address, names in self._of(box).items()}

    def names(self, box: str, address: str) -> frozenset[str]:
        """All for which the box was given this address, whether that still holds or not."""
        return frozenset(self._of(box).get(address, ()))

    def name(self, box: str, address: str) -> str:
        """The one for which it was given last; empty if none is kept."""
        names = self._of(box).get(address)
        return next(reversed(names)) if names else ""

    def all(self, box: str) -> Iterator[tuple[str, str, float]]:
        """Address, name, and the seconds for which that still holds (none or less: no more)."""
        now = self._clock()
        for address, names in self._of(box).items():
            for name, until in names.items():
                yield address, name, until - now

    def forget(self, box: str) -> None:
        self._boxes.pop(box, None)

    def _of(self, box: str) -> OrderedDict[str, _Names]:
        return self._boxes.get(box, OrderedDict())
