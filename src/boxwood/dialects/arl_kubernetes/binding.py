"""How a Sandbox gets its VM: from its pool, as soon as there is one, with its directories made."""

from __future__ import annotations

import asyncio
from typing import Any

from boxwood.core.changes import POOL
from boxwood.core.core import Core
from boxwood.core.errors import AlreadyExists, CapacityUnavailable, CoreError, NotFound, ResourceBusy, Unavailable
from boxwood.core.model import VM, Caller, ClaimRequest, Pool, Record, RunRequest
from boxwood.dialects.arl import steps, templates
from boxwood.dialects.arl_kubernetes import pods, warmpools
from boxwood.dialects.arl_kubernetes.kinds import SANDBOX
from boxwood.dialects.arl_kubernetes.objects import Object, condition, now, suffix
from boxwood.dialects.arl_kubernetes.pods import Pod
from boxwood.dialects.arl_kubernetes.sandboxes import LIFE_SECONDS, body_changed, is_ready, life_left, rest_left

ASK_SECONDS = 60.0
RETRY_SECONDS = 1.0  # when the machine has no room
NO_ADDRESS = "127.0.0.1"  # of a VM that is on no network
POD_CHARACTERS = 57  # of a pool's name, in that of a pod
LABEL = "arl.infra.io/sandbox"
MAIN = "arl.main"
CLEANUP = "ReadyForCleanup"


async def bind(core: Core, caller: Caller, record: Record) -> None:
    """Until it is ready, has failed or has gone; it goes itself when its time is over before that."""
    try:
        async with asyncio.timeout(life_left(record)):
            try:
                await _bind_at_last(core, caller, record)
            except NotFound:
                return  # somebody has deleted it
            except CoreError as error:
                await _fail(core, caller, record, error.message)
    except TimeoutError:
        try:
            if _now(core, caller, record).vm_id is None:
                await core.records.delete(caller, SANDBOX.changes, record.namespace, record.name)
        except NotFound:
            return
    except NotFound:
        return


async def _bind_at_last(core: Core, caller: Caller, record: Record) -> None:
    """As soon as the machine has room."""
    while True:
        try:
            await _bind(core, caller, _now(core, caller, record))
            return
        except (CapacityUnavailable, ResourceBusy, Unavailable):
            await asyncio.sleep(RETRY_SECONDS)


async def _bind(core: Core, caller: Caller, record: Record) -> None:
    pod: Pod | None = None
    while record.vm_id is None:
        pool = await _pool(core, caller, record)
        pod = warmpools.pod_of(pool)
        await _claim(core, caller, record)
        record = _now(core, caller, record)
    if is_ready(record):
        return
    vm = await core.vms.get(caller, record.vm_id)
    pod = pod or _pod_again(core, caller, record)
    if _prepared(core, caller, vm, pod):
        await core.vms.start(caller, vm.vm_id)  # it is up, if it waited in the pool
    else:
        await steps.make_directory(core, caller, vm.vm_id, *pod.directories)
    if pod.command:
        await _start(core, caller, vm, pod)
    await _ready(core, caller, record, vm, pod)


def _now(core: Core, caller: Caller, record: Record) -> Record:
    """As it is now. NotFound, also if there is another one of its name."""
    found = core.records.get(caller, SANDBOX.changes, record.namespace, record.name)
    if found.record_id != record.record_id:
        raise NotFound("resource", f"sandbox {record.namespace}/{record.name} was deleted, and made anew")
    return found


async def _pool(core: Core, caller: Caller, record: Record) -> Pool:
    """As soon as there is one."""
    reference = record.body["spec"]["poolRef"]

    def found() -> Pool | None:
        try:
            return core.pools.get(caller, reference, record.namespace)
        except NotFound:
            return None

    if (pool := found()) is not None:
        return pool
    text = f'warmpools.arl.infra.io "{reference}" not found in namespace {record.namespace}: waiting for it'
    waits = condition("PhaseTransition", "False", "PoolNotFound", text)
    await _told(core, caller, record, conditions=[waits])
    with core.changes.subscribe(caller.org_id, {POOL}, record.namespace) as changes:
        while (pool := await changes.wait(found, ASK_SECONDS)) is None:
            _now(core, caller, record)  # still wanted
    return pool


