"""What a run does, told as it happens: the SDK's events, and how they lie on the wire; no I/O."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from boxwood.client.answers import LOST
from boxwood.client.errors import BoxwoodError, ConnectionFailed, ServerError, error_from
from boxwood.client.models import decode_bytes
from boxwood.client.python import PythonContext, PythonError, PythonResult

EVENTS = "text/event-stream"
EVENT_BYTES = 16 << 20  # of one event; a server sends less than one
T = TypeVar("T")


class RunStarted(msgspec.Struct, frozen=True):
    """The run has been accepted. `pending`: it waits for the run before it in its session; when it begins, this comes
    again. `retry_count`: of a durable VM's, how often it was begun again because its host had stopped; when it grows,
    what has been put out before is no output of the run any more, and the offsets begin anew."""

    run_id: str
    session_id: str
    started_at: datetime | None = None
    pending: bool = False
    retry_count: int = 0


class RunOutput(msgspec.Struct, frozen=True):
    """The run has put something out. `stream`: stdout or stderr. `data`: exactly these bytes, which begin at `offset`
    of all that it has put out there. `text`: the same as text; a character that is not complete comes with the next
    one, what is not UTF-8 becomes U+FFFD."""

    stream: str
    data: bytes
    text: str
    offset: int


class RunExited(msgspec.Struct, frozen=True):
    """The run has ended: see the fields of `Run`."""

    run_id: str
    state: str
    exit_code: int | None = None
    fail_reason: str | None = None
    completed_at: datetime | None = None
    duration_ms: float | None = None
    truncated: int = 0

    @property
    def ok(self) -> bool:
        """Has it ended with exit code 0?"""
        return self.state == "completed" and self.exit_code == 0


RunEvent = RunStarted | RunOutput | RunExited | PythonResult | PythonError | PythonContext
"""The last three of runs in Python contexts alone."""


class Said(NamedTuple):
    """An event as the server sent it: its name, its data and its id."""

    kind: str
    data: bytes
    ident: bytes = b""


class Parser:
    """From the bytes of an answer to events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Said]:
        """:raises ServerError: an event without end."""
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        if len(self._rest) > EVENT_BYTES:
            raise ServerError("bad_answer", "the server sends an event without end")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
            if b"event" in fields:
                yield Said(fields[b"event"].decode("latin-1"), fields.get(b"data", b""), fields.get(b"id", b""))


class _Output(msgspec.Struct, frozen=True):
    data: str
    encoding: str
    offset: int


_OF_PYTHON: dict[str, type[PythonResult] | type[PythonError] | type[PythonContext]] = {
    "result": PythonResult,
    "exception": PythonError,
    "context": PythonContext,
}


class Follower:
    """How far one has come with a run. `run_id` is None until the server has told it."""

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.ended = False
        self._retry = 0
        self._begun: bool | None = None  # None: not heard of; False: pending
        self._from_the_beginning()

    def _from_the_beginning(self) -> None:
        self._at = {"stdout": 0, "stderr": 0}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._at}
        self._reports = 0  # bytes of what a Python context has said of it

    @property
    def position(self) -> str:
        at = f"{self._at['stdout']}.{self._at['stderr']}"
        third = self._reports or self._retry  # a run in a context is never begun again
        return f"{at}.{third}" if third else at

    def take(self, said: Said) -> Iterator[RunEvent]:
        """:raises BoxwoodError: what the server says is an error, or makes no sense."""
        match said.kind:
            case "pending" | "started":
                started = _decoded(said, RunStarted)
                self.run_id = started.run_id
                begun, retry = said.kind == "started", started.retry_count
                if (begun, retry) != (self._begun, self._retry):  # else it is told again after a break
                    if retry != self._retry:
                        self._retry = retry
                        self._from_the_beginning()
                    self._begun = begun
                    yield RunStarted(started.run_id, started.session_id, started.started_at, not begun, retry)
            case "stdout" | "stderr":
                if (output := self._output(said)) is not None:
                    yield output
            case "result" | "exception" | "context" as kind:
                at = said.ident.split(b".")[2:]
                if at and at[0].isdigit() and int(at[0]) > self._reports:
                    self._reports = int(at[0])
                    yield _decoded(said, _OF_PYTHON[kind])
            case "exit":
                for name, decoder in self._decoders.items():
                    if text := decoder.decode(b"", final=True):
                        yield RunOutput(name, b"", text, self._at[name])
                self.ended = True
                yield _decoded(said, RunExited)
            case "error":
                found = _decoded(said, dict[str, Any])
                raise error_from(found, 0)

    def _output(self, said: Said) -> RunOutput | None:
        told, at = _decoded(said, _Output), self._at[said.kind]
        data = decode_bytes(told.data, told.encoding)
        if told.offset > at:
            raise ServerError("bad_answer", f"{said.kind} goes on at {told.offset}, not at {at}")
        if not (data := data[at - told.offset :]):
            return None
        self._at[said.kind] = at + len(data)
        return RunOutput(said.kind, data, self._decoders[said.kind].decode(data), at)

    def cut_short(self) -> BoxwoodError:
        return ConnectionFailed(LOST, "the server ended its answer before the run had ended; the run goes on")


def _decoded(said: Said, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(said.data, type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerError("bad_answer", f"not an event of a Boxwood server: {error}") from None
