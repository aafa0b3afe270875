"""VMs: fork, look up, list, change, park, delete.

Wherever a `vm` is asked for, its id or its name will do. A name is looked up among the public ones first, then in the
caller's organisation; the source of a fork the other way round (wire 1.5). What is not there and what is not yours
are the same NotFound.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from boxwood.core import clock, durable, lifetimes, settings, words
from boxwood.core.access import Access
from boxwood.core.admission import Admission
from boxwood.core.boxes import Boxes
from boxwood.core.ceilings import Ceilings
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.errors import CoreError, NotFound, ResourceBusy
from boxwood.core.expiry import Expiry
from boxwood.core.forks import Forks
from boxwood.core.goldens import Goldens
from boxwood.core.idempotency import Idempotency
from boxwood.core.lanes import Lanes
from boxwood.core.layers import Layers
from boxwood.core.model import VM, Caller, ForkRequest, Page, Record, VMFilter
from boxwood.core.policies import Policies
from boxwood.core.records import Records
from boxwood.core.runs import Runs
from boxwood.core.settings import Settings
from boxwood.core.signing import Signer
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.core.uploads import Uploads
from boxwood.engine.api import Engine, EngineError
from boxwood.store import keys as key_rows
from boxwood.store import sessions as session_rows
from boxwood.store import uploads as upload_rows
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow

Conditions = tuple[list[str], dict[str, Any]]
SETTLE_SECONDS = 5.0  # for a box to save its shells before it is put down
log = logging.getLogger(__name__)


class VMs:
    def __init__(
        self,
        database: Database,
        engine: Engine,
        boxes: Boxes,
        access: Access,
        admission: Admission,
        lanes: Lanes,
        runs: Runs,
        layers: Layers,
        uploads: Uploads,
        goldens: Goldens,
        idempotency: Idempotency,
        records: Records,
        signer: Signer,
        config: Config,
        tasks: Tasks,
        disks: Disks,
        ceilings: Ceilings,
        policies: Policies,
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._lanes = lanes
        self._layers = layers
        self._uploads = uploads
        self._records = records
        self._signer = signer
        self._tasks = tasks
        self.deleted_hooks: list[Callable[[VMRow], None]] = []
        self._policies = policies
        self.expiry = Expiry(database, tasks, "VM", rows.expired, rows.next_expiry, self._expire)
        self.suspensions = Expiry(
            database, tasks, "VM", rows.to_suspend, rows.next_suspension, self._suspend, "suspended"
        )  # fmt: skip
        policies.clocks_hook = boxes.slumber.clocks_hook = self.clocks_changed
        self.settings = Settings(database, boxes, access, disks, ceilings, tasks, self.expiry.changed)
        self.update = self.settings.update
        self.forks = Forks(
            database,
            engine,
            boxes,
            access,
            admission,
            runs,
            layers,
            goldens,
            idempotency,
            records,
            config,
            tasks,
            disks,
            ceilings,
            policies,
            self.clocks_changed,
        )

    async def fork(self, caller: Caller, request: ForkRequest, idempotency_key: str | None = None) -> VM:
        """A new VM that shows what its source shows now. Neither waits for nor harms what runs in the source.

        BadRequest (no source or several, a bad name), NotFound (source), Forbidden, AlreadyExists (name),
        InsufficientResources, ResourceBusy (more layers than can be stacked: they are being merged),
        IdempotencyConflict, Unavailable (the same key is still being worked on; the host image is still being made),
        CapacityUnavailable.
        """
        return await self.forks.fork(caller, request, idempotency_key)

    # Looking

    async def get(self, caller: Caller, vm: str) -> VM:
        """A VM of the caller's or a public one, with its sessions. NotFound."""
        return self._access.shown(self._access.seen(caller, vm))

    async def named(self, caller: Caller, name: str) -> VM:
        """The caller's own VM of this name, whatever is public under it. NotFound."""
        return self._access.shown(self._access.named(caller, name))

    async def is_unchanged(self, caller: Caller, vm: str) -> bool:
        """Has nothing been written since the VM was made or forked? Costs next to nothing. NotFound, Forbidden."""
        return await self.forks.is_empty(self._access.own(caller, vm))

    async def list(
        self, caller: Caller, where: VMFilter | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[VM]:
        """Newest first. `where.org_id` None: the caller's own; of another organisation only public ones are shown.
        `limit`: 1 to 1000. BadRequest (cursor, limit)."""
        words.limit(limit)
        conditions, params = self._conditions(caller, where or VMFilter())
        scope = f"vms:{caller.org_id}"
        if (before := self._signer.position(scope, cursor)) is not None:
            conditions.append("v.id < :before")
            params["before"] = before

        def page(connection: sqlite3.Connection) -> tuple[Sequence[VMRow], Mapping[str, Sequence[SessionRow]]]:
            found = rows.page(connection, conditions, params, limit + 1)
            return found, session_rows.of_vms(connection, [row.id for row in found[:limit]])

        found, sessions = await self._database.read(page)
        items = tuple(self._access.vm(row, sessions.get(row.id, [])) for row in found[:limit])
        return Page(items, self._signer.cursor(scope, items[-1].vm_id) if len(found) > limit else None)

    async def count(self, caller: Caller, where: VMFilter | None = None) -> int:
        """How many VMs `list` would show in all."""
        conditions, params = self._conditions(caller, where or VMFilter())
        return await self._database.read(lambda connection: rows.count(connection, conditions, params))

    def _conditions(self, caller: Caller, where: VMFilter) -> Conditions:
        conditions = ["v.org_id = :org", "NOT v.hidden"]
        params: dict[str, Any] = {"org": caller.org_id}
        if where.org_id is not None and where.org_id != caller.org_id:
            words.text("org_id", where.org_id)
            params["org"] = key_rows.org_by_id_or_name(self._database.near, where.org_id)
            if params["org"] != caller.org_id:
                conditions.append("v.public")
        if where.public is not None:
            conditions.append("v.public" if where.public else "NOT v.public")
        if where.state is not None:
            if where.state not in ("idle", "running"):
                raise words.refuse("state", "idle or running")
            among = "v.id IN (SELECT value FROM json_each(:running))"
            conditions.append(among if where.state == "running" else "NOT " + among)
            params["running"] = json.dumps(self._boxes.running_ids())
        if where.name_contains:
            words.text("q", where.name_contains)
            conditions.append("instr(lower(v.name), lower(:contains))")
            params["contains"] = where.name_contains
        if where.created_after is not None:
            conditions.append("v.created_at >= :after")
            params["after"] = clock.stored(where.created_after)
        if where.created_before is not None:
            conditions.append("v.created_at < :until")
            params["until"] = clock.stored(where.created_before)
        return conditions, params

    # Changing

    async def park(self, caller: Caller, vm: str) -> None:
        """Put the box of an idle VM down, if it has one; the next use boots another. NotFound, ResourceBusy."""
        row = self._access.own(caller, vm)
        if not await self._tasks.finish(self._boxes.park(row.id)):
            raise ResourceBusy("vm", "something runs in the VM: wait for its end", retry_after=1)

    async def stop(self, caller: Caller, vm: str) -> None:
        """End what runs (as cancelled) and put the box down; nothing boots the VM until `start`. Its files and its
        sessions stay. NotFound, Forbidden, InvalidState (immutable)."""
        row = self._access.mutable(caller, vm)
        await self._tasks.finish(self._stop(row.id))

    async def _stop(self, vm_id: str) -> None:
        slot = self._boxes.slot(vm_id)
        async with slot.lock:
            await self._change_held(slot, {"stopped": True})
            self._lanes.end_vm(vm_id)
            async with self._boxes.slumber.thawed(slot):
                if slot.box is not None:
                    try:
                        async with asyncio.timeout(SETTLE_SECONDS):
                            await slot.box.settle()  # its shells are saved
                    except (EngineError, TimeoutError):
                        pass  # then as they were saved last
                await self._boxes.put_down(slot, "the VM was stopped")

    async def start(self, caller: Caller, vm: str) -> None:
        """Boot the VM, also if it has been stopped. NotFound, Forbidden, InvalidState (immutable), Unavailable."""
        row = self._access.own(caller, vm)
        if row.stopped:
            await self._tasks.finish(self._unstop(row.id))
        row = self._access.usable(caller, row.id)
        self._boxes.leave(await self._boxes.enter(row.id))

    async def _unstop(self, vm_id: str) -> None:
        slot = self._boxes.slot(vm_id)
        async with slot.lock:
            await self._change_held(slot, {"stopped": False})

    async def extend(self, caller: Caller, vm: str, seconds: float) -> VM:
        """Let the VM live so much longer than it would; one without an end has `seconds` from now on. As long as the
        key's ceiling lets it at most.
        BadRequest, NotFound, Forbidden."""
        words.seconds("seconds", seconds)
        row = self._access.own(caller, vm)
        more = int(seconds * 1e6)

        def ends(now: int, before: int | None) -> int | None:
            end = (now if before is None else max(now, before)) + more
            return lifetimes.latest_end(caller, row, end)

        return self._access.shown(await self._tasks.finish(self._set_end(row.id, ends)))

    async def expire_in(self, caller: Caller, vm: str, seconds: float | None) -> VM:
        """Let the VM be deleted by itself so many seconds from now; None: never, if the key lets it.
        BadRequest, NotFound, Forbidden."""
        words.seconds("seconds", seconds)
        row = self._access.own(caller, vm)
        left = None if seconds is None else int(seconds * 1e6)

        def ends(now: int, before: int | None) -> int | None:
            return lifetimes.latest_end(caller, row, None if left is None else now + left)

        return self._access.shown(await self._tasks.finish(self._set_end(row.id, ends)))

    def clocks_changed(self) -> None:
        """A VM may have got another time to be deleted or suspended."""
        self.expiry.changed()
        self.suspensions.changed()

    async def _set_end(self, vm_id: str, ends: Callable[[int, int | None], int | None]) -> VMRow:
        """`ends` tells when the VM is to be deleted, of what the time is and when it was to be before."""
        slot = self._boxes.slot(vm_id)
        async with slot.lock:  # it is given another end or it expires, not both
            row = rows.by_id(self._database.near, vm_id)
            await self._change_held(slot, {"expires_at": ends(clock.now(), None if row is None else row.expires_at)})
            changed = rows.by_id(self._database.near, vm_id)
        self.expiry.changed()
        assert changed is not None  # what deletes it waits for the lock
        return changed

    async def remove(self, vm_id: str) -> None:
        """`delete` of a VM that is in nobody's sight. NotFound."""
        await self._tasks.finish(self._delete(vm_id))

    async def _change_held(self, slot: Slot, values: dict[str, Any]) -> None:
        """With the slot's lock held."""
        if slot.deleted:
            raise NotFound("vm", "there is no such VM any more")
        await self._database.write(lambda connection: settings.change(connection, slot.vm_id, values), small=True)
        await durable.secure(self._database, self._access.row(slot.vm_id))

    async def delete(self, caller: Caller, vm: str) -> None:
        """End what runs (as cancelled), put the box down, forget the VM; its name is free at once.
        NotFound, also the second time; Forbidden."""
        row = self._access.own(caller, vm)
        await self._tasks.finish(self._delete(row.id))

    def discard(self, caller: Caller, vm: str) -> None:
        """`delete`, but nobody waits for it. NotFound, Forbidden."""
        row = self._access.own(caller, vm)
        self._tasks.start(self._discard(row.id))

    async def _discard(self, vm_id: str) -> None:
        with suppress(NotFound):
            await self._delete(vm_id)

    async def _expire(self, vm_id: str) -> None:
        await self._tasks.finish(self._delete(vm_id, expired=True))

    async def _suspend(self, vm_id: str) -> None:
        await self._tasks.finish(self._suspend_if_due(vm_id))

    async def _suspend_if_due(self, vm_id: str) -> None:
        row, now = rows.by_id(self._database.near, vm_id), clock.now()
        if row is None or row.suspend_at is None or row.suspend_at > now:
            return
        await self._boxes.suspend(vm_id)
        await self._database.write(lambda connection: self._policies.went_on(connection, vm_id, now), small=True)

    async def suspend_again(self, slots: Iterable[Slot]) -> None:
        """Boxes that an earlier server left, and had suspended: they have gone on meanwhile."""
        near = self._database.near
        suspended = [slot.vm_id for slot in slots if rows.is_suspended(near, slot.vm_id)]
        await asyncio.gather(*(self._suspend_again(vm_id) for vm_id in suspended))

    async def _suspend_again(self, vm_id: str) -> None:
        try:
            if await self._boxes.suspend(vm_id):
                return
        except CoreError as error:
            log.warning("VM %s: it could not be suspended again: %s", vm_id, error)
        self._boxes.slumber.awake(self._boxes.slot(vm_id))

    async def _delete(self, vm_id: str, *, expired: bool = False) -> None:
        slot = self._boxes.slot(vm_id)
        async with slot.lock:
            if slot.deleted:
                raise NotFound("vm", "there is no such VM any more")
            if expired and not _has_expired(rows.by_id(self._database.near, vm_id)):
                return
            slot.deleted, gone = True, None
            try:
                self._lanes.end_vm(vm_id)
                gone = await self._boxes.dismiss(slot, "the VM was deleted")
                row, files, records = await self._database.write(lambda connection: self._forget(connection, vm_id))
            except BaseException:
                if gone is not None:
                    await asyncio.wait({gone})  # its next box has the same top
                slot.deleted = False
                raise
        self._records.are_gone(records)
        for hook in self.deleted_hooks:
            hook(row)
        self._release(row, gone)
        await durable.secure(self._database, row)
        await self._uploads.remove(files)

    def _release(self, row: VMRow, gone: asyncio.Future[str] | None) -> None:
        """What it stood on may go, when nothing is left of its box."""

        def release(told: asyncio.Future[str] | None) -> None:
            if told is None or not told.cancelled():  # else this server ends, and the next looks for what nobody needs
                self._layers.released(row.id, row.base, row.top if row.written else None)

        if gone is None:
            release(None)
        else:
            gone.add_done_callback(release)

    def _forget(self, connection: sqlite3.Connection, vm_id: str) -> tuple[VMRow, Sequence[str], Sequence[Record]]:
        """Its last row, the staging files of its uploads, and the records that go with it."""
        row = rows.by_id(connection, vm_id)
        if row is None:
            raise NotFound("vm", "there is no such VM any more")
        files = upload_rows.files_of(connection, vm_id)
        records = self._records.delete_of(connection, vm_id)
        rows.delete(connection, vm_id)
        return row, files, records


def _has_expired(row: VMRow | None) -> bool:
    return row is not None and row.end is not None and row.end <= clock.now()
