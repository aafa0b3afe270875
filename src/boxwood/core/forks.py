"""Forking: a new VM that shows what another shows now. Neither waits for nor harms what runs in the other."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from boxwood.core import clock, durable, lifetimes, sshkeys, words
from boxwood.core.access import Access
from boxwood.core.admission import Admission
from boxwood.core.boxes import Boxes
from boxwood.core.ceilings import Ceilings
from boxwood.core.config import Config
from boxwood.core.disks import Disks
from boxwood.core.errors import AlreadyExists, NotFound, ResourceBusy, Unsupported
from boxwood.core.goldens import Goldens
from boxwood.core.idempotency import Claim, Idempotency
from boxwood.core.ids import new_id
from boxwood.core.layers import Layers
from boxwood.core.model import VM, Caller, ForkRequest
from boxwood.core.plans import Plan, Plans
from boxwood.core.policies import Policies
from boxwood.core.records import Records
from boxwood.core.refusals import of_engine
from boxwood.core.runs import Runs
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.engine.api import CopyReport, Engine, EngineError, NotHere
from boxwood.engine.policies import Update
from boxwood.store import layers as layer_rows
from boxwood.store import sessions as session_rows
from boxwood.store import vms as rows
from boxwood.store.database import SMALL_BYTES, Database
from boxwood.store.records import RecordRow
from boxwood.store.sessions import SessionRow
from boxwood.store.vms import VMRow


@dataclass(frozen=True, slots=True)
class Home:
    """The pool that a VM is made for or claimed from; `hidden`: it is nobody's yet."""

    pool_id: str | None = None
    hidden: bool = False


class Made(NamedTuple):
    """A new VM, its sessions, and what the copy of a busy source cost."""

    row: VMRow
    sessions: list[SessionRow]
    report: CopyReport | None


Also = Callable[[sqlite3.Connection, str], None]
NO_POOL = Home()


def _nothing(connection: sqlite3.Connection, vm_id: str) -> None:
    pass


