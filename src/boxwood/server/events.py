"""Answers that come bit by bit: server-sent events, lines of a log.

Nothing is queued: the next bit is asked for once the client has taken the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.core.errors import CoreError
from boxwood.server import errors
from boxwood.server.exchange import Exchange, encode

EVENTS = "text/event-stream"
BEAT_SECONDS = 10.0  # of silence, after which a comment shows that the server is there
LAST_BITS = 16  # that may still be sent when the server stops, if they are there already

Bits = AsyncGenerator[bytes, None]


def event(kind: str, data: Any, ident: str = "") -> bytes:
    """One event with one line of data. `ident`: what a client sends as Last-Event-ID to go on behind it."""
    named = b"id: " + ident.encode() + b"\n" if ident else b""
    return named + b"event: " + kind.encode() + b"\ndata: " + encode(data) + b"\n\n"


class BitByBit(Response):
    """Sends each bit when it is there; ends with them, or when the client goes away or the server stops.

    `beat`: what is sent after silence. `farewell`: what is sent if the server stops first. `abandoned`: called if the
    client goes away first.
    """

    def __init__(
        self,
        bits: Bits,
        stopping: asyncio.Event,
        *,
        media_type: str = EVENTS,
        beat: bytes = b": still there\n\n",
        farewell: bytes = b"",
        abandoned: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(None, 200, {"content-type": media_type, "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._bits = bits
        self._stopping = stopping
        self._beat = beat
        self._farewell = farewell
        self._abandoned = abandoned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.ensure_future(gone(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            async with aclosing(self._bits):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if scope["method"] == "HEAD":
                    await self._begin()
                    await send({"type": "http.response.body", "body": b""})
                elif not await self._pass_on(send, left, stopping) and self._abandoned is not None:
                    await self._abandoned()
        finally:
            left.cancel()
            stopping.cancel()
            await asyncio.gather(left, stopping, return_exceptions=True)

    async def _begin(self) -> None:
        """So that they hear of their end, which those that were never begun would not; the first may be long in
        coming."""
        step = asyncio.ensure_future(anext(self._bits, b""))
        await asyncio.wait((step,), timeout=0)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)

    async def _pass_on(self, send: Send, gone: asyncio.Future[None], stopping: asyncio.Future[Any]) -> bool:
        """False: the client has gone."""
        step: asyncio.Future[bytes] | None = None
        left = LAST_BITS
        try:
            while True:
                step = step or asyncio.ensure_future(anext(self._bits, b""))
                await asyncio.wait((step, gone, stopping), timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return False
                left -= stopping.done()
                last = stopping.done() and (left < 0 or not step.done())
                if last:
                    said = self._farewell
                elif step.done():
                    said, step = step.result(), None
                    last = not said
                else:
                    said = self._beat
                if said:
                    await send({"type": "http.response.body", "body": said, "more_body": True})
                if last:
                    await send({"type": "http.response.body", "body": b""})
                    return True
        finally:
            if step is not None:
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)


def failed(exchange: Exchange, error: CoreError) -> bytes:
    """The event that tells of an error, as its body would."""
    operation = exchange.operation
    body = errors.body_of(error, exchange.request_id, operation.operation_id, operation.method)
    return event("error", body["error"])


async def gone(receive: Receive) -> None:
    """Wait until the client has gone. Only once the body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
