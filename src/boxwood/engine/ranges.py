"""What a box's ids come from: a range of its own (uidrange.py), or the one of a host without root (onerange.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BoxRange(Protocol):
    """The user namespace of a box to be, and what is mounted for it. `base`: whom its root is to the zygote; `number`:
    which no other live one has; `count`: how many users and groups it has; `is_shared`: they are the zygote's.
    Descriptors: `userns`, and `layers` and `images`, the directories of layers as the box is to see them."""

    base: int
    number: int
    count: int
    is_shared: bool
    userns: int
    layers: int
    images: int

    def descriptors(self) -> tuple[int, ...]:
        """All that are open, for a child to keep."""

    def adopt(self, descriptors: Sequence[int]) -> None:
        """For a copy in another process, which was sent them."""

    def close(self) -> None:
        """In a child that needs them no more."""

    def devices(self) -> int:
        """A tree of devices to attach: a descriptor, which is the caller's."""

    def view(self, path: str) -> int:
        """The tree at `path` as the box is to see it, detached: a descriptor, which is the caller's."""


class RangeMaker(Protocol):
    """`take` one for a box, `give_back` when nothing of the box is left; `prepare` makes one ahead."""

    @property
    def chunk(self) -> int:
        """A number that no other zygote of this host has; 0 where nobody asks."""

    def prepare(self) -> None: ...

    def take(self) -> BoxRange: ...

    def give_back(self, used: BoxRange) -> None: ...
