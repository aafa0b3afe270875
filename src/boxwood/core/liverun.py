"""A run from its acceptance until its end is on record: what it has put out, who waits for it.

It is the run's `api.RunSink`: the engine hands output and end in here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwood.core import clock
from boxwood.core.argv import argv_of
from boxwood.core.model import Run, RunRequest
from boxwood.core.output import INLINE_BYTES, Output
from boxwood.engine.api import Box, RunEnd, RunSpec
from boxwood.store.runs import RunRow

if TYPE_CHECKING:
    from boxwood.core.boxes import Slot

log = logging.getLogger(__name__)
FLOOD_BYTES = 8 << 20  # a box holds 1 MiB of each stream back until it is safe; one that sends more does not keep to it


@dataclass(frozen=True, slots=True)
class Options:
    """What a run needs beside its command. Kept with a run that is not over, so that another server can start it.
    `direct`: the command is a program and its arguments, see `argv`."""

    timeout: float | None = None
    stdin: bytes | None = None
    env: dict[str, str] | None = None
    cwd: str | None = None
    user: str | None = None
    prompt: str = "auto"
    direct: bool = False
    leaves: bool = False
    open: bool = False
    marker: str = ""

    @classmethod
    def of(cls, request: RunRequest) -> Options:
        env = None if request.env is None else dict(request.env)
        if request.beside and env is None:
            env = {}  # what makes the box run it beside the session's shell
        return cls(
            request.timeout or None, request.stdin, env, request.cwd, request.user, request.prompt,
            request.argv is not None, request.leaves, request.stdin_open,
            request.marker,
        )  # fmt: skip

    def text(self) -> str | None:
        if self == _PLAIN:
            return None
        values: dict[str, Any] = {name: getattr(self, name) for name in _STORED}
        values["stdin"] = None if self.stdin is None else base64.b64encode(self.stdin).decode()
        return json.dumps(values)

    @classmethod
    def read(cls, text: str | None) -> Options:
        if text is None:
            return _PLAIN
        values = json.loads(text)
        stdin = values.pop("stdin")
        return cls(stdin=None if stdin is None else base64.b64decode(stdin), **values)


_PLAIN = Options()
_STORED = ("timeout", "env", "cwd", "user", "prompt", "direct", "leaves", "open", "marker")  # as they are


class LiveRun:
    """`ended`: called once, when the run is over; whoever made the run then sees to the record."""

    def __init__(
        self,
        run_id: str,
        vm_id: str,
        session_id: str,
        command: str,
        options: Options,
        *,
        vm_name: str | None,
        spool: Path,
        bound: int,
        tag: str | None,
        ended: Callable[[LiveRun], None],
        flooded: Callable[[LiveRun], None],
    ) -> None:
        self.id = run_id
        self.vm_id = vm_id
        self.vm_name = vm_name
        self.session_id = session_id
        self.command = command
        self.options = options
        self.tag = tag
        self.state = "pending"
        self.exit_code: int | None = None
        self.not_started = False
        self.fail_reason: str | None = None
        self.started_at = clock.now()
        self._began = time.monotonic_ns()  # as no setting of the clock changes it
        self.completed_at: int | None = None
        self.duration_us: int | None = None
        self.cancelling = False
        self.slot: Slot | None = None  # in whose box it is
        self.box: Box | None = None
        self.streams = {
            1: Output(spool, f"{vm_id}/{run_id}.out", bound),
            2: Output(spool, f"{vm_id}/{run_id}.err", bound),
        }
        self.failure: Exception | None = None  # its end could not be recorded, or it was never started
        self.recorded = False
        self.recording = False  # its end is on the way to the store
        self.lost_start: BaseException | None = None  # its beginning could not be recorded
        self._ended = ended
        self._flooded = flooded
        self._spooling: asyncio.Task[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers: set[asyncio.Future[None]] = set()  # who wait for more output
        self.typing = asyncio.Lock()  # who gives it input does so alone

    @property
    def over(self) -> bool:
        return self.completed_at is not None

    @property
    def argv(self) -> tuple[str, ...] | None:
        return argv_of(self.command) if self.options.direct else None

    def spec(self) -> RunSpec:
        o, argv = self.options, self.argv
        return RunSpec(
            self.id, self.session_id, self.command.encode() if argv is None else b"", o.timeout, o.stdin, o.env, o.cwd,
            o.user, o.prompt, None if argv is None else tuple(map(str.encode, argv)), o.leaves, o.open,
            o.marker,
        )  # fmt: skip

    def start_lost(self, error: BaseException) -> None:
        log.error("run %s: its start was not recorded: %s", self.id, error)
        self.lost_start = error

    def begin(self) -> None:
        """It is no longer pending."""
        self.state = "running"
        self.started_at = clock.now()
        self._began = time.monotonic_ns()
        self.wake_readers()

    def began_before(self, at: int) -> None:
        """It is one that an earlier server started, at this time."""
        self.started_at = at
        self._began = time.monotonic_ns() - max(0, clock.now() - at) * 1000

    def enter(self, slot: Slot, box: Box) -> None:
        """It is being handed to this box."""
        self.slot, self.box = slot, box
        slot.runs[self.id] = self
        self.wake_readers()

    # api.RunSink

    def output(self, stream: int, offset: int, data: bytes) -> None:
        kept = self.streams.get(stream)
        if kept is None or self.over:
            return
        kept.add(offset, data)
        if self._readers:
            self.wake_readers()
        if kept.held > FLOOD_BYTES:
            self._flooded(self)
        elif self._spooling is None and kept.held > _allowed(kept):
            self._spooling = asyncio.get_running_loop().create_task(self._spool())
        elif kept.dropped and not kept.held:
            self._ack()

    def finished(self, end: RunEnd) -> None:
        if self.over:
            return
        if end.reason == "timeout":
            self.finish("failed", end.exit_code, f"timed out after {self.options.timeout or 0:g} s")
        elif end.reason == "killed":
            if self.cancelling:
                self.finish("cancelled")
            else:
                self.finish("failed", end.exit_code, "killed")
        elif end.reason == "broken":
            self.finish("failed", end.exit_code, "the shell was left unable to report how the command ended")
        else:
            self.not_started = end.not_started and self.options.direct
            self.finish("completed", end.exit_code)

    def lost(self, reason: str) -> None:
        """The box is gone."""
        if self.cancelling:
            self.finish("cancelled")
        else:
            self.finish("failed", None, reason)

    def finish(self, state: str, exit_code: int | None = None, reason: str | None = None) -> None:
        """It is over, once and for all."""
        if self.over:
            return
        self.completed_at = clock.now()
        self.duration_us = (time.monotonic_ns() - self._began) // 1000
        self.state, self.exit_code, self.fail_reason = state, exit_code, reason
        self._ended(self)

    # Output

    async def _spool(self) -> None:
        try:
            while any(s.held > _allowed(s) for s in self.streams.values()):
                for stream in self.streams.values():
                    if stream.held > _allowed(stream):
                        await stream.spool()
                self._ack()
        finally:
            self._spooling = None

    def _ack(self) -> None:
        if self.box is not None and not self.over:
            self.box.ack(self.id, self.streams[1].safe, self.streams[2].safe)

    @property
    def unspooled(self) -> bool:
        return self._spooling is not None or any(s.held > _allowed(s) for s in self.streams.values())

    async def spooled(self) -> None:
        """All output that belongs into files is there."""
        while self.unspooled:
            if self._spooling is None:
                self._spooling = asyncio.get_running_loop().create_task(self._spool())
            await asyncio.shield(self._spooling)

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()

    # Waiting

    async def wait(self, seconds: float) -> None:
        """Until the end is on record, or could not be recorded, or the time is up."""
        if self.recorded or self.failure is not None or seconds <= 0:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, waiter)
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def wake(self) -> None:
        for waiter in self._waiters:
            _wake(waiter)
        self.wake_readers()

    def wake_readers(self) -> None:
        for reader in self._readers:
            _wake(reader)

    async def handed_over(self, seconds: float) -> Box | None:
        """The box that has it, once there is one. None: it is over before, or the time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.box is None and not self.over and (left := deadline - loop.time()) > 0:
            await self._news(left)
        return None if self.over else self.box

    async def more(self, out_at: int, err_at: int, seconds: float, *, beginning: bool = False) -> None:
        """Until there is output behind these offsets, or the end is on record, or the time is up; with `beginning` also
        until it is no longer pending."""
        out, err = self.streams[1], self.streams[2]
        loop = asyncio.get_running_loop()
        deadline, was = loop.time() + seconds, self.state
        while not (out.kept > out_at or err.kept > err_at or self.recorded or self.failure is not None):
            if (left := deadline - loop.time()) <= 0 or (beginning and self.state != was):
                return
            await self._news(left)

    async def _news(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        reader: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, reader)
        self._readers.add(reader)
        try:
            await reader
        finally:
            timer.cancel()
            self._readers.discard(reader)

    # Shapes

    def row(self) -> RunRow:
        out, err = self.streams[1], self.streams[2]
        return RunRow(
            id=self.id,
            vm_id=self.vm_id,
            session_id=self.session_id,
            command=self.command,
            options=None if self.over else self.options.text(),
            state=self.state,
            exit_code=self.exit_code,
            started_at=self.started_at,
            completed_at=self.completed_at,
            duration_us=self.duration_us,
            fail_reason=self.fail_reason,
            out=out.memory() if self.over and not out.spooled else None,
            err=err.memory() if self.over and not err.spooled else None,
            out_bytes=out.kept,
            err_bytes=err.kept,
            truncated=out.dropped + err.dropped,
            tag=self.tag,
            direct=self.options.direct,
            not_started=self.not_started,
        )

    async def shown(self, output: bool = True) -> Run:
        """`output`: with all of it so far, else none."""
        out, err = self.streams[1], self.streams[2]
        return Run(
            run_id=self.id,
            vm_id=self.vm_id,
            vm_name=self.vm_name,
            session_id=self.session_id,
            command=self.command,
            state=self.state,
            exit_code=self.exit_code,
            started_at=clock.shown(self.started_at),
            completed_at=clock.shown_or_none(self.completed_at),
            fail_reason=self.fail_reason,
            duration_ms=None if self.duration_us is None else self.duration_us / 1000,
            stdout=b"" if not output else await out.read() if out.spooled else out.memory(),
            stderr=b"" if not output else await err.read() if err.spooled else err.memory(),
            truncated=out.dropped + err.dropped,
            tag=self.tag,
            argv=self.argv,
            not_started=self.not_started,
        )


def _allowed(stream: Output) -> int:
    """Bytes that may stay in memory: once there is a file, all belongs there."""
    return 0 if stream.spooled else INLINE_BYTES


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
