"""The files of a live box as the server works on them: the `BoxFiles` of engine/fileapi.py.

What a system call does is asked over the agent's link; what may take long is done by a helper in the box, which writes
what it finds into a pipe of the server's (pipework.py). All of it is checked: a box whose agent says what makes no
sense is put down.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from boxwood.engine.api import BoxGone, GuestError
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
from boxwood.engine.frames import FrameError
from boxwood.engine.link import Answer, Checking, integer, text
from boxwood.engine.pipework import Pipework

DISK_SECONDS = 600.0  # that a disk may take, or a file to be copied from a lower layer
LIST_SECONDS = 60.0
TREE_SECONDS = 1800.0  # of deleting or carrying over one
SILENCE_SECONDS = 120.0  # without a byte of an archive, either way
_GRACE = 10.0  # seconds that a helper has beyond its own
_MOST_BYTES = 16 << 20  # of all lines of one answer: a helper stops at half of it
_LINE_BYTES = 1 << 16  # two names of 4096 bytes, each byte as six letters
_AT_ONCE = 1 << 18  # bytes of lines that are read on the event loop
_KINDS = frozenset({"file", "directory", "symlink", "fifo", "socket", "character", "block"})
_REASONS = frozenset({"", "limit", "bytes", "seconds"})
_CHANGES = frozenset({"created", "modified", "written", "attributes", "removed", "moved"})
_NEWS = frozenset({"watching", "overflow", "incomplete", "gone"})
_FAR = 1 << 62  # nanoseconds either way of 1970: a hundred years more than a clock of 64 bits is asked for

Ask = Callable[..., Awaitable[Answer]]
Line = dict[str, Any]
Found = TypeVar("Found")


class HostFiles:
    """`known`: the box's agent can do this; one that an older version has made cannot."""

    def __init__(self, ask: Ask, checking: Checking) -> None:
        self._ask = ask
        self._checking = checking
        self.known = False

    # --- what the agent does itself

    async def stat(self, path: bytes, *, follow: bool) -> FileStatus:
        header = await self._do("file.stat", {"path": told(path), "follow": follow})
        with self._checking("answer to file.stat"):
            return status(header)

    async def mkdir(self, path: bytes, *, parents: bool, mode: int | None) -> bool:
        return (await self._do("file.mkdir", {"path": told(path), "parents": parents, "mode": mode})).get(
            "made"
        ) is True

    async def chmod(self, path: bytes, mode: int) -> None:
        await self._do("file.chmod", {"path": told(path), "mode": mode}, timeout=DISK_SECONDS)

    async def move(self, path: bytes, to: bytes, *, replace: bool) -> None:
        fields = {"path": told(path), "to": told(to), "replace": replace}
        try:
            await self._do("file.move", fields, timeout=DISK_SECONDS)
        except GuestError as error:
            if error.errno != errno.EXDEV:
                raise
            await self._work("move", fields, TREE_SECONDS)

    async def remove(self, path: bytes, *, recursive: bool) -> int:
        fields = {"path": told(path)}
        if not recursive:
            await self._do("file.remove", fields)
            return 1
        _, end = await self._work("remove", fields, TREE_SECONDS)
        with self._checking("answer to remove"):
            return integer(end, "removed")

    async def _do(self, op: str, fields: dict[str, Any], **more: float) -> dict[str, Any]:
        self._require()
        header, *_ = await self._ask(op, fields, **more)
        return header

    def _require(self) -> None:
        if not self.known:
            raise GuestError(
                errno.ENOSYS, "the VM's box was made by an older version, which cannot do this: stop and start the VM"
            )

    # --- what helpers do

    async def list(self, path: bytes, *, after: bytes, limit: int) -> FilePage:
        fields = {"path": told(path), "after": told(after), "limit": limit}
        said, end = await self._work("list", fields, LIST_SECONDS)
        with self._checking("list of a directory"):
            return FilePage(await _read(said, limit, _entry), name(end, "last") or None)

    async def glob(self, path: bytes, pattern: str, *, limit: int, seconds: float) -> FilesFound:
        fields = {"path": told(path), "pattern": pattern, "limit": limit}
        said, end = await self._work("glob", fields, seconds, cut_short=True)
        with self._checking("list of what matches"):
            return FilesFound(await _read(said, limit, _entry), _reason(end))

    async def search(self, path: bytes, query: TextQuery, *, limit: int, seconds: float) -> TextFound:
        fields = {
            "path": told(path), "pattern": query.pattern, "literal": query.literal, "ignore_case": query.ignore_case,
            "include": list(query.include), "exclude": list(query.exclude), "engine": query.engine, "limit": limit,
        }  # fmt: skip
        said, end = await self._work("search", fields, seconds, cut_short=True)
        with self._checking("list of lines"):
            engine = "ripgrep" if end.get("engine") == "ripgrep" else "builtin"
            return TextFound(await _read(said, limit, _match), _reason(end), engine)

    async def _work(
        self, do: str, fields: dict[str, Any], seconds: float, *, cut_short: bool = False
    ) -> tuple[bytearray, dict[str, Any]]:
        """All lines, to be read, and how it ended. `cut_short`: what a helper has said before it was killed, for its
        time was over, counts."""
        work = await self._begin(do, fields, seconds)
        held = bytearray()
        try:
            with self._checking(f"work on files ({do})"):
                try:
                    async with asyncio.timeout(seconds + _GRACE):
                        while piece := await work.piece(None):
                            held += piece
                            if len(held) > _MOST_BYTES:
                                raise FrameError("lines without end")
                except TimeoutError:
                    raise GuestError(errno.ETIME, f"it was not done within {seconds:g} seconds") from None
                except BoxGone:
                    if not cut_short:
                        raise GuestError(errno.EIO, "the work was ended in the middle (memory, or time)") from None
                    work.end = {"truncated": "seconds"}
                    del held[held.rfind(b"\n") + 1 :]
                assert work.end is not None
                return held, work.end
        finally:
            work.close()

    async def _begin(self, do: str, fields: dict[str, Any], seconds: float, *, feeds: bool = False) -> Pipework:
        self._require()
        work = Pipework(feeds=feeds)
        try:
            await self._ask("file.work", {"do": do, "seconds": seconds, **fields}, fds=tuple(work.ends))
        except BaseException:
            work.close()
            raise
        return work

    # --- archives

    async def pack(self, path: bytes) -> AsyncGenerator[bytes, None]:
        work = await self._begin("pack", {"path": told(path)}, TREE_SECONDS)
        try:
            first = await self._piece(work, SILENCE_SECONDS)
        except BaseException:
            work.close()
            raise
        return self._pieces(work, first)

    async def _pieces(self, work: Pipework, piece: bytes) -> AsyncGenerator[bytes, None]:
        try:
            while piece:
                yield piece
                piece = await self._piece(work, SILENCE_SECONDS)
        finally:
            work.close()

    async def _piece(self, work: Pipework, seconds: float | None) -> bytes:
        with self._checking("work on files"):
            try:
                return await work.piece(seconds)
            except TimeoutError:
                raise GuestError(errno.ETIME, f"nothing came for {seconds:g} seconds") from None

    async def unpack(self, path: bytes, *, owners: bool) -> _Unpacking:
        work = await self._begin("unpack", {"path": told(path), "owners": owners}, TREE_SECONDS, feeds=True)
        return _Unpacking(work, self._checking)

    # --- changes

    async def watch(self, path: bytes, *, recursive: bool, most: int) -> AsyncGenerator[FileChange, None]:
        fields = {"path": told(path), "recursive": recursive, "most": most}
        work = await self._begin("watch", fields, TREE_SECONDS)
        changes = self._changes(work)
        try:
            async with asyncio.timeout(LIST_SECONDS):
                first = await anext(changes)
        except TimeoutError:
            await changes.aclose()
            raise GuestError(errno.ETIME, "the directories could not be looked through in time") from None
        except BaseException:
            await changes.aclose()
            raise
        return _chained(first, changes)

    async def _changes(self, work: Pipework) -> AsyncGenerator[FileChange, None]:
        held = b""
        try:
            while piece := await self._piece(work, None):
                *lines, held = (held + piece).split(b"\n")
                with self._checking("report of changes"):
                    if len(held) > _LINE_BYTES:
                        raise FrameError("a line without end")
                    changes = [_change(_line(line)) for line in lines]
                for change in changes:
                    yield change
        finally:
            work.close()


