"""What durable VMs stand on, brought to the disk.

Sealed layers do not change, so each is flushed once. That flushes the whole file system that they lie in: to look
through a layer for what has not been written yet takes longer, and its directories would need it too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine.api import NotHere
from boxwood.engine.disk import IMAGE

MOST_KNOWN = 100_000
NO_FILES = (
    "this host limits disks by a file for each, in which nothing is safe from a loss of power; "
    "on a file system with project quotas it works: see docs/storage.md"
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Flushed:
    """`layers`: their directory. Blocks; for threads."""

    def __init__(self, layers: Path) -> None:
        self._layers = layers
        self._known: set[str] = set()

    def secure(self, layers: Sequence[str]) -> None:
        """OSError, NotHere (one of them lies in a file of its own)."""
        new = [layer for layer in layers if layer not in self._known]
        if not new:
            return
        if any((self._layers / layer / IMAGE).exists() for layer in new):
            raise NotHere(NO_FILES)
        place = os.open(self._layers, _DIRECTORY)
        try:
            if k.libc.syncfs(place) < 0:
                raise OSError(errno.EIO, "the disk did not take what layers hold")
        finally:
            os.close(place)
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        self._known.update(new)

    def secure_top(self, top: str) -> None:
        """The directories of a top have been made: have their names on the disk. OSError."""
        for path in (f"{top}/upper", f"{top}/work", top, "."):
            place = os.open(self._layers / path, _DIRECTORY)
            try:
                os.fsync(place)
            finally:
                os.close(place)