async def _claim(core: Core, caller: Caller, record: Record) -> None:
    """The record is the VM's from the moment on in which the VM is the caller's. The pool may have gone meanwhile."""
    reference, namespace = record.body["spec"]["poolRef"], record.namespace
    while True:
        wanted = ClaimRequest(
            name=f"{reference[:POD_CHARACTERS]}-{suffix()}",
            description=f"sandbox {namespace}/{record.name}"[:1024],
            ttl=rest_left(record, after_task=False),
            labels={LABEL: f"{namespace}/{record.name}"},
            record=record.record_id,
        )
        try:
            await core.pools.claim(caller, reference, namespace, wanted)
            return
        except AlreadyExists:
            continue  # a VM has this name
        except NotFound as error:
            if error.resource == "pool":
                return
            raise


def _pod_again(core: Core, caller: Caller, record: Record) -> Pod:
    """Of a Sandbox that an earlier server had given its VM."""
    try:
        return warmpools.pod_of(core.pools.get(caller, record.body["spec"]["poolRef"], record.namespace))
    except NotFound:
        return pods.NONE


def _prepared(core: Core, caller: Caller, vm: VM, pod: Pod) -> bool:
    """Were its directories made before it was claimed?"""
    try:
        return vm.pool_id is not None and templates.has(core.pools.by_id(caller, vm.pool_id), pod.directories)
    except NotFound:
        return False


async def _start(core: Core, caller: Caller, vm: VM, pod: Pod) -> None:
    """What the container's command is: it runs on its own. Once, though an earlier server may have started it."""
    request = RunRequest(
        "", argv=pod.command, wait=0, prompt="none", env=pod.env, cwd=pod.workdir, beside=True, tag=MAIN
    )
    await core.runs.start(caller, vm.vm_id, request, idempotency_key=MAIN)


async def _ready(core: Core, caller: Caller, record: Record, vm: VM, pod: Pod) -> None:
    def change(body: Object) -> Object:
        body["pod"] = pod.stored
        body["status"] = {
            "phase": "Ready",
            "podName": vm.name or vm.vm_id,
            "podIP": vm.address or NO_ADDRESS,
            "workDir": pod.workdir,
            "lastTaskTime": now(),
            "conditions": [condition("PhaseTransition", "True", "Ready", "the sandbox is ready")],
        }
        return body

    await core.records.update(
        caller, SANDBOX.changes, record.namespace, record.name, change, record_id=record.record_id
    )


async def _fail(core: Core, caller: Caller, record: Record, why: str) -> None:
    """For good, until its time is over."""
    failed = condition("PhaseTransition", "False", "Failed", why or "it could not be given a VM")
    record = await _told(core, caller, record, phase="Failed", conditions=[failed])
    if record.vm_id is None:  # else it goes with that
        ttl = life_left(record) or LIFE_SECONDS
        await core.records.update(
            caller, SANDBOX.changes, record.namespace, record.name, lambda body: body, ttl=ttl,
            record_id=record.record_id,
        )  # fmt: skip


async def _told(core: Core, caller: Caller, record: Record, **members: Any) -> Record:
    """NotFound."""
    change = body_changed(lambda status: status.update(members))
    return await core.records.update(
        caller, SANDBOX.changes, record.namespace, record.name, change, record_id=record.record_id
    )


def has_rest(status: Object) -> None:
    """All its Tasks are over."""
    status["lastTaskTime"] = now()
    others = [one for one in status.get("conditions", []) if one["type"] != CLEANUP]
    text = "all tasks have completed"
    status["conditions"] = [*others, condition(CLEANUP, "True", "AllTasksComplete", text)]


def was_used(record: Record) -> bool:
    return any(one["type"] == CLEANUP for one in record.body["status"].get("conditions", []))
