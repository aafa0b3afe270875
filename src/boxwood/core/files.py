"""Files of a VM: read, written whole or in chunks, listed with their hashes.

No path of a VM is ever opened here: the box opens it and hands over bytes or a descriptor. Chunks that do not make up
a whole file yet are staged in DATA/uploads under names of our own.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass

from boxwood.core.model import Caller, Chunk, FileContent, Written
from boxwood.engine.api import Manifest


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signed URL carries: `expires` in seconds since 1970, `signature` in URL-safe characters."""

    expires: int
    signature: str


class Files:
    async def read(self, caller: Caller, vm: str, path: str) -> FileContent:
        """Small files as `data`, larger ones as an open `fd` that the caller closes.
        BadRequest (path, a directory, a device), NotFound (vm, file), Forbidden."""
        raise NotImplementedError

    async def write(self, caller: Caller, vm: str, chunk: Chunk) -> Written:
        """Take a chunk; the file appears whole, atomically, when its last byte is there. Chunks may come in any order,
        repeatedly and overlapping. BadRequest (path, range, sha256), NotFound, Forbidden, InvalidState,
        Conflict (upload: other size or path), PayloadTooLarge, ResourceBusy (too many unfinished uploads),
        CapacityUnavailable (disk full)."""
        raise NotImplementedError

    async def manifest(self, caller: Caller, vm: str, path: str) -> Manifest:
        """Regular files below a directory other than the root; a missing one has none. BadRequest, NotFound."""
        raise NotImplementedError

    async def stage(self, caller: Caller, vm: str, path: str, size: int) -> str:
        """Announce an upload by URL; returns its upload id. Errors as `write`."""
        raise NotImplementedError

    async def put_staged(self, upload_id: str, stream: AsyncIterable[bytes]) -> int:
        """Take all bytes of a staged upload (whoever calls has verified the URL's signature); replaces what an earlier
        attempt left. Returns the size. NotFound (upload), BadRequest (fewer bytes than announced), PayloadTooLarge."""
        raise NotImplementedError

    async def commit(
        self, caller: Caller, vm: str, path: str, size: int, upload_id: str, sha256: str | None = None
    ) -> Written:
        """Put the bytes of a staged upload in place. NotFound (vm, upload), Conflict (upload: other path or size, or
        not all bytes are there), BadRequest (sha256). A committed one answers complete again."""
        raise NotImplementedError

    def sign(self, purpose: str, *fields: str, seconds: int = 900) -> Signature:
        """Sign any words (method, org, vm, path, upload id, …) for so many seconds."""
        raise NotImplementedError

    def verify(self, purpose: str, *fields: str, expires: int, signature: str) -> None:
        """Forbidden if these words were not signed here, Expired (upload) if it is too late."""
        raise NotImplementedError
