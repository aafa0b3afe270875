"""File work beside reading and writing: status, directories, names, modes, lists, patterns, text, archives, changes.

As in `files` the box does it, and no path of a VM is ever opened here. Paths are bytes, so that every name that a VM
has can be said. What may take long, or as long as somebody listens, does not hold the VM: it can be forked meanwhile,
as it can while something runs in it, and is not parked. It is not suspended either, but under who watches for changes.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import TypeVar

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import Conflict, CoreError, Internal, PayloadTooLarge, ResourceBusy
from boxwood.core.model import Caller
from boxwood.core.refusals import clean, of_engine
from boxwood.engine.api import Box, BoxGone, EngineError, GuestError
from boxwood.engine.fileapi import (
    BoxFiles,
    FileChange,
    FilePage,
    FilesFound,
    FileStatus,
    TextFound,
    TextQuery,
    Unpacked,
    Unpacking,
)

MOST_ENTRIES = 10_000  # of one answer
MOST_SECONDS = 60.0  # that looking for something may take
MOST_WATCHED = 8192  # directories
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY, errno.ESTALE})
_BUSY = frozenset({errno.EAGAIN, errno.ETIME, errno.ENOMEM})
T = TypeVar("T")


class FileWork:
    """Each call may raise NotFound (vm, file), Forbidden, InvalidState (immutable, stopped), BadRequest (a path that is
    not on the VM's disk, a pattern that makes no sense, …), ResourceBusy (too much at once, or it took too long)."""

    def __init__(self, boxes: Boxes, access: Access, config: Config) -> None:
        self._boxes = boxes
        self._access = access
        self._config = config

    def check(self, caller: Caller, vm: str) -> None:
        """May he do this at all? Before anything else of a request is looked at."""
        self._access.usable(caller, vm)

    async def stat(self, caller: Caller, vm: str, path: bytes, *, follow: bool = False) -> FileStatus:
        place = words.raw_path(path)
        return await self._shortly(caller, vm, lambda files: files.stat(place, follow=follow), again=True)

    async def list(self, caller: Caller, vm: str, path: bytes, after: bytes, limit: int) -> FilePage:
        """Entries whose names come behind `after`, in the order of their bytes."""
        place, most = words.raw_path(path), words.limit(limit, MOST_ENTRIES)
        if b"\0" in after or b"/" in after or len(after) > 255:
            raise words.refuse("cursor", "is not one of this list")
        return await self._shortly(caller, vm, lambda files: files.list(place, after=after, limit=most), again=True)

    async def mkdir(self, caller: Caller, vm: str, path: bytes, *, parents: bool, mode: int | None) -> bool:
        """False: it was there, which is well with `parents`. Conflict (something else is there)."""
        place = words.raw_path(path)
        return await self._shortly(
            caller, vm, lambda files: files.mkdir(place, parents=parents, mode=mode), again=parents
        )

    async def chmod(self, caller: Caller, vm: str, path: bytes, mode: int) -> None:
        place = words.raw_path(path)
        await self._shortly(caller, vm, lambda files: files.chmod(place, mode), again=True)

    async def move(self, caller: Caller, vm: str, path: bytes, to: bytes, *, replace: bool) -> None:
        """Conflict: there is something at `to`."""
        source, target = words.raw_path(path), words.raw_path(to, "to")
        await self._at_length(caller, vm, lambda files: files.move(source, target, replace=replace), again=False)

    async def remove(self, caller: Caller, vm: str, path: bytes, *, recursive: bool) -> int:
        """How many names were deleted. Conflict: a directory that is not empty, and `recursive` was not said."""
        place = words.raw_path(path)
        return await self._at_length(caller, vm, lambda files: files.remove(place, recursive=recursive), again=False)

    async def glob(
        self, caller: Caller, vm: str, path: bytes, pattern: str, *, limit: int, seconds: float
    ) -> FilesFound:
        place, most = words.raw_path(path), words.limit(limit, MOST_ENTRIES)
        words.text("pattern", pattern)
        return await self._at_length(
            caller, vm, lambda files: files.glob(place, pattern, limit=most, seconds=seconds), again=True
        )

    async def search(
        self, caller: Caller, vm: str, path: bytes, query: TextQuery, *, limit: int, seconds: float
    ) -> TextFound:
        place, most = words.raw_path(path), words.limit(limit, MOST_ENTRIES)
        for field, text in (
            ("pattern", query.pattern),
            *(("include", one) for one in query.include),
            *(("exclude", one) for one in query.exclude),
        ):
            words.text(field, text)
        return await self._at_length(
            caller, vm, lambda files: files.search(place, query, limit=most, seconds=seconds), again=True
        )

    async def pack(self, caller: Caller, vm: str, path: bytes) -> AsyncGenerator[bytes, None]:
        """A tar archive of a directory, bit by bit. Whoever has it closes it; what goes wrong in the middle is raised
        there."""
        place = words.raw_path(path)
        async with AsyncExitStack() as kept:
            packed = _told(await self._at_length(caller, vm, lambda files: files.pack(place), again=True, kept=kept))
            pieces = _kept(packed, kept.pop_all())
        await anext(pieces)  # from here on its end is heard of, whether or not anybody asks for more
        return pieces

    async def watch(
        self, caller: Caller, vm: str, path: bytes, *, recursive: bool, most: int
    ) -> AsyncGenerator[FileChange, None]:
        """Changes below a directory, until it is gone. Whoever has it closes it."""
        place, bound = words.raw_path(path), words.limit(most, MOST_WATCHED)
        return _told(
            await self._at_length(
                caller, vm, lambda files: files.watch(place, recursive=recursive, most=bound), again=True, passing=False
            )
        )

    async def unpack(
        self, caller: Caller, vm: str, path: bytes, pieces: AsyncGenerator[bytes, None], *, owners: bool
    ) -> Unpacked:
        """Unpack a tar archive into a directory, as it comes. What was unpacked before something went wrong stays.
        PayloadTooLarge, Conflict (no space, something in the way)."""
        place = words.raw_path(path)
        async with AsyncExitStack() as kept:
            unpacking = await self._at_length(
                caller, vm, lambda files: files.unpack(place, owners=owners), again=False, kept=kept
            )
            try:
                return await self._fed(unpacking, pieces)
            except EngineError as error:
                raise refusal(error) from error
            finally:
                unpacking.close()

    async def _fed(self, unpacking: Unpacking, pieces: AsyncGenerator[bytes, None]) -> Unpacked:
        size, most = 0, self._config.file_bytes
        async with aclosing(pieces):
            async for piece in pieces:
                size += len(piece)
                if size > most:
                    raise PayloadTooLarge(f"the archive has more than the {most} bytes that are taken at once", most)
                await unpacking.feed(piece)
        return await unpacking.finish()

    # --- the box

    async def _shortly(self, caller: Caller, vm: str, ask: Callable[[BoxFiles], Awaitable[T]], *, again: bool) -> T:
        """With the VM held. `again`: if its box dies, another one is asked."""
        row = self._access.usable(caller, vm)

        def permitted(box: Box) -> Awaitable[T]:
            self._access.still_usable(row.id)
            return ask(box.files)

        return await self._asked(lambda: self._boxes.asked(row.id, permitted), again)

    async def _at_length(
        self,
        caller: Caller,
        vm: str,
        ask: Callable[[BoxFiles], Awaitable[T]],
        *,
        again: bool,
        passing: bool = True,
        kept: AsyncExitStack | None = None,
    ) -> T:
        """Without holding it. `passing`: it is not suspended meanwhile, and until `kept` is closed."""
        row = self._access.usable(caller, vm)

        async def once() -> T:
            async with AsyncExitStack() as meanwhile:
                async with self._boxes.using(row.id) as (slot, box):
                    self._access.still_usable(row.id)
                    living: Box = box
                    if passing:
                        meanwhile.enter_context(self._boxes.passage(slot))
                try:
                    found = await ask(living.files)
                except BoxGone:
                    await self._boxes.lost(living)
                    raise
                if kept is not None:
                    kept.push_async_exit(meanwhile.pop_all())
                return found

        return await self._asked(once, again)

    async def _asked(self, once: Callable[[], Awaitable[T]], again: bool) -> T:
        try:
            try:
                return await once()
            except BoxGone:
                if not again:
                    raise
                return await once()
        except EngineError as error:
            raise refusal(error) from error


async def _kept(pieces: AsyncGenerator[bytes, None], kept: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """Nothing at first, and then these; `kept` is closed with it."""
    async with kept, aclosing(pieces):
        yield b""
        async for piece in pieces:
            yield piece


async def _told(bits: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What the engine refuses in the middle, as the core says it."""
    async with aclosing(bits):
        try:
            async for bit in bits:
                yield bit
        except BoxGone as error:
            raise Internal(f"the VM's box has gone: {error}") from error
        except EngineError as error:
            raise refusal(error) from error


def refusal(error: EngineError) -> CoreError:
    found = of_engine(error)
    if isinstance(error, GuestError) and error.errno in _TAKEN | _BUSY:
        text = clean(error.message)
        found = Conflict("file", text) if error.errno in _TAKEN else ResourceBusy("file", text)
        found.errno = error.errno
    return found
