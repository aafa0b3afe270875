"""Files that are open in a live box, as the server works on them: the `BoxHandles` of engine/handleapi.py, over the
agent's link. What the agent says is checked: one that makes no sense costs the box.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from typing import Any

from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.fileapi import FileStatus
from boxwood.engine.frames import FrameError
from boxwood.engine.handleapi import PIECE, Attributes, Opening, Space
from boxwood.engine.hostfiles import DISK_SECONDS, Ask, name, status, told
from boxwood.engine.link import Answer, Checking, integer
from boxwood.engine.ulid import new_ulid


class HostHandles:
    """See `boxwood.engine.handleapi.BoxHandles`."""

    def __init__(self, ask: Ask, say: Callable[[dict[str, Any]], None], checking: Checking) -> None:
        self._ask = ask
        self._say = say
        self._checking = checking

    async def open(self, path: bytes, how: Opening) -> HostHandle:
        handle = HostHandle(self, new_ulid())
        try:
            await self.do("handle.open", {"id": handle.ident, "path": told(path), **asdict(how)})
        except GuestError:
            raise
        except BaseException:  # who asked stops waiting: it will be open all the same
            with suppress(BoxGone):
                self._say({"op": "handle.close", "id": handle.ident})
            raise
        return handle

    async def change(self, path: bytes, wanted: Attributes, *, follow: bool) -> None:
        await self.do("file.change", {"path": told(path), "follow": follow, **asdict(wanted)})

    async def symlink(self, path: bytes, target: bytes) -> None:
        await self.do("file.symlink", {"path": told(path), "target": told(target)})

    async def link(self, path: bytes, to: bytes) -> None:
        await self.do("file.link", {"path": told(path), "to": told(to)})

    async def resolve(self, path: bytes) -> bytes:
        header, *_ = await self.do("file.resolve", {"path": told(path)})
        with self.checking("answer to file.resolve"):
            found = name(header, "path")
            if not found.startswith(b"/"):
                raise FrameError("a path that is not absolute")
            return found

    async def space(self, path: bytes) -> Space:
        header, *_ = await self.do("file.space", {"path": told(path)})
        with self.checking("answer to file.space"):
            fields = ("block", "total", "free", "files", "files_free")
            return Space(*(integer(header, field) for field in fields))

    async def do(self, op: str, fields: dict[str, Any], payload: bytes = b"") -> Answer:
        try:
            return await self._ask(op, fields, payload, timeout=DISK_SECONDS)
        except GuestError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise GuestError(
                errno.ENOSYS, "the VM's box was made by an older version, which cannot do this: stop and start the VM"
            ) from None

    def checking(self, what: str) -> AbstractContextManager[None]:
        return self._checking(what)


class HostHandle:
    """See `boxwood.engine.handleapi.FileHandle`."""

    def __init__(self, handles: HostHandles, ident: str) -> None:
        self._handles = handles
        self.ident = ident

    async def read(self, at: int, size: int) -> bytes:
        size = min(size, PIECE)
        _, data, _ = await self._do("read", {"at": at, "size": size})
        with self._handles.checking("answer to handle.read"):
            if len(data) > size:
                raise FrameError("more bytes than were asked for")
        return data

    async def write(self, at: int, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            await self._do("write", {"at": at + start}, data[start : start + PIECE])

    async def status(self) -> FileStatus:
        header, *_ = await self._do("stat", {})
        with self._handles.checking("answer to handle.stat"):
            return status(header)

    async def change(self, wanted: Attributes) -> None:
        await self._do("change", asdict(wanted))

    async def flush(self) -> None:
        await self._do("flush", {})

    async def close(self) -> None:
        await self._do("close", {})

    async def _do(self, op: str, fields: dict[str, Any], payload: bytes = b"") -> Answer:
        return await self._handles.do(f"handle.{op}", {"id": self.ident, **fields}, payload)
