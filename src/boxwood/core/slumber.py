"""VMs that are suspended: their processes stand still, in memory, until somebody uses the VM again.

The box's agent stands still with the rest, so it is asked nothing meanwhile. Whoever has to ask it though nobody wakes
the VM (a fork, a change of its limits) lets all go on for that long (`thawed`); if nothing runs in it then, it is as
other idle VMs are. A suspended box whose server ends goes on; the next server suspends it again before it does anything
else.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from boxwood.core import clock
from boxwood.core.errors import ResourceBusy, Unsupported
from boxwood.core.refusals import of_engine
from boxwood.core.slot import Slot
from boxwood.engine.api import Box, BoxGone, Engine, EngineError
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database

log = logging.getLogger(__name__)


class Slumber:
    """`woken_hook`: in the transaction in which it is on record that a VM runs again, with that time. `idle`: told of
    VMs that are suspended no more, and that nothing runs in."""

    def __init__(self, database: Database, engine: Engine, idle: Callable[[Slot], None]) -> None:
        self._database = database
        self._engine = engine
        self._idle = idle
        self.woken_hook: Callable[[sqlite3.Connection, str, int], None] = lambda connection, vm_id, at: None
        self.clocks_hook: Callable[[], None] = lambda: None  # VMs may have other times now

    async def suspend(self, slot: Slot) -> bool:
        """With the slot held alone. Connections to the VM are closed, whoever looks at its terminals is sent away; then
        its processes stand still. False: nothing runs in it, so it is left alone. ResourceBusy (files are on their way
        into it or out of it), Internal, Unsupported."""
        box = slot.box
        if box is None or slot.suspended:
            return slot.suspended
        if problem := self._engine.suspend_problem():  # the rule is from another host, or from better times
            raise Unsupported(f"this server cannot suspend VMs: {problem}")
        residents = list(slot.runs.values())
        if any(one.must_go_on for one in residents):
            raise ResourceBusy("vm", "files are on their way into the VM, or out of it", retry_after=1)
        for one in residents:
            await one.make_way()
        try:
            activity = await box.settle()
            while slot.ops:  # a file is being closed, which waits for no lock
                await slot.drain()
                activity = await box.settle()
            if activity.idle:
                self._goes_on(slot)
                return False
            slot.suspended = True
            await self._engine.suspend(box)
        except EngineError as error:
            self._goes_on(slot)
            if isinstance(error, BoxGone):
                return False
            raise of_engine(error, "vm") from error
        for stands in slot.runs.values():
            stands.stand_still()
        self._database.post(partial(vm_rows.suspend, vm_id=slot.vm_id), small=True)
        return True

    async def wake(self, slot: Slot) -> None:
        """With the slot's lock held: everything goes on, as if nothing had been. Internal."""
        box = slot.box
        if box is None or not slot.suspended:
            return
        try:
            await self._engine.wake(box)
        except EngineError as error:
            if box.gone.done():
                return
            raise of_engine(error, "vm") from error
        self.awake(slot)

    def awake(self, slot: Slot) -> None:
        """It is on record that the VM runs again, from now on."""
        at, vm_id = clock.now(), slot.vm_id

        def record(connection: sqlite3.Connection) -> None:
            vm_rows.wake(connection, vm_id, at)
            self.woken_hook(connection, vm_id, at)

        done = self._database.submit(record, small=True)
        done.add_done_callback(lambda _: self.clocks_hook())
        self._goes_on(slot)

    def _goes_on(self, slot: Slot) -> None:
        slot.suspended = False
        for one in slot.runs.values():
            one.go_on()

    async def _is_idle(self, slot: Slot, box: Box) -> bool:
        if not slot.runs:
            with suppress(EngineError):
                return (await box.settle()).idle
        return False

    @asynccontextmanager
    async def thawed(self, slot: Slot) -> AsyncIterator[None]:
        """With the slot's lock held: the box of a suspended VM answers meanwhile, and its processes go on; to everybody
        else it is suspended as before."""
        box = slot.box if slot.suspended else None
        if box is None:
            yield
            return
        try:
            await self._engine.wake(box)
        except EngineError as error:
            log.warning("VM %s: what stands still in it could not be let go on: %s", slot.vm_id, error)
        try:
            yield
        finally:
            if slot.box is box and slot.suspended and await self._is_idle(slot, box):
                self._database.post(partial(vm_rows.suspend, vm_id=slot.vm_id, suspended=False), small=True)
                self._goes_on(slot)
                self._idle(slot)
            elif slot.box is box and slot.suspended:
                try:
                    await self._engine.suspend(box)
                except EngineError as error:
                    log.warning("VM %s: it could not be suspended again: %s", slot.vm_id, error)
                    self.awake(slot)