class Forks:
    """`expiring`: called when a VM has been made that is to be deleted, or suspended, by itself."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        boxes: Boxes,
        access: Access,
        admission: Admission,
        runs: Runs,
        layers: Layers,
        goldens: Goldens,
        idempotency: Idempotency,
        records: Records,
        config: Config,
        tasks: Tasks,
        disks: Disks,
        ceilings: Ceilings,
        policies: Policies,
        expiring: Callable[[], None],
    ) -> None:
        self.policies = policies
        self._database = database
        self._engine = engine
        self._access = access
        self._admission = admission
        self._runs = runs
        self._layers = layers
        self._goldens = goldens
        self._idempotency = idempotency
        self._records = records
        self._config = config
        self.ceilings = ceilings
        self._tasks = tasks
        self._disks = disks
        self._expiring = expiring
        self._plans = Plans(database, engine, boxes, layers, config)

    async def fork(self, caller: Caller, request: ForkRequest, idempotency_key: str | None = None) -> VM:
        """A new VM that shows what its source shows now. Neither waits for nor harms what runs in the source.

        BadRequest (no source or several, a bad name), NotFound (source), Forbidden, AlreadyExists (name),
        InsufficientResources, ResourceBusy (more layers than can be stacked: they are being merged),
        IdempotencyConflict, Unavailable (the same key is still being worked on; the host image is still being made),
        CapacityUnavailable, Unsupported (`durable`, with a limited disk on some hosts); of `record` NotFound, Conflict
        (it has a VM).
        """
        update = None if request.policies is None else self.policies.parse(request.policies)
        request = replace(request, ttl=lifetimes.of_new(caller, request.ttl, update), ttl_most=caller.ttl_most)
        request = checked(request, self.ceilings)
        if request.ssh_keys is not None:
            sshkeys.updated({}, request.ssh_keys)
        if update is not None:
            lifetimes.check_rules(caller, clock.now(), update)
        with self._idempotency.claim(f"fork:{caller.org_id}", idempotency_key, request) as claim:
            if claim is not None and claim.made is not None:
                return await self._made_before(caller, claim.made)
            return await self._tasks.finish(self._fork(caller, request, claim, update))

    async def _made_before(self, caller: Caller, vm_id: str) -> VM:
        row = rows.by_id(self._database.near, vm_id)
        if row is None or row.org_id != caller.org_id:
            raise NotFound("vm", "the VM that was made with this Idempotency-Key is not there any more")
        if row.durable:  # nobody may have been told of it then, for want of just this
            await self._secure_made(row.base)
        return self._access.shown(row)

    async def _fork(self, caller: Caller, request: ForkRequest, claim: Claim | None, update: Update | None) -> VM:
        source = self.source(caller, request)
        request = lifetimes.of_copy(caller, source.ends_by, request)
        bound: RecordRow | None = None

        def also(connection: sqlite3.Connection, vm_id: str) -> None:
            nonlocal bound
            if claim is not None:
                claim.record(connection, vm_id)
            if update:
                self.policies.apply(connection, vm_id=vm_id, org_id=caller.org_id, update=update)
            if request.record is not None:
                bound = self._records.bind(connection, caller.org_id, request.record, vm_id)

        row, sessions, report = await self.make(caller.org_id, request, source, also)
        if bound is not None:
            self._records.is_bound(bound)
        if request.command is not None:
            await self._runs.start_in(row, request.command)
        return self._access.vm(row, sessions, report)

    def source(self, caller: Caller, request: ForkRequest) -> VMRow:
        """BadRequest, NotFound, Unavailable (the host image is still being made)."""
        self._goldens.check(request.source_name)
        return self._access.source(caller, request.source_id, request.source_name, request.name_org)

    async def make(
        self, org_id: str, request: ForkRequest, source: VMRow, also: Also = _nothing, home: Home = NO_POOL
    ) -> Made:
        """Of a request that has been checked. `also` is done in the same transaction, with the new VM's id."""
        self._admission.check_vm()
        disk = self._disks.of_fork(source, request.resources)
        request = replace(request, resources=replace(request.resources, disk_mib=disk))
        if source.depth >= self._config.layers_refused_above:
            if why := await self._layers.shortened(source.id):
                raise ResourceBusy("source", f"the VM has {source.depth} layers: {why}", retry_after=1)
            source = self._plans.again(source)
        secured: frozenset[str] = frozenset()
        if request.durable:
            self._disks.check_durable(disk)
        async with self._plans.of(source) as plan:
            await self._check_room(source, plan, disk)
            if request.durable:
                secured = await self._secure(source, plan)
            row, sessions = await self._make(org_id, request, source, plan, also, home)
        self._admission.made()
        if plan.seal and source.disk_mib is not None:
            self._disks.sealed_hook(row.base)
        self._layers.grown(row.base, row.depth)
        if row.end is not None or row.suspend_at is not None:
            self._expiring()
        if row.durable:  # should that fail, the VM is there all the same
            await self._secure_made(row.base, secured)
        return Made(row, sessions, plan.report)

    async def _check_room(self, source: VMRow, plan: Plan, disk: int | None) -> None:
        """Another limit than the source's must be one for all that the source holds. InsufficientResources."""
        now = rows.by_id(self._database.near, source.id)
        if disk is None or disk == source.disk_mib or now is None:
            return
        try:
            await self._disks.check_room(now.base, now.top if plan.seal else plan.copy, disk)
        except EngineError as error:
            raise of_engine(error, "source") from error

    async def _secure(self, source: VMRow, plan: Plan) -> frozenset[str]:
        """All that a durable VM is to stand on is on the disk, before there is a row that says so: these layers.
        Unsupported."""
        now = rows.by_id(self._database.near, source.id)
        if now is None:
            return frozenset()
        layers, images = layer_rows.chain(self._database.near, now.base)
        new = now.top if plan.seal else plan.copy
        wanted = [layer for layer in (new, *layers) if layer and layer not in images]
        try:
            await self._engine.secure(wanted)
            return frozenset(wanted)
        except NotHere as error:
            raise Unsupported(f"durable: {error}", "durability") from error
        except EngineError as error:
            raise of_engine(error, "source") from error

    async def _secure_made(self, base: str, secured: frozenset[str] = frozenset()) -> None:
        """The row of a durable VM, and what it stands on beside the layers that are on the disk already: a merge, or
        another fork, may have put its source on others meanwhile. Internal."""
        layers, images = layer_rows.chain(self._database.near, base)
        if rest := [layer for layer in layers if layer not in secured and layer not in images]:
            try:
                await self._engine.secure(rest)
            except EngineError as error:
                raise of_engine(error, "source") from error
        await self._database.secure()

    def check_room(self) -> None:
        """For one more VM. QuotaExceeded, CapacityUnavailable."""
        self._admission.check_vm()

    async def seal(self, source: VMRow, also: Also) -> str:
        """The layer that shows what a VM shows now. `also` is told in the transaction in which it is made: it has to
        see to it that something stands on the layer. NotFound, ResourceBusy, Internal."""
        source = self._plans.again(source)
        async with self._plans.of(source) as plan:
            base, depth = await self._seal(source, plan, also)
        await self._sealed(source, plan, base, depth)
        return base

    async def seal_held(self, slot: Slot, source: VMRow, also: Also) -> str:
        """The same of a VM that the caller has alone."""
        async with self._plans.of_held(slot, source) as plan:
            base, depth = await self._seal(source, plan, also)
        await self._sealed(source, plan, base, depth)
        return base

    async def _seal(self, source: VMRow, plan: Plan, also: Also) -> tuple[str, int]:
        def seal(connection: sqlite3.Connection) -> tuple[str, int]:
            now = rows.by_id(connection, source.id)
            if now is None:
                raise NotFound("source", "the VM is not there any more")
            base, depth = plan.carry_out(connection, now)
            also(connection, base)
            return base, depth

        if source.durable:
            await self._secure(source, plan)
        return await self._database.write(seal, small=True)

    async def _sealed(self, source: VMRow, plan: Plan, base: str, depth: int) -> None:
        """It has a row: should what comes now fail, the layer is there all the same."""
        if plan.seal and source.disk_mib is not None:
            self._disks.sealed_hook(base)
        self._layers.grown(base, depth)
        await durable.secure(self._database, source)

    async def is_empty(self, row: VMRow) -> bool:
        """Nothing has been written to the VM's top."""
        return not row.written or await self._engine.is_empty(row.top)

    async def _make(
        self, org_id: str, request: ForkRequest, source: VMRow, plan: Plan, also: Also, home: Home
    ) -> tuple[VMRow, list[SessionRow]]:
        def make(connection: sqlite3.Connection) -> tuple[VMRow, list[SessionRow]]:
            now = rows.by_id(connection, source.id)  # its base may have been merged since
            if now is None:
                raise NotFound("source", "the VM to fork is not there any more")
            base, depth = plan.carry_out(connection, now)
            row = _child(org_id, request, now, home, base, depth)
            _insert(connection, row)
            timed = self.policies.inherit(connection, now, row)
            sessions = session_rows.copy(connection, source.id, row.id, new_id, row.created_at)
            if not sessions or sessions[0].idx != 0:
                sessions.insert(0, SessionRow(new_id(), row.id, 0, "", None, None, row.created_at, None))
                session_rows.insert(connection, sessions[0])
            also(connection, row.id)
            if timed or request.policies is not None:
                row = rows.by_id(connection, row.id) or row
            return row, sessions

        light = session_rows.state_bytes(self._database.near, source.id) < SMALL_BYTES
        return await self._database.write(make, small=light)


