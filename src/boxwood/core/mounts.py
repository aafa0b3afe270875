"""Mounts: which filesystem a VM has at which path. They are the VM's, whether it has a box or not: each of its boxes
gets them before anything runs in it, and one that lives gets a new mount without a restart.

A fork has none of its source's: what is tried in a fork must not reach what the source shares with others.

All that is done to one VM's mounts is done by one at a time; whoever wants that and a slot's lock has the latter first,
and a filesystem's lock last.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from boxwood.core import clock, durable, words
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import Conflict, CoreError, Internal, NotFound
from boxwood.core.filesystems import Filesystems
from boxwood.core.ids import new_id
from boxwood.core.model import Caller, Page
from boxwood.core.refusals import clean
from boxwood.core.signing import Signer
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Box, BoxGone, Engine, EngineError, GuestError, NotHere
from boxwood.engine.volumes.api import MOUNT_POINT_BYTES, Attachment
from boxwood.store import filesystems as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.filesystems import FilesystemRow, MountRow

MOST = 32  # of one VM
FIRST_PAUSE, TRIES = 0.5, 8  # seconds between tries where the trouble may pass, each as long again; then: the next box
NAME_BYTES = 255
# What belongs to the box itself. Below /tmp anything may be mounted, save in a read-only VM.
RESERVED = ("/proc", "/sys", "/dev", "/run")
_PASSING = frozenset({errno.ENOENT, errno.ENOMEM, errno.EAGAIN, errno.EBUSY})
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mount:
    """`state`: attaching, mounted, or failed with a `detail`."""

    mount_id: str
    vm_id: str
    filesystem_id: str
    path: str
    read_only: bool
    state: str
    detail: str | None


class Mounts:
    def __init__(
        self,
        database: Database,
        engine: Engine,
        boxes: Boxes,
        access: Access,
        filesystems: Filesystems,
        signer: Signer,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._access = access
        self._filesystems = filesystems
        self._signer = signer
        self._tasks = tasks
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._trying: dict[str, asyncio.Event] = {}  # VMs; set when there is more to be tried

    # What callers ask

    async def create(
        self, caller: Caller, vm: str, filesystem: str, path: str | None = None, read_only: bool = False
    ) -> Mount:
        """Have a filesystem mounted in a VM, which is booted for it unless it has been stopped; `path` None: at
        /mnt/NAME. What is mounted there already is answered as it is.
        BadRequest, NotFound, Forbidden, InvalidState (immutable), Conflict."""
        row = self._access.mutable(caller, vm)
        volume = self._filesystems.own(caller, filesystem)
        wanted = None if path is None else mount_point(path)
        made, is_new = await self._database.write(
            lambda connection: _insert(connection, row.id, volume, wanted, read_only)
        )
        if is_new or made.state != "mounted":
            self._try(row.id)
        await durable.secure(self._database, row)
        return _shown(made)

    async def list(
        self, caller: Caller, vm: str, cursor: str | None = None, limit: int = 100, filesystem: str | None = None
    ) -> Page[Mount]:
        """The oldest first. `filesystem`: those of this one alone. BadRequest, NotFound, Forbidden."""
        words.limit(limit)
        row = self._access.own(caller, vm)
        scope = f"mounts:{row.id}"
        after = self._signer.position(scope, cursor) or ""
        found = [mount for mount in rows.mounts_of(self._database.near, row.id) if mount.id > after]
        if filesystem is not None:
            with suppress(NotFound):  # of one that is gone there are none
                filesystem = self._filesystems.own(caller, filesystem).id
            found = [mount for mount in found if mount.filesystem_id == filesystem]
        items = tuple(_shown(mount) for mount in found[:limit])
        return Page(items, self._signer.cursor(scope, items[-1].mount_id) if len(found) > limit else None)

    async def delete(self, caller: Caller, vm: str, mount_id: str) -> None:
        """Take it away, also under what uses it; files that are open for writing stay open until they are closed.
        NotFound, Forbidden, InvalidState (immutable), Internal."""
        row = self._access.mutable(caller, vm)
        await self._tasks.finish(self._delete(row.id, mount_id))
        await durable.secure(self._database, row)

    async def _delete(self, vm_id: str, mount_id: str) -> None:
        async with self._lock(vm_id):
            mount = rows.mount(self._database.near, vm_id, mount_id)
            if mount is None:
                raise NotFound("mount", "there is no such mount")
            box = self._boxes.slot(vm_id).box
            if box is not None and mount_id in box.mounts:
                try:
                    await self._detach(box, mount_id)
                except EngineError as error:
                    raise Internal(f"the mount could not be taken away: {error}") from error
            await self._database.write(lambda connection: rows.delete_mount(connection, mount_id), small=True)
        self._filesystems.measure(mount.filesystem_id)

    # What boxes need

    async def fit_out(self, vm_id: str, box: Box) -> None:
        """A box has been made, and nothing runs in it yet: let it have what its VM has. What cannot be mounted is told
        by the mount's state; the VM comes up without it."""
        if rows.mounts_of(self._database.near, vm_id):
            async with self._lock(vm_id):
                await self._attach_all(vm_id, box)

    def recover(self, adopted: Mapping[str, Slot]) -> None:
        """At the start: boxes that were taken over have what their VMs have, and no more; what was about to be mounted
        is."""
        for vm_id, slot in adopted.items():
            if slot.box is not None and (slot.box.mounts or rows.mounts_of(self._database.near, vm_id)):
                self._tasks.start(self._reconcile(vm_id, slot))
        for vm_id in rows.attaching(self._database.near):
            if vm_id not in adopted:
                self._try(vm_id)

    async def _reconcile(self, vm_id: str, slot: Slot) -> None:
        async with self._lock(vm_id):
            if (box := slot.box) is None:
                return
            known = {mount.id for mount in rows.mounts_of(self._database.near, vm_id)}
            for mount_id in sorted(box.mounts - known):
                try:
                    await self._detach(box, mount_id)
                except EngineError as error:
                    log.error("VM %s: mount %s could not be taken away: %s", vm_id, mount_id, error)
            await self._attach_all(vm_id, box)
        self._try(vm_id)

    def _lock(self, vm_id: str) -> asyncio.Lock:
        lock = self._locks.get(vm_id)
        if lock is None:
            lock = self._locks[vm_id] = asyncio.Lock()
        return lock

    def _try(self, vm_id: str) -> None:
        """Mount what is to be mounted, in the background, until it is, or cannot be."""
        if (more := self._trying.get(vm_id)) is not None:
            more.set()
            return
        self._trying[vm_id] = more = asyncio.Event()
        self._tasks.start(self._keep_trying(vm_id, more))

    async def _keep_trying(self, vm_id: str, more: asyncio.Event) -> None:
        try:
            await self._try_on(vm_id, more)
        finally:
            del self._trying[vm_id]  # at once: who has something more to be tried must find nobody who no longer looks

    async def _try_on(self, vm_id: str, more: asyncio.Event) -> None:
        tried = 0
        while self._waiting(vm_id) and tried < TRIES:
            more.clear()
            try:
                async with self._boxes.using(vm_id) as (_, box):  # one that is made now has been fitted out
                    async with self._lock(vm_id):
                        await self._attach_all(vm_id, box)
            except (CoreError, EngineError) as error:
                log.warning("VM %s: a filesystem is not mounted yet: %s", vm_id, error)
            if not self._waiting(vm_id):
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_PAUSE * 2**tried):
                    await more.wait()
            tried = 0 if more.is_set() else tried + 1

    def _waiting(self, vm_id: str) -> bool:
        """Is there something to be mounted, and may its VM be booted for it?"""
        row = vm_rows.by_id(self._database.near, vm_id)
        if row is None or row.stopped:
            return False
        return any(mount.state == "attaching" for mount in rows.mounts_of(self._database.near, vm_id))

    async def _attach_all(self, vm_id: str, box: Box) -> None:
        """With the VM's lock held."""
        for mount in rows.mounts_of(self._database.near, vm_id):
            if mount.id not in box.mounts:
                try:
                    state, detail = await self._attach(mount, box)
                except BoxGone:
                    return
            else:
                state, detail = "mounted", None
            if (state, detail) != (mount.state, mount.detail):
                await self._database.write(
                    partial(rows.set_state, mount_id=mount.id, state=state, detail=detail), small=True
                )

    async def _attach(self, mount: MountRow, box: Box) -> tuple[str, str | None]:
        """The mount's state afterwards. BoxGone."""
        volume = rows.by_id(self._database.near, mount.filesystem_id)
        if volume is None:
            return "failed", "the filesystem is gone"
        async with self._filesystems.one_at_a_time(volume):
            limit = (volume.size_mib or 0) << 20
            wanted = Attachment(mount.id, volume.id, mount.path, mount.read_only, limit)
            try:
                await self._engine.volumes.attach(box, wanted)
            except BoxGone:
                raise
            except GuestError as error:
                state = "attaching" if error.errno in _PASSING else "failed"
                return state, clean(error.message) if state == "failed" else None
            except NotHere as error:
                log.error("VM %s: filesystem %s: %s", mount.vm_id, volume.id, error)
                return "failed", "the filesystem's directory is not on this host"
            except EngineError as error:
                log.error("VM %s: filesystem %s was not mounted: %s", mount.vm_id, volume.id, error)
                return "attaching", None
        return "mounted", None

    async def _detach(self, box: Box, mount_id: str) -> None:
        """EngineError."""
        with suppress(BoxGone):
            if await self._engine.volumes.detach(box, mount_id):
                log.info("VM %s: files of mount %s are still open for writing", box.vm_id, mount_id)


