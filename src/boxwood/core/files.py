"""Files of a VM: read, written whole or in chunks, listed with their hashes.

No path of a VM is ever opened here: the box opens it and hands over bytes or a descriptor. Chunks that do not make up
a whole file yet are staged: see `uploads`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import TypeVar

from boxwood.core import words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import BadRequest, Conflict, InvalidState, NotFound, PayloadTooLarge
from boxwood.core.ids import is_id, new_id
from boxwood.core.model import Caller, Chunk, FileContent, Written
from boxwood.core.refusals import of_engine
from boxwood.core.signing import Signature, Signer
from boxwood.core.tasks import Tasks
from boxwood.core.uploads import Uploads, whole
from boxwood.engine.api import Box, BoxGone, EngineError, Manifest, OpenFile
from boxwood.store.uploads import UploadRow
from boxwood.store.vms import VMRow

SMALL_BYTES = 64 << 10  # so much is read at once
T = TypeVar("T")


class Files:
    def __init__(
        self, boxes: Boxes, access: Access, uploads: Uploads, signer: Signer, config: Config, tasks: Tasks
    ) -> None:
        self._boxes = boxes
        self._access = access
        self._uploads = uploads
        self._signer = signer
        self._config = config
        self._tasks = tasks

    # Reading

    async def read(self, caller: Caller, vm: str, path: str) -> FileContent:
        """Small files as `data`, larger ones as an open `fd` that the caller closes.
        BadRequest (path, a directory, a device), NotFound (vm, file), Forbidden."""
        clean = words.file_path(path)
        row = self._access.usable(caller, vm)
        return _content(clean, await self.asked(row.id, lambda box: box.read_file(clean)))

    async def manifest(self, caller: Caller, vm: str, path: str) -> Manifest:
        """Regular files below a directory other than the root; a missing one has none. BadRequest, NotFound."""
        clean = words.path(path)
        if clean == "/":
            raise words.refuse("path", "any directory but the root")
        row = self._access.usable(caller, vm)
        return await self.asked(row.id, lambda box: box.manifest(clean))

    async def asked(self, vm_id: str, ask: Callable[[Box], Awaitable[T]]) -> T:
        """Ask the VM's box; if it dies, once more another one: for what may be done twice. InvalidState: the VM has
        become immutable meanwhile."""

        def permitted(box: Box) -> Awaitable[T]:
            self._access.still_usable(vm_id)
            return ask(box)

        for last in (False, True):
            try:
                return await self._boxes.asked(vm_id, permitted)
            except BoxGone as error:
                if last:
                    raise of_engine(error) from error
            except EngineError as error:
                raise of_engine(error) from error
        raise AssertionError("not reached")

    # Writing

    async def write(self, caller: Caller, vm: str, chunk: Chunk) -> Written:
        """Take a chunk; the file appears whole, atomically, when its last byte is there. Chunks may come in any order,
        repeatedly and overlapping. BadRequest (path, range, sha256), NotFound, Forbidden, InvalidState,
        Conflict (upload: other size or path), PayloadTooLarge, ResourceBusy (too many unfinished uploads),
        CapacityUnavailable (disk full)."""
        path = words.file_path(chunk.path)
        upload_id, sha256 = words.upload_id(chunk.upload_id), words.sha256(chunk.sha256)
        self._check_size(chunk.size)
        end = chunk.start + len(chunk.data)
        if chunk.start < 0 or end > chunk.size or (not chunk.data and chunk.size):
            raise words.refuse("start", f"the chunk must hold bytes, and lie within the {chunk.size} bytes of the file")
        row = self._access.usable(caller, vm)
        return await self._tasks.finish(self._write(row, path, upload_id, sha256, chunk))

    async def _write(self, row: VMRow, path: str, upload_id: str, sha256: str | None, chunk: Chunk) -> Written:
        vm_id = row.id
        async with self._uploads.alone(vm_id, upload_id):
            upload = self._uploads.find(vm_id, upload_id)
            if upload is not None:
                self._uploads.check(upload, path, chunk.size)
                if upload.staged:
                    raise Conflict("upload", "this upload was announced to come through its URL")
                if upload.complete:
                    return _complete(path, chunk.size)
            if upload is None and len(chunk.data) == chunk.size:
                return await self._write_at_once(row, path, upload_id, sha256, chunk.data)
            if upload is None:
                upload = await self._uploads.begin(vm_id, upload_id, path, chunk.size)
            upload = await self._uploads.take(upload, chunk.start, chunk.data, sha256)
            if whole(upload):
                return await self._place(upload, sha256, durable=bool(row.durable))
            received = sum(end - start for start, end in upload.ranges)
            return Written(path, chunk.size, received, upload.ranges, complete=False, written=False)

    async def _write_at_once(self, row: VMRow, path: str, upload_id: str, sha256: str | None, data: bytes) -> Written:
        if sha256 is not None and await asyncio.to_thread(_digest, data) != sha256:
            raise BadRequest("sha256: the bytes that came have another one")
        await self.asked(row.id, lambda box: box.write_file(path, data, durable=bool(row.durable)))
        await self._uploads.done_at_once(row.id, upload_id, path, len(data))
        return _complete(path, len(data))

    async def _place(self, upload: UploadRow, sha256: str | None, *, durable: bool) -> Written:
        """All bytes are there: check them, and let the box put the file in place."""
        await self._uploads.verify(upload, sha256)
        descriptor = await self._uploads.open(upload)
        try:
            await self.asked(upload.vm_id, lambda box: box.write_file(upload.path, descriptor, durable=durable))
        finally:
            os.close(descriptor)
        await self._uploads.done(upload)
        return _complete(upload.path, upload.size)

    def _check_size(self, size: int) -> None:
        if size < 0:
            raise words.refuse("size", "must not be negative")
        if size > self._config.file_bytes:
            most = self._config.file_bytes
            raise PayloadTooLarge(f"the file has {size} bytes; at most {most} are taken", most, size)

    # Uploads by URL

    async def stage(self, caller: Caller, vm: str, path: str, size: int) -> str:
        """Announce an upload by URL; returns its upload id. Errors as `write`."""
        clean = words.file_path(path)
        self._check_size(size)
        row = self._access.usable(caller, vm)
        return (await self._uploads.begin(row.id, new_id(), clean, size, staged=True)).id

    async def put_staged(self, upload_id: str, stream: AsyncIterable[bytes]) -> int:
        """Take all bytes of a staged upload (whoever calls has verified the URL's signature); replaces what an earlier
        attempt left. Returns the size. NotFound (upload), BadRequest (fewer bytes than announced), PayloadTooLarge,
        InvalidState (committed already)."""
        if not is_id(upload_id):
            raise NotFound("upload", "there is no such upload")
        vm_id = self._uploads.staged(upload_id).vm_id
        async with self._uploads.alone(vm_id, upload_id):
            row = self._uploads.staged(upload_id)
            if row.complete:
                raise InvalidState("upload", "uncommitted", "this upload has been committed", upload_id)
            return (await self._uploads.take_all(row, stream)).size

    async def commit(
        self, caller: Caller, vm: str, path: str, size: int, upload_id: str, sha256: str | None = None
    ) -> Written:
        """Put the bytes of a staged upload in place. NotFound (vm, upload), Conflict (upload: other path or size, or
        not all bytes are there), BadRequest (sha256). A committed one answers complete again."""
        clean = words.file_path(path)
        expected = words.sha256(sha256)
        words.upload_id(upload_id)
        row = self._access.usable(caller, vm)
        return await self._tasks.finish(self._commit(row, clean, size, upload_id, expected))

    async def _commit(self, row: VMRow, path: str, size: int, upload_id: str, sha256: str | None) -> Written:
        vm_id = row.id
        async with self._uploads.alone(vm_id, upload_id):
            upload = self._uploads.find(vm_id, upload_id)
            if upload is None:
                raise NotFound("upload", "there is no such upload")
            self._uploads.check(upload, path, size)
            if upload.complete:
                return _complete(path, size)
            if not whole(upload):
                raise Conflict("upload", "not all bytes of this upload have come yet")
            return await self._place(upload, sha256, durable=bool(row.durable))

    def sign(self, purpose: str, *fields: str, seconds: int = 900) -> Signature:
        """Sign any words (method, org, vm, path, upload id, …) for so many seconds."""
        return self._signer.sign(purpose, *fields, seconds=seconds)

    def verify(self, purpose: str, *fields: str, expires: int, signature: str) -> None:
        """Forbidden if these words were not signed here, Expired (upload) if it is too late."""
        self._signer.verify(purpose, *fields, expires=expires, signature=signature)


def _content(path: str, opened: OpenFile) -> FileContent:
    if opened.size > SMALL_BYTES:
        return FileContent(path, opened.size, fd=opened.fd)
    with open(opened.fd, "rb", buffering=0) as file:
        data = bytearray()
        while len(data) <= SMALL_BYTES and (piece := file.read(SMALL_BYTES + 1 - len(data))):
            data += piece
    return FileContent(path, len(data), data=bytes(data))


def _complete(path: str, size: int) -> Written:
    return Written(path, size, size, ((0, size),), complete=True, written=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