class _Unpacking:
    """See `boxwood.engine.fileapi.Unpacking`."""

    def __init__(self, work: Pipework, checking: Checking) -> None:
        self._work = work
        self._checking = checking

    async def feed(self, data: bytes) -> None:
        try:
            await self._work.feed(data, SILENCE_SECONDS)
        except BrokenPipeError:
            await self.finish()  # says why
            raise GuestError(errno.EIO, "the archive was not taken to its end") from None
        except TimeoutError:
            raise GuestError(errno.ETIME, f"the box took nothing for {SILENCE_SECONDS:g} seconds") from None

    async def finish(self) -> Unpacked:
        self._work.fed()
        with self._checking("answer to unpack"):
            try:
                while await self._work.piece(SILENCE_SECONDS):
                    raise FrameError("an answer in pieces")
            except TimeoutError:
                raise GuestError(errno.ETIME, "the archive was not unpacked in time") from None
            except BoxGone:
                raise GuestError(errno.EIO, "the work was ended in the middle (memory, or the box)") from None
            end = self._work.end
            assert end is not None
            return Unpacked(integer(end, "entries"), integer(end, "bytes"), integer(end, "skipped"))

    def close(self) -> None:
        self._work.close()


async def _chained(first: FileChange, rest: AsyncGenerator[FileChange, None]) -> AsyncGenerator[FileChange, None]:
    async with aclosing(rest):
        yield first
        async for change in rest:
            yield change


