"""The live side: which VMs have a box, who uses it, when it is made and put down.

A `Slot` is one VM's place: its box if it has one, the count of short uses (`ops`) and the runs in it. Its lock is held
while a box is made or put down and while the VM's layers are changed; whoever holds it and has waited for the short
uses to end (`alone`) has the VM to himself, but for runs. Who merely uses a box takes no lock.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

from boxwood.core import clock
from boxwood.core.admission import Admission
from boxwood.core.ceilings import Ceilings
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.errors import CapacityUnavailable, Conflict, CoreError, Internal, InvalidState, NotFound, Unavailable
from boxwood.core.held import Held
from boxwood.core.tasks import Tasks
from boxwood.engine.api import (
    Box,
    BoxGone,
    BoxSpec,
    Engine,
    EngineError,
    EngineUnavailable,
    SessionSpec,
    Stack,
)
from boxwood.store import layers as layer_rows
from boxwood.store import sessions as session_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

ACTIVE_MARK_SECONDS = 60.0
SPARED_SECONDS = 1.0  # after a VM turned out not to be idle
SETTLE_SECONDS = 1.0  # for an answer that can do without
STATE_BYTES = 8 << 20
log = logging.getLogger(__name__)


class Resident(Protocol):
    """A run in a box, as the box's slot sees it."""

    def lost(self, reason: str) -> None: ...


class Slot:
    """One VM's place among the living. Hears of its sessions' states (`api.SessionSink`)."""

    def __init__(self, vm_id: str, database: Database) -> None:
        self.vm_id = vm_id
        self.lock = asyncio.Lock()
        self.box: Box | None = None
        self.ops = 0
        self.runs: dict[str, Resident] = {}
        self.opened: set[str] = set()  # sessions that this box knows
        self.sessions: set[str] = set()  # sessions that it may speak of
        self.directories: dict[str, str] = {}  # where sessions are, as far as this box has said
        self.deleted = False
        self.idle_since = 0.0
        self.spared_until = 0.0
        self.memory_kills: int | None = None  # as far as is known, since when somebody has looked
        self.marked_at = float("-inf")
        self.timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._database = database
        self._unsaved: dict[str, tuple[str, dict[str, str], bytes]] = {}

    @property
    def busy(self) -> bool:
        return self.ops > 0 or bool(self.runs)

    @property
    def still(self) -> bool:
        """It has no box, and none is being made."""
        return self.box is None and not self.lock.locked()

    async def drain(self) -> None:
        """Wait for the end of all short uses; only with the lock held, so that no new ones begin."""
        while self.ops:
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def used(self) -> None:
        if not self.ops and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        if session_id not in self.sessions or len(state) > STATE_BYTES:
            log.warning("VM %s: a state that nobody asked for was dropped", self.vm_id)
            return
        # Only the newest is kept: a box that sends states without end costs no memory.
        self.directories[session_id] = cwd = cwd.encode(errors="replace").decode()
        self._unsaved[session_id] = (cwd, env, state)

        def save(connection: sqlite3.Connection) -> None:
            if newest := self._unsaved.pop(session_id, None):
                session_rows.save(connection, self.vm_id, session_id, *newest)

        self._database.post(save)


