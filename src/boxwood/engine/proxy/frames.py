"""What a server says over a WebSocket (RFC 6455), with secrets starred: its frames are taken apart and made anew.

Stars are as many as what they stand for, and stand where whole characters stood, so that a message stays as long as it
is, and UTF-8. What could be the beginning of a secret waits for the rest of the message; a message is cut into other
frames for that, as anybody on the way may cut it where no extension was agreed on. A secret in two messages is found in
neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from boxwood.engine.proxy.channel import Broken, Channel

EXTENSIONS = b"sec-websocket-extensions"
_FIN, _RESERVED, _MASKED, _CONTROL = 0x80, 0x70, 0x80, 0x08
_CONTINUATION, _TEXT, _BINARY = 0, 1, 2
_MOST_CONTROL = 125
_TOO_LONG = 1 << 63  # bytes
_FRAMES = 64


class Starring(Protocol):
    """Of one message, or of a control frame."""

    async def feed(self, data: bytes) -> bytes: ...

    def end(self) -> bytes:
        """What waits: there is no more."""


class Starred:
    """Reads frames from a server, for a client; writes go to the server as they are. `starring`: makes one anew."""

    def __init__(self, server: Channel, starring: Callable[[], Starring]) -> None:
        self._server = server
        self._starring = starring
        self._made = self._frames()
        self._buffer, self._at = b"", 0  # what has been read, and how far it is done with

    async def read(self) -> bytes:
        return await anext(self._made, b"")

    async def write(self, data: bytes) -> None:
        await self._server.write(data)

    async def finish(self) -> None:
        await self._server.finish()

    def abort(self) -> None:
        self._server.abort()

    # --- frames

    async def _frames(self) -> AsyncIterator[bytes]:
        message: Starring | None = None
        opcode = _CONTINUATION  # of the next frame that is made
        count = 0
        while await self._more():
            count += 1
            if not count % _FRAMES:
                await asyncio.sleep(0)  # others' turn: thousands may come at once
            first, size = await self._head()
            kind, last = first & 0x0F, bool(first & _FIN)
            if kind & _CONTROL:
                yield await self._control(first, size)
                continue
            if (kind == _CONTINUATION) is not (message is not None) or kind > _BINARY:
                raise Broken("a frame that belongs to no message")
            if message is None:
                message, opcode = self._starring(), kind
            async for piece in self._payload(size):
                if shown := await message.feed(piece):
                    yield _frame(opcode, shown)
                    opcode = _CONTINUATION
            if last:
                yield _frame(opcode | _FIN, message.end())
                message = None

    async def _head(self) -> tuple[int, int]:
        """The first byte of a frame, and how long its payload is. Broken."""
        first, size = await self._exactly(2)
        if first & _RESERVED or size & _MASKED:
            raise Broken("a frame of an extension that was not agreed on, or masked")
        if first & _CONTROL and (size > _MOST_CONTROL or not first & _FIN):
            raise Broken("a control frame that is too long, or in pieces")
        if size > _MOST_CONTROL:
            size = int.from_bytes(await self._exactly(2 if size == _MOST_CONTROL + 1 else 8), "big")
            if size >= _TOO_LONG:
                raise Broken("a frame that is longer than any")
        return first, size

    async def _control(self, first: int, size: int) -> bytes:
        starring = self._starring()
        shown = await starring.feed(await self._exactly(size))
        return _frame(first, shown + starring.end())

    async def _payload(self, size: int) -> AsyncIterator[bytes]:
        while size:
            if not await self._more():
                raise Broken("a frame that was broken off")
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    async def _exactly(self, size: int) -> bytes:
        found = b""
        async for piece in self._payload(size):
            found += piece
        return found

    async def _more(self) -> bool:
        """Is there anything?"""
        if self._at == len(self._buffer):
            self._buffer, self._at = await self._server.read(), 0
        return bool(self._buffer)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size <= _MOST_CONTROL:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, _MOST_CONTROL + 1)) + size.to_bytes(2, "big") + payload
    return bytes((first, _MOST_CONTROL + 2)) + size.to_bytes(8, "big") + payload
