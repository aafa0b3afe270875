"""Ends of runs: what comes before one is told, and how it comes on record.

Its output is in its files, it is known what killed it, and its row is written; of a durable VM all of that, and what it
has left of its session, is on the disk. Only then may anyone be told of the end, and the box forget the run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from boxwood.core.boxes import Boxes
from boxwood.core.errors import Internal, Unavailable
from boxwood.core.liverun import LiveRun
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, EngineError
from boxwood.store import runs as run_rows
from boxwood.store.database import Database

KILLED = 137  # the exit code of what SIGKILL has ended
END_SECONDS = 30.0  # until the end of a run must be on record
SETTLE_SECONDS = 5.0  # for a box to save the shells of a durable VM
log = logging.getLogger(__name__)


class Ends:
    """`stored`: called when the row of an end is written, or could not be (`LiveRun.failure`). `prompts`: sessions of
    durable VMs in which a program waits for input, and where."""

    def __init__(self, database: Database, boxes: Boxes, tasks: Tasks, stored: Callable[[LiveRun], None]) -> None:
        self._database = database
        self._boxes = boxes
        self._tasks = tasks
        self._stored = stored
        self.prompts: dict[str, Box] = {}

    def record(self, run: LiveRun) -> None:
        """It is over."""
        if run.durable:
            self._tasks.start(self._record_durably(run))
        elif run.unspooled or run.exit_code == KILLED:
            self._tasks.start(self._record_later(run))
        else:
            self._record(run)

    def vm_ends(self, vm_id: str) -> None:
        """Nothing waits at a prompt in it any more."""
        self.prompts = {session: box for session, box in self.prompts.items() if box.vm_id != vm_id}

    async def _record_later(self, run: LiveRun) -> None:
        """Once its output is in its files, and it is known what killed it."""
        if run.unspooled:
            await run.spooled()
        await self._find_killer(run)
        self._record(run)

    async def _record_durably(self, run: LiveRun) -> None:
        """… and all that comes before its end is on the disk, or about to be with it."""
        if run.unspooled:
            await run.spooled()
        await self._find_killer(run)
        await self._save_shells(run)
        try:
            await run.secure_output()
        except OSError as error:
            log.error("run %s: its output could not be flushed: %s", run.id, error)
            run.state, run.fail_reason = "failed", f"its output could not be written to the disk: {error.strerror}"
        self._record(run)

    async def _save_shells(self, run: LiveRun) -> None:
        """What the run has left of its session is on the way to the store."""
        if not run.options.beside:
            if run.state == "completed" and run.exit_code is None and run.box is not None:
                self.prompts[run.session_id] = run.box
            else:
                self.prompts.pop(run.session_id, None)
        if run.slot is None or run.box is None or run.slot.box is not run.box:
            return
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await run.box.settle()
        except (EngineError, TimeoutError) as error:
            log.warning("VM %s: its shells were not saved: %s", run.vm_id, error)

    async def _find_killer(self, run: LiveRun) -> None:
        unexplained = run.exit_code == KILLED and (run.fail_reason is None or run.died)
        if unexplained and run.slot is not None and run.box is not None:
            kills = await self._boxes.memory_kills(run.slot, run.box)
            if kills:
                run.fail_reason = f"out of memory: {kills} of the VM's processes were killed at its limit"

    def _record(self, run: LiveRun) -> None:
        run.close()
        run.recording = True
        row = run.row()
        stored = self._database.submit(partial(run_rows.put, row=row), small=row.small, aside=True)
        if run.durable:
            stored = self._tasks.start(self._secured(stored), heard=True)
        stored.add_done_callback(partial(self._recorded, run))

    async def _secured(self, stored: asyncio.Future[None]) -> None:
        await stored
        await self._database.secure()

    def _recorded(self, run: LiveRun, stored: asyncio.Future[None]) -> None:
        if stored.cancelled():
            error: BaseException | None = Internal("the server was stopped")
        else:
            error = stored.exception()
        if error is not None:  # it stays here, and its output in the box: the next one to ask has it recorded
            log.error("run %s ended, which could not be recorded: %s", run.id, error)
            run.failure = run.failure or Internal(
                f"the run has ended, but its end could not be recorded: {error}",
                recovery={"work": "stopped", "context": {"vm_id": run.vm_id, "run_id": run.id}},
            )
        else:
            run.recorded = True
            if run.box is not None and not run.box.gone.done():
                run.box.forget(run.id)
        self._stored(run)
        run.wake()

    async def on_record(self, run: LiveRun) -> None:
        """What is told of an ended run must have been stored before; if that failed, it is tried again. Whoever waits
        is woken early where the server stops, and waits on. Unavailable: it takes longer."""
        if isinstance(run.failure, Internal):
            run.failure = None
            self._record(run)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_SECONDS
        while not run.recorded and run.failure is None and (left := deadline - loop.time()) > 0:
            await run.wait(left)
        if run.failure is not None:
            raise run.failure
        if not run.recorded:
            raise Unavailable("the run has ended, and its end is not on record yet: ask again", not_started=False)
