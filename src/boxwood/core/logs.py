"""The log files in DATA/log: of the server that runs in the background, and of the zygote. None grows for ever.

Who writes them holds them open for appending and does not know of this: so what a file holds is moved to one beside
it, which is replaced, and the file is cut to nothing. What is written in between the two is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path

from boxwood.core.tasks import Tasks

LOOK_SECONDS = 60.0  # between two looks
_PIECE = 1 << 20
log = logging.getLogger(__name__)


class Logs:
    """`most`: bytes of a file, above which it is moved aside."""

    def __init__(self, directory: Path, most: int, tasks: Tasks) -> None:
        self._directory = directory
        self._most = most
        self._tasks = tasks

    def start(self) -> None:
        self._tasks.start(self._watch())

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.bound)
            except OSError as error:
                log.error("a log that has grown too long could not be moved aside: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def bound(self) -> None:
        """Look once. OSError."""
        for path in sorted(self._directory.glob("*.log")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size > self._most:
                _move_aside(path, self._most)


def _move_aside(path: Path, most: int) -> None:
    """The end of it, at most so many bytes, to NAME.log.1."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    aside = path.with_name(path.name + ".1")
    part = path.with_name(path.name + ".part")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        part.unlink(missing_ok=True)
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            at = max(0, os.fstat(descriptor).st_size - most)
            while piece := os.pread(descriptor, _PIECE, at):
                _write_all(target, piece)
                at += len(piece)
        finally:
            os.close(target)
        os.rename(part, aside)
    except OSError:
        os.ftruncate(descriptor, 0)  # the disk is full, say: then it is this that frees some of it
        part.unlink(missing_ok=True)
        raise
    else:
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
