"""The live side: which VMs have a box, who uses it, when it is made and put down.

The lock of a VM's `Slot` is held while a box is made or put down and while the VM's layers are changed; whoever holds
it and has waited for the short uses to end (`alone`) has the VM to himself, but for runs. Who merely uses a box takes
no lock.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TypeVar

from boxwood.core import clock
from boxwood.core.admission import Admission
from boxwood.core.ceilings import Ceilings
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.errors import Internal, NotFound, Unavailable
from boxwood.core.ids import new_id
from boxwood.core.making import Making, hostname
from boxwood.core.parking import Parking
from boxwood.core.slot import Passage, Slot
from boxwood.core.slumber import Slumber
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, BoxGone, Engine, EngineError, SessionSpec
from boxwood.store import sessions as session_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

ACTIVE_MARK_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # for an answer that can do without
LAST_SECONDS = 5.0  # for a box to save its shells before the server ends
GONE_SECONDS = 2.0  # that a box may take to end, whose agent answers no more
T = TypeVar("T")
log = logging.getLogger(__name__)


class Boxes:
    def __init__(
        self,
        database: Database,
        engine: Engine,
        config: Config,
        tasks: Tasks,
        admission: Admission,
        disks: Disks,
        ceilings: Ceilings,
    ) -> None:
        self._database = database
        self._engine = engine
        self._disks = disks
        self._ceilings = ceilings
        self._tasks = tasks
        self._slots: weakref.WeakValueDictionary[str, Slot] = weakref.WeakValueDictionary()
        self._live: dict[str, Slot] = {}  # those with a box
        self._booting: set[str] = set()
        self.making = Making(database, engine, config, disks, ceilings)
        self.parking = Parking(database, config, tasks, admission, self._live, self._booting, self.park)
        self.slumber = Slumber(database, engine, self.parking.touch)
        self._closing = False
        self.session_states: dict[str, str] = {}  # of those that are not idle
        self.put_down_hook: Callable[[], None] = lambda: None  # a box is gone: its layers may be collected
        self.environment_hook: Callable[[str], Mapping[str, str]] = lambda _: {}  # of a VM's shells: they may differ

    def slot(self, vm_id: str) -> Slot:
        slot = self._slots.get(vm_id)
        if slot is None:
            slot = self._slots[vm_id] = Slot(vm_id, self._database)
        return slot

    def live(self, vm_id: str) -> bool:
        return vm_id in self._live

    def running(self, vm_id: str) -> bool:
        slot = self._live.get(vm_id)
        return slot is not None and slot.running

    def running_ids(self) -> list[str]:
        return [vm_id for vm_id, slot in self._live.items() if slot.running]

    def suspended(self, vm_id: str) -> bool:
        slot = self._live.get(vm_id)
        return slot is not None and slot.suspended

    def address(self, vm_id: str) -> str | None:
        slot = self._live.get(vm_id)
        return None if slot is None or slot.box is None else slot.box.address or None

    def session_state(self, vm_id: str, session_id: str) -> str:
        state = self.session_states.get(session_id, "idle")
        return "pending" if state == "running" and self.suspended(vm_id) else state

    # Use

    async def enter(self, vm_id: str) -> Slot:
        """Begin a short use of a VM's box, booting or waking it if need be: its `box` is there until it dies by itself.
        NotFound, InvalidState (stopped), Unavailable, Internal."""
        slot = self.slot(vm_id)
        while slot.box is None or slot.suspended or slot.lock.locked():
            await self._tasks.finish(self._have_box(slot))
        slot.ops += 1
        now = asyncio.get_running_loop().time()
        if now - slot.marked_at >= ACTIVE_MARK_SECONDS:
            slot.marked_at = now
            self._database.post(partial(vm_rows.active, vm_id=vm_id, at=clock.now()), small=True)
        return slot

    def leave(self, slot: Slot) -> None:
        slot.ops -= 1
        slot.used()
        self.parking.touch(slot)

    async def rouse(self, slot: Slot | None) -> None:
        """Before something is asked of a box that is there: not of a suspended one. Internal."""
        while slot is not None and slot.suspended:
            await self._tasks.finish(self._have_box(slot))

    @asynccontextmanager
    async def answering(self, slot: Slot) -> AsyncIterator[None]:
        """A box that is there can be asked meanwhile; a suspended VM is not woken by that."""
        if not slot.suspended:
            yield
            return
        async with slot.lock, self.slumber.thawed(slot):
            yield

    @contextmanager
    def passage(self, slot: Slot) -> Iterator[None]:
        """Begun while its box is used: a stream into it or out of it (`slot.Passage`), until its end."""
        key = new_id()
        slot.runs[key] = Passage()
        try:
            yield
        finally:
            slot.runs.pop(key, None)
            self.parking.touch(slot)

    @asynccontextmanager
    async def using(self, vm_id: str) -> AsyncIterator[tuple[Slot, Box]]:
        slot = await self.enter(vm_id)
        try:
            if slot.box is None:
                raise BoxGone("the box died")
            yield slot, slot.box
        finally:
            self.leave(slot)

    async def asked(self, vm_id: str, ask: Callable[[Box], Awaitable[T]]) -> T:
        """What a VM's box answers. BoxGone: it is gone, and who tries again gets another; and as `enter`."""
        async with self.using(vm_id) as (_, box):
            try:
                return await ask(box)
            except BoxGone:
                await self.lost(box)
                raise

    async def lost(self, box: Box) -> None:
        """Its agent answers no more: wait until it is gone, that whoever asks again gets another."""
        if not self._closing:
            await asyncio.wait((box.gone,), timeout=GONE_SECONDS)

    @asynccontextmanager
    async def alone(self, vm_id: str) -> AsyncIterator[Slot]:
        """Nobody else begins to use the VM, and all short uses have ended; what stands still in it goes on meanwhile.
        For tasks that nobody cancels."""
        async with self._emptied(vm_id) as slot, self.slumber.thawed(slot):
            yield slot

    async def suspend(self, vm_id: str) -> bool:
        """Let what runs in a VM stand still until it is used again. For tasks that nobody cancels. False: nothing runs.
        As `Slumber.suspend`; NotFound."""
        async with self._emptied(vm_id) as slot:
            return await self.slumber.suspend(slot)

    @asynccontextmanager
    async def _emptied(self, vm_id: str) -> AsyncIterator[Slot]:
        """With its lock held, once all short uses have ended."""
        slot = self.slot(vm_id)
        async with slot.lock:
            if slot.deleted:
                raise NotFound("vm", f"there is no VM {vm_id}")
            await slot.drain()
            try:
                yield slot
            finally:
                self.parking.touch(slot)

    async def open_session(self, slot: Slot, box: Box, session_id: str) -> None:
        if session_id in slot.opened:
            return
        near = self._database.near
        row = session_rows.by_id(near, slot.vm_id, session_id)
        if row is None:
            raise NotFound("session", f"there is no session {session_id}")
        env = session_rows.env_of(row.exported) or session_rows.env_of(row.env) or {}
        env = {**self.environment_hook(slot.vm_id), **env}
        state = session_rows.saved_state(near, session_id)
        slot.sessions.add(session_id)
        await box.open_session(SessionSpec(session_id, env, row.cwd, state, row.kind))
        if slot.box is box:
            slot.opened.add(session_id)

    async def directory(self, slot: Slot, session_id: str) -> str | None:
        """Where a session's shell is, now that its last run has ended; as far as is known after a second."""
        if slot.box is not None and not slot.suspended:
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await slot.box.settle()  # a shell that is where it was says nothing: this is when all has been said
        return slot.directories.get(session_id)

    async def change(self, slot: Slot, row: VMRow) -> bool:
        """Let a live box have the name and the limits that its VM has now. False: it cannot."""
        if slot.box is None:
            return True
        try:
            limits = self._ceilings.limits(row, await self._disks.left(row))
            await self._engine.change(slot.box, hostname(row), limits)
        except EngineError as error:
            log.warning("VM %s: its box could not be changed: %s", slot.vm_id, error)
            return False
        return True

    async def memory_kills(self, slot: Slot, box: Box) -> int:
        """How many processes have been killed for want of memory since somebody looked, or the box was made."""
        before = slot.memory_kills
        try:
            now = await self._engine.memory_kills(box)
        except EngineError:
            return 0
        if now is None or slot.box is not box:
            return 0
        slot.memory_kills = now
        return 0 if before is None else now - before

    async def rename(self, row: VMRow) -> None:
        """A VM has another name: let its box have it, if it has one."""
        if (slot := self._live.get(row.id)) is not None:
            await self.change(slot, row)

    # Coming and going

    async def _have_box(self, slot: Slot) -> None:
        async with slot.lock:
            if slot.box is not None:
                await self.slumber.wake(slot)
                self.parking.touch(slot)
                return
            if slot.deleted:
                raise NotFound("vm", f"there is no VM {slot.vm_id}")
            if self._closing:
                raise Unavailable("the server is stopping")
            await self.parking.make_room(slot.vm_id)
            self._booting.add(slot.vm_id)
            try:
                self._install(slot, await self.making.make(slot))
            finally:
                self._booting.discard(slot.vm_id)

    def _install(self, slot: Slot, box: Box) -> None:
        slot.box = box
        slot.memory_kills = 0
        slot.opened.clear()
        slot.directories.clear()
        self._live[slot.vm_id] = slot
        box.listen(slot)
        box.gone.add_done_callback(lambda gone: self._died(slot, box, gone))
        self.parking.touch(slot)

    def _died(self, slot: Slot, box: Box, gone: asyncio.Future[str]) -> None:
        if slot.box is not box or self._closing:  # put down by us, or only let go of
            return
        reason = "the server let go of it" if gone.cancelled() else gone.result()
        log.warning("VM %s: its box died: %s", slot.vm_id, reason)
        self._vacate(slot, f"the box was lost: {reason}")

    def _vacate(self, slot: Slot, reason: str) -> None:
        """The slot has no box any more: its runs are over."""
        slot.box = None
        slot.suspended = False
        slot.opened.clear()
        self._live.pop(slot.vm_id, None)
        runs = list(slot.runs.values())
        slot.runs.clear()
        self.making.unmark(slot.vm_id)
        self.parking.vacated(slot)
        for run in runs:
            run.lost(reason)
        self.put_down_hook()

    async def dismiss(self, slot: Slot, reason: str) -> asyncio.Future[str] | None:
        """As `put_down`, of a VM that is never booted again; what tells when nothing is left of its box, if that is
        later."""
        box = slot.box
        await self.put_down(slot, reason, later=True)
        return None if box is None or box.gone.done() else box.gone

    async def put_down(self, slot: Slot, reason: str, *, later: bool = False) -> None:
        """End the box, with the lock held. Its runs are told the reason. `later`: it is enough that nothing runs in it
        any more."""
        box = slot.box
        if box is None:
            return
        slot.box = None  # its death is no surprise
        try:
            await (box.dismiss() if later else box.kill())
        except BoxGone:
            pass
        except EngineError as error:
            if not box.gone.done():
                slot.box = box
            raise Internal(f"the VM's box could not be put down: {error}") from error
        finally:
            if slot.box is None:
                self._vacate(slot, reason)

    async def end(self, slot: Slot, box: Box, reason: str) -> None:
        """Put down a box that does not behave, whoever uses it."""
        async with slot.lock:
            if slot.box is box:
                await self.put_down(slot, f"the box was put down: {reason}")

    # Parking

    async def park(self, vm_id: str) -> bool:
        """Put the box down unless something lives in it. True: there is none now."""
        async with self.alone(vm_id) as slot:
            return await self.park_held(slot)

    async def park_held(self, slot: Slot) -> bool:
        """`park` for a slot that the caller has alone."""
        if slot.box is None:
            return True
        if slot.runs:
            return False
        try:
            if not (await slot.box.settle()).idle:
                return False
        except BoxGone:
            pass
        await self.put_down(slot, "the VM was parked")
        return True

    # Start and end of the server

    async def adopt(self, boxes: Sequence[Box]) -> dict[str, Slot]:
        """Take over the boxes that an earlier server left; those of no VM, or of a stopped one, are put down."""
        near = self._database.near
        adopted: dict[str, Slot] = {}
        for box in boxes:
            row = vm_rows.by_id(near, box.vm_id)
            if row is None or row.box_base is None or row.stopped or box.vm_id in adopted or box.gone.done():
                log.warning("a box of no VM, or of a stopped one (%s), is put down", box.vm_id)
                await box.kill()
                continue
            slot = adopted[box.vm_id] = self.slot(box.vm_id)
            slot.sessions = {session.id for session in session_rows.of_vm(near, box.vm_id)}
            self._install(slot, box)
            slot.memory_kills = None
        live = tuple(adopted)
        await self._database.write(lambda connection: vm_rows.parked_but(connection, live))
        return adopted

    async def park_all(self) -> None:
        """Put every box down, whatever runs in it; shells are saved first where the box still answers. One that cannot
        be put down is left to the engine."""
        self.close()
        for slot in list(self._live.values()):
            async with slot.lock, self.slumber.thawed(slot):
                try:
                    await self._park_at_once(slot)
                except Internal as error:
                    log.error("VM %s: %s", slot.vm_id, error)

    async def _park_at_once(self, slot: Slot) -> None:
        """Internal."""
        if slot.box is None:
            return
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await slot.box.settle()
        except (EngineError, TimeoutError) as error:
            log.warning("VM %s: put down without a word: %s", slot.vm_id, error)
        await self.put_down(slot, "the server was shut down")

    def close(self) -> None:
        self._closing = True
        self.parking.close()
