"""When boxes are put down for want of use: after a while, or at once where others need the room.

A VM that waits in a pool keeps its box though nobody uses it (`keep`): its room is for others only if no other is idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from boxwood.core.admission import Admission
from boxwood.core.config import Config
from boxwood.core.errors import CapacityUnavailable, CoreError, NotFound
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import EngineError
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database

SPARED_SECONDS = 1.0  # after a VM turned out not to be idle
log = logging.getLogger(__name__)


class Parking:
    """`live`: those with a box; `booting`: those that are about to have one. `park`: puts a VM's box down unless
    something lives in it."""

    def __init__(
        self,
        database: Database,
        config: Config,
        tasks: Tasks,
        admission: Admission,
        live: Mapping[str, Slot],
        booting: Collection[str],
        park: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._database = database
        self._config = config
        self._tasks = tasks
        self._admission = admission
        self._live = live
        self._booting = booting
        self._park = park
        self._kept: dict[str, Callable[[], None]] = {}  # who have their boxes whether they are used or not
        self._closed = False

    # Who is idle

    def keep(self, vm_id: str, lost: Callable[[], None]) -> None:
        """Do not park the VM for being idle; `lost` is called if its box dies."""
        self._kept[vm_id] = lost

    def release(self, vm_id: str) -> None:
        """From now on its box is as others' are."""
        if self._kept.pop(vm_id, None) is not None and (slot := self._live.get(vm_id)) is not None:
            self.touch(slot)

    def touch(self, slot: Slot) -> None:
        """Something ended: from now on the box may be idle."""
        if not self._is_idle(slot):
            return
        loop = asyncio.get_running_loop()
        slot.idle_since = loop.time()
        if slot.timer is None:
            slot.timer = loop.call_later(self._config.idle_seconds, self._look, slot)

    def _is_idle(self, slot: Slot) -> bool:
        if slot.busy or slot.suspended or slot.box is None:
            return False
        return not self._closed and slot.vm_id not in self._kept

    def _look(self, slot: Slot) -> None:
        slot.timer = None
        if not self._is_idle(slot):
            return
        loop = asyncio.get_running_loop()
        left = slot.idle_since + self._config.idle_seconds - loop.time()
        if left > 0.001:
            slot.timer = loop.call_later(left, self._look, slot)
        else:
            self._tasks.start(self._park_idle(slot.vm_id))

    async def _park_idle(self, vm_id: str) -> None:
        try:
            await self._park(vm_id)
        except NotFound:
            pass

    def vacated(self, slot: Slot) -> None:
        """It has no box any more."""
        self._stop(slot)
        if (lost := self._kept.pop(slot.vm_id, None)) is not None:
            lost()

    def close(self) -> None:
        """Nobody is parked any more for being idle."""
        self._closed = True
        for slot in self._live.values():
            self._stop(slot)

    def _stop(self, slot: Slot) -> None:
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    # Who gives way

    async def make_room(self, vm_id: str) -> None:
        """Those that have been idle longest are parked for others, and if there are none, those that wait in pools for
        others than their like. CapacityUnavailable: nobody is idle."""
        while (reason := self._admission.box_refused(len(self._live) + len(self._booting))) is not None:
            idle = [slot for slot in self._live.values() if self._gives_way(slot)]
            own = [slot for slot in idle if slot.vm_id not in self._kept]
            if not own and (not idle or self._waits_in_a_pool(vm_id)):
                raise CapacityUnavailable(reason)
            slot = min(own or idle, key=lambda slot: slot.idle_since)
            slot.spared_until = asyncio.get_running_loop().time() + SPARED_SECONDS  # should something live in it
            try:
                await self._park_idle(slot.vm_id)
            except (CoreError, EngineError) as error:  # that is no fault of who needs the room: the next one gives way
                log.error("VM %s: its box could not be parked: %s", slot.vm_id, error)

    def _gives_way(self, slot: Slot) -> bool:
        if slot.busy or slot.suspended or slot.lock.locked():
            return False
        return slot.spared_until <= asyncio.get_running_loop().time()

    def _waits_in_a_pool(self, vm_id: str) -> bool:
        row = vm_rows.by_id(self._database.near, vm_id)
        return row is not None and row.hidden and row.pool_id is not None
