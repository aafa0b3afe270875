"""Sessions as clients ask for them: made, looked at, listed, ended, laid to rest and woken, put off the network."""

from __future__ import annotations

from msgspec import field
from starlette.responses import Response

from boxwood.core.errors import BadRequest, Conflict, ResourceBusy, Unsupported
from boxwood.core.model import ForkRequest
from boxwood.dialects.arl_gateway import create as creation
from boxwood.dialects.arl_gateway import rewind
from boxwood.dialects.arl_gateway.envelope import Ended, Lenient, NoSession, Suspended, body, check_admin, nothing, told
from boxwood.dialects.arl_gateway.gateway import gateway
from boxwood.dialects.arl_gateway.session import Session
from boxwood.server.decode import query
from boxwood.server.exchange import Exchange
from boxwood.server.schema.common import Query

MOST_LISTED = 100_000


class ListQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=False):
    profile: str | None = None
    experiment: str | None = None
    status: str | None = None
    limit: int | None = None
    cursor: str | None = None


class NetworkBody(Lenient, frozen=True, kw_only=True):
    allow_internet: bool | None = field(name="allowInternet", default=None)
    cidrs: list[str] | None = field(name="egressCIDRs", default=None)
    fqdns: list[str] | None = field(name="egressFQDNs", default=None)


async def create(exchange: Exchange) -> Response:
    wanted = await body(exchange, creation.CreateBody)
    there = await gateway(exchange)
    session = await creation.create(exchange, there, wanted)
    return told(session.info(), 201)


async def get(exchange: Exchange) -> Response:
    there = await gateway(exchange)
    session, vm = await there.seen(exchange)
    return told(session.info(vm))


async def list_all(exchange: Exchange) -> Response:
    """An array; where there is more of it, the id to go on after is in X-Next-Cursor."""
    check_admin(exchange)
    asked = query(exchange.scope["query_string"], ListQuery)
    if asked.limit is not None and asked.limit < 0:
        raise BadRequest("limit must not be negative")
    there = await gateway(exchange)
    found = [session.info(vm) for session, vm in await there.of(exchange.caller)]
    for name in ("profile", "experiment", "status"):
        if wanted := getattr(asked, name):
            found = [info for info in found if getattr(info, name) == wanted]
    if asked.cursor:
        at = next((at for at, info in enumerate(found, 1) if info.id == asked.cursor), len(found))
        found = found[at:]
    limit = asked.limit or MOST_LISTED
    answer = told(found[:limit])
    if len(found) > limit:
        answer.headers["x-next-cursor"] = found[limit - 1].id
    return answer


async def delete(exchange: Exchange) -> Response:
    """The second time there is no such session."""
    there = await gateway(exchange)
    try:
        session = await there.find(exchange)
    except Ended:
        raise NoSession(exchange.params["id"]) from None
    await there.end(session, "deleted")
    return nothing()


async def suspend(exchange: Exchange) -> Response:
    """What runs in it ends; its files stay, and it has no idle time until it is resumed."""
    there = await gateway(exchange)
    session = await there.find(exchange)
    async with session.lock:
        await there.core.vms.expire_in(session.caller, session.facts.vm, None)
        await there.core.vms.stop(session.caller, session.facts.vm)
        await there.change(session, "session suspended", status="suspended")
        # What ran has ended meanwhile, and may have given it an idle time.
        await there.core.vms.expire_in(session.caller, session.facts.vm, None)
    return told({"status": "suspended"})


async def resume(exchange: Exchange) -> Response:
    there = await gateway(exchange)
    session = await there.find(exchange)
    async with session.lock:
        await there.core.vms.start(session.caller, session.facts.vm)
        await there.change(session, "session resumed", status="active")
        session.expires_at = 0.0
    async with there.used(session):
        return told({"status": "active"})


async def network_policy(exchange: Exchange) -> Response:
    """On or off. A VM keeps what it was made with, so the session goes on in a fork, if nothing runs in it."""
    wanted = await body(exchange, NetworkBody)
    if wanted.allow_internet is None:
        raise BadRequest("allowInternet is required")
    if not wanted.allow_internet and (wanted.cidrs or wanted.fqdns):
        raise Unsupported(
            "egressCIDRs, egressFQDNs: this server has all of the internet or nothing of it; send allowInternet alone"
        )
    there = await gateway(exchange)
    session, vm = await there.seen(exchange)
    mode = "internet" if wanted.allow_internet else "none"
    if vm.network != mode:
        async with there.used(session):
            await _change_network(exchange, session, mode)
    return told({"sessionID": session.id, "allowInternet": wanted.allow_internet})


async def _change_network(exchange: Exchange, session: Session, mode: str) -> None:
    there = await gateway(exchange)
    if session.facts.status == "suspended":
        raise Suspended(session.id)
    async with session.lock:
        try:
            await there.core.vms.park(session.caller, session.facts.vm)
        except ResourceBusy:
            raise Conflict(
                "resource", "something runs in the session, which would not live on: its network cannot be changed now"
            ) from None
        source = ForkRequest(source_id=session.facts.vm, network=mode)
        vm = await rewind.fork(there, session, source)
        await rewind.replace(there, session, vm, f"network: {mode}")
