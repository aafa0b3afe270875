"""Snapshots: the state of a VM, kept under a name, to go back to or to fork.

A snapshot is a VM of its own, hidden and immutable, made by a fork: it costs rows and shares its layers, counts as a VM
where these are counted, and can be the source of forks by its id. It goes with the VM whose state it holds.

To go back is one transaction: the VM gets an unwritten top over the snapshot's layers, and its sessions are again where
they were. Its box is put down before, and what it has written since is gone.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import datetime

from boxwood.core import clock, durable, words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.disks import Disks
from boxwood.core.errors import AlreadyExists, Conflict, InvalidState, NotFound, ResourceBusy
from boxwood.core.forks import Forks, Home
from boxwood.core.ids import has_id_shape, new_id
from boxwood.core.lanes import Lanes
from boxwood.core.layers import Layers
from boxwood.core.model import VM, Caller, ForkRequest
from boxwood.core.refusals import of_engine
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.core.vms import VMs
from boxwood.engine.api import CopyReport, EngineError
from boxwood.store import sessions as session_rows
from boxwood.store import snapshots as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.snapshots import SnapshotRow
from boxwood.store.vms import VMRow

MOST = 1000  # of one VM
IMAGE = "image"  # where a snapshot can be named: what the VM was made of in the beginning


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`snapshot_id`: what forks are made of. `copied`: what it cost, if something ran in the VM when it was taken."""

    snapshot_id: str
    vm_id: str
    name: str
    description: str | None
    created_at: datetime
    copied: CopyReport | None = None


