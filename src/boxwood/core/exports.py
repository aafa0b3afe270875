"""Export and import: a VM as one file, and a VM of such a file.

A file holds what is above the VM's image, and which image that is; or with `full` all of it, for hosts that do not have
the image. Sessions, runs and snapshots stay where they are, and so do secrets: none is in it but what is in files.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from boxwood import __version__
from boxwood.core import clock, lifetimes, words
from boxwood.core.access import Access
from boxwood.core.archives import FORMAT, PIECE, Reader, Writer
from boxwood.core.config import Config
from boxwood.core.disks import MIB, Disks
from boxwood.core.errors import BadRequest, CapacityUnavailable, Conflict, Unsupported
from boxwood.core.forks import Forks, checked
from boxwood.core.ids import is_id, new_id
from boxwood.core.layers import Layers
from boxwood.core.model import VM, Caller, ForkRequest, Resources
from boxwood.core.refusals import clean, of_engine
from boxwood.core.states import States
from boxwood.core.tasks import Tasks
from boxwood.core.views import View, Views
from boxwood.engine.api import Engine, EngineError
from boxwood.engine.states import BadArchive
from boxwood.store import layers as layer_rows
from boxwood.store import vms as rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

BASE = "ubuntu"  # what an archive with all of a VM is put upon, hidden by it
SPARE = 1 << 30  # bytes that imports leave of the disk


class Exports:
    def __init__(
        self,
        database: Database,
        engine: Engine,
        access: Access,
        states: States,
        views: Views,
        forks: Forks,
        layers: Layers,
        disks: Disks,
        config: Config,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._engine = engine
        self._access = access
        self._states = states
        self._views = views
        self._forks = forks
        self._layers = layers
        self._disks = disks
        self._config = config
        self._tasks = tasks

    # Out

    async def export(self, caller: Caller, vm: str, *, full: bool = False) -> AsyncGenerator[bytes, None]:
        """The file, bit by bit. What the VM shows when this is called is held until the last of it has been taken, or
        the generator is closed. NotFound, Forbidden, ResourceBusy; a failure later ends it early."""
        row = self._access.own(caller, vm)
        turn = self._states.turn(caller.org_id)
        await turn.acquire()
        try:
            holding = self._tasks.start(self._views.hold(row), heard=True)
            try:
                view = await asyncio.shield(holding)
            except asyncio.CancelledError:
                holding.add_done_callback(self._let_go)
                raise
        except BaseException:
            turn.release()
            raise
        return self._pieces(row, view, full, turn)

    def _let_go(self, holding: asyncio.Task[View]) -> None:
        if not holding.cancelled() and holding.exception() is None:
            self._views.release(holding.result())

    async def _pieces(self, row: VMRow, view: View, full: bool, turn: asyncio.Semaphore) -> AsyncGenerator[bytes, None]:
        try:
            image = next(layer for place, layer in view.layers if place == "image")
            layers = view.layers if full else tuple(layer for layer in view.layers if layer[0] != "image")
            writer = Writer(_about(row, image, full))
            yield await asyncio.to_thread(writer.begin)
            if layers:
                async with aclosing(self._engine.states.pack(layers, whole=full)) as packed:
                    async for piece in packed:
                        if data := await asyncio.to_thread(writer.more, piece):
                            yield data
            yield await asyncio.to_thread(writer.end)
        finally:
            self._views.release(view)
            turn.release()

    # In

    async def import_(
        self, caller: Caller, pieces: AsyncIterator[bytes], *, name: str | None = None, ttl: float | None = None
    ) -> VM:
        """A VM of a file. Nothing is left of it if anything goes wrong. BadRequest (what is no such file, a damaged one
        or a hostile one), AlreadyExists (name), Conflict (the image that it stands on is not here),
        CapacityUnavailable, QuotaExceeded, InsufficientResources."""
        if name is not None:
            words.name(name)
        async with self._states.turn(caller.org_id):
            return await self._tasks.finish(self._import(caller, pieces, name, ttl))

    async def _import(self, caller: Caller, pieces: AsyncIterator[bytes], name: str | None, ttl: float | None) -> VM:
        self._forks.check_room()
        reader, target = Reader(), new_id()
        async with aclosing(_unpacked(reader, pieces)) as coming:
            first = await anext(coming, b"")
            if reader.about is None:
                reader.end()
            request, image, full = self._wanted(caller, reader.about or {}, name, ttl)
            most = self._most(caller, request)
            try:
                if not full:
                    while not first and (more := await anext(coming, None)) is not None:
                        first = more
                if not first and not full:  # nothing is above the image
                    return await self._make(caller, request, None, image)
                tree = _joined(first, coming)
                with self._layers.making(target):
                    await self._engine.states.unpack(tree, target, whole=full, most=most, hide=image if full else "")
                    return await self._make(caller, request, target, image)
            except BadArchive as error:
                self._layers.orphaned(target)
                raise BadRequest(f"the archive cannot be imported: {clean(str(error))}") from None
            except EngineError as error:
                self._layers.orphaned(target)
                raise of_engine(error, "vm") from error
            except BaseException:
                self._layers.orphaned(target)
                raise

    def _most(self, caller: Caller, request: ForkRequest) -> int:
        """Bytes that may come out of an archive. CapacityUnavailable."""
        most = self._engine.free_disk() - SPARE
        if most <= 0:
            raise CapacityUnavailable("the server's disk has too little space left for an import")
        disk = self._disk(caller, request)
        return most if disk is None else min(most, disk * MIB)

    def _disk(self, caller: Caller, request: ForkRequest) -> int | None:
        """MiB that the VM may hold above its image, its own or this server's; None: as many as there are."""
        golden = self._access.source(caller, request.source_id, None, None)
        return self._disks.of_fork(golden, request.resources)

    def _wanted(
        self, caller: Caller, about: Mapping[str, Any], name: str | None, ttl: float | None
    ) -> tuple[ForkRequest, str, bool]:
        """What is to be made, the image that it stands on, and whether the archive holds all of it."""
        full, image, vm = about.get("full"), about.get("image"), about.get("vm")
        if not isinstance(full, bool) or not isinstance(image, dict) or not isinstance(vm, dict):
            raise BadRequest("the archive cannot be imported: its head says nothing of full, image or vm")
        golden = self._access.source(caller, None, BASE, None)
        layer = golden.base if full else image.get("layer")
        near = self._database.near
        if not isinstance(layer, str) or not is_id(layer) or not (self._config.images / layer / "upper").is_dir():
            called = clean(str(image.get("name")))
            raise Conflict(
                "vm",
                f"the archive holds what is above the image {called} of another host, or of one that has been replaced "
                "here: export the VM with full, and import that",
            )
        if (row := layer_rows.by_id(near, layer)) is None or row.place != "image":
            raise Conflict("vm", "the archive stands on an image that no VM here has stood on: export the VM with full")
        request = ForkRequest(
            source_id=golden.id,
            name=name,
            description=_of(vm, "description", str),
            resources=Resources(
                _of(vm, "vcpu", int, float), _of(vm, "memory_mib", int), _of(vm, "disk_mib", int),
                _of(vm, "pids", int), _of(vm, "nofile", int),
            ),
            network=_of(vm, "network", str),
            read_only=_of(vm, "read_only", bool),
            ttl=lifetimes.of_new(caller, ttl),
            ttl_most=caller.ttl_most,
        )  # fmt: skip
        try:
            return checked(request, self._forks.ceilings), layer, full
        except Unsupported:
            raise
        except BadRequest as error:
            raise BadRequest(f"the archive cannot be imported: {error.message}") from None

    async def _make(self, caller: Caller, request: ForkRequest, target: str | None, image: str) -> VM:
        golden = self._access.source(caller, request.source_id, None, None)
        if (disk := self._disk(caller, request)) is not None:
            await self._disks.check_room(image, target, disk)

        def also(connection: sqlite3.Connection, vm_id: str) -> None:
            if target is not None:
                layer_rows.insert(connection, target, image)
            rows.retop(connection, vm_id, image if target is None else target, new_id())
            rows.forked_at(connection, vm_id, golden.id, image)

        made = await self._forks.make(caller.org_id, request, golden, also)
        return self._access.shown(self._access.row(made.row.id))


