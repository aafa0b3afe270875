"""Warm pools: the core's, with an image and a profile. Admins alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from msgspec import field
from starlette.responses import Response

from boxwood.core.changes import POOL
from boxwood.core.errors import AlreadyExists, BadRequest, NotFound, Unsupported
from boxwood.core.model import ForkRequest, Pool, PoolRequest
from boxwood.dialects.arl import templates
from boxwood.dialects.arl_gateway import poolfacts, telling, words
from boxwood.dialects.arl_gateway.envelope import Lenient, NoSession, Told, body, check_admin, nothing, now, shown, told
from boxwood.dialects.arl_gateway.gateway import gateway
from boxwood.dialects.arl_gateway.poolfacts import PoolFacts
from boxwood.dialects.arl_gateway.stream import LineStream
from boxwood.server.decode import query
from boxwood.server.exchange import Exchange, encode
from boxwood.server.schema.common import Query

HOLD_SECONDS = 2.0
FAILING = "PodsFailing"  # of which clients' waits end at once


class PoolQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=False):
    namespace: str | None = None
    include_stopped: str = field(name="includeStopped", default="")
    all: str = ""

    @property
    def stopped_too(self) -> bool:
        return any(one.lower() in ("1", "true", "yes", "on") for one in (self.include_stopped, self.all))


class PoolBody(Lenient, frozen=True, kw_only=True):
    name: str | None = None
    image: str | None = None
    profile: str | None = None
    namespace: str | None = None
    replicas: int = 0
    resources: dict[str, dict[str, Any] | None] | None = None
    allow_internet: bool | None = field(name="allowInternet", default=None)
    private_containers: list[Any] | None = field(name="privateContainers", default=None)
    config_env: Any = field(name="configEnv", default=None)
    tools: Any = None

    def refuse_later(self) -> None:
        """Unsupported."""
        for name, given in (("configEnv", self.config_env), ("tools", self.tools)):
            if given is not None:
                raise Unsupported(f"{name}: not supported on pools")
        if self.private_containers:
            raise Unsupported("privateContainers: not supported by this server")


class ScaleBody(Lenient, frozen=True, kw_only=True):
    replicas: int | None = None
    resources: Any = None
    namespace: str | None = None

    def refuse_later(self) -> None:
        """Unsupported."""
        if self.resources is not None:
            raise Unsupported("resources: a pool keeps those that it was made with")


class Condition(Told, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str
    message: str


class PoolInfo(Told, frozen=True, kw_only=True):
    name: str
    namespace: str
    profile: str
    image: str
    replicas: int
    ready: int = field(name="readyReplicas")
    allocated: int = field(name="allocatedReplicas")
    state: str
    created_at: str = field(name="createdAt")
    conditions: list[Condition]


def info(pool: Pool) -> PoolInfo:
    facts = poolfacts.of(pool)
    failing = []
    if pool.problem:
        failing = [Condition(type=FAILING, status="True", reason="CannotStart", message=pool.problem)]
    return PoolInfo(
        name=pool.name,
        namespace=pool.namespace,
        profile=facts.profile,
        image=facts.image,
        replicas=pool.replicas,
        ready=pool.ready,
        allocated=pool.allocated,
        state=pool.state,
        created_at=shown(pool.created_at),
        conditions=failing,
    )


async def create(exchange: Exchange) -> Response:
    """Its VMs have their /workspace before they are claimed."""
    check_admin(exchange)
    wanted = await body(exchange, PoolBody)
    if not wanted.name or not wanted.image:
        raise BadRequest("name and image are required")
    profile = words.label("profile", wanted.profile or poolfacts.PROFILE)
    namespace = wanted.namespace or words.NAMESPACE
    facts = PoolFacts(image=words.normalised(wanted.image), profile=profile)
    network = None if wanted.allow_internet is None else "internet" if wanted.allow_internet else "none"
    request = PoolRequest(
        wanted.name,
        namespace,
        replicas=max(0, wanted.replicas),
        resources=words.resources(wanted.resources),
        network=network,
        about=templates.noted(facts.about(), (words.WORKSPACE,)),
    )
    await _create(exchange, request, words.source(exchange, wanted.image))
    return told({"name": wanted.name, "status": "created"}, 201)


async def _create(exchange: Exchange, request: PoolRequest, image: ForkRequest) -> None:
    core, caller = exchange.core, exchange.caller
    with suppress(NotFound):  # before anything is made for it
        core.pools.get(caller, request.name, request.namespace)
        raise AlreadyExists("pool", f"pool {request.name} already exists")
    try:
        async with templates.prepared(core, caller, image, (words.WORKSPACE,)) as source:
            await core.pools.create(caller, replace(request, source_id=source))
    except AlreadyExists:
        raise AlreadyExists("pool", f"pool {request.name} already exists") from None


def _named(exchange: Exchange) -> Pool:
    """NotFound."""
    asked = query(exchange.scope["query_string"], PoolQuery)
    return _pool(exchange, asked.namespace)


def _pool(exchange: Exchange, namespace: str | None) -> Pool:
    name = exchange.params["name"]
    try:
        return exchange.core.pools.get(exchange.caller, name, namespace or words.NAMESPACE)
    except NotFound:
        raise NotFound("pool", f"pool {name[:80]} not found") from None


async def get(exchange: Exchange) -> Response:
    """One that has nothing ready yet is waited for, for a moment: clients look again after five seconds."""
    check_admin(exchange)
    pool = _named(exchange)

    def settled() -> Pool | None:
        now = exchange.core.pools.get(exchange.caller, pool.name, pool.namespace)
        return now if now.ready or now.problem or not now.replicas else None

    if settled() is None:
        with exchange.core.changes.subscribe(exchange.caller.org_id, {POOL}, pool.namespace) as changes:
            await changes.wait(settled, HOLD_SECONDS)
        pool = _named(exchange)
    return told(info(pool))


async def list_all(exchange: Exchange) -> Response:
    """Without those that are stopped, unless they are asked for."""
    check_admin(exchange)
    asked = query(exchange.scope["query_string"], PoolQuery)
    found = await exchange.core.pools.list(exchange.caller, asked.namespace or words.NAMESPACE)
    return told([info(pool) for pool in found if asked.stopped_too or pool.replicas or pool.ready])


async def scale(exchange: Exchange) -> Response:
    check_admin(exchange)
    wanted = await body(exchange, ScaleBody)
    if wanted.replicas is None or wanted.replicas < 0:
        raise BadRequest("replicas is required and must not be negative")
    asked = query(exchange.scope["query_string"], PoolQuery)
    pool = _pool(exchange, asked.namespace or wanted.namespace)
    changed = await exchange.core.pools.change(exchange.caller, pool.name, pool.namespace, replicas=wanted.replicas)
    return told(info(changed))


async def drain(exchange: Exchange) -> Response:
    """End its sessions and stop it; it stays. Of one that is not there nothing is left to be done."""
    check_admin(exchange)
    with suppress(NotFound):
        pool = _named(exchange)
        await exchange.core.pools.change(exchange.caller, pool.name, pool.namespace, replicas=0)
        await _end_sessions(exchange, pool)
    return nothing()


async def destroy(exchange: Exchange) -> Response:
    """… and it does not stay."""
    check_admin(exchange)
    with suppress(NotFound):
        pool = _named(exchange)
        await _end_sessions(exchange, pool)
        await exchange.core.pools.delete(exchange.caller, pool.name, pool.namespace)
    return nothing()


async def _end_sessions(exchange: Exchange, pool: Pool) -> None:
    there = await gateway(exchange)
    for session, _ in await there.of(exchange.caller):
        if (session.facts.namespace, session.facts.pool) == (pool.namespace, pool.name):
            with suppress(NoSession):
                await there.end(session, "pool_deleted")


async def prefetch(exchange: Exchange) -> Response:
    """Images are on this machine before a pool can be made of them."""
    check_admin(exchange)
    pool = _named(exchange)
    return told({"name": pool.name, "status": "prefetch_started"}, 202)


async def logs(exchange: Exchange) -> Response:
    """How the pool is now. What its VMs say is in the logs of the sessions that have them."""
    check_admin(exchange)
    asked = telling.log_query(exchange)
    pool = _pool(exchange, asked.namespace)
    await exchange.raw_body()
    there = await gateway(exchange)

    async def lines() -> AsyncGenerator[bytes, None]:
        message = f"{pool.state}: {pool.ready} ready, {pool.starting} starting, {pool.allocated} claimed"
        if pool.problem:
            yield encode(_line(pool, "error", pool.problem)) + b"\n"
        yield encode(_line(pool, "info", message)) + b"\n"

    return LineStream(lines(), there.stopping)


def _line(pool: Pool, level: str, message: str) -> telling.LogLine:
    return telling.LogLine(timestamp=now(), level=level, message=message, source="pool", pod=pool.name)
