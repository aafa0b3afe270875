"""Runs: commands in sessions. One at a time in each session; those behind it are pending, in order of arrival."""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from boxwood.core import clock, words
from boxwood.core.access import Access
from boxwood.core.argv import argv_of, text_of
from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import (
    BadRequest,
    Conflict,
    Internal,
    InvalidState,
    NotFound,
    PayloadTooLarge,
    ResourceBusy,
    Unavailable,
    Unrecoverable,
)
from boxwood.core.idempotency import Claim, Idempotency
from boxwood.core.ids import is_id, new_id
from boxwood.core.lanes import Lanes
from boxwood.core.liverun import LiveRun, Options
from boxwood.core.model import Caller, Given, Output, Page, Run, RunFilter, RunRequest
from boxwood.core.output import head
from boxwood.core.refusals import of_engine
from boxwood.core.sessions import Sessions
from boxwood.core.signing import Signer
from boxwood.core.tasks import Tasks
from boxwood.engine.api import BoxGone, EngineError, GuestError
from boxwood.store import runs as run_rows
from boxwood.store import sessions as session_rows
from boxwood.store.database import Database
from boxwood.store.runs import RunRow
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow

COMMAND_BYTES = 4 << 20
ARGUMENT_BYTES = 9  # that each costs in the kernel, beside its own
STDIN_BYTES = 8 << 20
MARKER_BYTES = 256
FOR_EVER = 1e9  # seconds
PIECE_BYTES = 64 << 10  # of each stream in an answer of `output`
ROOM_SECONDS = 10.0  # for which somebody who writes to a run's standard input waits for room
INPUT_SECONDS = 30.0  # … and for others that do
ASK_SECONDS = 60.0  # between looks at a run that is silent
STATES = ("pending", "running", "completed", "failed", "cancelled")
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
        self._spool = spool

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
        _check(request)
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
        run = self._lanes.make(new_id(), row.id, row.name, session.id, command, Options.of(request), request.tag)
        self._lanes.enqueue(run)
        if request.queueing_timeout and run.state == "pending":
            self._lanes.give_up_after(run, request.queueing_timeout)
        stored = run.row()

        def insert(connection: sqlite3.Connection) -> None:
            if not run.recording:  # else all of it comes right behind this
                run_rows.put(connection, stored)
            if session.started_at is None:
                session_rows.started(connection, session.id, stored.started_at)
            if claim is not None:
                claim.record(connection, run.id)

        self._database.post(insert, run.start_lost, small=stored.small)
        return run

    async def _inserted(self, run: LiveRun) -> None:
        """The run can be found again, whatever happens."""
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
        if run.over or run.failure is not None:
            await self._lanes.on_record(run)
        else:
            await self._inserted(run)
        return await run.shown()

    async def resume(
        self,
        caller: Caller,
        vm: str,
        session_id: str | None = None,
        session_index: int | None = None,
        wait: float | None = None,
    ) -> Run:
        """The entirely empty run request: wait for the run that has been pending longest.
        BadRequest if none is (a command is needed then)."""
        row = self._access.usable(caller, vm)
        wanted = session_id
        if wanted is None and session_index is not None:
            found = session_rows.by_index(self._database.near, row.id, session_index)
            wanted = "" if found is None else found.id
        pending = [run for run in self._lanes.pending(row.id) if wanted in (None, run.session_id)]
        if not pending:
            raise words.refuse("command", "is missing, and no run is pending that could be resumed")
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
        return await self._shown(self._stored(row, run_id), row.name)

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
    ) -> Output:
        """What has come since these offsets, as soon as there is any or the run has ended; nothing after `seconds`, or,
        with `beginning`, as soon as it is no longer pending. To be asked again with the offsets of the answer, until
        it is `ended`. NotFound, Unrecoverable."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            return await self._put_out(self._stored(row, run_id), out_at, err_at)
        await run.more(out_at, err_at, seconds, beginning=beginning)
        over = run.recorded or run.failure is not None
        kept = run.streams[1], run.streams[2]
        out, err = await kept[0].since(out_at, PIECE_BYTES), await kept[1].since(err_at, PIECE_BYTES)
        out_at, err_at = out_at + len(out), err_at + len(err)
        ended = over and out_at >= kept[0].kept and err_at >= kept[1].kept
        return Output(out, err, out_at, err_at, ended, run.state)

    async def _put_out(self, row: RunRow, out_at: int, err_at: int) -> Output:
        """As `output`, of a run whose end is on record."""
        spool = self._spool / row.vm_id
        out = await _part(spool / f"{row.id}.out", row.out, row.out_bytes, out_at, row)
        err = await _part(spool / f"{row.id}.err", row.err, row.err_bytes, err_at, row)
        out_at, err_at = out_at + len(out), err_at + len(err)
        return Output(out, err, out_at, err_at, out_at >= row.out_bytes and err_at >= row.err_bytes, row.state)

    async def follow(
        self, caller: Caller, vm: str, run_id: str, out_at: int = 0, err_at: int = 0
    ) -> AsyncGenerator[Output, None]:
        """What a run puts out from these offsets on, as it comes and no faster than it is taken; at once also when it
        is no longer pending. The last piece is `ended`. NotFound, Unrecoverable."""
        while True:
            piece = await self.output(caller, vm, run_id, out_at, err_at, ASK_SECONDS, beginning=True)
            out_at, err_at = piece.out_at, piece.err_at
            yield piece
            if piece.ended:
                return

    async def about(self, caller: Caller, vm: str, run_id: str) -> Run:
        """`get`, without output. NotFound."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            return _run(self._stored(row, run_id), row.name, b"", b"")
        if run.over or run.failure is not None:
            await self._lanes.on_record(run)
        else:
            await self._inserted(run)
        return await run.shown(output=False)

    def _stored(self, row: VMRow, run_id: str) -> RunRow:
        """NotFound."""
        stored = run_rows.by_id(self._database.near, row.id, run_id) if is_id(run_id) else None
        if stored is None:
            raise _no_run()
        return stored

    async def _shown(self, row: RunRow, vm_name: str | None) -> Run:
        spool = self._spool / row.vm_id
        out = await _kept(spool / f"{row.id}.out", row.out, row)
        err = await _kept(spool / f"{row.id}.err", row.err, row)
        return _run(row, vm_name, out, err)

    async def list(
        self, caller: Caller, vm: str, where: RunFilter | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Run]:
        """Newest first, without output. `limit`: 1 to 1000. BadRequest, NotFound."""
        words.limit(limit)
        row = self._access.own(caller, vm)
        conditions, params = _conditions(row.id, where or RunFilter())
        scope = f"runs:{row.id}"
        if (before := self._signer.position(scope, cursor)) is not None:
            conditions.append("id < :before")
            params["before"] = before
        found = await self._database.read(lambda connection: run_rows.page(connection, conditions, params, limit + 1))
        items = tuple(_run(run, row.name, b"", b"") for run in found[:limit])
        more = self._signer.cursor(scope, items[-1].run_id) if len(found) > limit else None
        return Page(items, more)

    async def cancel(self, caller: Caller, vm: str, run_id: str) -> bool:
        """End a run as cancelled: a pending one never starts, of a running one everything it started is killed.
        False: it had ended already. NotFound."""
        row = self._access.own(caller, vm)
        run = self._lanes.find(row.id, run_id)
        if run is None:
            self._stored(row, run_id)
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
                self._stored(row, run_id)
            raise InvalidState("run", "running", "the run has ended", run_id)
        if not run.options.open:
            raise Conflict("run", "the run's standard input is not open: start it with stdin_open")
        if not data and not eof:
            return await self._give(run, data, at, eof)  # whoever only asks how much it has had waits for no writer
        async with asyncio.timeout(INPUT_SECONDS) as patience:
            try:
                async with run.typing:
                    return await self._give(run, data, at, eof)
            except TimeoutError:
                assert patience.expired()
        raise ResourceBusy("run", "somebody else writes to the run's standard input", retry_after=1)

    async def _give(self, run: LiveRun, data: bytes, at: int | None, eof: bool) -> Given:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROOM_SECONDS
        box = await run.handed_over(ROOM_SECONDS)
        if box is None:
            if run.over:
                raise InvalidState("run", "running", "the run has ended", run.id)
            raise ResourceBusy("run", "the run is pending: it has no standard input yet", retry_after=1)
        try:
            if at is None:
                at = await box.write_stdin(run.id, None, b"", False)
            taken = 0
            while True:
                piece = data[taken : taken + PIECE_BYTES]
                last = taken + len(piece) == len(data)
                end = await box.write_stdin(run.id, at + taken, piece, eof and last)
                before, taken = taken, min(max(taken, end - at), len(data))
                if last and taken == len(data):
                    return Given(max(end, at), taken, eof)
                if taken == before and loop.time() >= deadline:
                    return Given(at + taken, taken, False)
        except GuestError as error:
            if error.errno in (errno.EPIPE, errno.ENOENT):
                raise Conflict("run", "the run's standard input is closed: nobody reads it any more") from None
            raise of_engine(error, "run") from error
        except BoxGone:
            raise InvalidState("run", "running", "the run has ended: its box died", run.id) from None
        except EngineError as error:
            raise of_engine(error, "run") from error

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


