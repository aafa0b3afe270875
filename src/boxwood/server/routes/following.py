"""Runs as they happen: server-sent events of their output and their end, from any offset on, as often as one likes.

Every event's id says how far its reader has come: OUT.ERR, the bytes of stdout and of stderr that it has had; of a run
in a Python context OUT.ERR.REPORTS. What has been told is told again from there, from memory or from the disk: nothing
is kept for a reader. Of another run that was begun again, its host having stopped, it is OUT.ERR.TRY: an id of another
try is the beginning of this one.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Iterator
from typing import Any, Literal

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, Internal, Unavailable
from boxwood.core.model import Output, Run
from boxwood.server.events import EVENTS, BitByBit, Bits, event, failed
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import python
from boxwood.server.schema import run as wire

Encoding = Literal["utf-8", "base64"]
_OFFSET = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?(?:\.([0-9]{1,15}))?\Z")
BEAT = b": the run goes on\n\n"
log = logging.getLogger("boxwood.server")


async def run_events(exchange: Exchange) -> Response:
    query = exchange.query(wire.RunEventsQuery)
    at = _offsets("offset", query.offset)
    if (last := exchange.header(b"last-event-id")) is not None:  # newer than what the address says
        at = _offsets("Last-Event-ID", last)
    run = await exchange.core.runs.about(exchange.caller, exchange.params["id"], exchange.params["run_id"])
    if run.reports is None:
        at = (*at[:2], 0) if at[2] == run.retries else (0, 0, 0)
    return follow(exchange, run, query, at)


def follow(exchange: Exchange, run: Run, query: wire.StreamQuery, at: tuple[int, int, int] = (0, 0, 0)) -> Response:
    """The events of a run, from these offsets on. What it puts out and how it ends is the same, whoever listens; but
    whoever says so ends the run with his connection."""

    async def cancel() -> None:
        try:
            await exchange.core.runs.cancel(exchange.caller, run.vm_id, run.run_id)
        except CoreError as error:
            log.warning("%s: run %s was left, and could not be ended: %s", exchange.request_id, run.run_id, error)

    return BitByBit(
        _events(exchange, run, query.encoding, at),
        exchange.app.stopping,
        beat=BEAT,
        farewell=failed(exchange, Unavailable("the server is stopping; the run goes on", not_started=False)),
        abandoned=cancel if query.on_disconnect == "cancel" else None,
    )


async def _events(exchange: Exchange, run: Run, encoding: Encoding, at: tuple[int, int, int]) -> Bits:
    core, caller = exchange.core, exchange.caller
    sides = Side("stdout", encoding, at[0]), Side("stderr", encoding, at[1]), Sayings(at[2])
    try:
        yield _begun(run, sides)
        retry = run.retries
        pending = run.state == "pending"
        async for piece in core.runs.follow(caller, run.vm_id, run.run_id, *at):
            if pending and piece.state != "pending":
                pending = False
                yield _begun(await core.runs.about(caller, run.vm_id, run.run_id), sides)
            large = len(piece.reports) + sides[2].held > python.LARGE_BYTES
            if said := await asyncio.to_thread(_told, piece, sides, retry) if large else _told(piece, sides, retry):
                yield said
        ended = await core.runs.about(caller, run.vm_id, run.run_id)
        yield event("exit", wire.exited(ended, sides[0].at, sides[1].at), _position(sides, retry))
    except CoreError as error:
        yield failed(exchange, error)
    except Exception as error:
        log.error("%s the events of run %s", exchange.request_id, run.run_id, exc_info=error)
        yield failed(exchange, Internal("something went wrong in the server; its log says what"))


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


class Sayings:
    """What a Python context reports, on its way out: whole lines, `at` the offset of the first that has not been
    told."""

    def __init__(self, at: int) -> None:
        self.at = at
        self._held = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a line that is not whole yet."""
        return len(self._held)

    def take(self, data: bytes) -> Iterator[tuple[str, Any, int]]:
        """Names of events, what they say, and the offset behind each, which becomes `at` with what is told."""
        begin, behind = len(self._held), self.at
        self._held += data
        while (end := self._held.find(b"\n", begin)) >= 0:
            line, begin = bytes(self._held[:end]), 0
            del self._held[: end + 1]
            behind += end + 1
            told = python.report(line)
            if (name := _REPORTS.get(type(told))) is not None:
                yield name, told, behind
        self.at = behind


_REPORTS: dict[type, str] = {
    python.PythonResult: "result",
    python.PythonException: "exception",
    python.PythonContext: "context",
}
Sides = tuple[Side, Side, Sayings]


def _told(piece: Output, sides: Sides, retry: int) -> bytes:
    """Output before the results that came with it: it is older than the last of them."""
    said = bytearray()
    outputs = list(zip(sides[:2], (piece.stdout, piece.stderr), strict=True))

    def tell_outputs() -> None:
        while outputs:
            side, data = outputs.pop(0)
            if (output := side.take(data, piece.ended)) is not None:
                said.extend(event(side.name, output, _position(sides, retry)))

    for name, told, behind in sides[2].take(piece.reports):
        if name != "context":  # which is told before there can be output
            tell_outputs()
        sides[2].at = behind
        said += event(name, told, _position(sides, retry))
    tell_outputs()
    return bytes(said)


def _unfinished(data: bytes) -> int:
    """How many of the last bytes may be the beginning of a character that is not all there."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            return back if byte < 0xF8 and back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


def _begun(run: Run, sides: Sides) -> bytes:
    return event("pending" if run.state == "pending" else "started", wire.begun(run), _position(sides, run.retries))


def _position(sides: Sides, retry: int) -> str:
    out, err, reports = (side.at for side in sides)
    third = reports or retry  # a run in a context is never begun again
    return f"{out}.{err}.{third}" if third else f"{out}.{err}"


def _offsets(name: str, text: str) -> tuple[int, int, int]:
    """Of stdout, of stderr, and of reports; or which try of the run."""
    found = _OFFSET.match(text)
    if found is None:
        said = "the id of an event, OUT.ERR in bytes; 0 is the beginning"
        raise BadRequest(f"{name}: {said}", [(name, said)])
    return int(found[1]), int(found[2] or 0), int(found[3] or 0)


OPERATIONS = (
    Operation(
        "runEvents", "GET", "/v1/vms/{id}/runs/{run_id}/events", run_events,
        "A run as it happens, from an offset on: server-sent events.",
        answers={200: EVENTS}, query=wire.RunEventsQuery, ours=True,
        errors=("bad_request", "not_found", "invalid_state"),
    ),
)  # fmt: skip