# --- what a box says is checked


def told(path: bytes) -> str:
    """As the link carries names: a byte that is no UTF-8 is a lone surrogate."""
    return path.decode("utf-8", "surrogateescape")


def name(fields: Line, field: str, most: int = 4096) -> bytes:
    """FrameError."""
    value = text(fields, field, most)
    try:
        raw = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise FrameError(f"{field} is no name") from None
    if len(raw) > most or 0 in raw:
        raise FrameError(f"{field} is no name")
    return raw


def _below(fields: Line, field: str) -> bytes:
    """A path below a directory. FrameError."""
    raw = name(fields, field)
    if not {b"", b".", b".."}.isdisjoint(raw.split(b"/")):
        raise FrameError(f"{field} is not below the directory")
    return raw


async def _read(said: bytearray, most: int, read: Callable[[Line], Found]) -> tuple[Found, ...]:
    """What the lines come to, one after the other: what they hold beside that is let go of at once, and may be twenty
    times as large as its text. On a thread if there is much of it. FrameError."""
    if len(said) < _AT_ONCE:
        return _all(said, most, read)
    return await asyncio.to_thread(_all, said, most, read)


def _all(said: bytearray, most: int, read: Callable[[Line], Found]) -> tuple[Found, ...]:
    if said.count(b"\n") > most:
        raise FrameError("more lines than were asked for")
    return tuple([read(_line(line)) for line in said.split(b"\n") if line])


def _line(data: bytes | bytearray) -> Line:
    if len(data) > _LINE_BYTES:  # nobody else's work goes on while one is parsed
        raise FrameError("a line without end")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a line that is not JSON: {type(error).__name__}") from None
    if not isinstance(fields, dict):
        raise FrameError("a line that is no object")
    return fields


def status(fields: Line) -> FileStatus:
    kind, modified = fields.get("kind"), fields.get("modified")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FrameError("a kind of file that there is not")
    if type(modified) is not int or not -_FAR < modified < _FAR:
        modified = 0
    size, mode = integer(fields, "size"), integer(fields, "mode")
    if mode > 0o7777:
        raise FrameError("a mode that is none")
    target = name(fields, "target") if "target" in fields else None
    uid, gid, links = integer(fields, "uid"), integer(fields, "gid"), integer(fields, "links")
    return FileStatus(kind, size, mode, uid, gid, links, modified, target)


def _entry(fields: Line) -> FileEntry:
    return FileEntry(_below(fields, "name"), status(fields))


def _reason(end: dict[str, Any]) -> str:
    reason = end.get("truncated")
    if not isinstance(reason, str) or reason not in _REASONS:
        raise FrameError("an end without a reason")
    return reason


def _match(fields: Line) -> TextMatch:
    found = text(fields, "text", 8192).encode("utf-8", "surrogateescape")
    number, column = integer(fields, "line"), integer(fields, "column")
    return TextMatch(_below(fields, "path"), number, column, found, fields.get("cut") is True)


def _change(fields: Line) -> FileChange:
    kind = fields.get("change")
    if isinstance(kind, str) and kind in _NEWS:
        watched = integer(fields, "watched") if "watched" in fields else 0
        return FileChange(kind, watched=watched, complete=fields.get("complete") is not False)
    if not isinstance(kind, str) or kind not in _CHANGES:
        raise FrameError("a change of a kind that there is not")
    to = _below(fields, "to") if kind == "moved" else b""
    path = _below(fields, "path") if fields.get("path") != "" else b""
    return FileChange(kind, path, to, fields.get("directory") is True)
