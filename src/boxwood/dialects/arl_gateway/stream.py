"""Answers that come bit by bit: server-sent events of what runs, lines of a log.

What runs goes on when its listener has gone; as long as there is one it is told everything, at the pace at which it
reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from boxwood.core.errors import CoreError
from boxwood.server.events import BitByBit, Bits, event

if TYPE_CHECKING:
    from boxwood.dialects.arl_gateway.gateway import Gateway

BEAT = b": the command goes on\n\n"
MOST_WAITING = 64  # events that the listener has not taken

Say = Callable[[str, Any], Awaitable[None]]
Lines = Bits


class EventStream(BitByBit):
    """What `work` says, each event when it is said; the answer ends with the work. Clients know of no event that tells
    of an error: what is wrong with a step is in its result, all else ends the stream."""

    def __init__(self, gateway: Gateway, work: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__(self._said(), gateway.stopping, beat=BEAT)
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

    async def _said(self) -> Bits:
        while piece := await self._queue.get():
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.spawn(self._produce())
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._heard = False
            while not self._queue.empty():  # whoever waits to say something need not
                self._queue.get_nowait()


class LineStream(BitByBit):
    """Lines as they come, until there are no more, the listener goes or the server stops."""

    def __init__(self, lines: Lines, stopping: asyncio.Event) -> None:
        super().__init__(lines, stopping, media_type="application/x-ndjson", beat=b"")
