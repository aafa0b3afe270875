"""A command's output as server-sent events, while it comes.

One data line for each event, short enough for clients that read lines of 64 KiB; no character is cut in two; the
answer ends with `done` or `error`.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.core.errors import CoreError
from boxwood.core.model import VM, Output, Run
from boxwood.dialects.agentkernel import commands, words
from boxwood.dialects.agentkernel.commands import shown
from boxwood.dialects.agentkernel.envelope import body
from boxwood.dialects.agentkernel.runs import RunBody, fresh
from boxwood.server.exchange import Exchange, encode

BEAT_SECONDS = 10.0  # of silence, after which a comment shows that the server is there
PIECE_CHARACTERS = 9000  # each may take six bytes in JSON
ASK_SECONDS = 60.0
STREAMS = ("stdout", "stderr")
BEAT = b": the command goes on\n\n"

Events = AsyncGenerator[bytes, None]
log = logging.getLogger("boxwood.server")


async def run_stream(exchange: Exchange) -> Response:
    """Only a body that cannot be read is refused by status; all else is told in the stream."""
    wanted = await body(exchange, RunBody)
    return EventStream(_events(exchange, wanted), exchange.app.stopping)


def event(kind: str, **data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode(data) + b"\n\n"


async def _events(exchange: Exchange, wanted: RunBody) -> Events:
    try:
        request = commands.request(wanted.command)
        async with fresh(exchange, wanted) as vm:
            fast = wanted.fast is not False
            yield event("started", command=_brief(wanted.command), fast=fast, timestamp=shown(datetime.now(UTC)))
            if not fast:
                yield event("progress", stage="sandbox_created", sandbox=_name(vm))
                await exchange.core.vms.start(exchange.caller, vm.vm_id)
                yield event("progress", stage="sandbox_started")
            run = await exchange.core.runs.start(exchange.caller, vm.vm_id, request)
            decoders = _Decoders()
            async for piece in _output(exchange, vm, run.run_id):
                for text in decoders.events(piece):
                    yield text
            ended = await exchange.core.runs.ended(exchange.caller, vm.vm_id, run.run_id)
            commands.check_ended(ended)
            if ended.exit_code:
                told = _first(ended)  # all of it has been told already
                yield event("done", exit_code=ended.exit_code, success=False, output=told)
            else:
                yield event("done", exit_code=0, success=True)
    except CoreError as error:
        yield event("error", message=error.message)
    except Exception as error:
        log.error("%s run/stream", exchange.request_id, exc_info=error)
        yield event("error", message="something went wrong in the server; its log says what")


def _first(run: Run) -> str:
    """What a line has room for of its output."""
    most = 4 * PIECE_CHARACTERS
    part = replace(run, stdout=run.stdout[:most], stderr=run.stderr[:most])
    return commands.joined(part)[:PIECE_CHARACTERS]


def _brief(argv: list[str]) -> list[str]:
    """As many of the arguments as a line has room for."""
    kept, room = [], PIECE_CHARACTERS - 1000
    for argument in argv:
        if room <= 0:
            break
        kept.append(argument if len(argument) <= room else argument[:room] + "…")
        room -= len(argument) + 3
    return kept


def _name(vm: VM) -> str:
    """It has none, and nobody can ask for it."""
    return "api-stream-" + words.uuid_of(vm.vm_id)[-8:]


async def _output(exchange: Exchange, vm: VM, run_id: str) -> AsyncGenerator[Output, None]:
    out_at = err_at = 0
    while True:
        piece = await exchange.core.runs.output(exchange.caller, vm.vm_id, run_id, out_at, err_at, ASK_SECONDS)
        out_at, err_at = piece.out_at, piece.err_at
        yield piece
        if piece.ended:
            return


class _Decoders:
    """From bytes to whole characters, for each stream."""

    def __init__(self) -> None:
        self._decoders = tuple(codecs.getincrementaldecoder("utf-8")("replace") for _ in STREAMS)

    def events(self, piece: Output) -> Iterator[bytes]:
        for stream, decoder, data in zip(STREAMS, self._decoders, (piece.stdout, piece.stderr), strict=True):
            text = decoder.decode(data, final=piece.ended)
            for at in range(0, len(text), PIECE_CHARACTERS):
                yield event("output", data=text[at : at + PIECE_CHARACTERS], stream=stream)


class EventStream(Response):
    """Sends each event when it is there; ends `events` if the client goes away or the server stops."""

    def __init__(self, events: Events, stopping: asyncio.Event) -> None:
        super().__init__(None, 200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_gone(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        step: asyncio.Future[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                step = step or asyncio.ensure_future(self._next())
                await asyncio.wait((step, gone, stopping), timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if step.done():
                    said, step = step.result(), None
                elif stopping.done():
                    said = event("error", message="the server is stopping")
                else:
                    said = BEAT
                await send({"type": "http.response.body", "body": said, "more_body": bool(said)})
                if not said:
                    return
                if stopping.done() and step is not None:
                    await send({"type": "http.response.body", "body": b""})
                    return
        finally:
            pending = [task for task in (step, gone, stopping) if task is not None]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            await self._events.aclose()

    async def _next(self) -> bytes:
        """Nothing: that was all."""
        return await anext(self._events, b"")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
