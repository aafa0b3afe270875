"""What an engine does with the states of VMs: stacks of sealed layers, compared, put together, packed.

The work is done by confined processes; what comes from them is as strange as what comes from a box.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from boxwood.engine.api import EngineError

Sealed = tuple[tuple[str, str], ...]  # (place, id) of each layer, the topmost first


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of a path. `kind` and `old_kind`: file, directory, symlink, fifo, socket or device; None: there
    is none (any more). `what` of what is on both sides is another: kind, mode, owner, content, target, attributes.
    Directories that are gone, or that are something else now, stand for all that was in them. `size` in bytes.

    `path` may hold bytes that are no UTF-8, as surrogates. `diff`: of text, as `diff -u` has it."""

    path: str
    kind: str | None
    old_kind: str | None
    what: tuple[str, ...] = ()
    size: int | None = None
    old_size: int | None = None
    mode: int | None = None
    diff: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """`truncated`: there is more."""

    changes: tuple[Change, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """`collisions`: paths, some of them if there are many; then nothing was made. `names`: in the new layer."""

    collisions: tuple[str, ...]
    names: int


class BadArchive(EngineError):
    """What was to be unpacked is broken, or made to do harm; the text says what is wrong with it."""


class States(Protocol):
    def pack(self, layers: Sealed, *, whole: bool) -> AsyncGenerator[bytes, None]:
        """The entries of a tar archive, without its end: what the layers change of what is below them, or with `whole`
        all that they show. Ends early with an EngineError, so what has come until then is not to be taken for all."""

    async def unpack(self, pieces: AsyncIterator[bytes], target: str, *, whole: bool, most: int, hide: str = "") -> int:
        """Make layer `target` of such entries, of `most` bytes at most; `hide`: an image of which nothing is to show
        through. Its bytes. BadArchive, EngineError. Whatever goes wrong, in `pieces` too, the layer
        is to be removed."""

    async def commit(self, base: Sealed, theirs: Sealed, ours: Sealed, target: str) -> Committed:
        """Make layer `target` what has changed from `base` to `ours`, to be put upon `theirs`; unless both have
        changed the same path, and not to the same. EngineError."""

    async def diff(self, old: Sealed, new: Sealed, *, most: int, text: bool = False, below: str = "") -> Difference:
        """What is another in `new` than in `old`, by path, `most` changes at most. `text`: with what has changed in
        text files. `below`: only what is in this directory, a path without `/` at its ends. EngineError."""
