"""What is to be deleted, or suspended, by itself (VMs, records): what is due is read from the store, so a restart
forgets nothing. Whatever's time came while no server ran is done when the next one starts."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress

from boxwood.core import clock
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.tasks import Tasks
from boxwood.store.database import Database

MOST_SECONDS = 60.0  # between two looks: the clock may be set, and a deletion that failed is tried again
log = logging.getLogger(__name__)


class Expiry:
    """`due` tells ids whose time has come at a moment, `next_due` when the next one's will; `do` deletes (or whatever
    `done` says) what has this id if its time has still come by then."""

    def __init__(
        self,
        database: Database,
        tasks: Tasks,
        noun: str,
        due: Callable[[sqlite3.Connection, int], list[str]],
        next_due: Callable[[sqlite3.Connection, int], int | None],
        do: Callable[[str], Awaitable[None]],
        done: str = "deleted",
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._noun = noun
        self._due = due
        self._next_due = next_due
        self._do = do
        self._done = done
        self._going: set[str] = set()  # it is being done to them now, or could not be and is tried again later
        self._changed = asyncio.Event()

    def start(self) -> None:
        self._tasks.start(self._watch())

    def changed(self) -> None:
        """Something has got another time."""
        self._changed.set()

    async def _watch(self) -> None:
        while True:
            self._changed.clear()
            now = clock.now()
            for ident in self._due(self._database.near, now):
                if ident not in self._going:
                    self._going.add(ident)
                    self._tasks.start(self._its_time(ident))
            soonest = self._next_due(self._database.near, now)
            wait = MOST_SECONDS if soonest is None else min(MOST_SECONDS, (soonest - now) / 1e6)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _its_time(self, ident: str) -> None:
        pause = 0.0
        try:
            await self._do(ident)
        except NotFound:
            pass
        except CoreError as error:
            log.error("the time of %s %s has come, and it could not be %s: %s", self._noun, ident, self._done, error)
            pause = MOST_SECONDS  # not as often as others get another time
        finally:
            if pause:
                asyncio.get_running_loop().call_later(pause, self._again, ident)
            else:
                self._going.discard(ident)

    def _again(self, ident: str) -> None:
        self._going.discard(ident)
        self._changed.set()
