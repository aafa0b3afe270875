"""VMs: fork, list, get, change, delete."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from boxwood.core import lifetimes
from boxwood.core.errors import BadRequest, Unsupported
from boxwood.core.model import VM, ForkRequest, Resources, VMFilter
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.routes import policies
from boxwood.server.schema import network
from boxwood.server.schema import vm as wire
from boxwood.server.schema.common import UNSET


async def fork(exchange: Exchange) -> Response:
    body = await exchange.body(wire.ForkBody)
    if body.dockerfile is not None:
        raise _refused("dockerfile", "a Dockerfile is built by the client, step by step")
    if body.disk is False:
        raise Unsupported("disk: every VM has a disk", "diskless")
    if body.layers is not None and body.layers.count("disk") != 1:
        raise _refused("layers", "must hold disk, once")
    if body.layers is not None and "memory" in body.layers:
        raise Unsupported("layers: the memory of a VM cannot be forked", "restore")
    if body.source_org_id is not None and body.source_org_name is not None:
        raise _refused("source_org_name", "not together with source_org_id")
    org = body.source_org_id if body.source_org_id is not None else body.source_org_name
    if org is not None and body.source_vm_name is None:
        raise _refused("source_org_id", "goes with source_vm_name only")
    lifetimes.check_new(exchange.caller, body.ttl)
    request = ForkRequest(
        source_id=body.source_vm_id,
        source_name=body.source_vm_name,
        name_org=org,
        name=body.name,
        description=body.description,
        public=bool(body.public),
        resources=resources_of(body.resources, body),
        network=network.asked(body.network, body.egress, old=exchange.agent.old),
        command=body.command,
        ttl=body.ttl,
        durable=bool(body.durable),
        policies=body.policies,
        ssh_keys=body.ssh_public_keys,
    )
    exchange.facts.vm, exchange.facts.source = "", body.source_vm_id or ""
    exchange.facts.command = body.command or ""
    made = await exchange.core.vms.fork(exchange.caller, request, exchange.idempotency_key)
    exchange.facts.vm = made.vm_id
    return answer(exchange, made)


async def list_vms(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListVMsQuery)
    if query.org_id is not None and query.source_org_id not in (None, query.org_id):
        raise _refused("source_org_id", "is another name of org_id")
    if _elsewhere(query):
        return exchange.answer(wire.ListVMsAnswer(vms=[], next_cursor=None))
    where = VMFilter(
        org_id=query.org_id if query.org_id is not None else query.source_org_id,
        public=query.public,
        state=query.state,
        created_after=query.created_after,
        created_before=query.created_before,
    )
    page = await exchange.core.vms.list(exchange.caller, where, query.cursor, query.limit)
    vms = [wire.vm(one, flat_sizes=exchange.agent.urllib) for one in page.items]
    return exchange.answer(wire.ListVMsAnswer(vms=vms, next_cursor=page.next_cursor))


async def get_vm(exchange: Exchange) -> Response:
    return answer(exchange, await exchange.core.vms.get(exchange.caller, exchange.params["id"]))


async def patch_vm(exchange: Exchange) -> Response:
    body = await exchange.body(wire.PatchVMBody)
    network.refuse_change(body.network, old=exchange.agent.old)
    changes: dict[str, Any] = {}
    if body.description is not UNSET:
        changes["description"] = body.description
    if body.name is not UNSET:
        changes["name"] = body.name
    if body.resources is not None:
        changes["resources"] = resources_of(body.resources)
    if body.ttl is not UNSET:
        changes["ttl"] = body.ttl
    if body.ssh_public_keys is not None:
        changes["ssh_keys"] = body.ssh_public_keys
    if body.immutable is not None:
        changes["immutable"] = body.immutable
    if body.policies is not None and body.immutable is not None:
        raise _refused("policies", "not together with immutable")
    update = None if body.policies is None else exchange.core.policies.parse(body.policies)
    changed = await exchange.core.vms.update(exchange.caller, exchange.params["id"], **changes)
    if update is not None:
        await exchange.core.policies.update(exchange.caller, changed.vm_id, update)
        changed = await exchange.core.vms.get(exchange.caller, changed.vm_id)  # a rule may have given it an end
    return answer(exchange, changed)


async def delete_vm(exchange: Exchange) -> Response:
    await exchange.core.vms.delete(exchange.caller, exchange.params["id"])
    return exchange.answer(wire.DeleteVMAnswer(deleted=True))


def answer(exchange: Exchange, of: VM, status: int = 200) -> Response:
    shown = policies.of(exchange, of)
    return exchange.answer(wire.vm(of, flat_sizes=exchange.agent.urllib, policies=shown), status)


def resources_of(of: wire.ResourcesBody | None, flat: wire.ForkBody | None = None) -> Resources:
    """`flat`: where clients of 0.5 and 0.6 put the sizes."""
    if of is not None:
        of.refuse_later()
    vcpu = of.vcpu if of is not None else None
    memory = of.memory_mib if of is not None else None
    disk = of.disk_mib if of is not None else None
    if flat is not None:
        vcpu = flat.vcpu_count if vcpu is None else vcpu
        memory = flat.memory_mib if memory is None else memory
        disk = flat.disk_mib if disk is None else disk
    pids, nofile = (of.pids, of.nofile) if of is not None else (None, None)
    return Resources(vcpu=vcpu, memory_mib=memory, disk_mib=disk, pids=pids, nofile=nofile)


def _elsewhere(query: wire.ListVMsQuery) -> bool:
    """Does the query ask for VMs of a place, platform or pool that is not here?"""
    return (
        query.region not in (None, wire.REGION)
        or query.provider not in (None, wire.PROVIDER)
        or query.platform not in (None, wire.PLATFORM)
        or query.pool_id is not None
    )


def _refused(field: str, said: str) -> BadRequest:
    return BadRequest(f"{field}: {said}", [(field, said)])


OPERATIONS = (
    Operation(
        "fork", "POST", "/v1/fork", fork, "Make a VM that shows what its source shows now.",
        answers={200: wire.VM}, body=wire.ForkBody, logged="fork",
        errors=(
            "bad_request", "insufficient_resources", "not_found", "already_exists", "conflict", "invalid_state",
            "resource_busy", "idempotency_conflict", "payload_too_large", "unsupported_operation",
            "capacity_unavailable",
        ),
    ),
    Operation(
        "listVms", "GET", "/v1/vms", list_vms, "List VMs, newest first.",
        answers={200: wire.ListVMsAnswer}, query=wire.ListVMsQuery, errors=("bad_request",),
    ),
    Operation(
        "getVm", "GET", "/v1/vms/{id}", get_vm, "One VM, by id or name.",
        answers={200: wire.VM}, errors=("bad_request", "not_found"),
    ),
    Operation(
        "patchVm", "PATCH", "/v1/vms/{id}", patch_vm, "Change a VM's name, description or sizes, or make it immutable.",
        answers={200: wire.VM}, body=wire.PatchVMBody,
        errors=(
            "bad_request", "insufficient_resources", "not_found", "already_exists", "invalid_state", "resource_busy",
            "payload_too_large", "unsupported_operation",
        ),
    ),
    Operation(
        "deleteVm", "DELETE", "/v1/vms/{id}", delete_vm, "Delete a VM. Its forks keep all that they have.",
        answers={200: wire.DeleteVMAnswer}, errors=("bad_request", "not_found", "invalid_state", "resource_busy"),
    ),
)  # fmt: skip
