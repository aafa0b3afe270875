"""Warm pools: create, list, get, change, delete, claim. Not in the contract, whose pools are something else: ours."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response

from boxwood.core import lifetimes
from boxwood.core.model import ClaimRequest, PoolRequest
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.routes import vms
from boxwood.server.schema import network
from boxwood.server.schema import pool as wire
from boxwood.server.schema import vm as vm_wire


async def list_warm_pools(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListWarmPoolsQuery)
    pools = await exchange.core.pools.list(exchange.caller, query.namespace)
    return exchange.answer(wire.WarmPoolsAnswer(pools=[wire.pool(pool) for pool in pools]))


async def create_warm_pool(exchange: Exchange) -> Response:
    body = await exchange.body(wire.CreateWarmPoolBody)
    request = PoolRequest(
        name=body.name,
        namespace=body.namespace or "default",
        source_id=body.source_vm_id,
        source_name=body.source_vm_name,
        replicas=1 if body.replicas is None else body.replicas,
        resources=vms.resources_of(body.resources),
        network=network.asked(body.network, None, old=False),
        labels=body.labels,
    )
    return exchange.answer(wire.pool(await exchange.core.pools.create(exchange.caller, request)), 201)


async def get_warm_pool(exchange: Exchange) -> Response:
    query = exchange.query(wire.NamespaceQuery)
    return exchange.answer(
        wire.pool(exchange.core.pools.get(exchange.caller, exchange.params["name"], query.namespace))
    )


async def patch_warm_pool(exchange: Exchange) -> Response:
    query = exchange.query(wire.NamespaceQuery)
    body = await exchange.body(wire.PatchWarmPoolBody)
    changed = await exchange.core.pools.change(
        exchange.caller, exchange.params["name"], query.namespace, replicas=body.replicas, labels=body.labels
    )
    return exchange.answer(wire.pool(changed))


async def delete_warm_pool(exchange: Exchange) -> Response:
    query = exchange.query(wire.DeleteWarmPoolQuery)
    name = exchange.params["name"]
    return exchange.answer(
        wire.pool(await exchange.core.pools.delete(exchange.caller, name, query.namespace, vms=query.vms))
    )


async def claim_warm_pool(exchange: Exchange) -> Response:
    query = exchange.query(wire.NamespaceQuery)
    body = await exchange.body(wire.ClaimBody)
    lifetimes.check_new(exchange.caller, body.ttl)
    request = ClaimRequest(name=body.name, description=body.description, ttl=body.ttl, labels=body.labels)
    claimed = await exchange.core.pools.claim(
        exchange.caller, exchange.params["name"], query.namespace, request, exchange.idempotency_key
    )
    return vms.answer(exchange, claimed, 201)


_operation = partial(Operation, ours=True)
_POOL = "/v1/warm-pools/{name}"

OPERATIONS = (
    _operation(
        "listWarmPools", "GET", "/v1/warm-pools", list_warm_pools, "Warm pools, by namespace and name.",
        answers={200: wire.WarmPoolsAnswer}, errors=("bad_request",), query=wire.ListWarmPoolsQuery,
    ),
    _operation(
        "createWarmPool", "POST", "/v1/warm-pools", create_warm_pool, "Have VMs booted ahead of demand.",
        answers={201: wire.WarmPool}, body=wire.CreateWarmPoolBody,
        errors=("bad_request", "not_found", "already_exists", "resource_busy", "payload_too_large",
                "insufficient_resources", "unsupported_operation", "unavailable"),
    ),
    _operation(
        "getWarmPool", "GET", _POOL, get_warm_pool, "One warm pool, and how many VMs wait in it.",
        answers={200: wire.WarmPool}, errors=("bad_request", "not_found"), query=wire.NamespaceQuery,
    ),
    _operation(
        "patchWarmPool", "PATCH", _POOL, patch_warm_pool, "Let more or fewer VMs wait.",
        answers={200: wire.WarmPool}, body=wire.PatchWarmPoolBody, query=wire.NamespaceQuery,
        errors=("bad_request", "not_found", "payload_too_large"),
    ),
    _operation(
        "deleteWarmPool", "DELETE", _POOL, delete_warm_pool, "Remove a pool; VMs that were claimed from it stay.",
        answers={200: wire.WarmPool}, errors=("bad_request", "not_found"), query=wire.DeleteWarmPoolQuery,
    ),
    _operation(
        "claimWarmPool", "POST", f"{_POOL}/claim", claim_warm_pool, "A VM of the pool, or a fork there and then.",
        answers={201: vm_wire.VM}, body=wire.ClaimBody, query=wire.NamespaceQuery,
        errors=("bad_request", "not_found", "already_exists", "idempotency_conflict", "payload_too_large",
                "unavailable"),
    ),
)  # fmt: skip
