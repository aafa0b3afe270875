"""Sessions of experiments, and the gateway's sums."""

from __future__ import annotations

from contextlib import suppress

from msgspec import field
from starlette.responses import Response

from boxwood.core.errors import BadRequest
from boxwood.dialects.arl_gateway import create as creation
from boxwood.dialects.arl_gateway import words
from boxwood.dialects.arl_gateway.envelope import NoSession, Told, body, check_admin, told
from boxwood.dialects.arl_gateway.gateway import gateway
from boxwood.dialects.arl_gateway.session import SessionInfo
from boxwood.server.exchange import Exchange


class Experiment(Told, frozen=True, kw_only=True):
    experiment: str = field(name="experimentId")
    count: int = field(name="sessionCount")
    image: str
    profile: str
    namespace: str


class Summary(Told, frozen=True, kw_only=True):
    sessions: int
    managed: int = field(name="managedSessions")
    pools: int
    ready: int = field(name="readyReplicas")
    allocated: int = field(name="allocatedReplicas")
    experiments: int


async def create(exchange: Exchange) -> Response:
    check_admin(exchange)
    wanted = await body(exchange, creation.CreateBody)
    if not wanted.image and not wanted.pool_ref:
        raise BadRequest("image is required")
    if not wanted.experiment:
        raise BadRequest("experimentId is required")
    words.label("experimentId", wanted.experiment)
    there = await gateway(exchange)
    session = await creation.create(exchange, there, wanted, managed=True)
    return told(session.info(), 201)


async def experiments(exchange: Exchange) -> Response:
    """Those that have sessions."""
    check_admin(exchange)
    there = await gateway(exchange)
    found: dict[str, list[SessionInfo]] = {}
    for session, vm in await there.of(exchange.caller):
        if session.facts.managed:
            found.setdefault(session.facts.experiment, []).append(session.info(vm))
    return told(
        [
            Experiment(
                experiment=name,
                count=len(sessions),
                image=sessions[0].image,
                profile=sessions[0].profile,
                namespace=sessions[0].namespace,
            )
            for name, sessions in sorted(found.items())
        ]
    )


async def sessions(exchange: Exchange) -> Response:
    """The caller's own, unless it is an admin."""
    there = await gateway(exchange)
    caller = exchange.caller
    return told(
        [
            session.info(vm)
            for session, vm in await there.of(caller)
            if session.facts.managed
            and session.facts.experiment == exchange.params["experiment"]
            and (caller.role == "admin" or session.facts.owner == caller.key_id)
        ]
    )


async def delete(exchange: Exchange) -> Response:
    """End all of them."""
    check_admin(exchange)
    there = await gateway(exchange)
    deleted = 0
    for session, _ in await there.of(exchange.caller):
        if session.facts.managed and session.facts.experiment == exchange.params["experiment"]:
            with suppress(NoSession):
                await there.end(session, "deleted")
                deleted += 1
    return told({"deleted": deleted})


async def summary(exchange: Exchange) -> Response:
    check_admin(exchange)
    there = await gateway(exchange)
    sessions = [session for session, _ in await there.of(exchange.caller)]
    managed = [session for session in sessions if session.facts.managed]
    pools = await exchange.core.pools.list(exchange.caller, words.NAMESPACE)
    return told(
        Summary(
            sessions=len(sessions),
            managed=len(managed),
            pools=len(pools),
            ready=sum(pool.ready for pool in pools),
            allocated=sum(pool.allocated for pool in pools),
            experiments=len({session.facts.experiment for session in managed}),
        )
    )
