"""Pools: VMs that are booted ahead of demand, so that a claim costs a row in the store and nothing of the engine.

A pool stands on what its source showed when the pool was made: a hidden VM of its own, the template, of which all its
VMs are forks. It keeps `replicas` of them ready: booted, never used. One that is claimed becomes the caller's for good
and is an ordinary VM from then on; it never comes back. The pool is filled up again behind the claims, one VM at a
time, when nobody has claimed one for a moment. A pool that has none ready forks its template there and then.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from boxwood.core import clock, lifetimes, words
from boxwood.core.access import Access, resources_of
from boxwood.core.boxes import Boxes
from boxwood.core.changes import POOL, Change, Changes
from boxwood.core.config import Config
from boxwood.core.errors import AlreadyExists, NotFound
from boxwood.core.filling import Filler, PoolState
from boxwood.core.forks import Forks, Home, checked
from boxwood.core.idempotency import Claim, Idempotency
from boxwood.core.ids import new_id
from boxwood.core.model import VM, Caller, ClaimRequest, ForkRequest, Pool, PoolRequest
from boxwood.core.records import Records
from boxwood.core.tasks import Tasks
from boxwood.core.vms import VMs
from boxwood.store import pools as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.pools import PoolRow
from boxwood.store.records import RecordRow
from boxwood.store.vms import VMRow


@dataclass(slots=True)
class _Also:
    """What else is recorded in the transaction of a claim."""

    record: str | None
    once: Claim | None
    bound: RecordRow | None = None


class Pools:
    def __init__(
        self,
        database: Database,
        boxes: Boxes,
        access: Access,
        forks: Forks,
        vms: VMs,
        records: Records,
        changes: Changes,
        idempotency: Idempotency,
        config: Config,
        tasks: Tasks,
    ) -> None:
        self._database = database
        self._boxes = boxes
        self._access = access
        self._forks = forks
        self._vms = vms
        self._records = records
        self._changes = changes
        self._idempotency = idempotency
        self._config = config
        self._tasks = tasks
        self._pools: dict[str, PoolState] = {}
        self._names: dict[tuple[str, str, str], PoolState] = {}
        self._reserved: Counter[str] = Counter()  # by organisation: replicas of pools that are being made or enlarged
        self._filler = Filler(self._pools, boxes, forks, vms, tasks, self._changed)
        vms.deleted_hooks.append(self._vm_gone)

    # Start

    def start(self) -> None:
        """Those that wait and have a box are ready, as they were; those without one are made anew."""
        near = self._database.near
        for row in rows.every(near):
            template = vm_rows.by_id(near, row.template)
            assert template is not None  # the store sees to it
            self._enlist(PoolState(row, template, self._changes.next()))
        for vm_id, pool_id, hidden in vm_rows.in_pools(near):
            state = self._pools.get(pool_id)
            if state is not None and not hidden:
                state.allocated.add(vm_id)
            elif state is not None and self._boxes.live(vm_id):
                self._filler.is_ready(state, vm_id)
            elif hidden and (state is None or vm_id != state.template.id):
                self._tasks.start(self._filler.remove(vm_id))
        self._filler.start()

    def stop(self) -> None:
        """The server puts down every box: none is made any more, and none is missed."""
        self._filler.stop()

    def _enlist(self, state: PoolState) -> None:
        row = state.row
        self._pools[row.id] = self._names[row.org_id, row.namespace, row.name] = state

    # Pools

    async def create(self, caller: Caller, request: PoolRequest) -> Pool:
        """Its VMs are booted behind the answer. BadRequest, InsufficientResources, NotFound (source), AlreadyExists,
        ResourceBusy, Unavailable (the host image is still being made)."""
        words.pool_name("name", request.name)
        words.pool_name("namespace", request.namespace)
        fork = checked(
            ForkRequest(
                request.source_id,
                request.source_name,
                resources=request.resources,
                network=request.network,
                labels=request.labels,
            ),
            self._forks.ceilings,
        )
        if (caller.org_id, request.namespace, request.name) in self._names:
            raise _taken(request.namespace, request.name)
        source = self._forks.source(caller, fork)
        with self._reserving(caller.org_id, request.replicas, 0):
            return await self._tasks.finish(self._create(caller.org_id, request, replace(fork, labels=None), source))

    async def _create(self, org_id: str, request: PoolRequest, fork: ForkRequest, source: VMRow) -> Pool:
        pool_id = new_id()
        labels = None if not request.labels else json.dumps(dict(request.labels))
        row = PoolRow(
            pool_id, org_id, request.namespace, request.name, "", request.replicas, labels,
            words.json_text("about", request.about), clock.now(),
        )  # fmt: skip

        def insert(connection: sqlite3.Connection, vm_id: str) -> None:
            try:
                rows.insert(connection, replace(row, template=vm_id))
            except sqlite3.IntegrityError:
                raise _taken(request.namespace, request.name) from None

        made = await self._forks.make(org_id, fork, source, insert, Home(pool_id, hidden=True))
        state = PoolState(replace(row, template=made.row.id), made.row, 0)
        self._enlist(state)
        self._tell("added", state)
        self._filler.wake()
        return self._shown(state)

    def get(self, caller: Caller, name: str, namespace: str = "default") -> Pool:
        """NotFound."""
        return self._shown(self._state(caller, name, namespace))

    def by_id(self, caller: Caller, pool_id: str) -> Pool:
        """NotFound."""
        state = self._pools.get(pool_id)
        if state is None or state.row.org_id != caller.org_id:
            raise NotFound("pool", "there is no such pool")
        return self._shown(state)

    async def change(
        self,
        caller: Caller,
        name: str,
        namespace: str = "default",
        *,
        replicas: int | None = None,
        about: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Pool:
        """What is given. With fewer replicas VMs that wait are removed, claimed ones stay. BadRequest, NotFound."""
        state = self._state(caller, name, namespace)
        values: dict[str, Any] = {}
        had = state.row.replicas
        if replicas is not None:
            values["replicas"] = replicas
        if about is not None:
            values["about"] = words.json_text("about", about)
        if labels is not None:
            values["labels"] = json.dumps(words.labels(labels) or {})
        with self._reserving(caller.org_id, had if replicas is None else replicas, had):
            if values:
                await self._tasks.finish(self._change(state, values))
        return self._shown(state)

    async def _change(self, state: PoolState, values: dict[str, Any]) -> None:
        await self._database.write(lambda connection: rows.change(connection, state.row.id, values), small=True)
        state.row = replace(state.row, **values)
        state.retry_at = 0.0
        self._changed(state)
        self._filler.wake()

    @contextmanager
    def _reserving(self, org_id: str, replicas: int, instead_of: int) -> Iterator[None]:
        """BadRequest: a pool cannot have so many. Who asks at the same time does not get the same room."""
        most, each = self._config.pool_vms, min(self._config.pool_vms, self._config.pool_vms_each)
        if not 0 <= replicas <= each:
            raise words.refuse("replicas", f"0 to {each}")
        had = Counter(self._reserved)
        for state in self._pools.values():
            had[state.row.org_id] += state.row.replicas
        more = replicas - instead_of
        if more > 0 and had[org_id] + more > each:
            raise words.refuse("replicas", f"all pools of an organisation together may have {each} (pool_vms_each)")
        if more > 0 and had.total() + more > most:
            raise words.refuse("replicas", f"all pools of this server together may have {most} (pool_vms)")
        more = max(0, more)
        self._reserved[org_id] += more
        try:
            yield
        finally:
            self._reserved[org_id] -= more

    async def delete(self, caller: Caller, name: str, namespace: str = "default", *, vms: bool = False) -> Pool:
        """The pool as it was. VMs that wait in it go; those that were claimed stay, unless `vms`. NotFound."""
        state = self._state(caller, name, namespace)
        return await self._tasks.finish(self._delete(state, vms=vms))

    async def _delete(self, state: PoolState, *, vms: bool) -> Pool:
        if state.deleted:
            raise _none(state.row.namespace, state.row.name)
        state.deleted = True
        try:
            await self._database.write(lambda connection: rows.delete(connection, state.row.id), small=True)
        except BaseException:
            state.deleted = False
            raise
        del self._pools[state.row.id], self._names[state.row.org_id, state.row.namespace, state.row.name]
        was = self._shown(state)
        self._tell("deleted", state)
        for vm_id in [*state.ready, state.template.id]:
            self._tasks.start(self._filler.remove(vm_id))
        if vms:
            await asyncio.gather(*(self._filler.remove(vm_id) for vm_id in list(state.allocated)))
        return was

    # Claiming

    async def claim(
        self,
        caller: Caller,
        name: str,
        namespace: str = "default",
        request: ClaimRequest | None = None,
        idempotency_key: str | None = None,
    ) -> VM:
        """A VM that nobody has used, booted already if one is ready. BadRequest, NotFound (pool; the request's record),
        AlreadyExists (name), Conflict (the record has a VM already), IdempotencyConflict, and what a fork is refused
        with."""
        wanted = request or ClaimRequest()
        ttl = lifetimes.of_new(caller, wanted.ttl)
        fork = checked(
            ForkRequest(
                name=wanted.name,
                description=wanted.description,
                ttl=ttl,
                ttl_most=caller.ttl_most,
                labels=wanted.labels,
            ),
            self._forks.ceilings,
        )
        state = self._state(caller, name, namespace)
        self._filler.claimed()
        with self._idempotency.claim(f"claim:{caller.org_id}:{state.row.id}", idempotency_key, wanted) as once:
            if once is not None and once.made is not None:
                row = vm_rows.by_id(self._database.near, once.made)
                if row is None:
                    raise NotFound("vm", "the VM that was claimed with this Idempotency-Key is not there any more")
                return self._access.shown(row)
            return self._access.shown(await self._tasks.finish(self._claim(state, fork, _Also(wanted.record, once))))

    async def _claim(self, state: PoolState, fork: ForkRequest, also: _Also) -> VMRow:
        try:
            while state.ready:
                if (row := await self._take(state, state.ready.popleft(), fork, also)) is not None:
                    return row
            return await self._cold(state, fork, also)
        finally:
            self._filler.wake()

    async def _take(self, state: PoolState, vm_id: str, fork: ForkRequest, also: _Also) -> VMRow | None:
        """None: it is not there any more."""
        now = clock.now()
        values = {
            "name": fork.name,
            "description": fork.description,
            "labels": None if fork.labels is None else json.dumps(fork.labels),
            "created_at": now,
            "running_since": now,
            "expires_at": None if fork.ttl is None else now + int(fork.ttl * 1e6),
            "ends_by": None if fork.ttl_most is None else now + int(fork.ttl_most * 1e6),
        }

        def take(connection: sqlite3.Connection) -> VMRow | None:
            try:
                taken = vm_rows.claim(connection, vm_id, values)
            except sqlite3.IntegrityError:
                raise AlreadyExists("vm", f"there is a VM named {fork.name} already") from None
            if taken:
                self._do_also(connection, vm_id, state, also)
            row = vm_rows.by_id(connection, vm_id) if taken else None
            if row is not None and self._forks.policies.begin(connection, row):
                row = vm_rows.by_id(connection, vm_id)
            return row

        state.allocated.add(vm_id)
        self._changed(state)
        try:
            row = await self._database.write(take, small=True)
        except BaseException:
            state.allocated.discard(vm_id)
            if state.deleted or not self._boxes.live(vm_id):
                self._tasks.start(self._filler.remove(vm_id))
            else:
                state.ready.appendleft(vm_id)
            self._changed(state)
            raise
        if row is None:
            state.allocated.discard(vm_id)
            return None
        self._boxes.parking.release(vm_id)
        if row.name is not None:
            await self._boxes.rename(row)
        self._settle(row, also)
        return row

    async def _cold(self, state: PoolState, fork: ForkRequest, also: _Also) -> VMRow:
        try:
            made = await self._forks.make(
                state.row.org_id,
                fork,
                state.template,
                partial(self._do_also, state=state, also=also),
                Home(state.row.id),
            )
        except NotFound as error:
            raise error if error.resource == "resource" else _none(state.row.namespace, state.row.name) from None
        state.allocated.add(made.row.id)
        self._changed(state)
        self._settle(made.row, also)
        return made.row

    def _do_also(self, connection: sqlite3.Connection, vm_id: str, state: PoolState, also: _Also) -> None:
        if also.record is not None:
            also.bound = self._records.bind(connection, state.row.org_id, also.record, vm_id)
        if also.once is not None:
            also.once.record(connection, vm_id)

    def _settle(self, row: VMRow, also: _Also) -> None:
        if row.end is not None or row.suspend_at is not None:
            self._vms.clocks_changed()
        if also.bound is not None:
            self._records.is_bound(also.bound)

    async def list(self, caller: Caller, namespace: str | None = None) -> tuple[Pool, ...]:
        """By namespace and name."""
        mine = [state for state in self._pools.values() if state.row.org_id == caller.org_id]
        wanted = [state for state in mine if namespace is None or state.row.namespace == namespace]
        return tuple(self._shown(state) for state in sorted(wanted, key=lambda s: (s.row.namespace, s.row.name)))

    # Shapes

    def _vm_gone(self, row: VMRow) -> None:
        state = self._pools.get(row.pool_id or "")
        if state is not None and row.id in state.allocated:
            state.allocated.discard(row.id)
            self._changed(state)

    def _state(self, caller: Caller, name: str, namespace: str) -> PoolState:
        state = self._names.get((caller.org_id, namespace, name))
        if state is None:
            raise _none(namespace, name)
        return state

    def _changed(self, state: PoolState) -> None:
        if not state.deleted:
            self._tell("modified", state)

    def _tell(self, kind: Literal["added", "modified", "deleted"], state: PoolState) -> None:
        state.revision = self._changes.next()
        self._changes.tell(Change(POOL, kind, self._shown(state), state.revision, state.weight()))

    def _shown(self, state: PoolState) -> Pool:
        row, template = state.row, state.template
        return Pool(
            pool_id=row.id,
            org_id=row.org_id,
            namespace=row.namespace,
            name=row.name,
            source_name=template.root_source_name,
            replicas=row.replicas,
            ready=len(state.ready),
            starting=state.starting,
            allocated=len(state.allocated),
            problem=state.problem,
            resources=resources_of(template),
            network=self._boxes.making.network(template),
            labels=json.loads(row.labels) if row.labels else {},
            about=state.about,
            created_at=clock.shown(row.created_at),
            revision=state.revision,
        )


def _taken(namespace: str, name: str) -> AlreadyExists:
    return AlreadyExists("pool", f"there is a pool {namespace}/{name} already")


def _none(namespace: str, name: str) -> NotFound:
    return NotFound("pool", f"there is no pool {json.dumps(name[:80])} in {json.dumps(namespace[:80])}")
