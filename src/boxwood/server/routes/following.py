"""Runs as they happen: server-sent events of their output and their end, from any offset on, as often as one likes.

Every event's id says how far its reader has come: OUT.ERR, the bytes of stdout and of stderr that it has had. What has
been told is told again from there, from memory or from the disk: nothing is kept for a reader.
"""

from __future__ import annotations

import base64
import logging
import re
from typing import Literal

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, Internal, Unavailable
from boxwood.core.model import Output, Run
from boxwood.server import errors
from boxwood.server.events import EVENTS, BitByBit, Bits, event
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import run as wire

Encoding = Literal["utf-8", "base64"]
_OFFSET = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?\Z")
BEAT = b": the run goes on\n\n"
log = logging.getLogger("boxwood.server")


async def run_events(exchange: Exchange) -> Response:
    query = exchange.query(wire.RunEventsQuery)
    out_at, err_at = _offsets("offset", query.offset)
    if (last := exchange.header(b"last-event-id")) is not None:  # newer than what the address says
        out_at, err_at = _offsets("Last-Event-ID", last)
    run = await exchange.core.runs.about(exchange.caller, exchange.params["id"], exchange.params["run_id"])
    return follow(exchange, run, query, out_at, err_at)


def follow(exchange: Exchange, run: Run, query: wire.StreamQuery, out_at: int = 0, err_at: int = 0) -> Response:
    """The events of a run, from these offsets on. What it puts out and how it ends is the same, whoever listens; but
    whoever says so ends the run with his connection."""

    async def cancel() -> None:
        try:
            await exchange.core.runs.cancel(exchange.caller, run.vm_id, run.run_id)
        except CoreError as error:
            log.warning("%s: run %s was left, and could not be ended: %s", exchange.request_id, run.run_id, error)

    return BitByBit(
        _events(exchange, run, query.encoding, out_at, err_at),
        exchange.app.stopping,
        beat=BEAT,
        farewell=_failed(exchange, Unavailable("the server is stopping; the run goes on", not_started=False)),
        abandoned=cancel if query.on_disconnect == "cancel" else None,
    )


async def _events(exchange: Exchange, run: Run, encoding: Encoding, out_at: int, err_at: int) -> Bits:
    core, caller = exchange.core, exchange.caller
    sides = Side("stdout", encoding, out_at), Side("stderr", encoding, err_at)
    try:
        yield _begun(run, sides)
        pending = run.state == "pending"
        async for piece in core.runs.follow(caller, run.vm_id, run.run_id, out_at, err_at):
            if pending and piece.state != "pending":
                pending = False
                yield _begun(await core.runs.about(caller, run.vm_id, run.run_id), sides)
            if said := _told(piece, sides):
                yield said
        ended = await core.runs.about(caller, run.vm_id, run.run_id)
        yield event("exit", wire.exited(ended, sides[0].at, sides[1].at), _position(sides))
    except CoreError as error:
        yield _failed(exchange, error)
    except Exception as error:
        log.error("%s the events of run %s", exchange.request_id, run.run_id, exc_info=error)
        yield _failed(exchange, Internal("something went wrong in the server; its log says what"))


class Side:
    """One of the two streams on its way out, `at` the offset of the first byte that has not been told. As utf-8 no
    character is cut in two: what may be the beginning of one is held back until there is more; only bytes that are
    no text are told as base64."""

    def __init__(self, name: str, encoding: Encoding, at: int) -> None:
        self.name = name
        self.at = at
        self._encoding = encoding
        self._held = b""

    def take(self, data: bytes, last: bool) -> wire.OutputEvent | None:
        data = self._held + data
        self._held = b""
        if self._encoding == "utf-8" and not last and (cut := _unfinished(data)):
            data, self._held = data[:-cut], data[-cut:]
        if not data:
            return None
        text, encoding = wire.text(data) if self._encoding == "utf-8" else (base64.b64encode(data).decode(), "base64")
        told = wire.OutputEvent(data=text, encoding=encoding, offset=self.at)
        self.at += len(data)
        return told


def _told(piece: Output, sides: tuple[Side, Side]) -> bytes:
    said = b""
    for side, data in zip(sides, (piece.stdout, piece.stderr), strict=True):
        if (told := side.take(data, piece.ended)) is not None:
            said += event(side.name, told, _position(sides))
    return said


def _unfinished(data: bytes) -> int:
    """How many of the last bytes may be the beginning of a character that is not all there."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return back if byte < 0xF8 and back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


def _begun(run: Run, sides: tuple[Side, Side]) -> bytes:
    return event("pending" if run.state == "pending" else "started", wire.begun(run), _position(sides))


def _position(sides: tuple[Side, Side]) -> str:
    return f"{sides[0].at}.{sides[1].at}"


def _failed(exchange: Exchange, error: CoreError) -> bytes:
    operation = exchange.operation
    body = errors.body_of(error, exchange.request_id, operation.operation_id, operation.method)
    return event("error", body["error"])


def _offsets(name: str, text: str) -> tuple[int, int]:
    found = _OFFSET.match(text)
    if found is None:
        said = "the id of an event, OUT.ERR in bytes; 0 is the beginning"
        raise BadRequest(f"{name}: {said}", [(name, said)])
    return int(found[1]), int(found[2] or 0)


OPERATIONS = (
    Operation(
        "runEvents", "GET", "/v1/vms/{id}/runs/{run_id}/events", run_events,
        "A run as it happens, from an offset on: server-sent events.",
        answers={200: EVENTS}, query=wire.RunEventsQuery, ours=True,
        errors=("bad_request", "not_found", "invalid_state"),
    ),
)  # fmt: skip
