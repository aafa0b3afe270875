"""What a VM or a snapshot shows at one moment, held so that its layers can be read at leisure.

The layers are sealed, as for a fork, and pinned, all of them in the transaction that says which they are: a merge may
let another take the place of one, but none is removed until the view is let go of. A server that is killed leaves pins
behind; the next one removes them before it collects anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from boxwood.core.forks import Forks
from boxwood.core.ids import new_id
from boxwood.core.layers import Layers
from boxwood.core.slot import Slot
from boxwood.engine.states import Sealed
from boxwood.store import layers as layer_rows
from boxwood.store import snapshots as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow


@dataclass(frozen=True, slots=True)
class View:
    """`layers`: all of them, the topmost first, each with its place. `fork_base`: the one that shows what a VM was when
    it was forked, if that is known: this VM, or another one that `hold` was told."""

    vm_id: str
    pin: str
    layers: Sealed
    fork_base: str | None

    @property
    def base(self) -> str:
        """Its topmost layer."""
        return self.layers[0][1]


class Views:
    def __init__(self, database: Database, forks: Forks, layers: Layers) -> None:
        self._database = database
        self._forks = forks
        self._layers = layers

    async def hold(self, row: VMRow, slot: Slot | None = None, *, forked: str | None = None) -> View:
        """To be released. For tasks that nobody cancels. `slot`: of a VM that the caller has alone. `forked`: the id of
        the VM whose `fork_base` is wanted, if it is another. NotFound, ResourceBusy, Internal."""
        pin = new_id()
        held: list[View] = []

        def hold(connection: sqlite3.Connection, base: str) -> None:
            now = vm_rows.by_id(connection, forked or row.id)
            ids, images = layer_rows.chain(connection, base)
            rows.pin(connection, pin, [layer for layer in ids if layer not in images])
            stack = tuple(("image" if layer in images else "data", layer) for layer in ids)
            held.append(View(row.id, pin, stack, None if now is None else now.fork_base))

        try:
            await (self._forks.seal(row, hold) if slot is None else self._forks.seal_held(slot, row, hold))
        except BaseException:
            if held:  # it may have been pinned, and could not be flushed
                self.release(held[-1])
            raise
        return held[-1]

    def release(self, view: View) -> None:
        self._database.post(lambda connection: rows.unpin(connection, view.pin), small=True)
        self._layers.unused(*(layer for place, layer in view.layers if place == "data"))

    @asynccontextmanager
    async def of(self, row: VMRow, slot: Slot | None = None, *, forked: str | None = None) -> AsyncIterator[View]:
        """As `hold`, for as long as the body takes."""
        view = await self.hold(row, slot, forked=forked)
        try:
            yield view
        finally:
            self.release(view)
