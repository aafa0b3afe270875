"""Runs: commands in sessions. One at a time in each session; those behind it are pending, in order of arrival."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path

from boxwood.core import runrequests, stdin, words
from boxwood.core.access import Access
from boxwood.core.argv import text_of
from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import (
    Conflict,
    Internal,
    InvalidState,
    NotFound,
    Unavailable,
)
from boxwood.core.idempotency import Claim, Idempotency
from boxwood.core.ids import new_id
from boxwood.core.lanes import Lanes
from boxwood.core.liverun import LiveRun, Options
from boxwood.core.model import Caller, Given, Output, Page, Run, RunFilter, RunRequest
from boxwood.core.output import in_turn
from boxwood.core.pastruns import PIECE_BYTES, PastRuns
from boxwood.core.refusals import of_engine
from boxwood.core.sessions import Sessions
from boxwood.core.shownruns import shown
from boxwood.core.signing import Signer
from boxwood.core.tasks import Tasks
from boxwood.engine.api import BoxGone, EngineError
from boxwood.store import runs as run_rows
from boxwood.store import sessions as session_rows
from boxwood.store.database import Database, Later
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow

FOR_EVER = 1e9  # seconds
ASK_SECONDS = 60.0  # between looks at a run that is silent
log = logging.getLogger(__name__)


class Runs:
    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        access: Access,
        lanes: Lanes,
        sessions: Sessions,
        idempotency: Idempotency,
        signer: Signer,
        config: Config,
        tasks: Tasks,
        spool: Path,
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._lanes = lanes
        self._sessions = sessions
        self._idempotency = idempotency
        self._signer = signer
        self._config = config
        self._tasks = tasks
        self._past = PastRuns(database, spool)

    # Starting

    async def start(self, caller: Caller, vm: str, request: RunRequest, idempotency_key: str | None = None) -> Run:
        """Start a run and wait `request.wait` seconds for its end (0: not at all; None: `config.wait_seconds`).

        Without a session: the default one (index 0); an unknown index is made. The answer may still be pending or
        running. What goes wrong with the box is told by the run (`failed`, `fail_reason`), not raised; a program that
        cannot be started (`request.argv`) is a run that has completed (`Run.not_started`).
        BadRequest, NotFound (vm, session), Forbidden (a public VM of others), InvalidState (immutable),
        PayloadTooLarge (command over 4 MiB), ResourceBusy (too many are pending), IdempotencyConflict,
        Unavailable (not started within `queueing_timeout`; the session is being deleted), CapacityUnavailable.
        """
        runrequests.check(request)
        row = self._access.usable(caller, vm)
        with self._idempotency.claim(f"run:{caller.org_id}:{row.id}", idempotency_key, request) as claim:
            if claim is not None and claim.made is not None:
                return await self.wait(caller, row.id, claim.made, request.wait)
            session = await self._session(row, request)
            run = self._accept(row, session, request, claim)
            if claim is not None:
                await self._inserted(run)
        return await self._answer(run, request.wait)

    async def start_in(self, row: VMRow, command: str) -> None:
        """A background run in the default session of a VM that has just been made."""
        request = RunRequest(command)
        session = await self._session(row, request)
        await self._inserted(self._accept(row, session, request, None))

    async def _session(self, row: VMRow, request: RunRequest) -> SessionRow:
        if request.beside:
            return await self._sessions.beside(row)
        if request.session_id is not None:
            return self._sessions.known(row, request.session_id)
        return await self._sessions.at(row, request.session_index or 0)

    def _accept(self, row: VMRow, session: SessionRow, request: RunRequest, claim: Claim | None) -> LiveRun:
        command = request.command if request.argv is None else text_of(request.argv)
        options = Options.of(request)
        if session.kind == "python":
            runrequests.check_python(request)
            options = replace(options, python=True)
        run = self._lanes.make(new_id(), row.id, row.name, session.id, command, options, request.tag, bool(row.durable))
        run.attached = request.attached
        self._lanes.enqueue(run)
        if request.queueing_timeout and run.state == "pending":
            self._lanes.give_up_after(run, request.queueing_timeout)
        self._database.defer(partial(_beginning, run, session, claim), run.start_lost)
        return run

    async def _inserted(self, run: LiveRun) -> None:
        """The run can be found again, whatever happens: of a durable VM by whoever is told of it now also after a
        loss of power."""
        if run.durable:
            if not run.background and not run.attached:
                run.background = True
                self._database.post(partial(run_rows.in_background, run_id=run.id), run.start_lost, small=True)
            await self._database.secure()
        else:
            await asyncio.sleep(0)  # in which it is handed to its box, if that is there: a server may end at any time
            await self._database.flush()
        if run.lost_start is not None:
            raise Internal(
                f"the run was started, which could not be recorded: {run.lost_start}",
                recovery={"work": "continuing", "context": {"vm_id": run.vm_id, "run_id": run.id}},
            )

    # Asking

    async def _answer(self, run: LiveRun, seconds: float | None) -> Run:
        most = self._config.wait_seconds
        await run.wait(most if seconds is None else min(seconds, most))
        await self._on_record(run)
        return await run.shown()

    async def _on_record(self, run: LiveRun) -> None:
        """What is told of it next: that it goes on, or its end, which may have come meanwhile."""
        if not run.over and run.failure is None:
            await self._inserted(run)
        if run.over or run.failure is not None:
            await self._lanes.on_record(run)

    async def resume(
        self,
        caller: Caller,
        vm: str,
        session_id: str | None = None,
        session_index: int | None = None,
        wait: float | None = None,
    ) -> Run:
        """The entirely empty run request: wait for the run that has been pending longest; a suspended VM is woken.
        BadRequest if none is (a command is needed then)."""
        row = self._access.usable(caller, vm)
        wanted = session_id
        if wanted is None and session_index is not None:
            found = session_rows.by_index(self._database.near, row.id, session_index)
            wanted = "" if found is None else found.id
        pending = [run for run in self._lanes.pending(row.id) if wanted in (None, run.session_id)]
        if not pending:
            raise words.refuse("command", "is missing, and no run is pending that could be resumed")
        await self._lanes.rouse(row.id)
        return await self._answer(pending[0], wait)

    async def get(self, caller: Caller, vm: str, run_id: str) -> Run:
        """With the output so far. NotFound."""
        return await self.wait(caller, vm, run_id, 0)

    async def wait(self, caller: Caller, vm: str, run_id: str, seconds: float | None = None) -> Run:
        """`get`, once the run has ended or `seconds` (at most `config.wait_seconds`) have passed. NotFound."""
        words.seconds("seconds", seconds)
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is not None:
            return await self._answer(run, seconds)
        return await self._past.shown(self._past.row(row, run_id), row.name)

    async def ended(self, caller: Caller, vm: str, run_id: str) -> Run:
        """`get`, once the run has ended, however long that takes. NotFound, Unavailable (the server is stopping)."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is not None:
            await run.wait(FOR_EVER)
        found = await self.get(caller, row.id, run_id)
        if not found.ended:
            raise Unavailable("the server is stopping; the run goes on", not_started=False)
        return found

    async def output(
        self,
        caller: Caller,
        vm: str,
        run_id: str,
        out_at: int,
        err_at: int,
        seconds: float,
        *,
        beginning: bool = False,
        report_at: int = 0,
    ) -> Output:
        """What has come since these offsets, as soon as there is any or the run has ended; nothing after `seconds`, or,
        with `beginning`, as soon as it is no longer pending. To be asked again with the offsets of the answer, until
        it is `ended`. NotFound, Unrecoverable."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            return await self._past.output(self._past.row(row, run_id), out_at, err_at, report_at)
        await run.more(out_at, err_at, seconds, beginning=beginning, report_at=report_at)
        over = run.recorded or run.failure is not None
        kept, reports = (run.streams[1], run.streams[2]), run.streams.get(3)
        told = (
            b"" if reports is None else await reports.since(report_at, PIECE_BYTES)
        )  # first: output before it is there
        out, err = await kept[0].since(out_at, PIECE_BYTES), await kept[1].since(err_at, PIECE_BYTES)
        out_at, err_at = out_at + len(out), err_at + len(err)
        behind = out_at < kept[0].kept or err_at < kept[1].kept
        ended = over and not behind
        if reports is None:
            return Output(out, err, out_at, err_at, ended, run.state)
        told = in_turn(told, report_at, behind=behind)
        report_at += len(told)
        return Output(out, err, out_at, err_at, ended and report_at >= reports.kept, run.state, told, report_at)

    async def follow(
        self, caller: Caller, vm: str, run_id: str, out_at: int = 0, err_at: int = 0, report_at: int = 0
    ) -> AsyncGenerator[Output, None]:
        """What a run puts out from these offsets on, as it comes and no faster than it is taken; at once also when it
        is no longer pending. The last piece is `ended`. NotFound, Unrecoverable."""
        while True:
            piece = await self.output(
                caller, vm, run_id, out_at, err_at, ASK_SECONDS, beginning=True, report_at=report_at
            )  # fmt: skip
            out_at, err_at, report_at = piece.out_at, piece.err_at, piece.report_at
            yield piece
            if piece.ended:
                return

    async def about(self, caller: Caller, vm: str, run_id: str) -> Run:
        """`get`, without output. NotFound."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            stored = self._past.row(row, run_id)
            return shown(stored, row.name, reports=None if stored.report_bytes is None else b"")
        await self._on_record(run)
        return await run.shown(output=False)

    async def list(
        self, caller: Caller, vm: str, where: RunFilter | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Run]:
        """Newest first, without output. `limit`: 1 to 1000. BadRequest, NotFound."""
        words.limit(limit)
        row = self._access.own(caller, vm)
        scope = f"runs:{row.id}"
        before = self._signer.position(scope, cursor)
        still = self._lanes.standing_still(row.id)
        found = await self._past.page(row, where or RunFilter(), before, limit + 1, still)
        items = tuple(
            shown(replace(run, state="pending") if run.id in still else run, row.name) for run in found[:limit]
        )
        more = self._signer.cursor(scope, items[-1].run_id) if len(found) > limit else None
        return Page(items, more)

    async def cancel(self, caller: Caller, vm: str, run_id: str) -> bool:
        """End a run as cancelled: a pending one never starts, of a running one everything it started is killed.
        False: it had ended already. NotFound."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            self._past.row(row, run_id)
            return False
        if run.over:
            return False
        if not await self._tasks.finish(self._lanes.cancel(run)):
            raise Internal("the run was told to end, but has not ended yet", recovery={"work": "unknown"})
        await self._lanes.on_record(run)
        return run.state == "cancelled"

    async def write_stdin(
        self, caller: Caller, vm: str, run_id: str, data: bytes, at: int | None = None, eof: bool = False
    ) -> Given:
        """More for the standard input of a run that was started with `stdin_open`: bytes that begin at `at` of all that
        it has been given (None: behind them); what it has had already is not taken twice. `eof`: nothing comes behind.
        What there is no room for within some seconds is not taken, and the answer says so.
        NotFound, BadRequest (something between is missing), InvalidState (it has ended), Conflict (its standard input
        is closed), ResourceBusy (it is pending; somebody else writes)."""
        row = self._access.usable(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None or run.over:
            if run is None:
                self._past.row(row, run_id)
            raise InvalidState("run", "running", "the run has ended", run_id)
        if not run.options.open:
            raise Conflict("run", "the run's standard input is not open: start it with stdin_open")
        await self._boxes.rouse(run.slot)
        return await stdin.give(run, data, at, eof)

    async def signal(
        self,
        caller: Caller,
        vm: str,
        signum: int,
        session_id: str | None = None,
        session_index: int | None = None,
    ) -> None:
        """Send a signal to the foreground process group of a session (default: index 0).
        NotFound (session; run: nothing runs in it), InvalidState (the VM is not running)."""
        row = self._access.usable(caller, vm)
        if session_id is not None:
            session: SessionRow | None = self._sessions.known(row, session_id)
        else:
            session = session_rows.by_index(self._database.near, row.id, session_index or 0)
        if self._boxes.suspended(row.id):
            told = "the VM is suspended: an empty run request lets it go on"
            raise InvalidState("vm", "running", told, row.id)
        if not self._boxes.live(row.id):
            raise InvalidState("vm", "running", "the VM is not running: there is nothing to signal", row.id)
        run = self._lanes.current(session.id) if session is not None else None
        if run is None or run.box is None:
            raise NotFound("run", "nothing runs in this session")
        try:
            delivered = await run.box.signal_run(run.id, signum)
        except BoxGone:
            delivered = False
        except EngineError as error:
            raise of_engine(error, "run") from error
        if not delivered:
            raise NotFound("run", "nothing runs in this session any more")


def _beginning(run: LiveRun, session: SessionRow, claim: Claim | None) -> Later | None:
    """What a run's beginning changes in the store."""
    begins = session.started_at is None
    row = None if run.recording else run.row()  # else all of it comes right behind this
    if row is None and not begins and claim is None:
        return None

    def insert(connection: sqlite3.Connection) -> None:
        if row is not None:
            run_rows.put(connection, row)
        if begins:
            session_rows.started(connection, session.id, run.started_at)
        if claim is not None:
            claim.record(connection, run.id)

    return Later(insert, small=row is None or row.small, aside=not begins)
