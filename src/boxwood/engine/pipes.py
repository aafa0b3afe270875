"""Reading pipes on the event loop."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from contextlib import suppress

LONGEST_ANSWER = 1 << 20  # bytes, of a job
PIECE = 1 << 20


async def read_to_end(fd: int, seconds: float, most: int = LONGEST_ANSWER) -> bytes:
    """All that comes over a pipe that does not block, which is then closed; or a little more than `most` bytes.
    TimeoutError.

    Not `connect_read_pipe`: uvloop's closes the descriptor twice, and the second time it may be another thread's file.
    """
    loop = asyncio.get_running_loop()
    came, whole = bytearray(), loop.create_future()

    def readable() -> None:
        try:
            piece = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        came.extend(piece)
        if (not piece or len(came) > most) and not whole.done():
            whole.set_result(None)

    loop.add_reader(fd, readable)
    try:
        async with asyncio.timeout(seconds):
            await whole
        return bytes(came)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def pipe(size: int = PIECE) -> tuple[int, int]:
    """One that holds so many bytes, if the kernel lets it: there are bounds for each user."""
    reading, writing = os.pipe()
    with suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
    return reading, writing


async def pieces(fd: int, seconds: float) -> AsyncGenerator[bytes, None]:
    """What comes over a pipe, bit by bit, until its end; TimeoutError if nothing comes for so long. Closes it."""
    os.set_blocking(fd, False)
    try:
        while True:
            try:
                piece = os.read(fd, PIECE)
            except BlockingIOError:
                await _ready(fd, seconds, writing=False)
                continue
            if not piece:
                return
            yield piece
    finally:
        os.close(fd)


async def feed(fd: int, data: bytes, seconds: float) -> None:
    """Put all of it into a pipe that does not block. BrokenPipeError; TimeoutError if nothing goes in for so long."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            await _ready(fd, seconds, writing=True)


async def _ready(fd: int, seconds: float, *, writing: bool) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(fd, tell)
    try:
        async with asyncio.timeout(seconds):
            await ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(fd)
