"""The runs that are not on record as ended yet: a lane for each session, in which one run goes at a time.

A run is accepted (`enqueue`), handed to the VM's box when its turn comes, and when it has ended its row is written;
only then may anyone be told of the end, and the box forget the run.

In a durable VM the disk comes first: that a run begins is there before its command is handed over; its output, what it
has left of its session, and its end are there before anybody is told of it, and before the next run begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.ends import END_SECONDS, Ends
from boxwood.core.errors import CapacityUnavailable, CoreError, Internal, ResourceBusy, Unavailable
from boxwood.core.interruptions import why_not_again
from boxwood.core.liverun import LiveRun, Options
from boxwood.core.refusals import clean, of_engine
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, BoxGone, EngineError, GuestError, RunEnd
from boxwood.store import runs as run_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.runs import RunRow

PENDING_RUNS = 1000  # behind one session
ROOM_SECONDS = 1.0  # between looks whether there is room for a run that was interrupted
_NEVER_STARTED = "the server was stopped before the run was started"
_LOST = "the box was lost while the server was down"
log = logging.getLogger(__name__)


class Lane:
    """The runs of one session: the current one and those behind it."""

    def __init__(self) -> None:
        self.current: LiveRun | None = None
        self.behind: deque[LiveRun] = deque()

    def __iter__(self) -> Iterator[LiveRun]:
        yield from self.behind
        if self.current is not None:
            yield self.current


class Lanes:
    def __init__(self, database: Database, boxes: Boxes, config: Config, tasks: Tasks, spool: Path) -> None:
        self._database = database
        self._boxes = boxes
        self._config = config
        self._tasks = tasks
        self._spool = spool
        self._live: dict[str, LiveRun] = {}
        self.recorded_hook: Callable[[str, int], None] = lambda vm_id, output: None  # its end is on record
        self._lanes: dict[str, Lane] = {}
        self._stopped = False
        self._ends = Ends(database, boxes, tasks, self._stored)

    def find(self, vm_id: str, run_id: str) -> LiveRun | None:
        run = self._live.get(run_id)
        return run if run is not None and run.vm_id == vm_id else None

    def current(self, session_id: str) -> LiveRun | None:
        lane = self._lanes.get(session_id)
        return None if lane is None else lane.current

    def free(self, session_id: str) -> bool:
        """Would a run in this session begin at once?"""
        return session_id not in self._lanes

    def busy(self, vm_id: str) -> bool:
        """Is there a run that has not ended, whether it has reached a box or not?"""
        return any(run.vm_id == vm_id and not run.over for run in self._live.values())

    def pending(self, vm_id: str) -> list[LiveRun]:
        """Oldest first."""
        runs = (run for run in self._live.values() if run.vm_id == vm_id and run.state == "pending")
        return sorted(runs, key=lambda run: run.id)

    # Beginning

    def standing_still(self, vm_id: str) -> list[str]:
        """The ids of those that are pending because the VM is suspended."""
        return [run.id for run in self._live.values() if run.vm_id == vm_id and run.stands_still and not run.over]

    async def rouse(self, vm_id: str) -> None:
        """If the VM is suspended, what runs in it goes on. Internal."""
        await self._boxes.rouse(self._boxes.slot(vm_id))

    def make(
        self,
        run_id: str,
        vm_id: str,
        vm_name: str | None,
        session_id: str,
        command: str,
        options: Options,
        tag: str | None = None,
        durable: bool = False,
    ) -> LiveRun:
        """A run that is nowhere yet."""
        return LiveRun(
            run_id,
            vm_id,
            session_id,
            command,
            options,
            vm_name=vm_name,
            tag=tag,
            spool=self._spool,
            bound=self._config.output_bytes,
            ended=self._over,
            flooded=self._flooded,
            durable=durable,
        )

    def enqueue(self, run: LiveRun) -> None:
        """Accept a run; without one before it, it begins at once. ResourceBusy."""
        lane = self._lanes.get(run.session_id)
        if lane is not None and len(lane.behind) >= PENDING_RUNS:
            raise ResourceBusy("session", f"{PENDING_RUNS} runs are pending in this session", retry_after=1)
        if self._stopped:
            raise Unavailable("the server is stopping")
        self._live[run.id] = run
        lane = self._lanes.setdefault(run.session_id, Lane())
        if lane.current is None:
            lane.current = run
            run.begin()
            self._tasks.start(self._drive(run))
        else:
            lane.behind.append(run)
            if self._boxes.suspended(run.vm_id):
                self._tasks.start(self.rouse(run.vm_id))
        self._mark(run.session_id)

    def _mark(self, session_id: str) -> None:
        lane = self._lanes.get(session_id)
        if lane is None:
            self._boxes.session_states.pop(session_id, None)
        else:
            self._boxes.session_states[session_id] = "running" if lane.current is not None else "pending"

    def give_up_after(self, run: LiveRun, seconds: float) -> None:
        """If it is still pending then, it never begins."""
        run.patience = asyncio.get_running_loop().call_later(seconds, self._queued_too_long, run)

    def _queued_too_long(self, run: LiveRun) -> None:
        if self._withdraw(run):
            run.failure = Unavailable("the session was busy for longer than queueing_timeout")
            run.finish("failed", None, "not started within queueing_timeout")

    def _withdraw(self, run: LiveRun) -> bool:
        """Take a pending run out of its lane. False: it is not pending."""
        lane = self._lanes.get(run.session_id)
        if lane is None or run not in lane.behind:
            return False
        lane.behind.remove(run)
        return True

    async def _drive(self, run: LiveRun) -> None:
        """Hand a run to a box; to another one, if the first died before the command was on its way."""
        try:
            for _ in range(2):
                slot = await self._enter(run)
                try:
                    await self._hand_over(run, slot)
                    return
                except BoxGone as error:
                    gone = error
                    if run.box is not None:
                        break
                finally:
                    self._boxes.leave(slot)
            run.lost(f"the box was lost: {gone}")
        except EngineError as error:
            if run.cancelling:  # killed before it began
                run.finish("cancelled")
            else:
                run.finish("failed", None, of_engine(error, "run").message)
        except CoreError as error:
            run.finish("failed", None, error.message)
        except Exception as error:
            log.exception("run %s", run.id)
            run.finish("failed", None, f"internal error: {type(error).__name__}")

    async def _enter(self, run: LiveRun) -> Slot:
        """One that is begun again waits until there is room: after a start of the host all of them come at once."""
        while True:
            try:
                return await self._boxes.enter(run.vm_id)
            except CapacityUnavailable:
                if not run.retries or run.over or run.cancelling:
                    raise
            await asyncio.sleep(ROOM_SECONDS)

    async def _hand_over(self, run: LiveRun, slot: Slot) -> None:
        box = slot.box
        if box is None:
            raise BoxGone("the box died")
        await self._boxes.open_session(slot, box, run.session_id)
        if run.durable and not run.over:
            await self._begins(run, box)
        if run.over:
            return
        if slot.box is not box:
            raise BoxGone("the box died")
        run.enter(slot, box)
        try:
            await box.start_run(run.spec(), run)
        except GuestError:
            slot.opened.discard(run.session_id)  # it may be the session that could not be opened
            raise

    async def _begins(self, run: LiveRun, box: Box) -> None:
        """From here on the host may stop at any time: what comes then finds that the run had begun. Internal."""
        if self._ends.prompts.get(run.session_id) is box and not run.options.beside:
            run.options = replace(run.options, typed=True)
            self._database.post(partial(run_rows.put, row=run.row()), run.start_lost)
        await self._database.secure()
        if run.lost_start is not None:
            raise Internal(f"its start could not be recorded: {run.lost_start}")

    def _flooded(self, run: LiveRun) -> None:
        if run.slot is not None and run.box is not None and run.slot.box is run.box:
            log.warning("VM %s: its box sends output without end; it is put down", run.vm_id)
            self._tasks.start(self._boxes.end(run.slot, run.box, "its agent did not keep to the output window"))

    # Ending

    def _over(self, run: LiveRun) -> None:
        """A run has ended: let the next one begin, and record the end."""
        if run.slot is not None:
            run.slot.runs.pop(run.id, None)
            self._boxes.parking.touch(run.slot)
        if not run.durable:
            self._advance(run)
        self._ends.record(run)

    def _stored(self, run: LiveRun) -> None:
        """The end of a run is on record, or could not be."""
        if run.recorded:
            self._live.pop(run.id, None)
            self.recorded_hook(run.vm_id, sum(stream.kept for stream in run.streams.values()))
        if run.durable:
            self._advance(run)

    async def on_record(self, run: LiveRun) -> None:
        """See `Ends.on_record`."""
        await self._ends.on_record(run)

    def _advance(self, run: LiveRun) -> None:
        """Let the next one begin, if this was the current one of its session."""
        lane = self._lanes.get(run.session_id)
        if lane is not None and lane.current is run and not self._stopped:
            lane.current = lane.behind.popleft() if lane.behind else None
            if lane.current is None:
                del self._lanes[run.session_id]
            else:
                lane.current.begin()
                self._database.post(partial(run_rows.put, row=lane.current.row()))
                self._tasks.start(self._drive(lane.current))
            self._mark(run.session_id)

    async def cancel(self, run: LiveRun) -> bool:
        """End it as cancelled. False: it takes longer than it may."""
        run.cancelling = True
        self._withdraw(run)
        if run.box is None:
            run.finish("cancelled")
            return True
        async with self._boxes.answering(self._boxes.slot(run.vm_id)):
            try:
                await run.box.kill_run(run.id)
            except BoxGone:
                run.lost("the box was lost")
            except EngineError as error:
                raise of_engine(error, "run") from error
            await run.wait(END_SECONDS)
        return run.over

    async def end_session(self, vm_id: str, session_id: str) -> None:
        """The session is being deleted: its runs end as cancelled, and all that it started is killed."""
        runs = list(self._lanes.get(session_id) or Lane())
        self._end_as_cancelled(runs)
        slot = self._boxes.slot(vm_id)
        async with self._boxes.answering(slot):
            if slot.box is not None:
                with contextlib.suppress(BoxGone):
                    await slot.box.close_session(session_id)
                slot.opened.discard(session_id)
                slot.sessions.discard(session_id)
                slot.directories.pop(session_id, None)
            self._ends.prompts.pop(session_id, None)
            for run in runs:
                await run.wait(END_SECONDS)
                if not run.over:
                    raise Unavailable("a run of the session has not ended yet", not_started=False)

    def end_vm(self, vm_id: str) -> None:
        """The VM is being deleted or stopped: whatever ends from now on ends as cancelled, and nothing more begins."""
        self._end_as_cancelled([run for run in self._live.values() if run.vm_id == vm_id])
        self._ends.vm_ends(vm_id)

    def _end_as_cancelled(self, runs: list[LiveRun]) -> None:
        for run in runs:
            run.cancelling = True
            self._withdraw(run)
            if run.box is None:
                run.finish("cancelled")

    async def recorded(self) -> None:
        """Wait until the end of every run that is over has been stored."""
        for run in [run for run in self._live.values() if run.over]:
            await run.wait(END_SECONDS)

    def stop(self) -> None:
        """Nothing more begins: what is pending is left to the next server, and what is interrupted from now on and can
        be begun again too. Whoever waits is answered now."""
        self._stopped = True
        for run in self._live.values():
            run.left = run.durable
            run.wake()

    async def close(self) -> None:
        """The engine sends no more: put away what it has sent. What was not on its way to a box yet is left to the next
        server, as if it had been pending."""
        for run in self._live.values():
            await run.spooled()
            run.close()
            if run.box is None and not run.over:
                run.state = "pending"
                self._database.post(partial(run_rows.put, row=run.row()))

    # Start of the server

    async def recover(self, adopted: Mapping[str, Slot]) -> None:
        """Go on with the runs that an earlier server left: those in boxes that live, and those that were pending."""
        near = self._database.near
        rows = {row.id: row for row in await self._database.read(run_rows.unfinished)}
        for slot in adopted.values():
            if slot.box is not None:
                for run_id, end in list(slot.box.known_runs.items()):
                    row = rows.get(run_id)
                    own = row is not None and row.vm_id == slot.vm_id  # a box speaks of no other VM's
                    await self._take_over(slot, slot.box, run_id, end, rows.pop(run_id) if own else None)
                if vm_rows.is_durable(near, slot.vm_id):
                    self._ends.prompts |= dict.fromkeys(run_rows.at_a_prompt(near, slot.vm_id), slot.box)
        runs = [self._remake(row) for row in rows.values()]
        again = [run for run in runs if run.state != "pending" and run.durable and why_not_again(run) is None]
        if again:
            await self._count_retries(again)
        for run in runs:
            if run.state == "pending":
                run.begin_again()
                self.enqueue(run)
                self._database.post(partial(run_rows.put, row=run.row()))
            else:
                self._live[run.id] = run
                run.reopen()
                lost = _NEVER_STARTED if run.vm_id in adopted else _LOST
                run.finish("failed", None, (run.durable and why_not_again(run)) or lost)

    async def _count_retries(self, runs: Sequence[LiveRun]) -> None:
        """They were interrupted and are pending now. On record before anything of it is done: should this server end in
        the middle, the next one finds them so, and does not count the same interruption again."""
        ids = [run.id for run in runs]
        await self._database.write(lambda connection: run_rows.begin_again(connection, ids))
        await self._database.secure()
        for run in runs:
            log.info("run %s was interrupted and is begun again", run.id)
            run.state = "pending"
            run.retries += 1

    def _remake(self, row: RunRow) -> LiveRun:
        vm = vm_rows.by_id(self._database.near, row.vm_id)
        name, durable = (None, False) if vm is None else (vm.name, bool(vm.durable))
        options = Options.read(row.options)
        run = self.make(row.id, row.vm_id, name, row.session_id, row.command, options, row.tag, durable)
        run.began_before(row.started_at)
        run.state = row.state
        run.background, run.retries = bool(row.background), row.retries
        return run

    async def _take_over(self, slot: Slot, box: Box, run_id: str, end: RunEnd | None, row: RunRow | None) -> None:
        if row is None:  # on record as ended, or nobody was ever told of it
            with contextlib.suppress(EngineError):
                if end is None:
                    await box.kill_run(run_id)
                box.forget(run_id)
            return
        run = self._remake(row)
        run.state = "running"
        run.reopen()
        run.slot, run.box = slot, box
        self._live[run_id] = run
        self._lanes.setdefault(run.session_id, Lane()).current = run
        self._mark(run.session_id)
        slot.runs[run_id] = run
        try:
            await box.resume_run(run_id, run, *(stream.received for stream in run.streams.values()))
            run.acknowledge()  # the last time may have been lost
        except EngineError as error:
            run.lost(f"the box could not go on with it: {clean(str(error))}")
