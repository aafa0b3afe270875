"""The server's end of a link to an agent: requests with deadlines, and what the agent says on its own.

The agent may have been taken over by what runs in its box. So every frame is checked for size, type and meaning, and
whoever breaks the protocol, or answers too late, is put down: `on_broken` is called once, with the reason.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.frames import FROM_AGENT_LIMIT, FrameError, Incoming, Outgoing
from boxwood.engine.strays import let_go

_LEISURE = 0.01  # seconds
_MOST_UNREAD = 50_000  # frames: an agent may make the server acknowledge as often as it likes, and not listen
Answer = tuple[dict[str, Any], bytes, list[int]]
Checking = Callable[[str], AbstractContextManager[None]]  # of what; FrameError meanwhile costs the box


class Link:
    """`on_event(header, payload)` is called for every frame that is no answer, in order."""

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[dict[str, Any], bytes], None],
        on_broken: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._on_broken = on_broken
        self._incoming = Incoming(sock, FROM_AGENT_LIMIT)
        self._outgoing = Outgoing(sock)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._streams: dict[int, Callable[[dict[str, Any], bytes], None]] = {}
        self._takes: dict[int, int] = {}  # requests whose answers come with descriptors
        self._writing = False
        self._leisurely = False  # a flush will come
        self._closed = False
        self.heard = self._loop.time()  # when the agent said something last; at first, when it could
        self.heard_nothing = True
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def backlog(self) -> int:
        """Bytes that the agent has not read yet."""
        return self._outgoing.size

    def say(self, header: dict[str, Any], payload: bytes = b"", *, hurry: bool = True) -> None:
        """Something that has no answer. Without `hurry` it leaves with what is said next, or in a few milliseconds:
        the agent need not be woken for it."""
        if self._closed:
            return
        self._outgoing.put(header, payload)
        if len(self._outgoing) > _MOST_UNREAD:
            self._loop.call_soon(self._break, "the agent does not listen")
        elif hurry:
            self._flush()
        elif not self._leisurely:
            self._leisurely = True
            self._loop.call_later(_LEISURE, self._flush)

    async def ask(
        self,
        op: str,
        fields: dict[str, Any],
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout: float,
        parts: Callable[[dict[str, Any], bytes], None] | None = None,
        takes: int = 0,
    ) -> Answer:
        """The answer: its header, payload and `takes` descriptors. GuestError if the agent refuses, or what is asked
        does not fit in a frame; BoxGone if it is gone.

        `fds` are closed when they have been sent. An answer may come in parts: those with `more` go to `parts`.
        """
        number, future = self._put(op, fields, payload, fds)
        if takes:
            self._takes[number] = takes
        if parts is not None:
            self._streams[number] = parts
        self._flush()
        late = self._loop.call_later(timeout, self._break, f"no answer to {op} within {timeout:g} s")
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                _close_all(future.result()[2])
            raise
        finally:
            late.cancel()
            self._waiting.pop(number, None)
            self._streams.pop(number, None)
            self._takes.pop(number, None)

    async def quiet(self) -> None:
        """Returns when nobody waits for an answer."""
        while waiting := [future for future in self._waiting.values() if not future.done()]:
            await asyncio.wait(waiting)

    def begin(self, op: str, fields: dict[str, Any], payload: bytes = b"", *, timeout: float) -> asyncio.Future[Answer]:
        """`ask`, but only begun: it leaves together with what is said next, in this turn. GuestError, BoxGone."""
        number, future = self._put(op, fields, payload)
        late = self._loop.call_later(timeout, self._break, f"no answer to {op} within {timeout:g} s")

        def done(future: asyncio.Future[Answer]) -> None:
            late.cancel()
            self._waiting.pop(number, None)
            if not future.cancelled():
                future.exception()  # it may be that nobody looks

        future.add_done_callback(done)
        self._loop.call_soon(self._flush)
        return future

    def _put(
        self, op: str, fields: dict[str, Any], payload: bytes, fds: Sequence[int] = ()
    ) -> tuple[int, asyncio.Future[Answer]]:
        if self._closed:
            _close_all(fds)
            raise BoxGone("the box is gone")
        number = next(self._numbers)
        future: asyncio.Future[Answer] = self._loop.create_future()
        try:
            self._outgoing.put({"op": op, "n": number, **fields}, payload, fds)
        except FrameError as error:  # of texts that came from a box before, or from a client
            _close_all(fds)
            raise GuestError(errno.E2BIG, f"{op} asks for too much at once: {error}") from None
        self._waiting[number] = future
        return number, future

    def close(self, reason: str = "the link was closed") -> None:
        """Let go; whoever waits gets BoxGone."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._outgoing.close()
        let_go(self._sock, self._incoming.take_all())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(BoxGone(reason))
                future.exception()  # the asker may have been cancelled meanwhile

    # --- the socket

    def _readable(self) -> None:
        try:
            if not self._incoming.receive():
                self._break("the agent closed its link")
                return
            self.heard, self.heard_nothing = self._loop.time(), False
            if not all(stat.S_ISREG(os.fstat(fd).st_mode) for fd in self._incoming.fds):
                raise FrameError("a descriptor that is no regular file")
            for header, payload, fds in self._incoming.frames():
                self._on_frame(header, payload, fds)
                if self._closed:
                    return
        except BlockingIOError:
            return
        except (OSError, FrameError, KeyError, TypeError, ValueError) as error:
            self._break(f"the agent broke the protocol: {error}"[:500])

    def _on_frame(self, header: dict[str, Any], payload: bytes, fds: list[int]) -> None:
        number: Any = header.get("re")
        future = self._waiting.get(number) if type(number) is int else None
        if future is None or future.done():
            _close_all(fds)
            if number is None:
                self._on_event(header, payload)
            return  # or an answer to somebody who has stopped waiting
        whole = "errno" not in header and header.get("more") is not True
        takes = self._takes.get(number, 0) if whole else 0
        if len(fds) != takes:  # whoever sends what nobody takes would fill the server with it
            _close_all(fds)
            raise FrameError(f"{len(fds)} descriptors where {takes} belong")
        if whole:
            future.set_result((header, payload, fds))
        elif "errno" in header:
            future.set_exception(GuestError(integer(header, "errno"), text(header, "error")))
        elif number in self._streams:
            self._streams[number](header, payload)
        else:
            raise FrameError("an answer in parts that nobody asked for")

    def _flush(self) -> None:
        self._leisurely = False
        if self._closed:
            return
        try:
            done = self._outgoing.flush()
        except OSError as error:
            self._loop.call_soon(self._break, f"the agent's link is broken: {error.strerror}")
            return
        if done == self._writing:
            self._writing = not done
            if self._writing:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._sock.fileno())

    def _break(self, reason: str) -> None:
        if not self._closed:
            self.close(reason)
            self._on_broken(reason)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def integer(header: dict[str, Any], name: str) -> int:
    value = header.get(name)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise FrameError(f"{name} must be a number that is not negative")
    return value


def text(header: dict[str, Any], name: str, most: int = 4096) -> str:
    value = header.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise FrameError(f"{name} must be a text of at most {most} characters")
    return value
