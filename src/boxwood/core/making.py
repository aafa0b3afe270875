"""How a VM gets its box: what it is made of, and the mark that it stands on its layers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from boxwood.core import clock
from boxwood.core.ceilings import Ceilings
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.errors import Conflict, CoreError, Internal, InvalidState, NotFound, Unavailable
from boxwood.core.slot import Slot
from boxwood.engine.api import Box, BoxSpec, Engine, EngineError, EngineUnavailable, Stack
from boxwood.store import layers as layer_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

log = logging.getLogger(__name__)


class Making:
    def __init__(self, database: Database, engine: Engine, config: Config, disks: Disks, ceilings: Ceilings) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self._disks = disks
        self._ceilings = ceilings
        self.begun_hook: Callable[[sqlite3.Connection, str, int], None] = lambda connection, vm_id, at: None
        self.made_hook: Callable[[str, Box], Awaitable[None]] = _as_it_is  # of a VM, before anything runs in it

    def network(self, row: VMRow) -> str:
        """What the VM's next box has of the network; one that lives has what it was made with."""
        return row.network or self._config.network

    async def make(self, slot: Slot) -> Box:
        """A box for a VM, whose slot is locked. NotFound, InvalidState, Conflict, Unavailable, Internal.

        The mark that its layers are in use is committed while the box is made. Whoever could take the layers away is
        asked of later than the mark; a box that lives without one is put down by the next server.
        """
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
        base, at = row.base, clock.now()

        def mark(connection: sqlite3.Connection) -> None:
            vm_rows.boot(connection, vm_id, base, at)
            self.begun_hook(connection, vm_id, at)
            layer_rows.hold(connection, vm_id, base, layers)

        marked = self._database.submit(mark, small=True)
        try:
            stack, networked = Stack(layers, row.top, images), self.network(row) != "none"
            spec = BoxSpec(
                vm_id, stack, hostname(row), self._ceilings.limits(row, disk), networked,
                ahead=bool(row.hidden and row.pool_id), read_only=bool(row.read_only), durable=bool(row.durable),
            )  # fmt: skip
            box = await self._engine.boot(spec)
        except EngineError as error:
            if not marked.cancel():  # as a wait: it is committed all the same, and taken back
                marked.exception()
            self.unmark(vm_id)
            raise self._not_made(row, images, error) from error
        try:
            await marked
            if row.durable:  # before anything in there is acknowledged: a top that is not marked counts as empty
                await self._database.secure()
            await self.made_hook(vm_id, box)
        except BaseException:
            with suppress(EngineError):
                await box.kill()
            if box.gone.done():
                self.unmark(vm_id)
            raise
        return box

    def unmark(self, vm_id: str) -> None:
        """No box stands on the VM's layers any more."""
        self._database.post(lambda connection: vm_rows.parked(connection, vm_id), small=True)

    def _bootable(self, vm_id: str) -> VMRow:
        """NotFound, InvalidState."""
        row = vm_rows.by_id(self._database.near, vm_id)
        if row is None:
            raise NotFound("vm", f"there is no VM {vm_id}")
        if row.stopped:
            raise InvalidState("vm", "running", "the VM has been stopped: start it", vm_id)
        if row.immutable:  # it has become so since it was asked for, and its box was parked for that
            raise InvalidState("vm", "mutable", "the VM is immutable: fork it and use the fork", vm_id)
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


async def _as_it_is(vm_id: str, box: Box) -> None: ...


def hostname(row: VMRow) -> str:
    """Of a VM's box: its name, as far as that can be one."""
    name = (row.name or "boxwood").replace("_", "-").strip(".-")
    return name if name and len(name) <= 63 else "boxwood"
