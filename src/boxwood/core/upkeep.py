"""What an operator may ask of the storage: who takes how much, whether all is whole, what nobody needs any more.

A layer counts as a VM's own if no other VM stands on it: what would come back if the VM were deleted. A file that a
merged layer has in common with one that it was merged of is counted in both, though it is on the disk once.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from dataclasses import dataclass

from boxwood.core import clock
from boxwood.core.ids import ALPHABET
from boxwood.core.layers import Layers
from boxwood.engine.api import Engine, EngineError
from boxwood.store import layers as layer_rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.layers import LayerRow

MEASURE_SECONDS = 60.0  # of one question: layers that nobody has measured yet are looked through
YOUNG_SECONDS = 7200.0  # directories that are being made have no row: only imports may take so long


@dataclass(frozen=True, slots=True)
class VMUsage:
    """Of one VM, in bytes; `measured`: all of it is known."""

    vm_id: str
    name: str | None
    layers: int
    own: int
    shared: int
    measured: bool


@dataclass(frozen=True, slots=True)
class Usage:
    free: int
    vms: list[VMUsage]


@dataclass(frozen=True, slots=True)
class Problem:
    """`layer_id`: what it is about; `vms`: those that stand on it."""

    layer_id: str
    vms: list[str]
    problem: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """Directories that nothing refers to, and how many bytes they hold, as far as that could be seen."""

    layers: list[str]
    bytes: int


@dataclass(frozen=True, slots=True)
class _Stand:
    """What a VM consists of; `box_base`: what its live box stands on, if that is something else."""

    vm_id: str
    name: str | None
    base: str
    top: str
    written: bool
    box_base: str | None


@dataclass(frozen=True, slots=True)
class _Forest:
    layers: dict[str, LayerRow]
    sizes: dict[str, int]
    vms: list[_Stand]
    held: list[str]  # beside the VMs' own, by live boxes

    def chain(self, base: str) -> list[str]:
        """Layers of the data directory, from this one down."""
        found: list[str] = []
        at: str | None = base
        while at is not None and (row := self.layers.get(at)) is not None and row.place == "data":
            found.append(at)
            at = row.parent
        return found


class Upkeep:
    def __init__(self, database: Database, engine: Engine, layers: Layers) -> None:
        self._database = database
        self._engine = engine
        self._layers = layers

    async def usage(self) -> Usage:
        """Of all VMs, those with the most of their own first. EngineError."""
        forest = await self._database.read(_forest)
        until = asyncio.get_running_loop().time() + MEASURE_SECONDS
        tops = [vm.top for vm in forest.vms if vm.written]
        known = forest.sizes | await self._measured(set(tops), until, keep=False)
        unknown = {row.id for row in forest.layers.values() if row.place == "data"} - known.keys()
        known |= await self._measured(unknown, until, keep=True)
        counted = await asyncio.to_thread(_counted, forest, known)
        return Usage(self._engine.free_disk(), sorted(counted, key=lambda vm: -vm.own))

    async def _measured(self, ids: set[str], until: float, *, keep: bool) -> dict[str, int]:
        found: dict[str, int] = {}
        for layer_id in sorted(ids):
            if asyncio.get_running_loop().time() > until:
                break
            try:
                found[layer_id] = size = (await self._engine.contents(layer_id)).bytes
            except EngineError:
                continue  # it has gone meanwhile
            if keep:
                self._database.post(lambda c, i=layer_id, n=size: layer_rows.set_size(c, i, n), small=True)  # type: ignore[misc]
        return found

    async def verify(self) -> tuple[int, list[Problem]]:
        """How many layers were looked through, and what is wrong. EngineError."""
        forest = await self._database.read(_forest)
        stand_on: dict[str, list[str]] = {}
        for vm in forest.vms:
            for layer_id in forest.chain(vm.base):
                stand_on.setdefault(layer_id, []).append(vm.vm_id)
        problems = []
        looked_at = [row for row in forest.layers.values() if row.place == "data" and not row.doomed]
        for row in looked_at:
            problem = _row_problem(forest, row) or await self._engine.check_layer(row.id)
            if problem and layer_rows.by_id(self._database.near, row.id) is not None:  # not collected meanwhile
                problems.append(Problem(row.id, stand_on.get(row.id, []), problem))
        stored = await self._engine.stored()
        if missing := [vm for vm in forest.vms if vm.written and vm.top not in stored]:
            stored = await self._engine.stored()  # a box that is being made is marked before its top is there
            missing = [vm for vm in missing if vm.top not in stored and _still(self._database.near, vm)]
        problems += [Problem(vm.top, [vm.vm_id], "the VM's top has no directory") for vm in missing]
        return len(looked_at), problems

    async def collect(self, *, dry_run: bool) -> Garbage:
        """Remove what nothing refers to; `dry_run`: only say what that is. EngineError, StoreError."""
        making = set(self._layers.being_made)
        stored = await self._engine.stored()  # before the rows: what is there has one, or is young, or is garbage
        forest = await self._database.read(_forest)
        named = {row.id for row in forest.layers.values()} | {vm.top for vm in forest.vms}
        young = clock.now() - int(YOUNG_SECONDS * 1e6)
        orphans = {layer_id for layer_id in stored - named - making if _made_at(layer_id) < young}
        garbage = sorted(orphans | (_unreferenced(forest) & stored))
        until = asyncio.get_running_loop().time() + MEASURE_SECONDS
        size = sum((await self._measured(set(garbage), until, keep=False)).values())
        if not dry_run:
            await self._layers.collect(orphans)
        return Garbage(garbage, size)


def _forest(connection: sqlite3.Connection) -> _Forest:
    found = connection.execute("SELECT id, parent, place, depth, doomed, bytes FROM layers").fetchall()
    vms = connection.execute("SELECT id, name, base, top, written, box_base FROM vms").fetchall()
    return _Forest(
        {row[0]: LayerRow(*row[:5]) for row in found},
        {row[0]: row[5] for row in found if row[5] is not None},
        [_Stand(*row) for row in vms],
        [row[0] for row in connection.execute("SELECT layer_id FROM held UNION SELECT layer_id FROM pins")],
    )


def _counted(forest: _Forest, known: dict[str, int]) -> list[VMUsage]:
    users = Counter(layer_id for vm in forest.vms for layer_id in forest.chain(vm.base))
    counted = []
    for vm in forest.vms:
        chain = forest.chain(vm.base)
        tops = [vm.top] if vm.written else []
        own = sum(known.get(layer_id, 0) for layer_id in [*tops, *chain] if users[layer_id] < 2)
        shared = sum(known.get(layer_id, 0) for layer_id in chain if users[layer_id] > 1)
        measured = all(layer_id in known for layer_id in [*tops, *chain])
        counted.append(VMUsage(vm.vm_id, vm.name, len(chain), own, shared, measured))
    return counted


def _unreferenced(forest: _Forest) -> set[str]:
    bases = {base for vm in forest.vms for base in (vm.base, vm.box_base) if base is not None}
    used = {layer_id for base in bases.union(forest.held) for layer_id in forest.chain(base)}
    return {row.id for row in forest.layers.values() if row.place == "data"} - used


def _row_problem(forest: _Forest, row: LayerRow) -> str:
    parent = forest.layers.get(row.parent or "")
    if parent is None:
        return "what it stands on is not in the database"
    below = 0 if parent.place == "image" else parent.depth
    return "" if row.depth == below + 1 else f"its depth is {row.depth}, and {below} below it"


def _still(connection: sqlite3.Connection, vm: _Stand) -> bool:
    row = vm_rows.by_id(connection, vm.vm_id)
    return row is not None and row.written and row.top == vm.top


def _made_at(layer_id: str) -> int:
    """Microseconds since 1970, of a ULID."""
    milliseconds = 0
    for letter in layer_id[:10]:
        milliseconds = milliseconds * 32 + ALPHABET.index(letter)
    return milliseconds * 1000
