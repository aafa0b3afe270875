"""VMs that are to be deleted by themselves: who is due is read from the store, so a restart forgets nobody.

A VM whose time ended while no server ran is deleted when the next one starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from boxwood.core import clock
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.tasks import Tasks
from boxwood.store import vms as rows
from boxwood.store.database import Database

MOST_SECONDS = 60.0  # between two looks: the clock may be set, and a deletion that failed is tried again
log = logging.getLogger(__name__)


class Expiry:
    """`delete`: deletes a VM if its time is still over by then."""

    def __init__(self, database: Database, tasks: Tasks, delete: Callable[[str], Awaitable[None]]) -> None:
        self._database = database
        self._tasks = tasks
        self._delete = delete
        self._going: set[str] = set()  # being deleted now
        self._changed = asyncio.Event()

    def start(self) -> None:
        self._tasks.start(self._watch())

    def changed(self) -> None:
        """Some VM has got another time."""
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            self._changed.clear()
            now = clock.now()
            for vm_id in rows.expired(self._database.near, now):
                if vm_id not in self._going:
                    self._going.add(vm_id)
                    self._tasks.start(self._expire(vm_id))
            soonest = rows.next_expiry(self._database.near, now)
            wait = MOST_SECONDS if soonest is None else min(MOST_SECONDS, (soonest - now) / 1e6)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _expire(self, vm_id: str) -> None:
        try:
            await self._delete(vm_id)
        except NotFound:
            pass
        except CoreError as error:
            log.error("VM %s has expired and could not be deleted: %s", vm_id, error)
        finally:
            self._going.discard(vm_id)
