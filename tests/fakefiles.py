"""The files of a box in memory, for the engine in memory: a tree of files, and directories where they are needed."""

from __future__ import annotations

import errno
import fnmatch
import io
import posixpath
import re
import tarfile
from collections.abc import AsyncGenerator, Callable
from typing import Any

from boxwood.engine.api import GuestError
from boxwood.engine.fileapi import (
    FileChange,
    FileEntry,
    FilePage,
    FilesFound,
    FileStatus,
    TextFound,
    TextMatch,
    TextQuery,
    Unpacked,
)


def _text(path: bytes) -> str:
    return posixpath.normpath(path.decode("utf-8", "surrogateescape"))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class FakeFiles:
    """`living`: the box; `alive(what, argument)`: notes what is asked, and raises if the box is dead."""

    def __init__(self, living: Any, alive: Callable[[str, object], Any]) -> None:
        self._living = living
        self._alive = alive

    def _directories(self) -> set[str]:
        found = {"/", *self._living.directories}
        for path in [*self._living.tree(), *self._living.directories]:
            while (path := posixpath.dirname(path)) != "/":
                found.add(path)
        return found

    def _status(self, path: str) -> FileStatus:
        tree = self._living.tree()
        if path in tree:
            return FileStatus("file", len(tree[path]), self._living.modes.get(path, 0o644), 0, 0, 1, 1_500_000_000)
        if path in self._directories():
            return FileStatus("directory", 4096, self._living.modes.get(path, 0o755), 0, 0, 2, 0)
        raise GuestError(errno.ENOENT, f"No such file or directory: {path}")

    def _below(self, path: bytes) -> dict[str, FileStatus]:
        top = _text(path)
        if self._status(top).kind != "directory":
            raise GuestError(errno.ENOTDIR, f"Not a directory: {top}")
        every = {*self._living.tree(), *self._directories()} - {top}
        prefix = top.rstrip("/") + "/"
        return {one[len(prefix) :]: self._status(one) for one in sorted(every, key=_raw) if one.startswith(prefix)}

    async def stat(self, path: bytes, *, follow: bool) -> FileStatus:
        self._alive("stat", path)
        return self._status(_text(path))

    async def mkdir(self, path: bytes, *, parents: bool, mode: int | None) -> bool:
        self._alive("mkdir", path)
        text = _text(path)
        if text in self._directories() and parents:
            return False
        if text in self._directories() or text in self._living.tree():
            raise GuestError(errno.EEXIST, f"File exists: {text}")
        self._living.write(text + "/.made", b"")
        self._living.write(text + "/.made", None)
        self._living.directories.add(text)
        if mode is not None:
            self._living.modes[text] = mode
        return True

    async def chmod(self, path: bytes, mode: int) -> None:
        self._alive("chmod", path)
        self._status(_text(path))
        self._living.modes[_text(path)] = mode

    async def move(self, path: bytes, to: bytes, *, replace: bool) -> None:
        self._alive("move", path)
        old, new = _text(path), _text(to)
        self._status(old)
        if not replace and (new in self._living.tree() or new in self._directories()):
            raise GuestError(errno.EEXIST, f"File exists: {new}")
        for name, data in self._living.tree().items():
            if name == old or name.startswith(old + "/"):
                self._living.write(name, None)
                self._living.write(new + name[len(old) :], data)

    async def remove(self, path: bytes, *, recursive: bool) -> int:
        self._alive("remove", path)
        text = _text(path)
        below = self._below(path) if self._status(text).kind == "directory" else {}
        if below and not recursive:
            raise GuestError(errno.ENOTEMPTY, f"Directory not empty: {text}")
        for name in [text, *(f"{text}/{one}" for one in below)]:
            self._living.write(name, None)
            self._living.directories.discard(name)
        return 1 + len(below)

    async def list(self, path: bytes, *, after: bytes, limit: int) -> FilePage:
        self._alive("list", path)
        found = {_raw(name): status for name, status in self._below(path).items() if "/" not in name}
        names = [name for name in sorted(found) if name > after]
        more = len(names) > limit
        return FilePage(
            tuple(FileEntry(name, found[name]) for name in names[:limit]), names[limit - 1] if more else None
        )

    async def glob(self, path: bytes, pattern: str, *, limit: int, seconds: float) -> FilesFound:
        self._alive("glob", pattern)
        found = [(name, status) for name, status in self._below(path).items() if fnmatch.fnmatchcase(name, pattern)]
        entries = tuple(FileEntry(_raw(name), status) for name, status in found[:limit])
        return FilesFound(entries, "limit" if len(found) > limit else "")

    async def search(self, path: bytes, query: TextQuery, *, limit: int, seconds: float) -> TextFound:
        self._alive("search", query)
        try:
            wanted = re.compile((re.escape(query.pattern) if query.literal else query.pattern).encode())
        except re.error as error:
            raise GuestError(errno.EINVAL, f"pattern: {error}") from None
        matches = [
            TextMatch(_raw(name), number, found.start() + 1, line)
            for name in self._below(path)
            for number, line in enumerate(self._living.tree().get(f"{_text(path)}/{name}", b"").split(b"\n"), 1)
            if (found := wanted.search(line))
        ]
        return TextFound(tuple(matches[:limit]), "limit" if len(matches) > limit else "", "builtin")

    async def pack(self, path: bytes) -> AsyncGenerator[bytes, None]:
        self._alive("pack", path)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, status in self._below(path).items():
                member = tarfile.TarInfo(name)
                if status.kind == "directory":
                    member.type = tarfile.DIRTYPE
                    tar.addfile(member)
                    continue
                data = self._living.tree()[f"{_text(path)}/{name}"]
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return self._pieces(packed.getvalue())

    async def _pieces(self, data: bytes) -> AsyncGenerator[bytes, None]:
        for at in range(0, len(data), 4096):
            self._alive("packed", at)
            yield data[at : at + 4096]

    async def unpack(self, path: bytes, *, owners: bool) -> FakeUnpacking:
        self._alive("unpack", path)
        return FakeUnpacking(self._living, _text(path))

    async def watch(self, path: bytes, *, recursive: bool, most: int) -> AsyncGenerator[FileChange, None]:
        self._alive("watch", path)
        self._below(path)
        return self._changes()

    async def _changes(self) -> AsyncGenerator[FileChange, None]:
        yield FileChange("watching", watched=1)
        for change in self._living.changes:
            self._alive("change", change)
            yield change
        yield FileChange("gone")


class FakeUnpacking:
    def __init__(self, living: Any, top: str) -> None:
        self._living = living
        self._top = top
        self._data = bytearray()
        self.closed = False

    async def feed(self, data: bytes) -> None:
        self._data += data

    async def finish(self) -> Unpacked:
        try:
            with tarfile.open(fileobj=io.BytesIO(self._data)) as tar:
                members = tar.getmembers()
                for member in members:
                    content = tar.extractfile(member)
                    if content is not None:
                        self._living.write(posixpath.normpath(f"{self._top}/{member.name}"), content.read())
        except tarfile.TarError as error:
            raise GuestError(errno.EINVAL, f"not a tar archive: {error}") from None
        return Unpacked(len(members), sum(member.size for member in members), 0)

    def close(self) -> None:
        self.closed = True
