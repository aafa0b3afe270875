"""The care of layers, beside the requests: long chains are merged (merging.py), unreferenced layers collected.

What is removed is marked in the rows first, then removed from the disk, then forgotten, so that a crash leaves nothing
behind: marked rows and directories without a row are looked for at every start. A layer that a live box stands on
counts as referenced (`vms.box_base`), also when its VM has been put on a merged one meanwhile. Where there are durable
VMs, what takes a layer's place is on the disk before that one goes.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from boxwood.core.config import Config
from boxwood.core.errors import CoreError
from boxwood.core.merging import Merging
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Engine, EngineError
from boxwood.store import layers as rows
from boxwood.store import snapshots as snapshot_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database, StoreError

COLLECT_SECONDS = 0.2  # in which more may come: all is removed in one go, when whoever deletes has had his answer
log = logging.getLogger(__name__)


class Layers:
    def __init__(self, database: Database, engine: Engine, config: Config, tasks: Tasks, spool: Path) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self._tasks = tasks
        self._spool = spool
        self._released: set[str] = set()  # layers that something let go of
        self._superseded: set[str] = set()  # … by a merge, but boxes may still stand on them
        self._orphans: set[str] = set()  # directories without a row
        self._spools: set[str] = set()  # of VMs that are gone
        self.being_made: set[str] = set()  # directories, for as long as somebody sends what is in them
        self._merging = Merging(database, engine, config, self._replaced, self.orphaned, self._secure, self._merge_soon)
        self._to_collect = asyncio.Event()
        self._to_merge = asyncio.Event()
        self._idle = asyncio.Event()
        self._at_work = 0
        self._collecting = asyncio.Lock()

    # What others tell

    def released(self, vm_id: str, base: str, top: str | None) -> None:
        """A VM is gone; `top`: its top, if that has a directory."""
        self._released.add(base)
        if top is not None:
            self._orphans.add(top)
        self._spools.add(vm_id)
        self._wake(self._to_collect)

    def orphaned(self, layer_id: str) -> None:
        """A directory of this name was made in vain."""
        self._orphans.add(layer_id)
        self._wake(self._to_collect)

    @contextmanager
    def making(self, layer_id: str) -> Iterator[None]:
        """Until it has a row this directory is no garbage, however old it grows."""
        self.being_made.add(layer_id)
        try:
            yield
        finally:
            self.being_made.discard(layer_id)

    def unused(self, *layer_ids: str) -> None:
        """Something stood on these layers, and does no longer."""
        self._released.update(layer_ids)
        self._wake(self._to_collect)

    def box_gone(self) -> None:
        if self._superseded:
            self._wake(self._to_collect)

    def grown(self, layer_id: str, depth: int) -> None:
        """A layer was put on a chain."""
        if depth > self._config.layers_merged_above:
            self._merging.want(layer_id)

    def sealed_with_limit(self, layer_id: str) -> None:
        """A top that had a limit was made a layer."""
        self._merging.want_moved(layer_id)

    async def shortened(self, vm_id: str) -> str:
        """Wait until a VM has so few layers that it can be forked, for a while. Why it has not; empty: it has."""
        return await self._merging.shortened(vm_id)

    def _replaced(self, layer_id: str) -> None:
        """Another layer has taken its place, but boxes may still stand on it."""
        self._superseded.add(layer_id)
        self._wake(self._to_collect)

    def _merge_soon(self) -> None:
        self._wake(self._to_merge)

    def _wake(self, event: asyncio.Event) -> None:
        self._idle.clear()
        event.set()

    async def settled(self) -> None:
        """Wait until there is nothing left to merge or to collect."""
        await self._idle.wait()

    # Start

    async def sweep(self) -> None:
        """At the start: whatever a crash may have left."""
        await self._database.write(snapshot_rows.unpin_all)
        await self._database.write(rows.doom_all)
        known = await self._database.read(lambda connection: rows.data_ids(connection) | vm_rows.tops(connection))
        self._orphans |= await self._engine.stored() - known
        self._superseded |= set(rows.superseded(self._database.near))
        in_files = await self._engine.in_files()
        for layer_id in sorted(rows.data_ids(self._database.near) & in_files):
            self._merging.want_moved(layer_id)
        for layer_id in rows.deep(self._database.near, self._config.layers_merged_above):
            self._merging.want(layer_id)
        there = await asyncio.to_thread(lambda: [entry.name for entry in self._spool.iterdir()])
        self._spools |= {name for name in there if vm_rows.by_id(self._database.near, name) is None}

    def start(self) -> None:
        self._wake(self._to_collect)
        self._wake(self._to_merge)
        self._tasks.start(self._work(self._to_collect, self._collect, COLLECT_SECONDS))
        self._tasks.start(self._work(self._to_merge, self._merging.work))

    async def _work(self, event: asyncio.Event, work: Callable[[], Awaitable[None]], pause: float = 0) -> None:
        while True:
            await event.wait()
            await asyncio.sleep(pause)
            event.clear()
            self._at_work += 1
            try:
                await work()
            except (EngineError, StoreError, CoreError, OSError) as error:
                log.error("care of layers: %s; tried again with the next occasion", error)
            finally:
                self._at_work -= 1
            if not self._at_work and not self._to_collect.is_set() and not self._to_merge.is_set():
                self._idle.set()

    # Collecting

    async def collect(self, orphans: set[str]) -> None:
        """Now: whatever nothing refers to, and these directories without a row. EngineError, StoreError."""
        await self._database.write(rows.doom_all)
        self._orphans |= orphans
        await self._collect()

    async def _collect(self) -> None:
        async with self._collecting:
            await self._collect_alone()

    async def _collect_alone(self) -> None:
        candidates = self._released | self._superseded

        def doom(connection: sqlite3.Connection) -> tuple[list[str], set[str]]:
            for layer_id in candidates:
                rows.doom(connection, layer_id)
            there = ((layer_id, rows.by_id(connection, layer_id)) for layer_id in candidates)
            return rows.doomed(connection), {layer_id for layer_id, row in there if row is not None and not row.doomed}

        doomed, stay = await self._database.write(doom)
        self._released -= candidates
        self._superseded -= candidates - stay
        orphans = list(self._orphans)
        if doomed or orphans:
            await self._secure()
            await self._engine.remove([*doomed, *orphans])
            self._orphans.difference_update(orphans)
        if doomed:
            await self._database.write(lambda connection: rows.delete(connection, doomed))
        if spools := list(self._spools):
            await asyncio.to_thread(_remove_trees, [self._spool / vm_id for vm_id in spools])
            self._spools.difference_update(spools)

    async def _secure(self, *layers: str) -> None:
        """Whatever durable VMs stand on survives a loss of power: these layers, and the rows as they are."""
        if vm_rows.any_durable(self._database.near):
            if layers:
                await self._engine.secure(layers)
            await self._database.secure()


def _remove_trees(directories: list[Path]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
