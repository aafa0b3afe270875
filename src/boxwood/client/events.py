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

EVENTS = "text/event-stream"
EVENT_BYTES = 16 << 20  # of one event; a server sends less than one
T = TypeVar("T")


class RunStarted(msgspec.Struct, frozen=True):
    """The run has been accepted. `pending`: it waits for the run before it in its session; when it begins, this comes
    again."""

    run_id: str
    session_id: str
    started_at: datetime | None = None
    pending: bool = False


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


RunEvent = RunStarted | RunOutput | RunExited


class Said(NamedTuple):
    """An event as the server sent it: its name and its data."""

    kind: str
    data: bytes


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
                yield Said(fields[b"event"].decode("latin-1"), fields.get(b"data", b""))


class _Output(msgspec.Struct, frozen=True):
    data: str
    encoding: str
    offset: int


class Follower:
    """How far one has come with a run. `run_id` is None until the server has told it."""

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.ended = False
        self._at = {"stdout": 0, "stderr": 0}
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._at}
        self._begun: bool | None = None  # None: not heard of; False: pending

    @property
    def position(self) -> str:
        return f"{self._at['stdout']}.{self._at['stderr']}"

    def take(self, said: Said) -> Iterator[RunEvent]:
        """:raises BoxwoodError: what the server says is an error, or makes no sense."""
        match said.kind:
            case "pending" | "started":
                started = _decoded(said, RunStarted)
                self.run_id = started.run_id
                begun = said.kind == "started"
                if begun != self._begun:  # else it is told again after a break
                    self._begun = begun
                    yield RunStarted(started.run_id, started.session_id, started.started_at, pending=not begun)
            case "stdout" | "stderr":
                if (output := self._output(said)) is not None:
                    yield output
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
