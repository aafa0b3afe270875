"""Files straight from the kernel's cache to a client's socket, with nothing of them in our memory.

What reads from a disk may wait for it, so it is done in a thread; who waits for the client is the event loop, so that a
client that reads slowly keeps no thread. Only plain http: what is encrypted has to be read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

EXTENSION = "boxwood.sendfile"  # of an ASGI scope: a `SendFile`
AT_ONCE = 8 << 20  # bytes in one turn of a thread
SLOW_SECONDS = 120.0  # without a byte being taken


class SendFile(Protocol):
    async def __call__(self, fd: int, at: int, size: int) -> int:
        """Send of `size` bytes of a file, from byte `at` on, as many as can be; how many that were. None, if other
        bytes wait to be sent before. ClientGone; Shrunk: the file ends before."""


class ClientGone(Exception):
    """Nobody listens any more, or too slowly."""


class Shrunk(Exception):
    """A file has become shorter than it was."""


async def send(sock: int, fd: int, at: int, size: int, gone: Callable[[], bool]) -> None:
    """All of it, to a socket that does not block. `gone`: has the client?"""
    loop = asyncio.get_running_loop()
    end = at + size
    own = os.dup(sock)  # its number stays ours while a thread uses it, whatever becomes of the connection
    try:
        while at < end:
            if gone():
                raise ClientGone("it has closed the connection")
            sent = await _in_thread(own, fd, at, end)
            at += sent
            if not sent:
                await _writable(loop, own)
    except OSError as error:
        raise ClientGone(str(error)) from None
    finally:
        os.close(own)


async def _in_thread(sock: int, fd: int, at: int, end: int) -> int:
    """`_some`. Whoever is cancelled waits for the thread all the same: he closes what it uses, and the numbers may be
    somebody else's then."""
    work = asyncio.ensure_future(asyncio.to_thread(_some, sock, fd, at, end))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((work,))
        work.exception()  # nobody wants to know
        raise


def _some(sock: int, fd: int, at: int, end: int) -> int:
    """As much as the socket takes now."""
    begin = at
    while at < end and at - begin < AT_ONCE:
        try:
            sent = os.sendfile(sock, fd, at, min(AT_ONCE, end - at))
        except BlockingIOError:
            break
        if not sent:
            raise Shrunk("it has become shorter")
        at += sent
    return at - begin


async def _writable(loop: asyncio.AbstractEventLoop, sock: int) -> None:
    room: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _tell, room)
    try:
        async with asyncio.timeout(SLOW_SECONDS):
            await room
    except TimeoutError:
        raise ClientGone(f"it has taken nothing for {SLOW_SECONDS:g} s") from None
    finally:
        loop.remove_writer(sock)


def _tell(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
