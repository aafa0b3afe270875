"""Streams between clients and the files of VMs: of any length, never as a whole in memory, and on no disk but the VM's.

What comes for a file goes through a pipe to the VM's box, into a file that nobody sees until its last byte is there.
That may take as long as the client likes: the VM is in use meanwhile, as by a run, so that it can be forked; it is held
only while the file takes its place. Should the box be lost, the stream is.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Protocol, TypeVar

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import BadRequest, CoreError, PayloadTooLarge
from boxwood.core.files import Files
from boxwood.core.model import Caller, Written
from boxwood.core.refusals import of_engine
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, BoxGone, EngineError, OpenFile
from boxwood.engine.feeds import ArchiveFeed, Feed, Unpacked

AT_ONCE_BYTES = 1 << 20  # of a file: what is not longer is written in one go
UNPACKED_TIMES = 4  # so much more than `file_bytes` may come out of one archive
F = TypeVar("F", bound=Feed)
T = TypeVar("T")
SILENT_SECONDS = 60.0  # without a byte from the client, or one taken by the VM


class Body(Protocol):
    """What comes from a client. CoreError: it does not come as it should."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    @property
    def divert(self) -> Divert | None:
        """Has all that is still to come written to a pipe; None: it has to be iterated over."""


class Divert(Protocol):
    async def __call__(self, pipe: int, most: int, seconds: float) -> int:
        """How many bytes that were. BrokenPipeError: nobody reads it any more; OverflowError: more than `most`;
        TimeoutError: nothing moved for so many seconds."""


class Transfers:
    def __init__(self, boxes: Boxes, access: Access, files: Files, config: Config, tasks: Tasks) -> None:
        self._boxes = boxes
        self._access = access
        self._files = files
        self._config = config
        self._tasks = tasks

    async def open(self, caller: Caller, vm: str, path: str) -> OpenFile:
        """A regular file, for reading; the caller closes it. BadRequest (path, a directory, a device), NotFound (vm,
        file), Forbidden, InvalidState."""
        clean = words.file_path(path)
        row = self._access.usable(caller, vm)
        return await self._files.asked(row.id, lambda box: box.read_file(clean))

    async def write(
        self,
        caller: Caller,
        vm: str,
        path: str,
        stream: Body,
        *,
        size: int | None = None,
        mode: int | None = None,
        sha256: str | None = None,
    ) -> Written:
        """A whole file; it appears when its last byte has come, in place of what was there. `size`: how many bytes have
        to come, if that is known. `mode`: permission bits; None: those of the file replaced, else 0644.
        Errors as of `Files.write`; Internal if the VM's box died meanwhile."""
        clean, expected, bits = words.file_path(path), words.sha256(sha256), words.mode(mode)
        counted = _Counted(stream, size, self._config.file_bytes, expected)
        row = self._access.usable(caller, vm)
        durable = bool(row.durable)
        beginning = await counted.up_to(AT_ONCE_BYTES)
        if counted.ended:
            counted.check()
            data = b"".join(beginning)
            writing = self._files.asked(row.id, lambda box: box.write_file(clean, data, bits, durable=durable))
            # Else the box does what it was asked in the order in which it was, whether or not somebody still waits.
            await (self._tasks.finish(writing) if durable else writing)
        else:
            async with self._feed(row.id, lambda box: box.receive_file(clean, bits, durable=durable)) as (box, feed):
                await counted.into(feed, beginning)
                await self._tasks.finish(self._held(row.id, box, feed.place))
        return Written(clean, counted.count, counted.count, ((0, counted.count),), complete=True, written=True)

    async def unpack(
        self,
        caller: Caller,
        vm: str,
        path: str,
        stream: Body,
        *,
        packed: bool,
        size: int | None = None,
        sha256: str | None = None,
    ) -> tuple[int, Unpacked]:
        """Unpack a tar archive, `packed` with gzip or not, into a directory; the archive's bytes, and what came of it.
        What was unpacked before something went wrong stays, each file whole. Errors as of `write`."""
        clean, expected = words.path(path), words.sha256(sha256)
        counted = _Counted(stream, size, self._config.file_bytes, expected)
        row = self._access.usable(caller, vm)
        durable = bool(row.durable)
        limit = UNPACKED_TIMES * self._config.file_bytes

        async def begin(box: Box) -> ArchiveFeed:
            return await box.receive_archive(clean, packed, limit, durable=durable)

        async with self._feed(row.id, begin) as (_, feed):
            await counted.into(feed, [])
            return counted.count, await self._tasks.finish(feed.unpacked())

    @asynccontextmanager
    async def _feed(self, vm_id: str, begin: Callable[[Box], Awaitable[F]]) -> AsyncGenerator[tuple[Box, F], None]:
        """Into the VM's box, which is in use meanwhile."""
        with ExitStack() as passing:
            try:
                async with self._boxes.using(vm_id) as (slot, box):
                    self._access.still_usable(vm_id)
                    passing.enter_context(self._boxes.passage(slot))
                    feed = await begin(box)
                    passing.callback(feed.abandon)
                yield box, feed
            except EngineError as error:
                raise of_engine(error) from error

    async def _held(self, vm_id: str, box: Box, place: Callable[[], Awaitable[T]]) -> T:
        """The end of a stream, with nobody else changing the VM's layers."""
        async with self._boxes.using(vm_id) as (_, now):
            if now is not box:
                raise BoxGone("it was replaced while the file came")
            return await place()


