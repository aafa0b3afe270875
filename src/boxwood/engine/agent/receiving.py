"""Files that come in through pipes: bytes go from the pipe to a new file as they come, without a stop in our memory.

The server says when all has been sent and the file is to take its place; a file whose server has gone is dropped.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from functools import partial
from typing import Any

from boxwood.engine.agent import files
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.requests import Reply, ident

MOST = 64  # at once
_SLICE = 1 << 18  # bytes moved at once: who writes to the pipe waits meanwhile (the kernel holds its lock)
_HERE = (errno.EINVAL, errno.ENOSYS, errno.EPERM)  # bytes cannot be moved within the kernel


class _Receipt:
    """One file, and the pipe that it comes through."""

    def __init__(
        self, loop: Loop, flushes: Flushes, path: str, mode: int | None, pipe: int, ended: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._flushes = flushes
        self._ended = ended
        self._writing = files.Writing(path, mode, slowly=True)
        self._at = 0
        self._problem: OSError | None = None
        self._wanted: tuple[int, bool, Reply] | None = None
        try:
            self._pipe = os.dup(pipe)
        except OSError:
            self._writing.abandon()
            raise
        os.set_blocking(self._pipe, False)
        loop.watch(self._pipe, select.EPOLLIN, self._on_bytes)

    def place(self, size: int, durable: bool, reply: Reply) -> None:
        """Once so many bytes are there, let the file take its place, and answer; if it is to be `durable`, when all of
        it is on the disk."""
        self._wanted = size, durable, reply
        self._settle()

    def _on_bytes(self, events: int) -> None:
        try:
            moved = self._move()
        except BlockingIOError:
            return
        except OSError as error:
            self._problem = error
            moved = 0
        self._at += moved
        if not moved:  # its end, or ours: whoever writes to it shall hear of that
            self._close_pipe()
        self._settle()

    def _move(self) -> int:
        try:
            return os.splice(self._pipe, self._writing.fd, _SLICE, flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in _HERE:
                raise
        data = os.read(self._pipe, 1 << 16)
        self._writing.bytes(data)
        return len(data)

    def _settle(self) -> None:
        if self._wanted is None:
            return
        size, durable, reply = self._wanted
        if self._problem is None and self._at < size and self._pipe >= 0:
            return
        self._wanted = None
        self._ended()
        self._close_pipe()
        if self._problem is not None:
            number = self._problem.errno or errno.EIO
            self._fail(number, os.strerror(number), reply)
        elif self._at != size:
            self._fail(errno.EIO, f"of the {size} bytes of the file {self._at} came", reply)
        else:
            self._flushes.finish(self._writing, size, durable, reply)

    def _fail(self, number: int, text: str, reply: Reply) -> None:
        self.drop()
        reply.error(number, text)

    def drop(self) -> None:
        self._close_pipe()
        self._writing.abandon()

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._loop.unwatch(self._pipe)
            os.close(self._pipe)
            self._pipe = -1


class Receiving:
    def __init__(self, loop: Loop, flushes: Flushes) -> None:
        self._loop = loop
        self._flushes = flushes
        self._receipts: dict[str, _Receipt] = {}
        self.ops: dict[str, Callable[[dict[str, Any], list[int], Reply], None]] = {
            "file.receive": self._receive,
            "file.place": self._place,
            "file.drop": self._drop,
        }

    def relink(self) -> None:
        """Another server: it knows nothing of what the last one sent."""
        while self._receipts:
            self._receipts.popitem()[1].drop()

    def _receive(self, header: dict[str, Any], fds: list[int], reply: Reply) -> None:
        name, (pipe,) = ident(header, "id"), fds
        if len(self._receipts) >= MOST:
            raise files.Refusal(errno.EAGAIN, f"{MOST} files are on their way into this VM already: try again")
        if name in self._receipts:
            raise ValueError("id is in use")
        ended = partial(self._receipts.pop, name, None)
        self._receipts[name] = _Receipt(self._loop, self._flushes, header["path"], header.get("mode"), pipe, ended)
        reply({})

    def _place(self, header: dict[str, Any], fds: list[int], reply: Reply) -> None:
        self._receipts[ident(header, "id")].place(header["size"], header.get("durable") is True, reply)

    def _drop(self, header: dict[str, Any], fds: list[int], reply: Reply) -> None:
        if (receipt := self._receipts.pop(ident(header, "id"), None)) is not None:
            receipt.drop()
