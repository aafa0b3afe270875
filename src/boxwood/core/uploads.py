"""Uploads: bytes of files that are not complete yet, in DATA/uploads under names of our own, and their ledger.

A chunk is acknowledged once its bytes are in the staging file and its range is in the row. A lock for each upload
keeps its chunks apart; different uploads do not wait for each other. Of a durable VM both are on the disk then.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sqlite3
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from boxwood.core import clock
from boxwood.core.errors import (
    BadRequest,
    CapacityUnavailable,
    Conflict,
    Internal,
    NotFound,
    PayloadTooLarge,
    ResourceBusy,
)
from boxwood.core.ids import new_id
from boxwood.core.output import flush
from boxwood.store import uploads as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.uploads import Ranges, UploadRow

UNFINISHED = 256  # of one VM
SMALL_RANGES = 64  # of a row that is written on the event loop
P = ParamSpec("P")
T = TypeVar("T")


class Uploads:
    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, vm_id: str, upload_id: str) -> AsyncIterator[None]:
        key = (vm_id, upload_id)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        async with lock:
            yield

    def find(self, vm_id: str, upload_id: str) -> UploadRow | None:
        return rows.by_id(self._database.near, vm_id, upload_id)

    def staged(self, upload_id: str) -> UploadRow:
        row = rows.staged(self._database.near, upload_id)
        if row is None:
            raise NotFound("upload", "there is no such upload")
        return row

    async def begin(self, vm_id: str, upload_id: str, path: str, size: int, *, staged: bool = False) -> UploadRow:
        """A new one, in the ledger. ResourceBusy, NotFound (vm)."""
        row = UploadRow(
            vm_id, upload_id, staged, path, size, None, (), new_id(), complete=False, created_at=clock.now()
        )

        def insert(connection: sqlite3.Connection) -> None:
            if rows.unfinished(connection, vm_id) >= UNFINISHED:
                raise ResourceBusy("upload", f"{UNFINISHED} uploads of this VM are unfinished: finish some")
            _record(connection, row)

        await self._database.write(insert)
        await self._secure(vm_id)
        return row

    def check(self, row: UploadRow, path: str, size: int) -> None:
        """Conflict if this upload id stands for something else."""
        if (row.path, row.size) != (path, size):
            raise Conflict("upload", "this upload_id was used for another path or size: take a new one")

    async def take(self, row: UploadRow, start: int, data: bytes, sha256: str | None) -> UploadRow:
        """Keep a chunk and say so in the ledger."""
        path = self.file(row)
        await _on_disk(_put, path, start, data)
        await self._flush(row)
        return await self._put(
            replace(row, ranges=merged(row.ranges, start, start + len(data)), sha256=sha256 or row.sha256)
        )

    async def take_all(self, row: UploadRow, stream: AsyncIterable[bytes]) -> UploadRow:
        """Keep a whole file, in place of what was there. BadRequest (too few bytes), PayloadTooLarge."""
        row = await self._put(replace(row, ranges=()))
        path = self.file(row)
        await _on_disk(_put, path, 0, b"", truncate=True)
        at = 0
        async for piece in stream:
            if at + len(piece) > row.size:
                raise PayloadTooLarge(f"more than the {row.size} bytes that were announced", row.size)
            await _on_disk(_put, path, at, piece)
            at += len(piece)
        if at != row.size:
            raise BadRequest(f"{at} bytes came; {row.size} were announced")
        await self._flush(row)
        return await self._put(replace(row, ranges=merged((), 0, at)))

    async def verify(self, row: UploadRow, sha256: str | None) -> None:
        """BadRequest, and the upload is forgotten, if its bytes have another SHA-256."""
        expected = sha256 or row.sha256
        if expected is not None and await _on_disk(_digest, self.file(row)) != expected:
            await self.forget(row)
            raise BadRequest("sha256: the bytes that came have another one; upload the file again")

    async def open(self, row: UploadRow) -> int:
        """A descriptor of the staging file, for reading."""
        return await _on_disk(_open, self.file(row))

    async def done(self, row: UploadRow) -> None:
        """The file is in place: remember that, and let go of the bytes."""
        await self._put(replace(row, ranges=merged((), 0, row.size), file=None, complete=True))
        if row.file is not None:
            await _on_disk(self.file(row).unlink, True)

    async def done_at_once(self, vm_id: str, upload_id: str, path: str, size: int) -> None:
        """A file that came in one chunk is in place: remember that, should the chunk come again. NotFound (vm)."""
        ranges = merged((), 0, size)
        await self._put(
            UploadRow(vm_id, upload_id, False, path, size, None, ranges, None, complete=True, created_at=clock.now())
        )

    async def forget(self, row: UploadRow) -> None:
        await self._database.write(lambda connection: rows.delete(connection, row.vm_id, row.id))
        if row.file is not None:
            await _on_disk(self.file(row).unlink, True)

    async def remove(self, names: Sequence[str]) -> None:
        """Staging files of a VM that is gone."""
        for name in names:
            await _on_disk((self._directory / name).unlink, True)

    async def sweep(self, seconds: float) -> None:
        """Forget those that began so many seconds ago; remove the files that no row names."""
        before = clock.now() - int(seconds * 1e6)
        await self._database.write(lambda connection: rows.expire(connection, before))
        there = await asyncio.to_thread(os.listdir, self._directory)
        named = await self._database.read(rows.files)
        for name in set(there) - named:
            await asyncio.to_thread((self._directory / name).unlink, True)

    def file(self, row: UploadRow) -> Path:
        if row.file is None:
            raise Internal("this upload has no bytes any more")
        return self._directory / row.file

    async def _put(self, row: UploadRow) -> UploadRow:
        small = len(row.ranges) <= SMALL_RANGES
        await self._database.write(lambda connection: _record(connection, row), small=small)
        await self._secure(row.vm_id)
        return row

    async def _flush(self, row: UploadRow) -> None:
        """What has come for a durable VM is on the disk before the ledger says that it is there."""
        if vm_rows.is_durable(self._database.near, row.vm_id):
            await _on_disk(flush, self.file(row), self._directory)

    async def _secure(self, vm_id: str) -> None:
        if vm_rows.is_durable(self._database.near, vm_id):
            await self._database.secure()


def _record(connection: sqlite3.Connection, row: UploadRow) -> None:
    try:
        rows.put(connection, row)
    except sqlite3.IntegrityError as error:
        raise NotFound("vm", "the VM is not there any more") from error


def merged(ranges: Ranges, start: int, end: int) -> Ranges:
    """Half-open ranges in order, with this one added; touching ones become one."""
    if start == end:
        return ranges
    out: list[tuple[int, int]] = []
    for low, high in sorted((*ranges, (start, end))):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def whole(row: UploadRow) -> bool:
    return row.size == 0 or row.ranges == ((0, row.size),)


async def _on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread; CapacityUnavailable if the disk is full."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except FileNotFoundError as error:
        raise NotFound("upload", "the bytes of this upload are not there any more: upload the file again") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityUnavailable("the server's disk is full: the bytes were not kept") from error
        raise Internal(f"the server could not keep the bytes: {error.strerror}") from error


def _put(path: Path, at: int, data: bytes, truncate: bool = False) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if truncate else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _digest(path: Path) -> str:
    with open(_open(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
