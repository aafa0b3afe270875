"""Answers that come bit by bit: server-sent events of what runs, lines of a log.

What runs goes on when its listener has gone; as long as there is one it is told everything, at the pace at which it
reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.core.errors import CoreError
from boxwood.server.exchange import encode

if TYPE_CHECKING:
    from boxwood.dialects.arl_gateway.gateway import Gateway

BEAT_SECONDS = 10.0  # of silence, after which a comment shows that the server is there
BEAT = b": the command goes on\n\n"
MOST_WAITING = 64  # events that the listener has not taken

Say = Callable[[str, Any], Awaitable[None]]
Lines = AsyncGenerator[bytes, None]


def event(kind: str, data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode(data) + b"\n\n"


class EventStream(Response):
    """What `work` says, each event when it is said; the answer ends with the work. Clients know of no event that tells
    of an error: what is wrong with a step is in its result, all else ends the stream."""

    def __init__(self, gateway: Gateway, work: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__(None, 200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._gateway = gateway
        self._work = work
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)
        self._heard = True

    async def _say(self, kind: str, data: Any) -> None:
        if self._heard:
            await self._queue.put(event(kind, data))

    async def _produce(self) -> None:
        try:
            await self._work(self._say)
        except CoreError as error:
            await self._say("error", {"error": error.message})
        finally:
            if self._heard:
                await self._queue.put(b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.spawn(self._produce())
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(_gone(receive)),
            asyncio.ensure_future(self._gateway.stopping.wait()),
        ]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._pass_on(send, ends)
        finally:
            self._heard = False
            while not self._queue.empty():  # whoever waits to say something need not
                self._queue.get_nowait()
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _pass_on(self, send: Send, ends: list[asyncio.Future[Any]]) -> None:
        said: asyncio.Future[bytes] = asyncio.ensure_future(self._queue.get())
        try:
            while True:
                await asyncio.wait((said, *ends), timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                piece = BEAT
                if said.done():
                    piece = said.result()
                    said = asyncio.ensure_future(self._queue.get())
                elif ends[0].done():
                    return
                elif ends[1].done():
                    piece = b""
                await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})
                if not piece:
                    return
        finally:
            said.cancel()
            await asyncio.gather(said, return_exceptions=True)


class LineStream(Response):
    """Lines as they come, until there are no more, the listener goes or the server stops."""

    def __init__(self, lines: Lines, stopping: asyncio.Event) -> None:
        super().__init__(None, 200, {"content-type": "application/x-ndjson"})
        del self.headers["content-length"]
        self._lines = lines
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(_gone(receive)),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        line: asyncio.Future[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while not any(end.done() for end in ends):
                line = asyncio.ensure_future(anext(self._lines, b""))
                await asyncio.wait((line, *ends), return_when=asyncio.FIRST_COMPLETED)
                if not line.done() or not (piece := line.result()):
                    break
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            pending = [*ends] if line is None else [*ends, line]
            for one in pending:
                one.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            with suppress(RuntimeError):
                await self._lines.aclose()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
