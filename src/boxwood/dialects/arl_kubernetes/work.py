"""One Task from when its turn has come to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from boxwood.core.core import Core
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.model import Caller, Record
from boxwood.dialects.arl_kubernetes import execution, tasks
from boxwood.dialects.arl_kubernetes.execution import Place, SandboxGone
from boxwood.dialects.arl_kubernetes.kinds import SANDBOX, TASK
from boxwood.dialects.arl_kubernetes.objects import Object, now
from boxwood.dialects.arl_kubernetes.sandboxes import body_changed, is_ready

ASK_SECONDS = 60.0  # between two looks at what should have been heard of
GOING_SECONDS = 2.0  # between the end of what ran in a VM and its own
RESTARTED = "the server was restarted while this task ran: nobody knows how far it came\n"


async def awaited(core: Core, caller: Caller, sandbox: str, task: Record) -> Record | None:
    """The Sandbox of a Task, as soon as it is ready. None: the Task has nothing more to wait for, and says why."""
    with core.changes.subscribe(caller.org_id, {SANDBOX.changes, TASK.changes}, task.namespace) as changes:
        while True:
            found: Record | str | None = await changes.wait(lambda: _ready(core, caller, sandbox, task), ASK_SECONDS)
            if isinstance(found, Record):
                return found
            if found is not None:
                if found:
                    await _end(core, caller, task, tasks.failed(found))
                return None


def _now(core: Core, caller: Caller, task: Record) -> Record:
    """As it is now. NotFound, also if there is another one of its name."""
    found = core.records.get(caller, TASK.changes, task.namespace, task.name)
    if found.record_id != task.record_id:
        raise NotFound("resource", f"task {task.namespace}/{task.name} was deleted, and made anew")
    return found


def _ready(core: Core, caller: Caller, sandbox: str, task: Record) -> Record | str | None:
    """A text: that is why it never will be; an empty one: nobody wants the Task any more."""
    try:
        if _now(core, caller, task).body["status"]["state"] in tasks.FINAL:
            return ""
    except NotFound:
        return ""
    try:
        record = core.records.get(caller, SANDBOX.changes, task.namespace, sandbox)
    except NotFound:
        return tasks.absent(sandbox)
    if record.body["status"]["phase"] == "Failed":
        why = [one["message"] for one in record.body["status"].get("conditions", [])][:1]
        return f"sandbox {sandbox} has failed: {''.join(why)}"
    return record if is_ready(record) else None


async def do(core: Core, caller: Caller, task: Record, sandbox: Record, stopping: asyncio.Event) -> None:
    """Its steps, and what came of them. If the server stops meanwhile, the next one says so."""
    try:
        task = _now(core, caller, task)
        if task.body["status"]["state"] == "Pending":
            task = await _told(core, caller, task, tasks.running())
    except NotFound:
        return
    assert sandbox.vm_id is not None
    pod = sandbox.body["pod"]
    place = Place(sandbox.vm_id, pod["workDir"], pod.get("env", {}), partial(_gone, core, caller, sandbox))
    at = time.monotonic_ns()
    try:
        result = await execution.run(core, caller, place, task.body["spec"])
    except SandboxGone:
        await _end(core, caller, task, tasks.failed(tasks.absent(sandbox.name)))
        return
    except CoreError as error:
        if stopping.is_set():
            return
        await _end(core, caller, task, tasks.failed(f"Failed to execute command: {error.message}\n"))
        return
    began = task.body["status"]["startTime"]
    await _end(core, caller, task, execution.stored(result, began, now(), time.monotonic_ns() - at))


async def _gone(core: Core, caller: Caller, sandbox: Record) -> bool:
    """What runs in a VM that is deleted ends before its Sandbox does."""

    def gone() -> bool | None:
        try:
            now = core.records.get(caller, SANDBOX.changes, sandbox.namespace, sandbox.name)
        except NotFound:
            return True
        return True if now.vm_id != sandbox.vm_id else None

    with core.changes.subscribe(caller.org_id, {SANDBOX.changes}, sandbox.namespace) as changes:
        return await changes.wait(gone, GOING_SECONDS) is not None


async def interrupted(core: Core, caller: Caller, task: Record) -> None:
    """It ran when the server ended."""
    status = {**tasks.failed(RESTARTED), "startTime": task.body["status"].get("startTime", now())}
    await _end(core, caller, task, status)


async def _end(core: Core, caller: Caller, task: Record, status: Object) -> None:
    try:
        ttl = tasks.kept(_now(core, caller, task).body["spec"])
        await _told(core, caller, task, status, ttl)
    except NotFound:
        return  # nobody wants to know any more


async def _told(core: Core, caller: Caller, task: Record, status: Object, ttl: float | None = None) -> Record:
    """This Task alone, not one that has got its name since. NotFound."""
    change = body_changed(_replaced(status))
    return await core.records.update(
        caller, TASK.changes, task.namespace, task.name, change, ttl=ttl, record_id=task.record_id
    )


def _replaced(status: Object) -> Callable[[Object], None]:
    def change(old: Object) -> None:
        old.clear()
        old.update(status)

    return change