class Snapshots:
    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        access: Access,
        lanes: Lanes,
        layers: Layers,
        disks: Disks,
        vms: VMs,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._lanes = lanes
        self._layers = layers
        self._disks = disks
        self._vms = vms
        self._forks: Forks = vms.forks
        self._tasks = tasks
        vms.deleted_hooks.append(self._gone)

    def start(self) -> None:
        """What an end in the middle has left: snapshots of VMs that are not there any more."""
        for snapshot_id in rows.left_over(self._database.near):
            self._tasks.start(self._drop(snapshot_id))

    def _gone(self, row: VMRow) -> None:
        for one in rows.of_vm(self._database.near, row.id):
            self._tasks.start(self._drop(one.id))

    async def _drop(self, snapshot_id: str) -> None:
        try:
            await self._vms.remove(snapshot_id)
        except NotFound:
            pass  # somebody else was quicker

    # Taking and looking

    async def take(self, caller: Caller, vm: str, name: str, description: str | None = None) -> Snapshot:
        """Keep what the VM shows now. What runs in it goes on. BadRequest (name), NotFound, Forbidden, AlreadyExists,
        Conflict (it has too many), ResourceBusy, QuotaExceeded or CapacityUnavailable (as a fork)."""
        if words.name(name) == IMAGE:
            raise words.refuse("name", f"{IMAGE} is what the VM was made of")
        row = self._access.own(caller, vm)
        if rows.by_name(self._database.near, row.id, name) is not None:
            raise _taken(name)
        if rows.count(self._database.near, row.id) >= MOST:
            raise Conflict("resource", f"the VM has {MOST} snapshots, which is the most: delete some")
        about = words.description(description)
        request = ForkRequest(source_id=row.id, description=about, durable=bool(row.durable))
        return await self._tasks.finish(self._take(row, name, request))

    async def _take(self, row: VMRow, name: str, request: ForkRequest) -> Snapshot:
        def also(connection: sqlite3.Connection, snapshot_id: str) -> None:
            vm_rows.change(connection, snapshot_id, {"immutable": True})
            try:
                rows.insert(connection, snapshot_id, row.id, name, clock.now())
            except sqlite3.IntegrityError as error:
                raise _taken(name) from error

        made = await self._forks.make(row.org_id, request, row, also, Home(hidden=True))
        return _shown(self._found(row, made.row.id), made.report)

    def list(self, caller: Caller, vm: str) -> tuple[Snapshot, ...]:
        """The oldest first; there are at most `MOST`. NotFound, Forbidden."""
        row = self._access.own(caller, vm)
        return tuple(map(_shown, rows.of_vm(self._database.near, row.id)))

    def get(self, caller: Caller, vm: str, snapshot: str) -> Snapshot:
        """By name or id. NotFound, Forbidden."""
        return _shown(self._found(self._access.own(caller, vm), snapshot))

    def row(self, caller: Caller, vm: str, snapshot: str) -> VMRow:
        """The VM that holds a snapshot. NotFound, Forbidden."""
        return self._holder(self._found(self._access.own(caller, vm), snapshot))

    def _found(self, row: VMRow, snapshot: str) -> SnapshotRow:
        near = self._database.near
        if has_id_shape(snapshot):
            ident = snapshot.upper()
            found = next((one for one in rows.of_vm(near, row.id) if one.id == ident), None)
        else:
            found = rows.by_name(near, row.id, snapshot) if snapshot.isascii() and len(snapshot) <= 256 else None
        if found is None:
            raise _none()
        return found

    def _holder(self, snapshot: SnapshotRow) -> VMRow:
        held = vm_rows.by_id(self._database.near, snapshot.id)
        if held is None:
            raise _none()
        return held

    async def delete(self, caller: Caller, vm: str, snapshot: str) -> None:
        """What has been forked from it keeps all that it has. NotFound, Forbidden."""
        found = self._found(self._access.own(caller, vm), snapshot)
        await self._vms.remove(found.id)

    # Going back

    async def restore(self, caller: Caller, vm: str, snapshot: str, *, force: bool = False) -> VM:
        """Let the VM show again what it showed when the snapshot was taken. It keeps its id, its name, its settings and
        its snapshots; its sessions are where they were then, with the ids that they have. What runs in the VM must
        have ended, or is ended (as cancelled) with `force`.

        NotFound, Forbidden, InvalidState (immutable), ResourceBusy (something runs), InsufficientResources (the disk
        has become too small for it)."""
        row = self._access.mutable(caller, vm)
        found = self._found(row, snapshot)
        await self._tasks.finish(self._restore(row, found, force))
        return await self._vms.get(caller, row.id)

    async def _restore(self, row: VMRow, snapshot: SnapshotRow, force: bool) -> None:
        async with self._boxes.alone(row.id) as slot:
            await self._check_room(row, self._holder(snapshot))
            await self.empty(slot, force)
            before, after = await self._database.write(
                lambda connection: _go_back(connection, row.id, snapshot.id), small=False
            )
            slot.directories.clear()
            self.replaced(before, after.base, after.depth)
            await durable.secure(self._database, row)  # should that fail, the VM stands on it all the same

    async def empty(self, slot: Slot, force: bool) -> None:
        """Put down the box of a VM that is held alone, with what runs in it if `force`. ResourceBusy."""
        if force:
            self._lanes.end_vm(slot.vm_id)
            await self._boxes.put_down(slot, "the VM was taken back to a snapshot")
        elif self._lanes.busy(slot.vm_id) or not await self._boxes.park_held(slot):
            text = "something runs in the VM: wait for its end, or end it (force)"
            raise ResourceBusy("vm", text, retry_after=1)

    def replaced(self, before: VMRow, base: str, depth: int) -> None:
        """A VM stands on another base with a new top: what it stood on may be nobody's now."""
        if before.written:
            self._layers.orphaned(before.top)
        self._layers.unused(before.base)
        self._layers.grown(base, depth)

    async def _check_room(self, row: VMRow, held: VMRow) -> None:
        now = vm_rows.by_id(self._database.near, row.id) or row
        if now.disk_mib is None or now.read_only:
            return
        try:
            await self._disks.check_room(held.base, None, now.disk_mib)
        except EngineError as error:
            raise of_engine(error, "vm") from error


def _go_back(connection: sqlite3.Connection, vm_id: str, snapshot_id: str) -> tuple[VMRow, VMRow]:
    """The VM as it was before, and the VM that holds the snapshot."""
    row, held = vm_rows.by_id(connection, vm_id), vm_rows.by_id(connection, snapshot_id)
    if row is None:
        raise NotFound("vm", "there is no such VM any more")
    if held is None:
        raise _none()
    if row.immutable:
        raise InvalidState("vm", "mutable", "the VM has become immutable", vm_id)
    vm_rows.retop(connection, vm_id, held.base, new_id())
    session_rows.restore(connection, snapshot_id, vm_id, new_id, clock.now())
    return row, held


def _shown(row: SnapshotRow, copied: CopyReport | None = None) -> Snapshot:
    return Snapshot(row.id, row.vm_id, row.name, row.description, clock.shown(row.created_at), copied)


def _none() -> NotFound:
    return NotFound("resource", "the VM has no such snapshot")


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists("resource", f"the VM has a snapshot named {name} already")
