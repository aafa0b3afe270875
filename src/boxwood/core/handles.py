"""Files of a VM that stay open, to be read and written in place, as SFTP wants it; and what it wants beside `filework`.

The box opens them and keeps them open: see engine/agent/handles.py. As long as one is open the VM is in use, as by a
run: it is not parked, and can be forked. Each piece is read or written with the VM held, so that nobody seals what is
being written. Should the box go, its files are not open any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import Internal, ResourceBusy
from boxwood.core.filework import refusal
from boxwood.core.ids import new_id
from boxwood.core.model import Caller
from boxwood.core.slot import Resident, Slot
from boxwood.engine.api import Box, BoxGone, EngineError
from boxwood.engine.fileapi import FileStatus
from boxwood.engine.handleapi import FURTHEST, HANDLES, PIECE, Attributes, BoxHandles, FileHandle, Opening, Space

T = TypeVar("T")


class Handle(Resident):
    """A file that is open, as its slot sees it (`slot.Resident`). `over`: why it is not any more. `durable`: what was
    written is on the disk once it is closed."""

    def __init__(self, slot: Slot, box: Box, theirs: FileHandle, *, durable: bool) -> None:
        self.id = new_id()
        self.slot = slot
        self.box = box
        self.theirs = theirs
        self.durable = durable
        self.written = False
        self.over = ""
        self.left = False

    def lost(self, reason: str) -> None:
        self.over = reason or "the box has gone"


class Handles:
    """Each call may raise NotFound (vm, file), Forbidden, InvalidState (immutable, stopped), BadRequest, Conflict,
    ResourceBusy, Internal (its box has gone); `errno` of what the VM's kernel has refused."""

    def __init__(self, boxes: Boxes, access: Access) -> None:
        self._boxes = boxes
        self._access = access
        self._open: Counter[str] = Counter()  # by VM, those on their way too

    # Files

    async def open(self, caller: Caller, vm: str, path: bytes, how: Opening) -> Handle:
        """`close` must follow."""
        place = words.raw_path(path)
        row = self._access.usable(caller, vm)
        if self._open[row.id] >= HANDLES:
            raise ResourceBusy("file", f"{HANDLES} files of the VM are open: close some", retry_after=1)
        self._open[row.id] += 1
        try:
            return await self._opened(row.id, place, how, durable=bool(row.durable))
        except BaseException as error:
            self._count_down(row.id)
            if isinstance(error, EngineError):
                raise refusal(error) from error
            raise

    async def _opened(self, vm_id: str, place: bytes, how: Opening, *, durable: bool) -> Handle:
        async with self._boxes.using(vm_id) as (slot, box):
            self._access.still_usable(vm_id)
            try:
                theirs = await box.handles.open(place, how)
            except BoxGone:
                await self._boxes.lost(box)
                raise
            if slot.box is not box:
                raise BoxGone("it has just been put down")
            made = Handle(slot, box, theirs, durable=durable)
            made.written = how.write and (how.create or how.truncate)
            slot.runs[made.id] = made
            return made

    async def read(self, handle: Handle, at: int, size: int) -> bytes:
        """Not more than the engine reads at once; nothing: there is no more."""
        _check_within(at)
        async with self._held(handle) as theirs:
            return await theirs.read(at, size)

    async def write(self, handle: Handle, at: int, data: bytes) -> None:
        _check_within(at + len(data))
        async with self._held(handle) as theirs:
            handle.written = True
            await theirs.write(at, data)

    async def status(self, handle: Handle) -> FileStatus:
        async with self._held(handle) as theirs:
            return await theirs.status()

    async def change_open(self, handle: Handle, wanted: Attributes) -> None:
        async with self._held(handle) as theirs:
            handle.written = True
            await theirs.change(wanted)

    async def flush(self, handle: Handle) -> None:
        async with self._held(handle) as theirs:
            await theirs.flush()
            handle.written = False

    async def close(self, handle: Handle) -> None:
        """Twice is once. Of a VM that is not usable any more too. Internal: what was written last may be lost."""
        if handle.left:
            return
        handle.left = True
        try:
            async with self._held(handle, closing=True) as theirs:
                try:
                    if handle.durable and handle.written:
                        await theirs.flush()
                finally:
                    await theirs.close()
                handle.slot.runs.pop(handle.id, None)  # before it is asked whether anything runs in the VM
        finally:
            handle.slot.runs.pop(handle.id, None)
            self._count_down(handle.slot.vm_id)
            self._boxes.parking.touch(handle.slot)

    @asynccontextmanager
    async def _held(self, handle: Handle, *, closing: bool = False) -> AsyncIterator[FileHandle]:
        vm_id = handle.slot.vm_id
        try:
            if handle.over or (handle.left and not closing):
                raise BoxGone(handle.over or "it was closed")
            async with self._box(handle, closing=closing) as box:
                if box is not handle.box:
                    raise BoxGone("the VM has another box now")
                if not closing:
                    self._access.still_usable(vm_id)
                yield handle.theirs
        except BoxGone as error:
            raise Internal(f"the file is not open any more: {error}") from error
        except EngineError as error:
            raise refusal(error) from error

    @asynccontextmanager
    async def _box(self, handle: Handle, *, closing: bool) -> AsyncIterator[Box | None]:
        """To close a file wakes no VM that is suspended, and needs no VM that is not used by others."""
        if closing and handle.slot.suspended:
            async with self._boxes.answering(handle.slot):
                yield handle.slot.box
        elif closing:
            handle.slot.ops += 1  # it is not suspended before the file is closed
            try:
                yield handle.slot.box
            finally:
                self._boxes.leave(handle.slot)
        else:
            async with self._boxes.using(handle.slot.vm_id) as (_, box):
                yield box

    def _count_down(self, vm_id: str) -> None:
        self._open[vm_id] -= 1
        if not self._open[vm_id]:
            del self._open[vm_id]

    # Names and attributes

    async def change(self, caller: Caller, vm: str, path: bytes, wanted: Attributes, *, follow: bool) -> None:
        place = words.raw_path(path)
        await self._asked(caller, vm, lambda box: box.change(place, wanted, follow=follow), again=True)

    async def symlink(self, caller: Caller, vm: str, path: bytes, target: bytes) -> None:
        place = words.raw_path(path)
        await self._asked(caller, vm, lambda box: box.symlink(place, target), again=False)

    async def link(self, caller: Caller, vm: str, path: bytes, to: bytes) -> None:
        source, target = words.raw_path(path), words.raw_path(to, "to")
        await self._asked(caller, vm, lambda box: box.link(source, target), again=False)

    async def resolve(self, caller: Caller, vm: str, path: bytes) -> bytes:
        place = words.raw_path(path)
        return await self._asked(caller, vm, lambda box: box.resolve(place), again=True)

    async def space(self, caller: Caller, vm: str, path: bytes) -> Space:
        place = words.raw_path(path)
        return await self._asked(caller, vm, lambda box: box.space(place), again=True)

    async def _asked(self, caller: Caller, vm: str, ask: Callable[[BoxHandles], Awaitable[T]], *, again: bool) -> T:
        """`again`: if its box dies, another one is asked."""
        row = self._access.usable(caller, vm)

        def permitted(box: Box) -> Awaitable[T]:
            self._access.still_usable(row.id)
            return ask(box.handles)

        try:
            try:
                return await self._boxes.asked(row.id, permitted)
            except BoxGone:
                if not again:
                    raise
                return await self._boxes.asked(row.id, permitted)
        except EngineError as error:
            raise refusal(error) from error


def _check_within(at: int) -> None:
    if not 0 <= at <= FURTHEST - PIECE:
        raise words.refuse("offset", "no file is as long as that")
