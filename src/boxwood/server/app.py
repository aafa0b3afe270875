"""The ASGI application: every request goes host, route, key, handler; every answer has a request id."""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from collections.abc import Callable, Iterable
from functools import cached_property

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from boxwood.core import clock
from boxwood.core.core import Core
from boxwood.core.errors import BadRequest, CoreError, Internal, Unavailable
from boxwood.core.model import Caller
from boxwood.engine.api import Feature
from boxwood.server import auth, decode, errors
from boxwood.server.agent import agent
from boxwood.server.awake import Awake
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import JSON, Exchange, Operation, encode
from boxwood.server.hosts import Hosts
from boxwood.server.inbound.proxy import Inbound
from boxwood.server.journal import entry
from boxwood.server.openapi import document
from boxwood.server.rate import Bodies, Rates
from boxwood.server.routes import DIALECTS, OPERATIONS
from boxwood.server.routes.ptys import caller_of_ticket
from boxwood.server.routing import Found, Router
from boxwood.server.schema.service import Preparing
from boxwood.server.websocket import Upgraded, as_request, deny, no_body

log = logging.getLogger("boxwood.server")

ONCE = frozenset({b"host", b"authorization", b"content-length", b"idempotency-key", b"user-agent", b"origin"})
PREFIXED = "boxwood.prefixed"  # of a scope: it came in where ports of VMs are not served
ROUTER = Router(OPERATIONS)
SURVEY_SECONDS = 5.0  # between looks at what the host gives


