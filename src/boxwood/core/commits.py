"""Commit: what a VM has changed since it was forked, folded back into what it was forked from.

If that has not changed meanwhile it simply gets the VM's stack of layers. Else what the VM has changed is made once
more as a layer upon the other's, unless they collide. Either way one transaction ends it, and before it nothing has
changed.
"""

from __future__ import annotations

import sqlite3

from boxwood.core import durable
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.disks import Disks
from boxwood.core.errors import BadRequest, Collisions, InvalidState, NotFound
from boxwood.core.ids import new_id
from boxwood.core.layers import Layers
from boxwood.core.model import VM, Caller
from boxwood.core.refusals import of_engine
from boxwood.core.slot import Slot
from boxwood.core.snapshots import Snapshots
from boxwood.core.states import States, fork_point
from boxwood.core.tasks import Tasks
from boxwood.core.views import View, Views
from boxwood.engine.api import Engine, EngineError
from boxwood.engine.states import Sealed
from boxwood.store import layers as layer_rows
from boxwood.store import snapshots as snapshot_rows
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow


class Commits:
    def __init__(
        self,
        database: Database,
        engine: Engine,
        boxes: Boxes,
        access: Access,
        snapshots: Snapshots,
        states: States,
        views: Views,
        layers: Layers,
        disks: Disks,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._access = access
        self._snapshots = snapshots
        self._states = states
        self._views = views
        self._layers = layers
        self._disks = disks
        self._tasks = tasks

    async def commit(self, caller: Caller, vm: str, into: str | None = None, *, force: bool = False) -> VM:
        """Fold what a VM has changed since it was forked into `into`, another VM of the caller's: the one it was forked
        from, if None. The VM itself stays as it is. What runs in the other must have ended, or is ended with `force`.

        BadRequest, NotFound, Forbidden, InvalidState (immutable, read-only), Collisions, Conflict (nobody knows any
        more what the VM was when it was forked), ResourceBusy (something runs), InsufficientResources (the disk of the
        other is too small)."""
        ours = self._access.own(caller, vm)
        theirs = self._access.mutable(caller, into if into is not None else self._parent(ours))
        if theirs.id == ours.id:
            raise BadRequest("into: is the VM itself", [("into", "is the VM itself")])
        if theirs.read_only:
            raise InvalidState("vm", "mutable", "the VM is read-only", theirs.id)
        async with self._states.turn(caller.org_id):
            return await self._tasks.finish(self._commit(ours, theirs, force))

    def _parent(self, row: VMRow) -> str:
        """Its id; of a snapshot, that of the VM whose state it is."""
        near = self._database.near
        if row.parent_id is None:
            raise NotFound("vm", "nobody knows what the VM was forked from: name the VM to commit into")
        snapshot = snapshot_rows.by_id(near, row.parent_id)
        parent = row.parent_id if snapshot is None else snapshot.vm_id
        if rows.by_id(near, parent) is None:
            raise NotFound("vm", "what the VM was forked from is not there any more: name the VM to commit into")
        return parent

    async def _commit(self, ours: VMRow, theirs: VMRow, force: bool) -> VM:
        async with self._views.of(ours) as view:
            base = fork_point(view)
            async with self._boxes.alone(theirs.id) as slot:
                await self._snapshots.empty(slot, force)
                try:
                    await self._fold(slot, base, view, theirs)
                except EngineError as error:
                    raise of_engine(error, "vm") from error
        return self._access.shown(self._access.row(theirs.id))

    async def _fold(self, slot: Slot, base: Sealed, ours: View, theirs: VMRow) -> None:
        async with self._views.of(theirs, slot) as view:
            if view.layers == ours.layers or base == ours.layers:
                return
            disk = self._access.row(theirs.id).disk_mib
            if view.layers == base:
                if disk is not None:
                    await self._disks.check_room(ours.base, None, disk)
                await self._put(theirs, ours.vm_id, ours.base, None)
                return
            target = new_id()
            try:
                done = await self._engine.states.commit(base, view.layers, ours.layers, target)
                if done.collisions:
                    raise _collisions(done.collisions)
                if disk is not None:
                    await self._disks.check_room(view.base, target, disk)
            except BaseException:
                self._layers.orphaned(target)
                raise
            await self._put(theirs, ours.vm_id, target, view.base)

    async def _put(self, theirs: VMRow, ours: str, base: str, upon: str | None) -> None:
        """Let them stand on `base`: with `upon`, a new layer upon what they stand on now, which shows what that one
        did."""

        def put(connection: sqlite3.Connection) -> tuple[VMRow, int]:
            now = rows.by_id(connection, theirs.id)
            if now is None:
                raise NotFound("vm", "there is no such VM any more")
            if now.immutable:
                raise InvalidState("vm", "mutable", "the VM has become immutable", now.id)
            if upon is not None:
                depth = layer_rows.insert(connection, base, now.base)
            else:
                found = layer_rows.by_id(connection, base)
                if found is None:
                    raise NotFound("vm", "the VM to commit is not there any more")
                depth = found.depth
                rows.forked_at(connection, ours, now.id, base)
            rows.retop(connection, now.id, base, new_id())
            return now, depth

        try:
            if theirs.durable:  # on the disk before there is a row that says so
                layers, images = layer_rows.chain(self._database.near, base if upon is None else upon)
                await self._engine.secure([one for one in dict.fromkeys((base, *layers)) if one not in images])
            before, depth = await self._database.write(put)
        except BaseException:
            if upon is not None:
                self._layers.orphaned(base)
            raise
        self._snapshots.replaced(before, base, depth)
        await durable.secure(self._database, theirs)  # should that fail, the VM stands on it all the same


def _collisions(paths: tuple[str, ...]) -> Collisions:
    shown = [path.encode(errors="replace").decode() for path in paths]
    count = f"{len(shown)} paths" if len(shown) > 1 else shown[0]
    return Collisions(f"both have changed {count}: nothing was committed", shown[:100])
