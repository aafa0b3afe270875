"""What can be changed of a VM that is there: its name, its description, its sizes, its end, who may log in to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from boxwood.core import clock, durable, lifetimes, sshkeys, words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.ceilings import Ceilings
from boxwood.core.disks import Disks
from boxwood.core.errors import AlreadyExists, InvalidState, NotFound, ResourceBusy
from boxwood.core.model import VM, Caller, Resources
from boxwood.core.refusals import of_engine
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import EngineError
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

_SIZES = frozenset({"vcpu", "memory_mib", "disk_mib", "pids", "nofile"})


class Unset:
    """The type of `UNSET`: a member that was not given, where None has a meaning of its own."""


UNSET: Final = Unset()


class Settings:
    """`expiring`: called when a VM may have got another end."""

    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        access: Access,
        disks: Disks,
        ceilings: Ceilings,
        tasks: Tasks,
        expiring: Callable[[], None],
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._disks = disks
        self._ceilings = ceilings
        self._tasks = tasks
        self._expiring = expiring
        self.keys_changed_hooks: list[Callable[[str], None]] = []  # of those that may log in to a VM

    async def update(
        self,
        caller: Caller,
        vm: str,
        *,
        description: str | Unset | None = UNSET,
        name: str | Unset | None = UNSET,
        immutable: bool | Unset = UNSET,
        resources: Resources | Unset = UNSET,
        ttl: float | Unset | None = UNSET,
        ssh_keys: Any = UNSET,
    ) -> VM:
        """Change what is given. `immutable` can only become true, and only alone; resources count at once, also for
        what runs; `ttl`: seconds from now until it is deleted by itself, None: never. BadRequest, NotFound, Forbidden,
        AlreadyExists, InvalidState (immutable), ResourceBusy (something runs)."""
        values: dict[str, Any] = {}
        if not isinstance(description, Unset):
            values["description"] = words.description(description)
        if not isinstance(name, Unset):
            values["name"] = None if name is None else words.name(name)
        if not isinstance(resources, Unset):
            self._ceilings.check(resources)
            values |= {key: value for key, value in asdict(resources).items() if value is not None}
        if not isinstance(immutable, Unset):
            if not immutable:
                raise words.refuse("immutable", "can only become true")
            if values or not isinstance(ttl, Unset) or not isinstance(ssh_keys, Unset):
                raise words.refuse("immutable", "must be given alone")
            values["immutable"] = True
        row = self._access.own(caller, vm)
        if row.immutable and not isinstance(immutable, Unset):
            return self._access.shown(row)
        row = self._access.mutable(caller, vm)
        if not isinstance(ssh_keys, Unset):
            sshkeys.updated(sshkeys.stored(row.ssh_keys), ssh_keys)
            values["ssh_keys"] = ssh_keys
        if not isinstance(ttl, Unset):
            words.seconds("ttl", ttl)
            values["expires_at"] = None if ttl is None else clock.now() + int(ttl * 1e6)
            lifetimes.check_end(caller, row, values["expires_at"])
        if values:
            await self._tasks.finish(self._update(row.id, values))
        return self._access.shown(self._access.own(caller, row.id))

    async def _update(self, vm_id: str, values: dict[str, Any]) -> None:
        async with self._boxes.alone(vm_id) as slot:
            now = self._access.row(vm_id)  # somebody may have changed it while he was waited for
            if "ssh_keys" in values:
                made = sshkeys.updated(sshkeys.stored(now.ssh_keys), values["ssh_keys"])
                values = {**values, "ssh_keys": sshkeys.to_store(made)}
            if "immutable" in values and not await self._boxes.park_held(slot):
                raise ResourceBusy("vm", "something runs in the VM: wait for its end", retry_after=1)
            changed, resized = replace(now, **values), not _SIZES.isdisjoint(values)
            if resized:
                await self._resize(slot, changed, limited="disk_mib" in values)
            try:
                await self._database.write(lambda connection: change(connection, vm_id, values))
            except BaseException:
                if resized:
                    await self._boxes.change(slot, now)
                raise
            if "expires_at" in values:
                self._expiring()
            if "ssh_keys" in values:
                for hook in self.keys_changed_hooks:
                    hook(vm_id)
            if "name" in values and not resized:
                await self._boxes.rename(changed)
            await durable.secure(self._database, now)  # should that fail, all of it is so all the same

    async def _resize(self, slot: Slot, changed: VMRow, *, limited: bool) -> None:
        """Let the box have other sizes, or be none. `limited`: the disk's among them. InsufficientResources,
        ResourceBusy."""
        if limited:
            await self._check_disk(slot, changed)
        if not await self._boxes.change(slot, changed) and not await self._boxes.park_held(slot):
            raise ResourceBusy("vm", "the VM's processes use more than that: end some of them", retry_after=1)

    async def _check_disk(self, slot: Slot, changed: VMRow) -> None:
        """Another limit for a VM's disk: what it holds must be less, and a box that cannot have it must go.
        InsufficientResources, ResourceBusy."""
        assert changed.disk_mib is not None
        if changed.durable:
            self._disks.check_durable(changed.disk_mib)
        if changed.read_only:
            return
        try:
            await self._disks.check_room(changed.base, changed.top if changed.written else None, changed.disk_mib)
            fits = await self._disks.fits(changed)
        except EngineError as error:
            raise of_engine(error, "vm") from error
        if not fits and not await self._boxes.park_held(slot):
            text = "something runs in the VM, whose disk cannot be made so large meanwhile: end it, or wait for its end"
            raise ResourceBusy("vm", text, retry_after=1)


def change(connection: sqlite3.Connection, vm_id: str, values: dict[str, Any]) -> None:
    """In a transaction. NotFound, InvalidState (immutable), AlreadyExists (name)."""
    row = rows.by_id(connection, vm_id)
    if row is None:
        raise NotFound("vm", "there is no such VM any more")
    if row.immutable:
        raise InvalidState("vm", "mutable", "the VM has become immutable", vm_id)
    try:
        rows.change(connection, vm_id, values)
    except sqlite3.IntegrityError as error:
        raise AlreadyExists("vm", f"there is a VM named {values.get('name')} already") from error
