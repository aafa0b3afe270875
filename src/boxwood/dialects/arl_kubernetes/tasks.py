"""Tasks: records of what is to be done in a Sandbox, and of what came of it. They go some time after their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwood.core.errors import NotFound
from boxwood.core.model import Caller, Record
from boxwood.dialects.arl import durations
from boxwood.dialects.arl_kubernetes import execution
from boxwood.dialects.arl_kubernetes.kinds import SANDBOX, TASK
from boxwood.dialects.arl_kubernetes.objects import Given, Object, now
from boxwood.dialects.arl_kubernetes.sandboxes import is_ready
from boxwood.dialects.arl_kubernetes.status import Cause, invalid, not_found
from boxwood.dialects.arl_kubernetes.store import RecordStore, preview

if TYPE_CHECKING:
    from boxwood.dialects.arl_kubernetes.operator import Operator

KEPT_SECONDS = 3600.0  # after the end, unless a Task says something else
MOST_STEPS = 1000
FINAL = ("Succeeded", "Failed")


class Tasks(RecordStore):
    kind = TASK

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.core)
        self._operator = operator

    async def create(self, caller: Caller, namespace: str, given: Given, *, dry: bool) -> Object:
        """Its steps are done behind the answer, at once if nothing else is being done in its Sandbox."""
        _check(given)
        if dry:
            self.absent(caller, namespace, given.name)
            return preview(TASK, namespace, given)
        sandbox = self._sandbox(caller, namespace, given.spec["sandboxRef"])
        if sandbox is None:
            status = failed(absent(given.spec["sandboxRef"]))
            return self.shown(await self.made(caller, namespace, given, status, ttl=kept(given.spec)))
        at_once = is_ready(sandbox) and self._operator.is_free(sandbox)
        record = await self.made(caller, namespace, given, running() if at_once else pending())
        self._operator.enqueue(caller, record)
        return self.shown(record)

    def _sandbox(self, caller: Caller, namespace: str, name: str) -> Record | None:
        try:
            return self.core.records.get(caller, SANDBOX.changes, namespace, name)
        except NotFound:
            return None

    async def change(self, caller: Caller, old: Object, given: Given, *, dry: bool) -> Object:
        """How long it is kept may be changed, and nothing else of it."""
        _check(given)
        namespace = old["metadata"]["namespace"]
        had, wanted = dict(old["spec"]), dict(given.spec)
        for spec in (had, wanted):
            spec.pop("ttlSecondsAfterFinished", None)
        if had != wanted:
            why = "a Task cannot be changed, but for ttlSecondsAfterFinished"
            raise invalid(TASK.name, given.name, [Cause.forbidden("spec", why)])
        if dry:
            return preview(TASK, namespace, given, old)
        record = await self.rewritten(caller, namespace, old, given)
        if given.spec != old["spec"] and record.body["status"]["state"] in FINAL:
            ttl = kept(given.spec)
            record = await self.core.records.update(
                caller, TASK.changes, namespace, given.name, lambda body: body, ttl=ttl
            )
        return self.shown(record)

    async def delete(self, caller: Caller, namespace: str, name: str) -> None:
        """What it has begun goes on to the end of its step."""
        try:
            await self.core.records.delete(caller, TASK.changes, namespace, name)
        except NotFound:
            raise not_found(TASK.plural, name) from None

    def settled(self, item: Object) -> bool:
        return item["status"]["state"] in FINAL


def _check(given: Given) -> None:
    causes: list[Cause] = []
    if not SANDBOX.is_name(given.spec["sandboxRef"]):
        causes.append(Cause.invalid("spec.sandboxRef", given.spec["sandboxRef"], "the name of a Sandbox"))
    if len(given.spec["steps"]) > MOST_STEPS:
        causes.append(Cause.invalid("spec.steps", len(given.spec["steps"]), f"at most {MOST_STEPS}"))
    try:
        if execution.timeout_of(given.spec) < 0:
            raise ValueError("must not be negative")
    except ValueError as error:
        causes.append(Cause.invalid("spec.timeout", given.spec["timeout"], str(error)))
    if causes:
        raise invalid(TASK.name, given.name, causes)


def kept(spec: Object) -> float:
    return float(spec.get("ttlSecondsAfterFinished", KEPT_SECONDS))


def absent(sandbox: str) -> str:
    return f'sandbox {sandbox} not found: sandboxes.arl.infra.io "{sandbox}" not found'


def pending() -> Object:
    return {"state": "Pending", "duration": durations.text(0)}


def running() -> Object:
    return {"state": "Running", "duration": durations.text(0), "startTime": now()}


def failed(stderr: str) -> Object:
    """Without having come to an end of its own."""
    said = {"state": "Failed", "exitCode": 1, "stdout": "", "stderr": stderr}
    return {**said, "duration": durations.text(0), "completionTime": now()}