class Boxes:
    def __init__(
        self, database: Database, engine: Engine, config: Config, tasks: Tasks, admission: Admission, disks: Disks
    ) -> None:
        self._database = database
        self._engine = engine
        self._disks = disks
        self._admission = admission
        self._booting = 0
        self._config = config
        self._ceilings = Ceilings(config)
        self._tasks = tasks
        self._slots: weakref.WeakValueDictionary[str, Slot] = weakref.WeakValueDictionary()
        self._live: dict[str, Slot] = {}  # those with a box
        self._closing = False
        self.held = Held(config)
        self.session_states: dict[str, str] = {}  # of those that are not idle
        self._kept: dict[str, Callable[[], None]] = {}  # who have their boxes whether they are used or not
        self.put_down_hook: Callable[[], None] = lambda: None  # a box is gone: its layers may be collected

    def slot(self, vm_id: str) -> Slot:
        slot = self._slots.get(vm_id)
        if slot is None:
            slot = self._slots[vm_id] = Slot(vm_id, self._database)
        return slot

    def live(self, vm_id: str) -> bool:
        return vm_id in self._live

    def running(self, vm_id: str) -> bool:
        slot = self._live.get(vm_id)
        return slot is not None and slot.busy

    def running_ids(self) -> list[str]:
        return [vm_id for vm_id, slot in self._live.items() if slot.busy]

    def network(self, row: VMRow) -> str:
        """What the VM's next box has of the network; one that lives has what it was made with."""
        return row.network or self._config.network

    def address(self, vm_id: str) -> str | None:
        slot = self._live.get(vm_id)
        return None if slot is None or slot.box is None else slot.box.address or None

    def session_state(self, session_id: str) -> str:
        return self.session_states.get(session_id, "idle")

    # Use

    async def enter(self, vm_id: str) -> Slot:
        """Begin a short use of a VM's box, booting it if need be: its `box` is there until it dies by itself.
        NotFound, InvalidState (stopped), Unavailable, Internal."""
        slot = self.slot(vm_id)
        while slot.box is None or slot.lock.locked():
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
        self.touch(slot)

    @asynccontextmanager
    async def using(self, vm_id: str) -> AsyncIterator[tuple[Slot, Box]]:
        slot = await self.enter(vm_id)
        try:
            if slot.box is None:
                raise BoxGone("the box died")
            yield slot, slot.box
        finally:
            self.leave(slot)

    @asynccontextmanager
    async def alone(self, vm_id: str) -> AsyncIterator[Slot]:
        """Nobody else begins to use the VM, and all short uses have ended. For tasks that nobody cancels."""
        slot = self.slot(vm_id)
        async with slot.lock:
            if slot.deleted:
                raise NotFound("vm", f"there is no VM {vm_id}")
            await slot.drain()
            try:
                yield slot
            finally:
                self.touch(slot)

    async def open_session(self, slot: Slot, box: Box, session_id: str) -> None:
        if session_id in slot.opened:
            return
        near = self._database.near
        row = session_rows.by_id(near, slot.vm_id, session_id)
        if row is None:
            raise NotFound("session", f"there is no session {session_id}")
        env = session_rows.env_of(row.exported) or session_rows.env_of(row.env) or {}
        state = session_rows.saved_state(near, session_id)
        slot.sessions.add(session_id)
        await box.open_session(SessionSpec(session_id, env, row.cwd, state))
        if slot.box is box:
            slot.opened.add(session_id)

    async def directory(self, slot: Slot, session_id: str) -> str | None:
        """Where a session's shell is, now that its last run has ended; as far as is known after a second."""
        if slot.box is not None:
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await slot.box.settle()  # a shell that is where it was says nothing: this is when all has been said
        return slot.directories.get(session_id)

    async def change(self, slot: Slot, row: VMRow) -> bool:
        """Let a live box have the name and the limits that its VM has now. False: it cannot."""
        if slot.box is None:
            return True
        try:
            limits = self.held.of(row, self._ceilings.limits(row, await self._disks.left(row)))
            await self._engine.change(slot.box, _hostname(row), limits)
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

    def keep(self, vm_id: str, lost: Callable[[], None]) -> None:
        """Do not park the VM for being idle; `lost` is called if its box dies."""
        self._kept[vm_id] = lost

    def release(self, vm_id: str) -> None:
        """From now on its box is as others' are."""
        if self._kept.pop(vm_id, None) is not None and (slot := self._live.get(vm_id)) is not None:
            self.touch(slot)

    # Coming and going

    async def _have_box(self, slot: Slot) -> None:
        async with slot.lock:
            if slot.box is not None:
                return
            if slot.deleted:
                raise NotFound("vm", f"there is no VM {slot.vm_id}")
            if self._closing:
                raise Unavailable("the server is stopping")
            await self._make_room(slot.vm_id)
            self._booting += 1
            try:
                self._install(slot, await self._boot(slot))
            finally:
                self._booting -= 1

    async def _make_room(self, vm_id: str) -> None:
        """Those that have been idle longest are parked for others, and if there are none, those that wait in pools for
        others than their like. CapacityUnavailable: nobody is idle."""
        while (reason := self._admission.box_refused(len(self._live) + self._booting)) is not None:
            idle = [slot for slot in self._live.values() if self._parkable(slot)]
            own = [slot for slot in idle if slot.vm_id not in self._kept]
            if not own and (not idle or self._waits_in_a_pool(vm_id)):
                raise CapacityUnavailable(reason)
            idle = own or idle
            slot = min(idle, key=lambda slot: slot.idle_since)
            slot.spared_until = asyncio.get_running_loop().time() + SPARED_SECONDS  # should something live in it
            await self._park_idle(slot.vm_id)

    def _parkable(self, slot: Slot) -> bool:
        if slot.busy or slot.lock.locked():
            return False
        return slot.spared_until <= asyncio.get_running_loop().time()

    def _waits_in_a_pool(self, vm_id: str) -> bool:
        row = vm_rows.by_id(self._database.near, vm_id)
        return row is not None and row.hidden and row.pool_id is not None

    async def _boot(self, slot: Slot) -> Box:
        """The mark that its layers are in use is committed while the box is made. Whoever could take the layers away
        is asked of later than the mark; a box that lives without one is put down by the next server."""
        near, vm_id = self._database.near, slot.vm_id
        row = self._bootable(vm_id)
        disk = 0
        if row.disk_mib is not None and not row.read_only:
            try:
                await self._disks.make_fit(row)
                disk = await self._disks.left(self._bootable(vm_id))
            except EngineError as error:
                raise self._not_made(row, (), error) from error
            row = self._bootable(vm_id)  # what it stands on may have been replaced meanwhile
        layers, images = layer_rows.chain(near, row.base)
        slot.marked_at = asyncio.get_running_loop().time()
        mark = partial(vm_rows.boot, vm_id=vm_id, base=row.base, at=clock.now())
        marked = self._database.submit(mark, small=True)
        try:
            stack, networked = Stack(layers, row.top, images), self.network(row) != "none"
            spec = BoxSpec(
                vm_id, stack, _hostname(row), self.held.of(row, self._ceilings.limits(row, disk)), networked,
                ahead=bool(row.hidden and row.pool_id), read_only=bool(row.read_only),
            )  # fmt: skip
            box = await self._engine.boot(spec)
        except EngineError as error:
            if not marked.cancel():  # as a wait: it is committed all the same, and taken back
                marked.exception()
            self._database.post(lambda connection: vm_rows.parked(connection, vm_id), small=True)
            raise self._not_made(row, images, error) from error
        try:
            await marked
        except BaseException:
            await box.kill()
            raise
        return box

    def _bootable(self, vm_id: str) -> VMRow:
        """NotFound, InvalidState."""
        row = vm_rows.by_id(self._database.near, vm_id)
        if row is None:
            raise NotFound("vm", f"there is no VM {vm_id}")
        if row.stopped:
            raise InvalidState("vm", "running", "the VM has been stopped: start it", vm_id)
        return row

    def _not_made(self, row: VMRow, images: Iterable[str], error: EngineError) -> CoreError:
        log.error("VM %s: its box could not be made: %s", row.id, error)
        if isinstance(error, EngineUnavailable):
            return Unavailable(f"boxes cannot be made now: {error}")
        place = self._config.images
        missing = [layer for layer in images if not (place / layer / "upper").is_dir()]
        if missing:
            name = row.root_source_name or "an image without a name"
            return Conflict(
                "vm",
                f"the VM stands on {name} (image layer {missing[0]}), which is not in {place}: put its directory back, "
                "or start the server with the images directory that has it",
            )
        return Internal(f"the VM's box could not be made: {error}")

    def _install(self, slot: Slot, box: Box) -> None:
        slot.box = box
        slot.memory_kills = 0
        slot.opened.clear()
        slot.directories.clear()
        self._live[slot.vm_id] = slot
        box.listen(slot)
        box.gone.add_done_callback(lambda gone: self._died(slot, box, gone))
        self.touch(slot)

    def _died(self, slot: Slot, box: Box, gone: asyncio.Future[str]) -> None:
        if slot.box is not box or self._closing:  # put down by us, or only let go of
            return
        reason = "the server let go of it" if gone.cancelled() else gone.result()
        log.warning("VM %s: its box died: %s", slot.vm_id, reason)
        self._vacate(slot, f"the box was lost: {reason}")

    def _vacate(self, slot: Slot, reason: str) -> None:
        """The slot has no box any more: its runs are over."""
        slot.box = None
        slot.opened.clear()
        self._live.pop(slot.vm_id, None)
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        runs = list(slot.runs.values())
        slot.runs.clear()
        self._database.post(lambda connection: vm_rows.parked(connection, slot.vm_id), small=True)
        if (lost := self._kept.pop(slot.vm_id, None)) is not None:
            lost()
        for run in runs:
            run.lost(reason)
        self.put_down_hook()

    async def put_down(self, slot: Slot, reason: str) -> None:
        """End the box, with the lock held. Its runs are told the reason."""
        box = slot.box
        if box is None:
            return
        slot.box = None  # its death is no surprise
        try:
            await box.kill()
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

    def touch(self, slot: Slot) -> None:
        """Something ended: from now on the box may be idle."""
        if slot.busy or slot.box is None or self._closing or slot.vm_id in self._kept:
            return
        loop = asyncio.get_running_loop()
        slot.idle_since = loop.time()
        if slot.timer is None:
            slot.timer = loop.call_later(self._config.idle_seconds, self._idle, slot)

    def _idle(self, slot: Slot) -> None:
        slot.timer = None
        if slot.busy or slot.box is None or self._closing or slot.vm_id in self._kept:
            return
        loop = asyncio.get_running_loop()
        left = slot.idle_since + self._config.idle_seconds - loop.time()
        if left > 0.001:
            slot.timer = loop.call_later(left, self._idle, slot)
        else:
            self._tasks.start(self._park_idle(slot.vm_id))

    async def _park_idle(self, vm_id: str) -> None:
        try:
            await self.park(vm_id)
        except NotFound:
            pass

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
        """Put every box down, whatever runs in it; shells are saved first where the box still answers."""
        self._closing = True
        for vm_id in list(self._live):
            slot = self.slot(vm_id)
            async with slot.lock:
                if slot.box is None:
                    continue
                try:
                    async with asyncio.timeout(5):
                        await slot.box.settle()
                except (EngineError, TimeoutError) as error:
                    log.warning("VM %s: put down without a word: %s", vm_id, error)
                await self.put_down(slot, "the server was shut down")

    def close(self) -> None:
        self._closing = True
        for slot in list(self._live.values()):
            if slot.timer is not None:
                slot.timer.cancel()
                slot.timer = None


def _hostname(row: VMRow) -> str:
    name = (row.name or "boxwood").replace("_", "-").strip(".-")
    return name if name and len(name) <= 63 else "boxwood"
