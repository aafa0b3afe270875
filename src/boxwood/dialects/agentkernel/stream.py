"""A command's output as server-sent events, while it comes.

One data line for each event, short enough for clients that read lines of 64 KiB; no character is cut in two; the
answer ends with `done` or `error`.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from boxwood.core.errors import CoreError
from boxwood.core.model import VM, Output, Run
from boxwood.dialects.agentkernel import commands, words
from boxwood.dialects.agentkernel.commands import shown
from boxwood.dialects.agentkernel.envelope import body
from boxwood.dialects.agentkernel.runs import RunBody, fresh
from boxwood.server import events
from boxwood.server.events import BitByBit, Bits
from boxwood.server.exchange import Exchange

PIECE_CHARACTERS = 9000  # each may take six bytes in JSON
STREAMS = ("stdout", "stderr")
BEAT = b": the command goes on\n\n"

log = logging.getLogger("boxwood.server")


async def run_stream(exchange: Exchange) -> Response:
    """Only a body that cannot be read is refused by status; all else is told in the stream."""
    wanted = await body(exchange, RunBody)
    farewell = event("error", message="the server is stopping")
    return BitByBit(_events(exchange, wanted), exchange.app.stopping, beat=BEAT, farewell=farewell)


def event(kind: str, **data: Any) -> bytes:
    return events.event(kind, data)


async def _events(exchange: Exchange, wanted: RunBody) -> Bits:
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
            async for piece in exchange.core.runs.follow(exchange.caller, vm.vm_id, run.run_id):
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


class _Decoders:
    """From bytes to whole characters, for each stream."""

    def __init__(self) -> None:
        self._decoders = tuple(codecs.getincrementaldecoder("utf-8")("replace") for _ in STREAMS)

    def events(self, piece: Output) -> Iterator[bytes]:
        for stream, decoder, data in zip(STREAMS, self._decoders, (piece.stdout, piece.stderr), strict=True):
            text = decoder.decode(data, final=piece.ended)
            for at in range(0, len(text), PIECE_CHARACTERS):
                yield event("output", data=text[at : at + PIECE_CHARACTERS], stream=stream)
