"""Filesystems: volumes that outlive VMs and are mounted in several at once (`core/mounts.py`).

Wherever a filesystem is asked for, its id or its name will do. One is deleted when it is mounted nowhere; its name is
free at once, and its directory is removed as soon as no box lives that has had it, for what ran in there may still be.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import weakref
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boxwood.core import clock, words
from boxwood.core.admission import Admission
from boxwood.core.config import Config
from boxwood.core.disks import LEAST_MIB, MIB
from boxwood.core.errors import AlreadyExists, Conflict, InsufficientResources, NotFound, Unsupported
from boxwood.core.ids import has_id_shape, is_id, new_id
from boxwood.core.model import Caller, Page
from boxwood.core.refusals import of_engine
from boxwood.core.signing import Signer
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Engine, EngineError
from boxwood.store import filesystems as rows
from boxwood.store.database import Database, StoreError
from boxwood.store.filesystems import FilesystemRow

MOST = 1000  # of one organisation
GRACE_SECONDS = 86400.0  # that a directory without a row stays: a database may have been put back
MEASURED_SECONDS = 10.0  # after which a size is asked for again
MEASURING_SECONDS = 1.0  # that somebody waits for it
COLLECT_SECONDS = 0.2
_NAMED = 3  # VMs in a refusal
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Filesystem:
    """`size_mib`: that it can hold, None: as much as there is. `size_bytes`: that it took when somebody last looked."""

    filesystem_id: str
    org_id: str
    name: str
    size_mib: int | None
    size_bytes: int | None
    created_at: datetime


class Filesystems:
    def __init__(
        self, database: Database, engine: Engine, config: Config, admission: Admission, signer: Signer, tasks: Tasks
    ) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self._admission = admission
        self._signer = signer
        self._tasks = tasks
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._measuring: dict[str, asyncio.Task[None]] = {}
        self._took: dict[str, float] = {}  # seconds, of the last measurement of each
        self._doomed: set[str] = set()  # whose directories are to be removed
        self._to_collect = asyncio.Event()
        self._idle = asyncio.Event()

    def one_at_a_time(self, row: FilesystemRow) -> AbstractAsyncContextManager[Any]:
        """Around what is asked of the engine about the volume. One without a size is a mere directory, of which any
        number may ask."""
        return nullcontext() if row.size_mib is None else self._lock(row.id)

    def _lock(self, filesystem_id: str) -> asyncio.Lock:
        lock = self._locks.get(filesystem_id)
        if lock is None:
            lock = self._locks[filesystem_id] = asyncio.Lock()
        return lock

    # Looking

    def own(self, caller: Caller, reference: str) -> FilesystemRow:
        """NotFound: there is none, or it is another organisation's."""
        near, row = self._database.near, None
        if has_id_shape(reference):
            row = rows.by_id(near, reference.upper()) if is_id(reference.upper()) else None
        elif len(reference) <= words.NAME_CHARACTERS and reference.isascii():
            row = rows.by_name(near, caller.org_id, reference)
        if row is None or row.org_id != caller.org_id:
            raise NotFound("filesystem", "there is no such filesystem")
        return row

    async def get(self, caller: Caller, reference: str) -> Filesystem:
        """With its size as it is now, if that can be had within a second. NotFound."""
        row = self.own(caller, reference)
        age = None if row.measured_at is None else clock.now() - row.measured_at
        if age is None or age > 1e6 * max(MEASURED_SECONDS, 10 * self._took.get(row.id, 0)):
            await asyncio.wait({self.measure(row.id)}, timeout=MEASURING_SECONDS)
        return _shown(self.own(caller, row.id))

    async def list(
        self, caller: Caller, cursor: str | None = None, limit: int = 100, name_prefix: str = ""
    ) -> Page[Filesystem]:
        """By name. `limit`: 1 to 1000. BadRequest."""
        words.limit(limit)
        words.text("name_prefix", name_prefix)
        scope = f"filesystems:{caller.org_id}"
        after = self._signer.position(scope, cursor) or ""
        found = await self._database.read(
            lambda connection: rows.page(connection, caller.org_id, name_prefix, after, limit + 1)
        )
        items = tuple(_shown(row) for row in found[:limit])
        return Page(items, self._signer.cursor(scope, items[-1].name) if len(found) > limit else None)

    # Making and deleting

    async def create(self, caller: Caller, name: str, size_mib: int | None = None) -> Filesystem:
        """An empty one, for up to `size_mib` MiB. BadRequest, AlreadyExists, InsufficientResources (too small),
        Unsupported (this host cannot bound it), Conflict (there are too many), CapacityUnavailable."""
        words.pool_name("name", name)
        if has_id_shape(name):
            raise words.refuse("name", "must not look like an id")
        limit = self._limit(size_mib)
        self._admission.check_disk()
        if rows.by_name(self._database.near, caller.org_id, name) is not None:
            raise _taken(name)
        return await self._tasks.finish(self._create(caller.org_id, name, limit))

    def _limit(self, wanted: int | None) -> int | None:
        """MiB; None: as many as there are. What bounds the disks of VMs bounds filesystems, too."""
        most = self._config.disk_mib_most
        if wanted is None:
            wanted = self._config.disk_mib or most or None
        if wanted is None:
            return None
        if wanted < LEAST_MIB:
            text = f"size_mib: a filesystem has at least {LEAST_MIB} MiB"
            raise InsufficientResources(text, "disk", LEAST_MIB * MIB)
        if wanted > (most or 1 << 23):
            raise words.refuse("size_mib", f"at most {most or 1 << 23}")
        if problem := self._engine.disk_problem():
            raise Unsupported(f"this host cannot limit filesystems (size_mib): {problem}")
        return wanted

    async def _create(self, org_id: str, name: str, size_mib: int | None) -> Filesystem:
        row = FilesystemRow(new_id(), org_id, name, size_mib, None, None, clock.now())

        def insert(connection: sqlite3.Connection) -> None:
            if rows.count(connection, org_id) >= MOST:
                raise Conflict("filesystem", f"there are {MOST} filesystems, and no more may be: delete some")
            try:
                rows.insert(connection, row)
            except sqlite3.IntegrityError as error:
                raise _taken(name) from error

        try:
            await self._engine.volumes.make(row.id, (size_mib or 0) * MIB)
            await self._database.write(insert, small=True)
        except BaseException as error:
            self._doom(row.id)
            if isinstance(error, EngineError):
                raise of_engine(error, "filesystem") from error
            raise
        return _shown(row)

    async def delete(self, caller: Caller, reference: str) -> None:
        """NotFound, Conflict (mounted somewhere)."""
        row = self.own(caller, reference)

        def doom(connection: sqlite3.Connection) -> None:
            if rows.by_id(connection, row.id) is None:
                raise NotFound("filesystem", "there is no such filesystem")
            if vms := rows.vms_with(connection, row.id, _NAMED + 1):
                named = ", ".join(vms[:_NAMED]) + (", …" if len(vms) > _NAMED else "")
                raise Conflict("filesystem", f"the filesystem is mounted in {named}: delete its mounts first")
            rows.doom(connection, row.id)

        await self._database.write(doom, small=True)
        self._doom(row.id)

    # Sizes

    def measure(self, filesystem_id: str) -> asyncio.Task[None]:
        """See how large it is, in the background."""
        task = self._measuring.get(filesystem_id)
        if task is None:
            task = self._measuring[filesystem_id] = self._tasks.start(self._measure(filesystem_id))
            task.add_done_callback(lambda _: self._measuring.pop(filesystem_id, None))
        return task

    async def _measure(self, filesystem_id: str) -> None:
        row = rows.by_id(self._database.near, filesystem_id)
        if row is None:
            return
        began = time.monotonic()
        try:
            async with self.one_at_a_time(row):
                size = await self._engine.volumes.size(filesystem_id)
        except EngineError as error:
            log.warning("filesystem %s could not be measured: %s", filesystem_id, error)
            return
        self._took[filesystem_id] = time.monotonic() - began
        at = clock.now()
        await self._database.write(lambda connection: rows.measured(connection, filesystem_id, size, at), small=True)

    # Removing

    async def sweep(self) -> None:
        """At the start: what was not removed to the end, and directories that no row has known for a day."""
        at = clock.now()
        stored = await self._engine.volumes.stored()
        before = at - int(GRACE_SECONDS * 1e6)
        lost = await self._database.write(lambda connection: rows.seen_lost(connection, stored, at, before))
        self._doomed |= lost | rows.doomed(self._database.near)

    def start(self) -> None:
        self._to_collect.set()
        self._tasks.start(self._collect_always())

    def box_gone(self) -> None:
        if self._doomed:
            self._wake()

    async def settled(self) -> None:
        """Wait until all has been removed that can be now."""
        await self._idle.wait()

    def _doom(self, filesystem_id: str) -> None:
        self._took.pop(filesystem_id, None)
        self._doomed.add(filesystem_id)
        self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        self._to_collect.set()

    async def _collect_always(self) -> None:
        while True:
            await self._to_collect.wait()
            await asyncio.sleep(COLLECT_SECONDS)  # more may come, and whoever deletes has had his answer
            self._to_collect.clear()
            try:
                await self._collect()
            except (EngineError, StoreError) as error:
                log.error("filesystems could not be removed: %s; tried again with the next occasion", error)
            if not self._to_collect.is_set():
                self._idle.set()

    async def _collect(self) -> None:
        wanted = sorted(self._doomed)
        gone = await self._engine.volumes.remove(wanted) if wanted else set()
        if gone:
            await self._database.write(lambda connection: rows.forget(connection, gone))
            self._doomed -= gone


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("filesystem", f"there is a filesystem named {name} already")


def _shown(row: FilesystemRow) -> Filesystem:
    return Filesystem(row.id, row.org_id, row.name, row.size_mib, row.bytes, clock.shown(row.created_at))
