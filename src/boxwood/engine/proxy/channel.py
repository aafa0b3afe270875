"""Bytes to and from one end: as they are on the wire, or inside TLS. Both are read and written in the same way.

TLS is done on memory (ssl.MemoryBIO), because what a box has sent first was read, and judged, before it is known
whether its TLS is to be ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

PIECE = 1 << 16
_T = TypeVar("_T")


class Broken(OSError):
    """The other end is gone, or has broken the rules of its protocol."""


class Channel(Protocol):
    async def read(self) -> bytes:
        """What there is, at most about PIECE bytes; empty at the end. Broken."""

    async def write(self, data: bytes) -> None:
        """Until there is room again. Broken."""

    async def finish(self) -> None:
        """Nothing more will be written; reading goes on."""

    def abort(self) -> None: ...


class Plain:
    """`ahead`: what was read from it before."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: bytes = b"") -> None:
        self._reader = reader
        self._writer = writer
        self._ahead = ahead

    async def read(self) -> bytes:
        if self._ahead:
            found, self._ahead = self._ahead, b""
            return found
        try:
            return await self._reader.read(PIECE)
        except OSError as error:
            raise Broken(str(error)) from None

    def unread(self, data: bytes) -> None:
        """The next read returns this first."""
        self._ahead = data + self._ahead

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: it has been closed
            raise Broken(str(error)) from None

    async def finish(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write_eof()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        """What was written goes out first."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

    @property
    def is_over(self) -> bool:
        """Has the other end said that nothing more comes, or gone?"""
        return self._reader.at_eof() or self._writer.is_closing()

    @property
    def is_closed(self) -> bool:
        """On our side."""
        return self._writer.is_closing()


class Secure:
    """TLS over a channel. `name`: of the server, as a client."""

    def __init__(self, inner: Plain, context: ssl.SSLContext, *, name: str | None = None) -> None:
        self._inner = inner
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=name is None, server_hostname=name)

    async def handshake(self) -> None:
        """Broken; ssl.SSLError says what does not fit."""
        await self._do(self._tls.do_handshake)

    @property
    def protocol(self) -> str:
        """What was agreed on (ALPN); empty if nothing was."""
        return self._tls.selected_alpn_protocol() or ""

    async def read(self) -> bytes:
        try:
            return await self._do(self._tls.read, PIECE)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except ssl.SSLError as error:
            raise Broken(str(error)) from None

    async def write(self, data: bytes) -> None:
        if data:
            try:
                await self._do(self._tls.write, data)
            except ssl.SSLError as error:
                raise Broken(str(error)) from None

    async def finish(self) -> None:
        """The other end is told. It may still be read: what it answers to that is not waited for."""
        with contextlib.suppress(ssl.SSLError, OSError):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()

    def abort(self) -> None:
        self._inner.abort()

    async def close(self) -> None:
        await self.finish()
        await self._inner.close()

    @property
    def is_over(self) -> bool:
        return self._inner.is_over

    @property
    def is_closed(self) -> bool:
        return self._inner.is_closed

    async def _do(self, step: Callable[..., _T], *arguments: Any) -> _T:
        while True:
            try:
                found = step(*arguments)
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._inner.read():
                    self._in.write(data)
                else:
                    self._in.write_eof()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # what is wrong, for the other end
                raise
            else:
                await self._flush()
                return found

    async def _flush(self) -> None:
        if data := self._out.read():
            await self._inner.write(data)


async def splice(one: Channel, other: Channel) -> None:
    """Whatever comes from either goes to the other, until both have ended. Broken: one is gone."""
    tasks = [asyncio.ensure_future(_pump(one, other)), asyncio.ensure_future(_pump(other, one))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: Channel, sink: Channel) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.finish()
