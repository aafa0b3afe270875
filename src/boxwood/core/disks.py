"""What a VM may keep above its image: `disk_mib`, over all of its layers together.

A sealed layer's size stands in its row, once somebody has wanted to know it. A top may have what the VM's other layers
leave, and always a little, so that a full VM can be booted, read and tidied up: every fork of a full VM is over by that
much. Only a top that was made for a limit can have one: any other is sealed when the VM's next box is made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from boxwood.core.config import Config
from boxwood.core.errors import InsufficientResources, Unsupported
from boxwood.core.ids import new_id
from boxwood.core.model import Resources
from boxwood.engine.api import Engine
from boxwood.store import layers as layer_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

MIB = 1 << 20
LEAST_MIB = 16  # of a VM
TOP_LEAST = MIB  # bytes


class Disks:
    """`sealed_hook` hears of layers that were tops with a limit, `orphaned_hook` of tops that nobody has any more."""

    def __init__(self, database: Database, engine: Engine, config: Config) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self.sealed_hook: Callable[[str], None] = lambda layer_id: None
        self.orphaned_hook: Callable[[str], None] = lambda layer_id: None

    # What may be asked for

    def check(self, wanted: Resources) -> None:
        """Of a size that is within the ceiling. InsufficientResources, Unsupported."""
        size = wanted.disk_mib
        if size is None:
            return
        if size < LEAST_MIB:
            raise InsufficientResources(f"a VM needs at least {LEAST_MIB} MiB of disk", "disk", LEAST_MIB * MIB)
        self._check_host()

    def of_fork(self, source: VMRow, wanted: Resources) -> int | None:
        """MiB of a VM that is forked from another; None: as many as there are. Unsupported."""
        if wanted.disk_mib is not None:
            return wanted.disk_mib
        most = self._config.disk_mib_most
        size = source.disk_mib or self._config.disk_mib or most
        if not size:
            return None
        self._check_host()
        return min(size, most) if most else size

    def check_durable(self, size: int | None) -> None:
        """Can a durable VM have a disk of so many MiB? Unsupported."""
        if size is not None and (problem := self._engine.durable_problem()):
            raise Unsupported(f"durable: {problem}", "durability")

    def _check_host(self) -> None:
        if problem := self._engine.disk_problem():
            raise Unsupported(f"this host cannot limit disks (disk_mib): {problem}")

    # What is held

    async def sealed(self, base: str) -> int:
        """Bytes of all layers from this one down to the image. EngineError."""
        size, unknown = layer_rows.sizes(self._database.near, base)
        for layer_id in unknown:
            size += (found := (await self._engine.contents(layer_id)).bytes)
            self._database.post(_known(layer_id, found), small=True)
        return size

    async def check_room(self, base: str, top: str | None, wanted: int) -> None:
        """Is all that a VM with this base and this top holds less than `wanted` MiB? InsufficientResources,
        EngineError."""
        held = await self.sealed(base)
        if top is not None:
            held += (await self._engine.contents(top)).bytes
        if held > wanted * MIB:
            least = -(-held // MIB)
            text = f"the VM holds {least} MiB above its image: give it more than that, or delete files first"
            raise InsufficientResources(text, "disk", least * MIB)

    async def left(self, row: VMRow) -> int:
        """Bytes that the VM's top may hold; 0: any number. EngineError."""
        if row.disk_mib is None or row.read_only:
            return 0
        return max(TOP_LEAST, row.disk_mib * MIB - await self.sealed(row.base))

    async def fits(self, row: VMRow) -> bool:
        """Can the top that the VM has be given its limit? EngineError."""
        limit = await self.left(row)
        if not limit or not row.written:
            return True
        capacity = await self._engine.disk_capacity(row.top)
        return capacity is None or capacity >= limit

    async def make_fit(self, row: VMRow) -> None:
        """Give a VM without a box another top, if its own cannot be given the limit. EngineError, StoreError."""
        if await self.fits(row):
            return
        empty = (await self._engine.contents(row.top)).empty

        def replace(connection: sqlite3.Connection) -> bool:
            now = vm_rows.by_id(connection, row.id)
            if now is None or now.top != row.top:
                return False
            if not empty:
                layer_rows.insert(connection, now.top, now.base)
            vm_rows.retop(connection, now.id, now.base if empty else now.top, new_id())
            return True

        if await self._database.write(replace):
            (self.orphaned_hook if empty else self.sealed_hook)(row.top)


def _known(layer_id: str, size: int) -> Callable[[sqlite3.Connection], None]:
    return lambda connection: layer_rows.set_size(connection, layer_id, size)