class _Counted:
    """A stream whose bytes are counted and, where that is wanted, hashed."""

    def __init__(self, stream: Body, size: int | None, most: int, sha256: str | None) -> None:
        self._divert = stream.divert if sha256 is None else None
        self._stream = aiter(stream)
        self._size = size
        self._most = most
        self._expected = sha256
        self._digest = hashlib.sha256() if sha256 is not None else None
        self.count = 0
        self.ended = False
        if size is not None and size > most:
            raise _too_large(most, size)

    async def _next(self) -> bytes:
        piece = await anext(self._stream, b"")
        self.count += len(piece)
        self.ended = not piece
        if self.count > (self._most if self._size is None else self._size):
            raise self._too_much()
        if self._digest is not None:
            self._digest.update(piece)
        return piece

    def _too_much(self) -> CoreError:
        if self._size is None:
            return _too_large(self._most, None)
        return BadRequest(f"size: more came than the {self._size} bytes that were announced")

    async def up_to(self, most: int) -> list[bytes]:
        """What comes until there are more than `most` bytes, or no more."""
        pieces = []
        while self.count <= most and (piece := await self._next()):
            pieces.append(piece)
        return pieces

    async def into(self, feed: Feed, beginning: list[bytes]) -> None:
        """All of it."""
        for piece in beginning:
            await feed.give(piece)
        beginning.clear()
        pipe = feed.pipe()
        if self._divert is not None and pipe is not None and not self.ended:
            await self._diverted(self._divert, feed, pipe)
        else:
            while piece := await self._next():
                await feed.give(piece)
        self.check()

    async def _diverted(self, divert: Divert, feed: Feed, pipe: int) -> None:
        most = self._most if self._size is None else self._size
        size, broken = 0, False
        try:
            size = await divert(pipe, most - self.count, SILENT_SECONDS)
        except BrokenPipeError:
            broken = True
        except OverflowError:
            raise self._too_much() from None
        except TimeoutError:
            raise BadRequest(f"nothing of the body moved for {SILENT_SECONDS:g} seconds") from None
        self.count += size
        await feed.gave(size, broken)

    def check(self) -> None:
        """BadRequest, once all has come."""
        if self._size is not None and self.count != self._size:
            raise BadRequest(f"size: {self.count} bytes came, {self._size} were announced")
        if self._digest is not None and self._digest.hexdigest() != self._expected:
            raise BadRequest("sha256: the bytes that came have another one")


def _too_large(most: int, size: int | None) -> CoreError:
    return PayloadTooLarge(f"at most {most} bytes are taken", most, size)
