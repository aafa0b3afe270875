"""Bytes on their way into a box, as the server has them: a pipe, whose other end the box's agent reads.

A pipe holds what the agent has not taken yet, and no more: whoever gives waits meanwhile. Nothing blocks, nothing is
kept in the server's memory.
"""

from __future__ import annotations

import asyncio
import errno
import os

from boxwood.engine import pipes
from boxwood.engine.api import GuestError
from boxwood.engine.feeds import Unpacked
from boxwood.engine.link import Answer, Checking, Link, integer
from boxwood.engine.ulid import new_ulid

ANSWER_SECONDS = 30.0
STUCK_SECONDS = 60.0  # without a byte being taken
WORK_SECONDS = 600.0  # for what is in the pipe when all has been given
LONGEST_SECONDS = 6 * 3600.0  # for an archive to come and be unpacked


class _Pipe:
    """The writing end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls) -> tuple[_Pipe, int]:
        """With the end that the agent is to have."""
        reader, writer = pipes.pipe()
        os.set_blocking(writer, False)
        return cls(writer), reader

    async def give(self, data: bytes) -> bool:
        """False: nobody takes any more."""
        try:
            await pipes.feed(self._fd, data, STUCK_SECONDS)
        except BrokenPipeError:
            return False
        except TimeoutError:
            raise GuestError(errno.EIO, f"the VM has taken no bytes for {STUCK_SECONDS:g} s") from None
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class HostFileFeed:
    """`checking`: what makes no sense meanwhile costs the box."""

    def __init__(self, link: Link, checking: Checking, ident: str, pipe: _Pipe, durable: bool) -> None:
        self._link = link
        self._checking = checking
        self._durable = durable
        self._ident = ident
        self._pipe = pipe
        self._size = 0
        self._ended = False

    @classmethod
    async def open(cls, link: Link, checking: Checking, path: str, mode: int | None, durable: bool) -> HostFileFeed:
        pipe, reader = _Pipe.open()
        feed = cls(link, checking, new_ulid(), pipe, durable)
        try:
            fields = {"id": feed._ident, "path": path, "mode": mode}
            await link.ask("file.receive", fields, fds=(reader,), timeout=ANSWER_SECONDS)
        except BaseException:
            feed.abandon()
            raise
        return feed

    async def give(self, data: bytes) -> None:
        await self.gave(len(data), broken=not await self._pipe.give(data))

    def pipe(self) -> int:
        return self._pipe.fileno()

    async def gave(self, size: int, broken: bool) -> None:
        self._size += size
        if broken:
            await self.place()  # the agent says why
            raise GuestError(errno.EIO, "the VM took the file to be complete before it was")

    async def place(self) -> int:
        self._ended = True
        self._pipe.close()
        fields = {"id": self._ident, "size": self._size, "durable": self._durable}
        header, *_ = await self._link.ask("file.place", fields, timeout=WORK_SECONDS)
        if self._durable and header.get("durable") is not True:
            raise GuestError(errno.EIO, "the box, made by an older version, does not say that the file is on the disk")
        with self._checking("answer to file.place"):
            return integer(header, "size")

    def abandon(self) -> None:
        self._pipe.close()
        if not self._ended:
            self._ended = True
            self._link.say({"op": "file.drop", "id": self._ident})


class HostArchiveFeed:
    """`checking`: as of files."""

    def __init__(self, checking: Checking, pipe: _Pipe, answer: asyncio.Task[Answer]) -> None:
        self._checking = checking
        self._pipe = pipe
        self._answer = answer

    @classmethod
    def open(
        cls, link: Link, checking: Checking, path: str, packed: bool, limit: int, durable: bool
    ) -> HostArchiveFeed:
        pipe, reader = _Pipe.open()
        fields = {"path": path, "packed": packed, "limit": limit, "durable": durable}
        asked = link.ask("file.unpack", fields, fds=(reader,), timeout=LONGEST_SECONDS)
        return cls(checking, pipe, asyncio.ensure_future(asked))

    async def give(self, data: bytes) -> None:
        await self.gave(len(data), broken=self._answer.done() or not await self._pipe.give(data))

    def pipe(self) -> int:
        return self._pipe.fileno()

    async def gave(self, size: int, broken: bool) -> None:
        if broken:
            await self._answer
            raise GuestError(errno.EINVAL, "the archive goes on behind its end")

    async def unpacked(self) -> Unpacked:
        self._pipe.close()
        try:
            async with asyncio.timeout(WORK_SECONDS):
                header, *_ = await asyncio.shield(self._answer)
        except TimeoutError:
            raise GuestError(errno.EIO, f"the archive was not unpacked within {WORK_SECONDS:g} s") from None
        with self._checking("answer to file.unpack"):
            return Unpacked(integer(header, "files"), integer(header, "size"))

    def abandon(self) -> None:
        self._pipe.close()
        self._answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
