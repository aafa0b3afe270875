"""The rest of a request's body, straight into a pipe: from the parser, without a turn of the event loop for each piece.

What the pipe has no room for waits here, and the socket is not read meanwhile: at most one piece is held.
"""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from boxwood.server.errors import Disconnected

EXTENSION = "boxwood.diversion"  # of an ASGI scope: a `Divert`


class Divert(Protocol):
    async def __call__(self, pipe: int, most: int, seconds: float) -> int:
        """Write what is still to come of the body to a pipe that does not block; how many bytes that were.
        BrokenPipeError: nobody reads it; OverflowError: more than `most`; TimeoutError: nothing moved for so long;
        Disconnected: the client has gone."""


class Diversion:
    """`fresh`: bytes that have been parsed already."""

    def __init__(self, flow: FlowControl, pipe: int, most: int, fresh: bytes) -> None:
        self._flow = flow
        self._pipe = pipe
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._held = memoryview(b"")
        self._complete = False
        self._done: asyncio.Future[int] = self._loop.create_future()
        self.count = 0
        if fresh:
            self.take(fresh)

    @property
    def waits(self) -> bool:
        """For room in the pipe."""
        return bool(self._held)

    def take(self, data: bytes) -> None:
        """The next piece of the body."""
        if self._done.done():
            return
        self.count += len(data)
        if self.count > self._most:
            self._end(OverflowError("the body is too long"))
            return
        if self._held:  # parsed in the same turn as what waits
            self._held = memoryview(bytes(self._held) + data)
            return
        self._held = memoryview(data)
        self._write()
        if self._held and not self._done.done():
            self._flow.pause_reading()
            self._loop.add_writer(self._pipe, self._room)

    def complete(self) -> None:
        """That was the last one."""
        self._complete = True
        self._settle()

    def lost(self) -> None:
        self._end(Disconnected())

    def _write(self) -> None:
        try:
            while self._held:
                self._held = self._held[os.write(self._pipe, self._held) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error)

    def _room(self) -> None:
        self._write()
        if not self._held:
            self._loop.remove_writer(self._pipe)
            self._flow.resume_reading()
            self._settle()

    def _settle(self) -> None:
        if self._complete and not self._held and not self._done.done():
            self._done.set_result(self.count)

    def _end(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    async def end(self, seconds: float) -> int:
        """Wait for it; see `Divert`."""
        try:
            while True:
                before = self.count, len(self._held)
                await asyncio.wait((self._done,), timeout=seconds)
                if self._done.done():
                    return self._done.result()
                if before == (self.count, len(self._held)):
                    raise TimeoutError
        finally:
            self._loop.remove_writer(self._pipe)
            if not self._done.done():
                self._done.cancel()