class App:
    """`host`: the address that it is served on. `on_down`: called when the operator has parked all and wants the
    server to end. `preparing`, `problem`: what the health answer says of the host image. Once `stopping` is set
    nothing new is begun and nothing waited for."""

    def __init__(
        self,
        core: Core,
        *,
        host: str = "127.0.0.1",
        on_down: Callable[[], None] | None = None,
        awake: Awake | None = None,
    ) -> None:
        self.core = core
        config = core.config
        self.hosts = Hosts(host, config.ports_domain)
        self.rates = Rates(config.requests_per_second, config.requests_burst, config.requests_at_once)
        self.bodies = Bodies(config.bodies_bytes)
        self.awake = awake or Awake(0)
        self._revoked: weakref.WeakValueDictionary[str, asyncio.Event] = weakref.WeakValueDictionary()
        core.keys.revoked_hooks.append(self._end_streams)
        self.on_down = on_down
        self.stopping = asyncio.Event()
        self.inbound = Inbound(self)
        self.preparing: Preparing | None = None
        self.problem: str | None = None
        self._features: tuple[Feature, ...] = ()
        self._surveying: asyncio.Task[None] | None = None
        self._surveyed_at = 0.0
        self.dialects = tuple(dialect for dialect in DIALECTS if dialect.name in core.config.dialects)

    @cached_property
    def document(self) -> bytes:
        """The OpenAPI document. Making it takes longer than the rest of a start."""
        return encode(document(OPERATIONS))

    async def survey(self) -> None:
        """Learn which layers of isolation this host gives."""
        self._surveyed_at = asyncio.get_running_loop().time()
        self._features = tuple([feature async for feature in self.core.engine.features()])

    async def start(self) -> None:
        """Before anybody is served."""
        await self.survey()
        for dialect in self.dialects:
            if dialect.start is not None:
                await dialect.start(self)

    @property
    def features(self) -> tuple[Feature, ...]:
        """As of some seconds ago: whoever asks, and how often, the engine is asked now and then."""
        now = asyncio.get_running_loop().time()
        if now > self._surveyed_at + SURVEY_SECONDS and (self._surveying is None or self._surveying.done()):
            self._surveying = asyncio.get_running_loop().create_task(self.survey())
        return self._features

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if PREFIXED not in scope and (guest := self.guest(scope["headers"])) is not None:
                await self.inbound.serve(*guest, scope, receive, send)
            else:
                await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._serve_websocket(as_request(scope), receive, send)
        else:
            await _lifespan(receive, send)

    def guest(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str] | None:
        """The label and the Host header of a request for a port of a VM. With two such headers it is nobody's."""
        said = [value for name, value in headers if name == b"host"]
        found = self.hosts.guest(said[0]) if said else None
        return found if found is None or len(said) == 1 else ("", found[1])

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, repeated = _headers(scope)
        asked = clock.now()
        exchange = Exchange(
            self, scope, receive, secrets.token_hex(12), headers, agent(headers.get(b"user-agent", b""))
        )
        try:
            response = await self._answer(exchange, repeated)
            if response is not None:
                await response(scope, self.attended(receive, exchange.admitted), send)
                operation: Operation | None = getattr(exchange, "operation", None)
                if exchange.admitted is not None and operation is not None and operation.logged is not None:
                    # behind the answer, which leaves at the end of this turn
                    asyncio.get_running_loop().call_soon(self._log, exchange, response, asked, clock.now())
        finally:
            if exchange.admitted is not None:
                self.rates.leave(exchange.admitted)
            if exchange.held:
                self.bodies.give_back(exchange.caller.org_id, exchange.held)

    def _log(self, exchange: Exchange, response: Response, asked: int, answered: int) -> None:
        self.core.activity.add(exchange.caller, entry(exchange, response, asked, answered))

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request for a WebSocket, routed and refused like every other one, which may become one."""
        headers, repeated = _headers(scope)
        exchange = Exchange(
            self, scope, no_body, secrets.token_hex(12), headers, agent(headers.get(b"user-agent", b""))
        )  # fmt: skip
        try:
            response = await self._answer(exchange, repeated)
        finally:
            if exchange.admitted is not None:
                self.rates.leave(exchange.admitted)
        if not isinstance(response, Upgraded):
            if response is not None:
                await deny(response, receive, send)
            return
        try:
            await response.converse(receive, send)
        finally:
            await response.abandon()

    async def _answer(self, exchange: Exchange, repeated: str | None) -> Response | None:
        """None: there is nobody to answer any more. `repeated`: a header that is there twice though it must not be."""
        scope, request_id, headers = exchange.scope, exchange.request_id, exchange.headers
        found: Operation | None = None
        path = _path(scope)
        parts = decode.segments(path)
        dialect = next((one for one in self.dialects if one.speaks(path)), None)
        try:
            exchange.host = self.hosts.check(_text(headers.get(b"host")))
            if repeated is not None:
                raise BadRequest(f"{repeated}: the header is there twice")
            if dialect is None:
                route = ROUTER.find(scope["method"], parts)
            else:
                route = await self._route(dialect, exchange, parts)
            found = route.operation
            response = await self._handle(exchange, found, route.params, route.allowed)
        except errors.Disconnected:
            return None
        except CoreError as error:
            response = self._refusal(exchange, found, error, dialect)
        except Exception as error:
            log.error("%s %s", request_id, found.name if found else "no route", exc_info=error)
            told = Internal("something went wrong in the server; its log says what")
            response = self._refusal(exchange, found, told, dialect)
        response.raw_headers += [
            (b"x-request-id", request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        response.headers.setdefault("cache-control", "no-store")
        return response

    async def _route(self, dialect: Dialect, exchange: Exchange, parts: tuple[str, ...] | None) -> Found:
        """Who has no key does not get to know what there is."""
        route = dialect.find(exchange.scope["method"], parts)
        if route is None:
            await self._caller(exchange)
            raise errors.NoSuchRoute
        return route

    async def _handle(
        self, exchange: Exchange, operation: Operation | None, params: dict[str, str], allowed: tuple[str, ...]
    ) -> Response:
        if operation is None:
            return Response(status_code=204, headers={"allow": ", ".join(allowed)})
        exchange.operation, exchange.params = operation, params
        if self.stopping.is_set() and operation.access != "public":
            raise Unavailable("the server is stopping")
        if exchange.upgrades and not operation.websocket:
            raise BadRequest("there is no WebSocket here")
        if operation.access == "key":
            exchange.caller = await self._caller(exchange)
        elif operation.access == "ticket":
            exchange.caller = await self._caller_or_ticket(exchange)
        elif operation.access == "operator":
            exchange.caller = await auth.operator(self.core, exchange.headers.get(b"authorization"))
        return await operation.handler(exchange)

    async def _caller(self, exchange: Exchange) -> Caller:
        """Whose request this is, if there may be one more of it. Unauthorized, RateLimited."""
        return self._admitted(exchange, await auth.caller(self.core, exchange.headers.get(b"authorization")))

    async def _caller_or_ticket(self, exchange: Exchange) -> Caller:
        """The same, by a ticket where there is no key. Unauthorized, RateLimited, Forbidden."""
        if b"authorization" in exchange.headers:
            return await self._caller(exchange)
        return self._admitted(exchange, caller_of_ticket(exchange))

    def _admitted(self, exchange: Exchange, caller: Caller) -> Caller:
        self.rates.enter(caller.key_id)
        self.awake.stir()
        exchange.admitted = caller.key_id
        return caller

    def revocation(self, key_id: str) -> asyncio.Event:
        """Set once this key has been revoked, though it may have been before anybody asked. Whoever waits for it holds
        on to it."""
        revoked = self._revoked.get(key_id)
        if revoked is None:
            revoked = self._revoked[key_id] = asyncio.Event()
        if self.core.keys.caller(key_id) is None:
            revoked.set()
        return revoked

    def attended(self, receive: Receive, key_id: str | None) -> Receive:
        """As `receive`, for what goes on until the client hangs up: it seems to, once its key has been revoked."""
        if key_id is None:
            return receive

        async def either() -> Message:
            revoked = self.revocation(key_id)
            waiting = asyncio.ensure_future(receive())
            ended = asyncio.ensure_future(revoked.wait())
            try:
                await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
                return {"type": "http.disconnect"} if ended.done() else waiting.result()
            finally:
                waiting.cancel()
                ended.cancel()

        return either

    def _end_streams(self, key_id: str) -> None:
        if (revoked := self._revoked.get(key_id)) is not None:
            revoked.set()

    def _refusal(
        self, exchange: Exchange, operation: Operation | None, error: CoreError, dialect: Dialect | None
    ) -> Response:
        request_id, agent = exchange.request_id, exchange.agent
        status = errors.status_of(error)
        if status >= 500 and status != 503:
            log.warning("%s %s: %s", request_id, operation.name if operation else "no route", error.message)
        if dialect is not None:
            return dialect.refusal(exchange, error)
        body = errors.body_of(
            error, request_id, operation.operation_id if operation else None, exchange.scope["method"]
        )
        if agent.strict:
            body["error"] = {name: body["error"][name] for name in ("code", "message", "timestamp")}
        if agent.urllib:
            body = {"ok": False, **body}
        return Response(encode(body), status, errors.headers_of(error), media_type=JSON)


def _headers(scope: Scope) -> tuple[dict[bytes, bytes], str | None]:
    """The headers that matter here, and the name of one that is there twice though it must not be."""
    found: dict[bytes, bytes] = {}
    repeated: str | None = None
    for name, value in scope["headers"]:
        if name in ONCE:
            if name in found:
                repeated = name.decode("ascii")
            found[name] = value
    return found, repeated


def _path(scope: Scope) -> bytes:
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        scope["raw_path"] = raw = scope["path"].encode()
    return raw


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("latin-1")


async def _lifespan(receive: Receive, send: Send) -> None:
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})
