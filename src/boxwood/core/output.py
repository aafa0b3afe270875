"""One stream of one run: a little in memory, more in a file of DATA/spool, bounded.

Bytes count as safe once they are in the file, or once they are past the bound and dropped: only then may the box be
told to forget them. What stays in memory (up to 64 KiB) is safe with the row of the ended run; until then the box
keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

INLINE_BYTES = 64 << 10
log = logging.getLogger(__name__)


class Output:
    def __init__(self, directory: Path, name: str, bound: int) -> None:
        self._directory = directory
        self._name = name
        self._bound = bound
        self._tail = bytearray()  # not in the file yet
        self._tail_at = 0  # its offset
        self._descriptor = -1
        self.received = 0  # offset of the next byte of the box
        self.spooled = 0  # bytes in the file
        self.dropped = 0
        self._full = False  # the host's disk

    @property
    def path(self) -> Path:
        return self._directory / self._name

    def begin_again(self) -> None:
        """What an earlier try has left is no output any more. Only before there is any."""
        self.path.unlink(missing_ok=True)

    def reopen(self) -> None:
        """Go on where the file of an earlier server ends."""
        try:
            self.spooled = self.received = self.path.stat().st_size
        except FileNotFoundError:
            return

    @property
    def kept(self) -> int:
        return self.spooled + len(self._tail)

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self._tail)

    @property
    def safe(self) -> int:
        """The box may forget what is before this offset."""
        return self._tail_at if self._tail else self.received

    def add(self, offset: int, data: bytes) -> None:
        if offset > self.received:
            self.dropped += offset - self.received
            self.received = offset
        data = data[self.received - offset :]  # without what was sent again
        if not self._tail:
            self._tail_at = self.received
        self.received += len(data)
        room = 0 if self._full else max(0, self._bound - self.kept)
        self._tail += data[:room]
        self.dropped += max(0, len(data) - room)

    async def spool(self) -> None:
        """Move what is in memory now into the file."""
        chunk = bytes(self._tail)
        try:
            await asyncio.to_thread(self._write, chunk)
        except OSError as error:
            log.error("%s: %s; from here on the output is dropped", self.path, error)
            self._full = True
            self.dropped += len(self._tail)
            self._tail.clear()
            return
        del self._tail[: len(chunk)]
        self._tail_at += len(chunk)
        self.spooled += len(chunk)

    def _write(self, chunk: bytes) -> None:
        if self._descriptor < 0:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
        view, at = memoryview(chunk), self.spooled
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written

    async def secure(self) -> None:
        """Returns when what has been spooled is on the disk, under its name. OSError."""
        if self.spooled:
            await asyncio.to_thread(flush, self.path, self._directory)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def memory(self) -> bytes:
        """What is not in the file yet: all of it, as long as nothing has been spooled."""
        return bytes(self._tail)

    async def read(self) -> bytes:
        """All that is kept so far."""
        if not self.spooled:
            return bytes(self._tail)
        size = self.spooled
        tail = bytes(self._tail)  # taken together with the size: what is moved meanwhile is not read twice
        return await asyncio.to_thread(head, self.path, size) + tail

    async def since(self, at: int, most: int) -> bytes:
        """What is kept from byte `at` on, at most so much of it at once."""
        if at < self.spooled:
            return await asyncio.to_thread(head, self.path, min(most, self.spooled - at), at)
        return bytes(self._tail[at - self.spooled :][:most])


def in_turn(reports: bytes, at: int, *, behind: bool) -> bytes:
    """Of what a Python context reports, from byte `at` on, what may be told with a piece of output behind which there
    is more (`behind`): results wait for what was printed before them; the first line, which is about the context, does
    not."""
    if not behind:
        return reports
    return reports[: reports.find(b"\n") + 1] if at == 0 else b""


def flush(path: Path, above: Path) -> None:
    """Have a file on the disk, and the names of all directories from it up to `above`. OSError."""
    place = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(place)
    finally:
        os.close(place)
    if path != above:
        flush(path.parent, above)


def head(path: Path, size: int, at: int = 0) -> bytes:
    """At most `size` bytes of a file, from `at` on."""
    with path.open("rb") as file:
        file.seek(at)
        return file.read(size)
