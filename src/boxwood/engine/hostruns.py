"""The runs of a live box as the server has them: what its agent says of their output and their ends, checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from boxwood.engine.api import RunEnd, RunSink
from boxwood.engine.frames import FrameError
from boxwood.engine.link import integer, text

OUTPUT_BYTES = 1 << 20
_REASONS = frozenset({"exit", "timeout", "killed", "prompt", "broken", "died"})


@dataclass(slots=True)
class _Attached:
    """A run whose output somebody takes: where its streams have come to. `resumed`: it may begin further on, if an
    earlier server has dropped more than it kept."""

    sink: RunSink
    offsets: list[int] = field(default_factory=lambda: [0, 0])
    ended: bool = False
    resumed: bool = False

    def goes_on(self, stream: int, at: int) -> bool:
        """Is this where more of a stream may begin?"""
        expected = self.offsets[stream - 1]
        return at == expected or (self.resumed and at > expected)


class HostRuns:
    """`known`: those that the agent has told of in its greeting. What it says that makes no sense is a FrameError."""

    def __init__(self) -> None:
        self.known: dict[str, RunEnd | None] = {}
        self._attached: dict[str, _Attached] = {}

    @property
    def going(self) -> bool:
        """Somebody waits for output, or an end."""
        return any(not run.ended for run in self._attached.values())

    def attach(self, run_id: str, sink: RunSink, streams: int) -> None:
        """It is about to be started."""
        self._attached[run_id] = _Attached(sink, [0] * streams)

    def resume(self, run_id: str, sink: RunSink, offsets: Sequence[int]) -> None:
        """An earlier server has started it."""
        self._attached[run_id] = _Attached(sink, list(offsets), resumed=True)

    def detach(self, run_id: str) -> None:
        """It was not started after all."""
        self._attached.pop(run_id, None)

    def forget(self, run_id: str) -> None:
        self._attached.pop(run_id, None)
        self.known.pop(run_id, None)

    # --- what the agent says on its own

    def on_hello(self, runs: object) -> None:
        if not isinstance(runs, list) or len(runs) > 10_000:
            raise FrameError("runs must be a list")
        for run in runs:
            if not isinstance(run, dict):
                raise FrameError("a run that is no object")
            end = run.get("end")
            self.known[text(run, "rid", 26)] = None if end is None else _end(end)

    def on_output(self, header: dict[str, Any], payload: bytes) -> None:
        run = self._attached.get(text(header, "rid", 26))
        if run is None:
            return  # forgotten meanwhile
        stream, at = integer(header, "stream"), integer(header, "at")
        if (
            not 1 <= stream <= len(run.offsets)
            or not run.goes_on(stream, at)
            or run.ended
            or len(payload) > OUTPUT_BYTES
        ):
            raise FrameError(f"output of stream {stream} at {at}, expected at {run.offsets}")
        run.offsets[stream - 1] = at + len(payload)
        run.sink.output(stream, at, payload)

    def on_end(self, header: dict[str, Any]) -> None:
        run_id = text(header, "rid", 26)
        end = _end(header)
        run = self._attached.get(run_id)
        if run_id in self.known:
            self.known[run_id] = end
        if run is None or run.ended:
            return
        ends = [end.out_bytes, end.err_bytes, end.report_bytes]
        known = len(run.offsets)
        if not all(map(run.goes_on, range(1, known + 1), ends)) or any(ends[known:]):
            raise FrameError(f"the run ended at {ends}, its output at {run.offsets}")
        run.ended = True
        run.sink.finished(end)


def quoted_argv(argv: Sequence[bytes]) -> bytes:
    """For a shell, which becomes the program."""
    return b"exec " + os.fsencode(shlex.join(map(os.fsdecode, argv)))


def _end(fields: object) -> RunEnd:
    if not isinstance(fields, dict):
        raise FrameError("an end that is no object")
    code, reason = fields.get("code"), fields.get("reason")
    if code is not None and (type(code) is not int or not 0 <= code <= 255):
        raise FrameError(f"an exit code of {str(code)[:20]}")
    if not isinstance(reason, str) or reason not in _REASONS:
        raise FrameError(f"a reason of {str(reason)[:20]}")
    sizes = integer(fields, "out"), integer(fields, "err")
    reports = integer(fields, "rep") if "rep" in fields else 0
    return RunEnd(
        code, reason, *sizes, not_started=fields.get("started") is False, report_bytes=reports,
        lost=fields.get("lost") is True,
    )  # fmt: skip
