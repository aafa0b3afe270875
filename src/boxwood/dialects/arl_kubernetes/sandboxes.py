"""Sandboxes: records that get a VM of a pool's, and go with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from boxwood.core.errors import NotFound
from boxwood.core.model import Caller, Record
from boxwood.dialects.arl_kubernetes.kinds import SANDBOX
from boxwood.dialects.arl_kubernetes.objects import Given, Object
from boxwood.dialects.arl_kubernetes.status import Cause, invalid, not_found
from boxwood.dialects.arl_kubernetes.store import RecordStore, preview

if TYPE_CHECKING:
    from boxwood.dialects.arl_kubernetes.operator import Operator

IDLE_SECONDS = 600.0  # unless a Sandbox says something else
LIFE_SECONDS = 3600.0
GRACE_SECONDS = 30.0  # after the last Task of one that is not to be kept: clients execute once more, and delete it
LEAST_SECONDS = 0.01


class Sandboxes(RecordStore):
    kind = SANDBOX

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.core)
        self._operator = operator

    async def create(self, caller: Caller, namespace: str, given: Given, *, dry: bool) -> Object:
        """It is bound to a VM behind the answer."""
        if not SANDBOX.is_name(given.spec["poolRef"]):
            why = "the name of a WarmPool"
            raise invalid(SANDBOX.name, given.name, [Cause.invalid("spec.poolRef", given.spec["poolRef"], why)])
        if dry:
            self.absent(caller, namespace, given.name)
            return preview(SANDBOX, namespace, given)
        self._operator.check_room(caller)
        record = await self.made(caller, namespace, given, {"phase": "Pending", "conditions": []})
        self._operator.bring_up(caller, record)
        return self.shown(record)

    async def change(self, caller: Caller, old: Object, given: Given, *, dry: bool) -> Object:
        """Its times count from now on."""
        namespace = old["metadata"]["namespace"]
        if given.spec["poolRef"] != old["spec"]["poolRef"]:
            raise invalid(SANDBOX.name, given.name, [Cause.forbidden("spec.poolRef", "cannot be changed")])
        if dry:
            return preview(SANDBOX, namespace, given, old)
        record = await self.rewritten(caller, namespace, old, given)
        if given.spec != old["spec"]:
            self._operator.times_changed(caller, namespace, given.name)
        return self.shown(record)

    async def delete(self, caller: Caller, namespace: str, name: str) -> None:
        """With its VM."""
        record = self.record(caller, namespace, name)
        try:
            if record.vm_id is not None:
                await self.core.vms.delete(caller, record.vm_id)
            else:
                record = await self.core.records.delete(caller, SANDBOX.changes, namespace, name)
                if record.vm_id is not None:  # it was given one in this moment
                    await self.core.vms.delete(caller, record.vm_id)
        except NotFound:
            raise not_found(SANDBOX.plural, name) from None

    def status(self, record: Record) -> Object:
        status: Object = dict(record.body["status"])
        if status["phase"] == "Pending" and record.vm_id is not None:
            status["phase"] = "Bound"
        return status

    def settled(self, item: Object) -> bool:
        return item["status"]["phase"] in ("Ready", "Failed")


def is_ready(record: Record) -> bool:
    return record.vm_id is not None and record.body["status"]["phase"] == "Ready"


def life_left(record: Record) -> float | None:
    """Seconds; None: no end."""
    longest: float = record.body["spec"].get("maxLifetimeSeconds", LIFE_SECONDS)
    if not longest:
        return None
    age = (datetime.now(UTC) - record.created_at).total_seconds()
    return max(LEAST_SECONDS, longest - age)


def rest_left(record: Record, *, after_task: bool) -> float | None:
    """For how long it may be idle from now on; None: for ever. `after_task`: it has just ended its last one."""
    idle = record.body["spec"].get("idleTimeoutSeconds", IDLE_SECONDS)
    grace = GRACE_SECONDS if after_task and not record.body["spec"].get("keepAlive") else None
    known = [seconds for seconds in (idle or None, grace, life_left(record)) if seconds is not None]
    return min(known, default=None)


def body_changed(change: Callable[[Object], None]) -> Callable[[Object], Object]:
    """A change of the status, for `records.update`."""

    def made(body: Object) -> Object:
        change(body["status"])
        return body

    return made
