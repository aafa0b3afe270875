"""What a fork does with the top of its source, so that the child shows what it shows: nothing, seal it, or copy it.

A top that has something in it is sealed if nothing lives in the source's box, which is put down for that; else the
child gets a copy, and what runs in the source goes on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from boxwood.core.boxes import Boxes
from boxwood.core.config import Config
from boxwood.core.errors import Internal, NotFound, ResourceBusy
from boxwood.core.ids import new_id
from boxwood.core.layers import Layers
from boxwood.core.refusals import of_engine
from boxwood.core.slot import Slot
from boxwood.engine.api import Box, BoxGone, Contents, CopyReport, Engine, EngineError
from boxwood.store import layers as layer_rows
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fork does with the source's top: nothing (`seal` and `copy` unset), seal it, or take a copy of it."""

    seal: bool = False
    size: int | None = None  # of what is sealed, in bytes, if that is known
    copy: str | None = None
    report: CopyReport | None = None

    def carry_out(self, connection: sqlite3.Connection, now: VMRow) -> tuple[str, int]:
        """In a transaction: the layer that a child stands on, and its depth."""
        if self.seal:
            depth = layer_rows.insert(connection, now.top, now.base, self.size)
            rows.retop(connection, now.id, now.top, new_id())
            return now.top, depth
        if self.copy is not None:
            return self.copy, layer_rows.insert(connection, self.copy, now.base)
        return now.base, now.depth


class Plans:
    def __init__(self, database: Database, engine: Engine, boxes: Boxes, layers: Layers, config: Config) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._layers = layers
        self._config = config

    def again(self, source: VMRow) -> VMRow:
        """As it is now: somebody may have been waited for. NotFound."""
        row = rows.by_id(self._database.near, source.id)
        if row is None:
            raise NotFound("source", "the VM to fork is not there any more")
        return row

    @asynccontextmanager
    async def of(self, source: VMRow) -> AsyncIterator[Plan]:
        """Meanwhile a source that has something to seal or to copy is held alone. NotFound, ResourceBusy, Internal."""
        if self._boxes.slot(source.id).still and not source.written:
            yield Plan()
            return
        async with self._boxes.alone(source.id) as slot, self.of_held(slot, source) as plan:
            yield plan

    @asynccontextmanager
    async def of_held(self, slot: Slot, source: VMRow) -> AsyncIterator[Plan]:
        """The same of a source that the caller has alone. What goes wrong meanwhile leaves no copy behind."""
        plan = await self._made(slot, source)
        try:
            yield plan
        except BaseException:
            if plan.copy is not None:
                self._layers.orphaned(plan.copy)
            raise

    async def _made(self, slot: Slot, source: VMRow) -> Plan:
        """The source is in a state then in which it can be forked."""
        row = self.again(source)
        if row.depth >= self._config.layers_refused_above:
            raise ResourceBusy(
                "source", f"the VM has {row.depth} layers: they are being merged, try again", retry_after=1
            )
        for _ in range(2):
            try:
                held = await self._held(row)
                if slot.box is not None:
                    if held.empty or slot.runs:  # what idle shells have come to is the child's, whatever else runs
                        await slot.box.settle()
                    if held.empty and await self._engine.is_empty(row.top):
                        return Plan()  # nothing has been written since the box was made: it can live on
                    if not await self._boxes.park_held(slot):
                        return await self._copy(slot.box, row)
                    return Plan(seal=True, size=held.bytes or None)
                if held.empty:
                    return Plan()
                return Plan(seal=True, size=held.bytes or None)
            except BoxGone:  # as good as parked, once nothing of it is left
                await self._boxes.put_down(slot, "the box was lost")
            except EngineError as error:
                raise of_engine(error, "source") from error
        raise Internal("the source's box died twice while it was forked", recovery={"work": "stopped"})

    async def _held(self, row: VMRow) -> Contents:
        """What a top holds; how much that is only of one with a limit, of which it is known at once: else 0 bytes."""
        if not row.written:
            return Contents(True, 0)
        if row.disk_mib is None or row.read_only:
            return Contents(await self._engine.is_empty(row.top), 0)
        return await self._engine.contents(row.top)

    async def _copy(self, box: Box, row: VMRow) -> Plan:
        """Its processes go on; the child gets a copy of the top."""
        target = new_id()
        try:
            return Plan(copy=target, report=await self._engine.copy_top(box, row.top, target))
        except BaseException:
            self._layers.orphaned(target)
            raise