def _check(request: RunRequest) -> None:
    size = len(words.text("command", request.command))
    if request.argv is not None:
        if not request.argv or request.command or not request.beside:
            raise words.refuse("argv", "a program at least, instead of a command, beside all sessions")
    elif request.leaves:
        raise words.refuse("leaves", "only with argv")
    if request.argv is not None:
        size = sum(len(words.text("argv", argument)) + ARGUMENT_BYTES for argument in request.argv)
    if size > COMMAND_BYTES:
        raise PayloadTooLarge(f"the command has {size} bytes; at most {COMMAND_BYTES} are taken", COMMAND_BYTES, size)
    if request.stdin is not None and len(request.stdin) > STDIN_BYTES:
        raise PayloadTooLarge(
            f"stdin has {len(request.stdin)} bytes; at most {STDIN_BYTES} are taken", STDIN_BYTES, len(request.stdin)
        )
    words.seconds("timeout", request.timeout)
    words.seconds("wait", request.wait)
    words.seconds("queueing_timeout", request.queueing_timeout)
    words.environment(request.env)
    words.user(request.user)
    if request.cwd is not None:
        words.path(request.cwd, "cwd")
    if len(words.text("end_symbol", request.marker)) > MARKER_BYTES:
        raise words.refuse("end_symbol", f"at most {MARKER_BYTES} bytes")
    if request.prompt not in ("auto", "none"):
        raise words.refuse("end_symbol", "auto or none")
    if request.session_index is not None:
        words.session_index(request.session_index)


