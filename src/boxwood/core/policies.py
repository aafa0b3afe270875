"""Policies of VMs: kept with them, inherited by forks, and in force before anything runs in a box.

A change is committed first and then brought to the VM's live box. Should that fail, the caller is told, and it is tried
again until it is in force; meanwhile the box goes by the rules before.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from boxwood.core import clock, durable, lifetimes, schedules
from boxwood.core.access import Access
from boxwood.core.boxes import Boxes
from boxwood.core.errors import Internal, NotFound, Unavailable, Unsupported
from boxwood.core.model import PUBLIC_ORG, Caller
from boxwood.core.refusals import of_malformed
from boxwood.core.secrets import Secret, Secrets
from boxwood.core.slot import Slot
from boxwood.core.tasks import Tasks
from boxwood.core.trust import RUN_VARIABLES, VARIABLES, trust
from boxwood.engine import policies as grammar
from boxwood.engine.api import Box, Engine, EngineError
from boxwood.engine.policies import HIDDEN, Malformed, Rule, Update
from boxwood.store import policies as rows
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

AGAIN_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to put a policy in force that could not be
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PolicyView:
    """A VM's policy as its owner sees it: `rules` by their names, the same as `entries` in their order; `secrets`,
    whose values nobody sees; the hosts whose TLS is ended on the way; what may not be as its author thinks."""

    rules: dict[str, Any]
    entries: list[dict[str, Any]]
    secrets: dict[str, str]
    mitm_domains: list[str]
    warnings: list[str]


class Policies:
    def __init__(
        self, database: Database, engine: Engine, boxes: Boxes, access: Access, secrets: Secrets, tasks: Tasks
    ) -> None:
        self._database = database
        self._engine = engine
        self._boxes = boxes
        self._access = access
        self._secrets = secrets
        self._tasks = tasks
        self._insisting: set[str] = set()  # VMs whose policy is not in force yet
        self.clocks_hook: Callable[[], None] = lambda: None  # VMs may have to be deleted or suspended at other times
        boxes.making.begun_hook = boxes.slumber.woken_hook = self.went_on
        self.changed_hooks: list[Callable[[str], None]] = []  # of a VM: who comes in may be others from now on

    # --- what callers write

    def parse(self, update: Any) -> Update:
        """The keyed form. BadRequest, Unsupported."""
        return self._parse(lambda: grammar.parse_update(update, clock.shown(clock.now())))

    def parse_ordered(self, document: Any) -> Update:
        """BadRequest, Unsupported."""
        return self._parse(lambda: grammar.parse_ordered(document, clock.shown(clock.now())))

    def _parse(self, parse: Callable[[], Update]) -> Update:
        try:
            update = parse()
        except Malformed as error:
            raise of_malformed(error) from None
        if any(rule.deed == "suspend" for rule in update.timed) and (problem := self._engine.suspend_problem()):
            raise Unsupported(f"policies: this server cannot suspend VMs: {problem}", "network_policy")
        if self._engine.sees_requests:
            return update
        rules = [rule for rule in update.rules.values() if isinstance(rule, Rule)]
        if any(rule.direction == "inbound" and rule.action.gate is not None for rule in rules):
            raise Unsupported("policies: this server has nobody who could ask a gate", "network_policy")
        if any(rule.direction == "outbound" and rule.needs_request for rule in rules):
            raise Unsupported(
                "policies: this server judges connections (hosts, ips, ports), not the requests in them",
                "network_policy",
            )
        return update

    # --- of VMs

    def get(self, caller: Caller, vm: str) -> PolicyView:
        """One's own VM alone. NotFound, Forbidden."""
        return self.view(self._access.own(caller, vm))

    def shown(self, caller: Caller, vm_id: str) -> PolicyView | None:
        """None of a VM that is not the caller's: what somebody allows his VM is nobody else's business."""
        row = vm_rows.by_id(self._database.near, vm_id)
        return None if row is None or row.org_id != caller.org_id else self.view(row)

    def view(self, row: VMRow) -> PolicyView:
        near = self._database.near
        found, own = self.of(row.id), self._secrets.names(near, row.id)
        missing = sorted(found.secrets - own - self._secrets.names(near, row.org_id)) if found.secrets else []
        warnings = [f"the secret {name} is not set: requests that need it are refused" for name in missing]
        return PolicyView(
            found.to_json(), found.ordered(), dict.fromkeys(sorted(own), HIDDEN), found.mitm_domains, warnings
        )

    def of(self, vm_id: str) -> grammar.Policies:
        return _read(rows.find(self._database.near, vm_id) or "{}")

    async def update(self, caller: Caller, vm: str, update: Update) -> PolicyView:
        """Change what the VM may do from now on, also on connections that are open. NotFound, Forbidden, InvalidState
        (immutable), BadRequest, Unavailable (kept, but not in force yet)."""
        row = self._access.mutable(caller, vm)
        lifetimes.check_rules(caller, row.created_at, update)
        if update:
            await self._tasks.finish(self._update(row, update))
        return self.get(caller, row.id)

    async def _update(self, row: VMRow, update: Update) -> None:
        slot = self._boxes.slot(row.id)
        async with slot.lock:
            if slot.deleted:
                raise NotFound("vm", f"there is no VM {row.id}")
            before = self.of(row.id)
            await self._database.write(partial(self.apply, vm_id=row.id, org_id=row.org_id, update=update))
            self.clocks_hook()
            try:
                if before.of_traffic or self.of(row.id).of_traffic or update.secrets:  # else the network need not know
                    await self._bring(slot)
            finally:
                await durable.secure(self._database, row)

    async def _bring(self, slot: Slot) -> None:
        """What has been committed, to whoever comes in and to the live box. Unavailable: not to the latter."""
        for hook in self.changed_hooks:
            hook(slot.vm_id)
        async with self._boxes.slumber.thawed(slot):
            await self._enforce(slot)

    async def _enforce(self, slot: Slot) -> None:
        if slot.box is None:
            return
        try:
            await self._police(slot.vm_id, slot.box)
        except EngineError as error:
            if slot.box.gone.done():
                return
            if slot.vm_id not in self._insisting:
                self._insisting.add(slot.vm_id)
                self._tasks.start(self._insist(slot))
            text = f"the policy is kept, but not in force for what runs in the VM before its network is back: {error}"
            raise Unavailable(text, not_started=False) from error

    async def _insist(self, slot: Slot) -> None:
        """Until the policy is in force: a router that comes back is told those that it knew of, and may not have known
        this one. A box that is made meanwhile has it before it runs anything."""
        try:
            for pause in itertools.chain(AGAIN_SECONDS, itertools.repeat(AGAIN_SECONDS[-1])):
                await asyncio.sleep(pause)
                async with slot.lock:
                    if await self._is_in_force(slot):
                        return
        finally:
            self._insisting.discard(slot.vm_id)

    async def _is_in_force(self, slot: Slot) -> bool:
        """After another attempt."""
        if slot.box is None or slot.box.gone.done():
            return True
        try:
            async with self._boxes.slumber.thawed(slot):
                await self._police(slot.vm_id, slot.box)
        except EngineError as error:
            log.warning("VM %s: its policy is still not in force: %s", slot.vm_id, error)
            return False
        return True

    def apply(self, connection: sqlite3.Connection, *, vm_id: str, org_id: str, update: Update) -> None:
        """In a transaction of the caller's. BadRequest: the whole would not do."""
        before = _read(rows.find(connection, vm_id) or "{}")
        try:
            after = update.apply(before)
            update.apply_secrets(self._secrets.names(connection, vm_id))
        except Malformed as error:
            raise of_malformed(error) from None
        if after:
            rows.put(connection, vm_id, after.text())
        else:
            rows.delete(connection, vm_id)
        if before.timed or after.timed:
            now = clock.now()
            if (row := vm_rows.by_id(connection, vm_id)) is not None:
                schedules.change(connection, row, before, after, now)
        for name, value in update.secrets.items():
            if value is None:
                self._secrets.drop(connection, vm_id, name)
            else:
                self._secrets.put(connection, org_id=org_id, vm_id=vm_id, name=name, value=value)
        if update.secrets or not after.secrets <= before.secrets:
            values = self._secrets.values(connection, org_id, vm_id, after.secrets)
            try:
                grammar.all_spellings("policies.secrets", values.values())
            except Malformed as error:
                raise of_malformed(error) from None

    def inherit(self, connection: sqlite3.Connection, source: VMRow, made: VMRow) -> bool:
        """A fork has its source's rules, whose clocks begin with it; secrets alone within one organisation. Rules that
        somebody else has written name no secrets of the organisation's: they would send them to hosts of his choice.
        The operator's may. True: its row has changed."""
        timed = rows.copy(connection, source.id, made.id) and not made.hidden and self.begin(connection, made)
        if source.org_id == made.org_id:
            self._secrets.copy(connection, source.id, made.id)
        elif source.org_id != PUBLIC_ORG:
            found = _read(rows.find(connection, made.id) or "{}")
            if found.secrets:
                rows.put(connection, made.id, found.without_secrets().text())
        return timed

    # --- clocks

    def begin(self, connection: sqlite3.Connection, row: VMRow) -> bool:
        """In the transaction in which a VM that may have rules becomes somebody's. True: its row has changed."""
        found = _read(rows.find(connection, row.id) or "{}")
        if found.timed:
            schedules.begin(connection, row, found, clock.now())
        return bool(found.timed)

    def went_on(self, connection: sqlite3.Connection, vm_id: str, at: int) -> None:
        """In the transaction in which a VM begins to run, or what its rules wanted done by this time was done."""
        if (text := rows.find(connection, vm_id)) is not None:
            schedules.went_on(connection, vm_id, _read(text), at)

    # --- of boxes

    async def fit_out(self, vm_id: str, box: Box) -> None:
        """Before anything runs in a box. Unavailable: it must not come up."""
        found = self.of(vm_id)
        if found.timed:
            self.clocks_hook()
        if not found.of_traffic:
            return
        try:
            await self._police(vm_id, box)
        except EngineError as error:
            raise Unavailable(f"the VM's policy could not be put in force, so it has no box: {error}") from error

    def environment(self, vm_id: str) -> Mapping[str, str]:
        """What shells have whose requests are seen."""
        if not self.of(vm_id).needs_proxy:
            return {}
        return RUN_VARIABLES if self._is_read_only(vm_id) else VARIABLES

    def _is_read_only(self, vm_id: str) -> bool:
        row = vm_rows.by_id(self._database.near, vm_id)
        return row is not None and bool(row.read_only)

    async def _police(self, vm_id: str, box: Box) -> None:
        """EngineError."""
        found = self.of(vm_id).of_traffic
        if found.needs_proxy:
            await trust(box, await self._engine.authority(), read_only=self._is_read_only(vm_id))
        await self._engine.police(box, found, partial(self._values, vm_id, found.secrets))

    def _values(self, vm_id: str, names: frozenset[str]) -> dict[str, str]:
        """For the engine, which asks whenever it tells its proxy. EngineError."""
        near = self._database.near
        row = vm_rows.by_id(near, vm_id) if names else None
        try:
            return {} if row is None else self._secrets.values(near, row.org_id, vm_id, names)
        except Internal as error:
            raise EngineError(error.message) from error

    def secrets_of(self, row: VMRow, names: frozenset[str]) -> dict[str, str]:
        """What these names stand for; one that is not set is not there. Internal."""
        return self._secrets.values(self._database.near, row.org_id, row.id, names) if names else {}

    # --- secrets of organisations

    async def set_secret(self, caller: Caller, name: str, value: str) -> Secret:
        """As `Secrets.set`, in force at once. BadRequest: some VM's secrets would be more than its proxy can hide.
        Unavailable: kept, but not in force yet."""
        check = partial(self._check_spellings, org_id=caller.org_id, name=name)
        return await self._tasks.finish(self._renewed(caller, name, self._secrets.set(caller, name, value, check)))

    def _check_spellings(self, connection: sqlite3.Connection, *, org_id: str, name: str) -> None:
        """A VM whose rules name a secret of its organisation could have no box any more. BadRequest."""
        seen = set[frozenset[str]]()
        for vm_id, text in rows.of_org(connection, org_id):
            named = _read(text).secrets
            if name not in named:
                continue
            values = frozenset(self._secrets.values(connection, org_id, vm_id, named).values())
            if values not in seen:
                seen.add(values)
                try:
                    grammar.all_spellings(f"value: together with the other secrets of VM {vm_id}", values)
                except Malformed as error:
                    raise of_malformed(error) from None

    async def remove_secret(self, caller: Caller, name: str) -> None:
        """As `Secrets.remove`, in force at once. Unavailable: removed, but not in force yet."""
        await self._tasks.finish(self._renewed(caller, name, self._secrets.remove(caller, name)))

    async def _renewed(self, caller: Caller, name: str, change: Awaitable[T]) -> T:
        """Boxes that are made at the moment ask for values later than this, or are among those that ask again."""
        done = await change

        def concerned(vm_id: str) -> bool:
            row = vm_rows.by_id(self._database.near, vm_id)
            return row is not None and row.org_id == caller.org_id and name in self.of(vm_id).secrets

        try:
            await self._engine.renew_secrets(concerned)
        except EngineError as error:
            text = f"the change is kept, but not in force before the network of VMs is back: {error}"
            raise Unavailable(text, not_started=False) from error
        return done

    async def adopted(self, slots: Iterable[Slot]) -> None:
        """Boxes that an earlier server left: it may have died between a commit and the router's answer."""
        await asyncio.gather(*(self._say_again(slot) for slot in slots))

    async def _say_again(self, slot: Slot) -> None:
        box, found = slot.box, self.of(slot.vm_id).of_traffic
        if box is None:
            return
        try:
            await self._police(slot.vm_id, box)
        except EngineError as error:
            if found:
                await self._boxes.end(slot, box, f"its policy could not be put in force: {error}")
            else:  # at worst it goes by rules that it had before
                log.warning("VM %s: that it has no policy could not be said: %s", slot.vm_id, error)


@lru_cache(maxsize=1024)
def _read(text: str) -> grammar.Policies:
    return grammar.parse(json.loads(text))
