"""Files that are open in a box in memory, for the engine in memory. Links are not had."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from boxwood.engine.api import GuestError
from boxwood.engine.fileapi import FileStatus
from boxwood.engine.handleapi import Attributes, Opening, Space
from fakefiles import FakeFiles, _text


class FakeHandles:
    """`files`: those of the same box; `alive`: as of them."""

    def __init__(self, living: Any, files: FakeFiles, alive: Callable[[str, object], Any]) -> None:
        self._living = living
        self._files = files
        self._alive = alive

    async def open(self, path: bytes, how: Opening) -> FakeHandle:
        self._alive("handle.open", (path, how))
        text = _text(path)
        there = self._living.tree().get(text)
        if there is None and text in self._files._directories():
            raise GuestError(errno.EISDIR, f"is a directory: {text}")
        if there is None and not how.create:
            raise GuestError(errno.ENOENT, f"No such file or directory: {text}")
        if there is not None and how.exclusive:
            raise GuestError(errno.EEXIST, f"File exists: {text}")
        if there is None or how.truncate:
            self._living.write(text, b"")
        return FakeHandle(self._living, self._files, self._alive, path)

    async def change(self, path: bytes, wanted: Attributes, *, follow: bool) -> None:
        self._alive("change", (path, wanted))
        await self._files.stat(path, follow=follow)
        if wanted.mode is not None:
            self._living.modes[_text(path)] = wanted.mode

    async def symlink(self, path: bytes, target: bytes) -> None:
        raise GuestError(errno.EOPNOTSUPP, "there are no links in here")

    async def link(self, path: bytes, to: bytes) -> None:
        raise GuestError(errno.EOPNOTSUPP, "there are no links in here")

    async def resolve(self, path: bytes) -> bytes:
        self._alive("resolve", path)
        return _text(path).encode("utf-8", "surrogateescape")

    async def space(self, path: bytes) -> Space:
        self._alive("space", path)
        return Space(4096, 1 << 30, 1 << 29, 1000, 500)


class FakeHandle:
    def __init__(self, living: Any, files: FakeFiles, alive: Callable[[str, object], Any], path: bytes) -> None:
        self._living = living
        self._files = files
        self._alive = alive
        self._path = path

    def _data(self) -> bytes:
        return self._living.tree()[_text(self._path)]

    async def read(self, at: int, size: int) -> bytes:
        self._alive("handle.read", at)
        return self._data()[at : at + size]

    async def write(self, at: int, data: bytes) -> None:
        self._alive("handle.write", at)
        old = self._data().ljust(at, b"\0")
        self._living.write(_text(self._path), old[:at] + data + old[at + len(data) :])

    async def status(self) -> FileStatus:
        return await self._files.stat(self._path, follow=True)

    async def change(self, wanted: Attributes) -> None:
        self._alive("handle.change", wanted)

    async def flush(self) -> None:
        self._alive("handle.flush", self._path)

    async def close(self) -> None:
        self._alive("handle.close", self._path)
