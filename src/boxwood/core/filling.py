"""Keeping pools filled: VMs are booted one at a time, when nobody has claimed one for a moment."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from boxwood.core.boxes import Boxes
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.forks import Forks, Home
from boxwood.core.model import ForkRequest
from boxwood.core.tasks import Tasks
from boxwood.core.vms import VMs
from boxwood.store.pools import PoolRow
from boxwood.store.vms import VMRow

QUIET_SECONDS = 0.03  # without a claim, after which VMs are booted
MOST_QUIET_SECONDS = 0.5  # … at the latest
RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)  # after so many failures in a row
log = logging.getLogger(__name__)


@dataclass(slots=True)
class PoolState:
    """A pool as it is now."""

    row: PoolRow
    template: VMRow
    revision: int
    ready: deque[str] = field(default_factory=deque)  # the oldest first
    starting: int = 0
    allocated: set[str] = field(default_factory=set)
    problem: str | None = None
    failures: int = 0
    filled_at: float = 0.0  # when one of its VMs was last begun
    retry_at: float = 0.0
    deleted: bool = False
    _about: tuple[str | None, dict[str, Any]] = (None, {})  # as text, and read
    _told: str | None = None  # what it was when it was last told

    @property
    def about(self) -> dict[str, Any]:
        """Of what all that are told of the pool share: nobody changes it."""
        if self._about[0] is not self.row.about:
            self._about = (self.row.about, json.loads(self.row.about or "{}"))
        return self._about[1]

    def weight(self) -> int:
        """What is told of it now takes so many bytes that it did not take before."""
        about, self._told = self._told, self.row.about
        return 0 if about is self.row.about else len(self.row.about or "")

    @property
    def short(self) -> int:
        return self.row.replicas - len(self.ready) - self.starting


class Filler:
    """`pools`: all there are, by id. `changed` is called when the numbers of one have changed."""

    def __init__(
        self,
        pools: Mapping[str, PoolState],
        boxes: Boxes,
        forks: Forks,
        vms: VMs,
        tasks: Tasks,
        changed: Callable[[PoolState], None],
    ) -> None:
        self._pools = pools
        self._boxes = boxes
        self._forks = forks
        self._vms = vms
        self._tasks = tasks
        self._changed = changed
        self._wanted = asyncio.Event()
        self._claimed_at = 0.0
        self._stopped = False

    def start(self) -> None:
        self._wanted.set()
        self._tasks.start(self._fill())

    def stop(self) -> None:
        """None is made any more, and none is missed."""
        self._stopped = True

    def wake(self) -> None:
        """Some pool wants something else than it has."""
        self._wanted.set()

    def claimed(self) -> None:
        """Somebody is claiming a VM."""
        self._claimed_at = asyncio.get_running_loop().time()

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        again: asyncio.TimerHandle | None = None
        while not self._stopped:
            await self._wanted.wait()
            self._wanted.clear()
            for state in list(self._pools.values()):
                self._shed(state)
            while (next_one := self._next(loop.time())) is not None:
                await self._quiet()
                await self._make_one(next_one)
            if again is not None:
                again.cancel()
            waiting = [state.retry_at for state in self._pools.values() if state.short > 0]
            again = loop.call_at(min(waiting), self._wanted.set) if waiting else None

    def _shed(self, state: PoolState) -> None:
        surplus = len(state.ready) - state.row.replicas
        for _ in range(surplus):
            self._tasks.start(self.remove(state.ready.pop()))
        if surplus > 0:
            self._changed(state)

    def _next(self, now: float) -> PoolState | None:
        """Of the pools that want more the one that has waited longest: one that is claimed from all the time does not
        keep the others waiting."""
        if self._stopped:
            return None
        short = [state for state in self._pools.values() if state.short > 0 and state.retry_at <= now]
        return min(short, key=lambda state: (state.filled_at, -state.short), default=None)

    async def _quiet(self) -> None:
        """Whoever claims comes first."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + MOST_QUIET_SECONDS
        while (left := min(self._claimed_at + QUIET_SECONDS, latest) - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)

    async def _make_one(self, state: PoolState) -> None:
        """Ready, or not there at all."""
        state.starting += 1
        state.filled_at = asyncio.get_running_loop().time()
        self._changed(state)
        vm_id: str | None = None
        try:
            made = await self._forks.make(
                state.row.org_id, ForkRequest(), state.template, home=Home(state.row.id, hidden=True)
            )
            vm_id = made.row.id
            slot = await self._boxes.enter(vm_id)
            self._boxes.leave(slot)
            if state.deleted or slot.box is None or len(state.ready) >= state.row.replicas:
                await self.remove(vm_id)
            else:
                self.is_ready(state, vm_id)
            state.problem, state.failures = None, 0
        except Exception as error:  # the other pools are filled all the same, and this one later
            if vm_id is not None:
                await self.remove(vm_id)
            if not state.deleted:
                self._failed(state, error)
        finally:
            state.starting -= 1
            self._changed(state)

    def _failed(self, state: PoolState, error: Exception) -> None:
        trace = None if isinstance(error, CoreError) else error
        log.error("pool %s/%s: no VM could be made: %s", state.row.namespace, state.row.name, error, exc_info=trace)
        state.problem = error.message if isinstance(error, CoreError) else "its VMs cannot be made: the log says why"
        pause = RETRY_SECONDS[min(state.failures, len(RETRY_SECONDS) - 1)]
        state.failures += 1
        state.retry_at = asyncio.get_running_loop().time() + pause

    def is_ready(self, state: PoolState, vm_id: str) -> None:
        state.ready.append(vm_id)
        self._boxes.parking.keep(vm_id, partial(self._lost, state, vm_id))

    def _lost(self, state: PoolState, vm_id: str) -> None:
        """Its box died."""
        if vm_id in state.ready and not self._stopped:
            state.ready.remove(vm_id)
            self._tasks.start(self.remove(vm_id))
            self._changed(state)
            self._wanted.set()

    async def remove(self, vm_id: str) -> None:
        self._boxes.parking.release(vm_id)
        try:
            with suppress(NotFound):
                await self._vms.remove(vm_id)
        except CoreError as error:
            log.error("VM %s of a pool could not be removed: %s", vm_id, error)
