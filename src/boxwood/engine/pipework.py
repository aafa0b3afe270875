"""A helper's work as the server sees it: a pipe that it made itself, from which it reads records, and perhaps one that
it writes to. Nobody reads further than he is asked to, so whatever a helper says, nothing piles up here. Pipes are
closed at the latest when nobody has the work any more: a generator over it that was never begun runs no `finally`."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from boxwood.engine import pipes
from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.frames import FrameError
from boxwood.engine.link import integer, text
from boxwood.engine.records import DATA, DATA_BYTES, END, END_BYTES, HEAD

_PIPE_BYTES = 1 << 18


class Pipework:
    """`ends`: what the box gets; closed when they have been sent."""

    _read = _write = -1

    def __init__(self, *, feeds: bool = False) -> None:
        self._read, theirs = pipes.pipe(_PIPE_BYTES)
        self.ends = [theirs]
        try:
            if feeds:
                source, self._write = pipes.pipe(_PIPE_BYTES)
                self.ends.append(source)
                os.set_blocking(self._write, False)
            os.set_blocking(self._read, False)
        except BaseException:
            self.close()
            for fd in self.ends:
                os.close(fd)
            raise
        self._buffer = bytearray()
        self.end: dict[str, Any] | None = None

    async def piece(self, seconds: float | None) -> bytes:
        """What comes next of what the helper has to say; nothing: it is done, and `end` says how. GuestError: it says
        no. BoxGone: it ended without a word. FrameError. TimeoutError: nothing came for so long (None: whenever)."""
        async with asyncio.timeout(seconds):
            while True:
                found = self._record()
                if found is not None:
                    kind, payload = found
                    if kind == DATA:
                        if payload:
                            return payload
                        continue
                    await self._until_it_ends()
                    self.end = _ended(payload)
                    return b""
                await self._more()

    def _record(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < HEAD.size:
            return None
        kind, length = HEAD.unpack_from(self._buffer)
        if kind not in (DATA, END) or length > (DATA_BYTES if kind == DATA else END_BYTES):
            raise FrameError(f"a record of kind {kind} with {length} bytes")
        if len(self._buffer) < HEAD.size + length:
            return None
        payload = bytes(memoryview(self._buffer)[HEAD.size : HEAD.size + length])
        del self._buffer[: HEAD.size + length]
        return kind, payload

    async def _more(self) -> None:
        while True:
            try:
                data = os.read(self._read, DATA_BYTES)
            except BlockingIOError:
                await self._until(self._read, writing=False)
                continue
            if not data:
                raise BoxGone("the file work ended before it was done")
            self._buffer += data
            return

    async def _until_it_ends(self) -> None:
        """Behind its last record a helper ends: once it has, a fork of the VM need not take it for work."""
        try:
            async with asyncio.timeout(1):
                while not self._buffer:
                    await self._more()
        except (BoxGone, TimeoutError):
            return
        raise FrameError("more than the end")

    async def feed(self, data: bytes, seconds: float) -> None:
        """BrokenPipeError: it takes no more. TimeoutError."""
        view = memoryview(data)
        async with asyncio.timeout(seconds):
            while view:
                try:
                    view = view[os.write(self._write, view) :]
                except BlockingIOError:
                    await self._until(self._write, writing=True)

    def fed(self) -> None:
        """There is no more to feed it with."""
        if self._write >= 0:
            asyncio.get_running_loop().remove_writer(self._write)
            os.close(self._write)
            self._write = -1

    async def _until(self, fd: int, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        (loop.add_writer if writing else loop.add_reader)(fd, _tell, ready)
        try:
            await ready
        finally:
            if fd in (self._read, self._write):
                (loop.remove_writer if writing else loop.remove_reader)(fd)

    def close(self) -> None:
        """The helper ends as soon as it has something to say, or wants more."""
        self.fed()
        if self._read >= 0:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            self._read = -1

    def __del__(self) -> None:
        """Nobody waits for the pipes, or he would have the work: the event loop does not know them any more."""
        for fd in (self._read, self._write):
            if fd >= 0:
                os.close(fd)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _ended(payload: bytes) -> dict[str, Any]:
    """FrameError, GuestError."""
    try:
        end = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"an end that is not JSON: {type(error).__name__}") from None
    if not isinstance(end, dict):
        raise FrameError("an end that is no object")
    if "errno" in end:
        raise GuestError(integer(end, "errno"), text(end, "error"))
    return end