def _about(row: VMRow, image: str, full: bool) -> dict[str, Any]:
    settings = {
        "name": row.name, "description": row.description, "vcpu": row.vcpu, "memory_mib": row.memory_mib,
        "disk_mib": row.disk_mib, "pids": row.pids, "nofile": row.nofile, "network": row.network,
        "read_only": bool(row.read_only),
    }  # fmt: skip
    return {
        "format": FORMAT, "boxwood": __version__, "exported_at": clock.shown(clock.now()).isoformat(), "full": full,
        "image": {"layer": image, "name": row.root_source_name}, "vm": settings,
    }  # fmt: skip


async def _unpacked(reader: Reader, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """What is between head and tail; at last the sum is checked. Nothing comes before the head has been read."""
    told = False
    async for piece in pieces:
        for at in range(0, len(piece), PIECE):
            data = await asyncio.to_thread(reader.take, piece[at : at + PIECE])
            while True:
                if data or (reader.about is not None and not told):
                    told = True
                    yield data
                if not reader.more:
                    break
                data = await asyncio.to_thread(reader.take, b"")
    reader.end()


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in rest:
        yield piece


def _of(vm: Mapping[str, Any], name: str, *kinds: type) -> Any:
    value = vm.get(name)
    if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        raise BadRequest(f"the archive cannot be imported: its head has a {name} that is none")
    return value
