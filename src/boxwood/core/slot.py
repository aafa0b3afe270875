"""One VM's place among the living: its box if it has one, the count of short uses (`ops`) and the runs in it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from boxwood.engine.api import Box
from boxwood.store import sessions as session_rows
from boxwood.store.database import Database

STATE_BYTES = 8 << 20
log = logging.getLogger(__name__)


class Resident:
    """A run in a box, or what else keeps it, as the box's slot sees it."""

    must_go_on = False  # the VM cannot be suspended before it has ended

    def lost(self, reason: str) -> None:
        """The box has gone."""

    async def make_way(self) -> None:
        """The VM is about to be suspended: whoever looks at it or is connected to it goes."""

    def stand_still(self) -> None:
        """It is suspended."""

    def go_on(self) -> None:
        """It was woken, or not suspended after all."""


class Passage(Resident):
    """A stream into a box or out of it: if the box is lost, the next byte says so. Whoever has the other end would have
    to wait for nobody knows how long, so the box is not suspended before it has ended."""

    must_go_on = True


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
        self.suspended = False  # what is in its box stands still: see slumber.py
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
    def running(self) -> bool:
        """It is busy, and not suspended."""
        return self.busy and not self.suspended

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
