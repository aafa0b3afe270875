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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwood.core import clock
from boxwood.core.argv import argv_of
from boxwood.core.interruptions import why_not_again
from boxwood.core.model import Run, RunRequest
from boxwood.core.output import INLINE_BYTES, Output
from boxwood.core.shownruns import shown
from boxwood.core.slot import Resident
from boxwood.engine.api import Box, RunEnd, RunSpec
from boxwood.store.runs import RunRow

if TYPE_CHECKING:
    from boxwood.core.slot import Slot

log = logging.getLogger(__name__)
REPORT_BYTES = 12 << 20  # of a run in a Python context; its interpreter stops below that by itself
FLOOD_BYTES = 8 << 20  # a box holds 1 MiB of each stream back until it is safe; one that sends more does not keep to it


@dataclass(frozen=True, slots=True)
class Options:
    """What a run needs beside its command. Kept with a run that is not over, so that another server can start it.
    `direct`: the command is a program and its arguments, see `argv`. `typed`: it is input of a program that waits at a
    prompt, of a durable VM alone."""

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
    typed: bool = False
    python: bool = False  # in a Python context, whose source it is

    @property
    def beside(self) -> bool:
        """Is it run beside the session's shell?"""
        return self.direct or self.env is not None or self.cwd is not None or self.user is not None

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
_STORED = (  # as they are
    "timeout", "env", "cwd", "user", "prompt", "direct", "leaves", "open", "marker", "typed", "python",
)  # fmt: skip