def _child(org_id: str, request: ForkRequest, now: VMRow, home: Home, base: str, depth: int) -> VMRow:
    """The row of a new VM: `now` is its source's, `base` and `depth` what it stands on."""
    wanted, at = request.resources, clock.now()
    return VMRow(
        id=new_id(),
        org_id=org_id,
        name=request.name,
        description=request.description,
        public=request.public,
        immutable=False,
        base=base,
        top=new_id(),
        written=False,
        box_base=None,
        vcpu=now.vcpu if wanted.vcpu is None else wanted.vcpu,
        memory_mib=now.memory_mib if wanted.memory_mib is None else wanted.memory_mib,
        disk_mib=now.disk_mib if wanted.disk_mib is None else wanted.disk_mib,
        pids=now.pids if wanted.pids is None else wanted.pids,
        nofile=now.nofile if wanted.nofile is None else wanted.nofile,
        network=now.network if request.network is None else request.network,
        root_source_id=now.root_source_id or now.id,
        root_source_name=now.root_source_name if now.root_source_id else now.name,
        origin=None,
        created_at=at,
        last_active_at=None,
        expires_at=None if request.ttl is None else at + int(request.ttl * 1e6),
        ends_by=None if request.ttl_most is None else at + int(request.ttl_most * 1e6),
        labels=None if request.labels is None else json.dumps(request.labels),
        pool_id=home.pool_id,
        hidden=home.hidden or request.hidden,
        read_only=bool(now.read_only if request.read_only is None else request.read_only),
        durable=request.durable,
        parent_id=now.id,
        fork_base=base,
        ssh_keys=None if request.ssh_keys is None else sshkeys.to_store(sshkeys.updated({}, request.ssh_keys)),
        depth=depth,
    )


def _insert(connection: sqlite3.Connection, row: VMRow) -> None:
    try:
        rows.insert(connection, row)
    except sqlite3.IntegrityError as error:
        if row.name is not None and rows.by_name(connection, row.org_id, row.name) is not None:
            raise AlreadyExists("vm", f"there is a VM named {row.name} already") from error
        raise


def checked(request: ForkRequest, ceilings: Ceilings) -> ForkRequest:
    """With what the caller wrote in its proper form. BadRequest, InsufficientResources."""
    ceilings.check(request.resources)
    if request.command is not None:
        words.text("command", request.command)
    return replace(
        request,
        name=None if request.name is None else words.name(request.name),
        description=words.description(request.description),
        network=words.network(request.network),
        ttl=words.seconds("ttl", request.ttl),
        labels=words.labels(request.labels),
    )