def mount_point(path: str) -> str:
    """In its proper form. BadRequest."""
    clean_path = words.path(path)
    names = clean_path.split("/")[1:]
    if ".." in names:
        raise words.refuse("path", "must not contain '..'")
    if len(clean_path.encode()) > MOUNT_POINT_BYTES or any(len(name.encode()) > NAME_BYTES for name in names):
        raise words.refuse("path", f"at most {MOUNT_POINT_BYTES} bytes, {NAME_BYTES} in each name")
    if clean_path in ("/", "/tmp") or any(_is_at_or_below(clean_path, place) for place in RESERVED):  # noqa: S108
        raise words.refuse("path", f"nothing can be mounted at / or /tmp, nor at or below {', '.join(RESERVED)}")
    return clean_path


def _is_at_or_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place + "/")


def _insert(
    connection: sqlite3.Connection, vm_id: str, volume: FilesystemRow, path: str | None, read_only: bool
) -> tuple[MountRow, bool]:
    """The mount, and whether it is a new one."""
    there = rows.mounts_of(connection, vm_id)
    for mount in there:
        if mount.filesystem_id == volume.id:
            if path in (None, mount.path) and mount.read_only == read_only:
                if mount.state == "failed":  # whoever asks again has put it right
                    rows.set_state(connection, mount.id, "attaching", None)
                    mount = replace(mount, state="attaching", detail=None)
                return mount, False
            how = "read-only" if mount.read_only else "to be written to"
            raise Conflict("mount", f"this filesystem is mounted at {mount.path}, {how}: delete that mount first")
    path = path or f"/mnt/{volume.name}"
    for mount in there:
        if _is_at_or_below(path, mount.path) or _is_at_or_below(mount.path, path):
            raise Conflict("mount", f"another filesystem is mounted at {mount.path}: delete that mount first")
    if len(there) >= MOST:
        raise Conflict("mount", f"the VM has {MOST} mounts, and can have no more: delete some")
    row = MountRow(new_id(), vm_id, volume.id, path, read_only, "attaching", None, clock.now())
    try:
        rows.insert_mount(connection, row)
    except sqlite3.IntegrityError as error:  # the foreign keys: either was deleted meanwhile
        raise NotFound("mount", "the VM or the filesystem is gone") from error
    if rows.by_id(connection, volume.id) is None:
        raise NotFound("filesystem", "there is no such filesystem")
    return row, True


def _shown(row: MountRow) -> Mount:
    return Mount(row.id, row.vm_id, row.filesystem_id, row.path, row.read_only, row.state, row.detail)
