"""What VMs move over the network, and what they were refused: counted for each VM over all the boxes it has had.

A live box's share is the engine's to tell; when a box has ended the engine hands all of it in, once, and from then on
it is in the rows.
"""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass, replace
from functools import partial

from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.model import Caller, Network
from boxwood.core.refusals import clean, of_engine
from boxwood.engine.api import Denial, Engine, EngineError, Usage
from boxwood.store import usage as rows
from boxwood.store.database import Database
from boxwood.store.usage import UsageRow

NAME_CHARACTERS = 255
WORD_CHARACTERS = 64


@dataclass(slots=True, eq=False)
class _Reading:
    """Somebody is adding up what a VM has moved. `stale`: a box of it has ended meanwhile."""

    vm_id: str
    stale: bool = False


class Networks:
    def __init__(self, database: Database, engine: Engine, boxes: Boxes, access: Access) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._access = access
        self._readings: set[_Reading] = set()

    def ended(self, vm_id: str, usage: Usage) -> None:
        """A box has ended: what it had moved is the VM's. Of a VM that has been deleted it is forgotten."""
        for reading in self._readings:
            reading.stale |= reading.vm_id == vm_id
        if usage != Usage():
            self._database.post(partial(_add, vm_id=vm_id, usage=usage), small=not usage.denials)

    async def get(self, caller: Caller, vm: str) -> Network:
        """One's own VM alone: what it was refused tells what it does. NotFound, Forbidden."""
        row = self._access.own(caller, vm)
        usage = await self._usage(row.id)
        return Network(self._boxes.making.network(row), self._boxes.address(row.id), usage)

    async def _usage(self, vm_id: str) -> Usage:
        """If a box ends between the two looks its share is in both or in neither: then they are taken again."""
        while True:
            reading = _Reading(vm_id)
            self._readings.add(reading)
            try:
                live = _harmless(await self._engine.usage(vm_id))
                before = await self._database.read(partial(_stored, vm_id=vm_id))
            except EngineError as error:
                raise of_engine(error, "vm") from error
            finally:
                self._readings.remove(reading)
            if not reading.stale:
                return before + live


def _add(connection: sqlite3.Connection, vm_id: str, usage: Usage) -> None:
    total = _stored(connection, vm_id) + _harmless(usage)
    denials = [asdict(denial) for denial in total.denials]
    rows.put(connection, vm_id, UsageRow(total.sent, total.received, total.connections, total.denied, denials))


def _stored(connection: sqlite3.Connection, vm_id: str) -> Usage:
    row = rows.find(connection, vm_id)
    if row is None:
        return Usage()
    denials = tuple(Denial(**denial) for denial in row.denials)
    return Usage(row.sent, row.received, row.connections, row.denied, denials)


def _harmless(usage: Usage) -> Usage:
    """What a VM asked for is its own choice of bytes: short and printable from here on."""
    return replace(usage, denials=tuple(_harmless_denial(denial) for denial in usage.denials))


def _harmless_denial(denial: Denial) -> Denial:
    return replace(
        denial,
        protocol=clean(denial.protocol[:WORD_CHARACTERS]),
        address=clean(denial.address[:WORD_CHARACTERS]),
        name=clean(denial.name[:NAME_CHARACTERS]),
        reason=clean(denial.reason[:WORD_CHARACTERS]),
    )