def _conditions(vm_id: str, where: RunFilter) -> tuple[list[str], dict[str, Any]]:
    conditions, params = ["vm_id = :vm"], {"vm": vm_id}  # type: tuple[list[str], dict[str, Any]]
    if where.state is not None:
        if where.state not in STATES:
            raise BadRequest(f"state: one of {', '.join(STATES)}", [("state", f"one of {', '.join(STATES)}")])
        conditions.append("state = :state")
        params["state"] = where.state
    if where.tag is not None:
        conditions.append("tag = :tag")
        params["tag"] = where.tag
    for column, sign, at in (
        ("started_at", ">=", where.started_after),
        ("started_at", "<=", where.started_before),
        ("completed_at", ">=", where.completed_after),
    ):
        if at is not None:
            name = f"t{len(params)}"
            conditions.append(f"{column} {sign} :{name}")
            params[name] = clock.stored(at)
    return conditions, params


def _run(row: RunRow, vm_name: str | None, out: bytes, err: bytes) -> Run:
    return Run(
        run_id=row.id,
        vm_id=row.vm_id,
        vm_name=vm_name,
        session_id=row.session_id,
        command=row.command,
        state=row.state,
        exit_code=row.exit_code,
        started_at=clock.shown(row.started_at),
        completed_at=clock.shown_or_none(row.completed_at),
        fail_reason=row.fail_reason,
        duration_ms=None if row.duration_us is None else row.duration_us / 1000,
        stdout=out,
        stderr=err,
        truncated=row.truncated,
        tag=row.tag,
        argv=argv_of(row.command) if row.direct else None,
        not_started=bool(row.not_started),
    )


async def _kept(path: Path, inline: bytes | None, row: RunRow) -> bytes:
    if inline is not None:
        return inline
    try:
        return await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError:
        raise Unrecoverable("run", row.id, "the output of this run is not there any more") from None


async def _part(path: Path, inline: bytes | None, size: int, at: int, row: RunRow) -> bytes:
    """A piece of the `size` bytes that are kept of a stream, from `at` on."""
    if inline is not None:
        return inline[at : at + PIECE_BYTES]
    if at >= size:
        return b""
    try:
        data = await asyncio.to_thread(head, path, min(PIECE_BYTES, size - at), at)
    except FileNotFoundError:
        data = b""
    if not data:
        raise Unrecoverable("run", row.id, "the output of this run is not there any more")
    return data


def _no_run() -> NotFound:
    return NotFound("run", "there is no such run")