class LiveRun(Resident):
    """`ended`: called once, when the run is over; whoever made the run then sees to the record. `durable`: its VM is;
    then `background` says that somebody was told of it before it had ended, and `left` that the server ends: the next
    one is to begin it again, if that can be done."""

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
        durable: bool = False,
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
        self.durable = durable
        self.background = self.left = self.attached = False
        self.retries = 0
        self.slot: Slot | None = None  # in whose box it is
        self.box: Box | None = None
        self.streams = {
            1: Output(spool, f"{vm_id}/{run_id}.out", bound),
            2: Output(spool, f"{vm_id}/{run_id}.err", bound),
        }
        if options.python:
            self.streams[3] = Output(spool, f"{vm_id}/{run_id}.rep", REPORT_BYTES)
        self.died = False  # and with it its interpreter
        self.failure: Exception | None = None  # its end could not be recorded, or it was never started
        self.recorded = False
        self.recording = False  # its end is on the way to the store
        self.lost_start: BaseException | None = None  # its beginning could not be recorded
        self.stands_still = False  # its VM is suspended: to others it is pending
        self._ended = ended
        self._flooded = flooded
        self._spooling: asyncio.Task[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._readers: set[asyncio.Future[None]] = set()  # who wait for more output
        self.typing = asyncio.Lock()  # who gives it input does so alone
        self.patience: asyncio.TimerHandle | None = None  # until it is no longer to begin

    @property
    def over(self) -> bool:
        return self.completed_at is not None

    @property
    def direct(self) -> bool:
        """Is the command a program and its arguments?"""
        return self.options.direct

    @property
    def truncated(self) -> int:
        """Bytes of its output that were dropped."""
        return self.streams[1].dropped + self.streams[2].dropped

    def spec(self) -> RunSpec:
        o, argv = self.options, argv_of(self.command) if self.direct else None
        return RunSpec(
            self.id, self.session_id, self.command.encode() if argv is None else b"", o.timeout, o.stdin, o.env, o.cwd,
            o.user, o.prompt, None if argv is None else tuple(map(str.encode, argv)), o.leaves, o.open,
            o.python, o.marker,
        )  # fmt: skip

    def start_lost(self, error: BaseException) -> None:
        log.error("run %s: its start was not recorded: %s", self.id, error)
        self.lost_start = error

    def reopen(self) -> None:
        """Its output goes on where an earlier server has put it."""
        for stream in self.streams.values():
            stream.reopen()

    def begin_again(self) -> None:
        """Whatever it has put out before counts no more: its output is that of the try which ends it."""
        for stream in self.streams.values():
            stream.begin_again()

    def begin(self) -> None:
        """It is no longer pending."""
        self._pends_no_more()
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

    # slot.Resident

    def stand_still(self) -> None:
        if not self.over:
            self.stands_still, self.state = True, "pending"
            self.wake_readers()

    def go_on(self) -> None:
        if self.stands_still and not self.over:
            self.state = "running"
            self.wake_readers()
        self.stands_still = False

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
            self.acknowledge()

    def finished(self, end: RunEnd) -> None:
        if self.over:
            return
        if end.reason == "timeout":
            lost = "; the interpreter did not stop and was killed, and its variables are lost" if end.lost else ""
            self.finish("failed", end.exit_code, f"timed out after {self.options.timeout or 0:g} s{lost}")
        elif end.reason == "died":
            self.died = True
            self.finish("failed", end.exit_code, _died(end.exit_code))
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
        if self.left and not self.cancelling and why_not_again(self) is None:
            return
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
        self._pends_no_more()
        self._ended(self)

    def _pends_no_more(self) -> None:
        if self.patience is not None:
            self.patience.cancel()  # which would keep it in memory until then
            self.patience = None

    # Output

    async def _spool(self) -> None:
        try:
            while any(s.held > _allowed(s) for s in self.streams.values()):
                for stream in self.streams.values():
                    if stream.held > _allowed(stream):
                        await stream.spool()
                self.acknowledge()
        finally:
            self._spooling = None

    def acknowledge(self) -> None:
        """The box may forget what is safe here."""
        if self.box is not None and not self.over:
            self.box.ack(self.id, *(stream.safe for stream in self.streams.values()))

    @property
    def unspooled(self) -> bool:
        return self._spooling is not None or any(s.held > _allowed(s) for s in self.streams.values())

    async def spooled(self) -> None:
        """All output that belongs into files is there."""
        while self.unspooled:
            if self._spooling is None:
                self._spooling = asyncio.get_running_loop().create_task(self._spool())
            await asyncio.shield(self._spooling)

    async def secure_output(self) -> None:
        """Returns when all of it that has been spooled is on the disk. OSError."""
        for stream in self.streams.values():
            await stream.secure()

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

    async def more(
        self, out_at: int, err_at: int, seconds: float, *, beginning: bool = False, report_at: int = 0
    ) -> None:
        """Until there is output behind these offsets, or the end is on record, or the time is up; with `beginning` also
        until it is no longer pending."""
        loop = asyncio.get_running_loop()
        deadline, was = loop.time() + seconds, self.state
        seen = (out_at, err_at, report_at)
        while not (self._has_more(seen) or self.recorded or self.failure is not None):
            if (left := deadline - loop.time()) <= 0 or (beginning and self.state != was):
                return
            await self._news(left)

    def _has_more(self, seen: tuple[int, ...]) -> bool:
        return any(stream.kept > at for stream, at in zip(self.streams.values(), seen, strict=False))

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
        out, err, reports = self.streams[1], self.streams[2], self.streams.get(3)
        return RunRow(
            id=self.id,
            vm_id=self.vm_id,
            session_id=self.session_id,
            command=self.command,
            options=None if self.over else self.options.text(),
            state="running" if self.stands_still and not self.over else self.state,  # another server finds it so
            exit_code=self.exit_code,
            started_at=self.started_at,
            completed_at=self.completed_at,
            duration_us=self.duration_us,
            fail_reason=self.fail_reason,
            out=out.memory() if self.over and not out.spooled else None,
            err=err.memory() if self.over and not err.spooled else None,
            out_bytes=out.kept,
            err_bytes=err.kept,
            truncated=self.truncated,
            tag=self.tag,
            direct=self.direct,
            not_started=self.not_started,
            background=self.background,
            retries=self.retries,
            reports=reports.memory() if reports is not None and self.over and not reports.spooled else None,
            report_bytes=None if reports is None else reports.kept,
        )

    async def shown(self, output: bool = True) -> Run:
        """`output`: with all of it so far, else none."""
        out, err, reports = self.streams[1], self.streams[2], self.streams.get(3)
        if output and not any(stream.spooled for stream in self.streams.values()):
            told_reports = None if reports is None else reports.memory()
            return shown(self, self.vm_name, out.memory(), err.memory(), told_reports)
        told = shown(self, self.vm_name, reports=None if reports is None else b"")
        if not output:
            return told
        # Behind the state: the run may end while its files are read, and nobody is told of an end without all of it.
        told_reports = None if reports is None else await reports.read()
        return replace(told, stdout=await out.read(), stderr=await err.read(), reports=told_reports)


def _died(code: int | None) -> str:
    """Why there is no interpreter any more."""
    how = f"was killed by signal {code - 128}" if code is not None and code > 128 else f"ended with exit code {code}"
    return f"the interpreter {how}, and its variables are lost: the next run begins with a new one"


def _allowed(stream: Output) -> int:
    """Bytes that may stay in memory: once there is a file, all belongs there."""
    return 0 if stream.spooled else INLINE_BYTES


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
