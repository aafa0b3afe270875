"""One request, what is known of it, and how it is answered; and the operation that it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope

from boxwood.core.core import Core
from boxwood.core.errors import BadRequest
from boxwood.core.model import Caller, Run
from boxwood.core.transfers import SILENT_SECONDS
from boxwood.server import decode
from boxwood.server.agent import Agent, strictly
from boxwood.server.errors import Disconnected
from boxwood.server.schema.common import Answer, Query, Request

if TYPE_CHECKING:
    from boxwood.server.app import App

R = TypeVar("R", bound=Request)
Q = TypeVar("Q", bound=Query)

MIB = 1 << 20
JSON = "application/json"
encode = msgspec.json.Encoder().encode

Handler = Callable[["Exchange"], Awaitable[Response]]
Access = Literal["key", "public", "signed", "operator", "ticket"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A route: what it is called, takes, answers and refuses; the router and the OpenAPI document are made of these.

    `name`: the contract's operationId, or one of ours (`ours`). `path`: without the `/api` in front of it that the
    contract's routes are served under too. `access`: a valid API key; nothing; the URL's own signature; the key that
    lies in the data directory, which shows that the caller may read it; or a key or a ticket that stands for it.
    """

    name: str
    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Any] = field(default_factory=lambda: {200: None})
    errors: tuple[str, ...] = ()
    body: Any = None
    query: type[Query] | None = None
    access: Access = "key"
    body_limit: int = MIB
    prefixes: tuple[str, ...] = ("", "/api")
    ours: bool = False
    contract_name: str | None = None  # of a route that is no operation of the contract but does what one does
    refused: bool = False  # not available: always answered with an error
    logged: Literal["run", "fork", "sync"] | None = None  # as what it is in the log of the organisation
    streams: str | None = None  # the media type that it answers with as well, to whoever accepts it
    websocket: bool = False  # it is one; asked for otherwise, it says so
    tail: bool = False  # the last parameter of the path takes all that is left of it

    @property
    def operation_id(self) -> str | None:
        return self.contract_name if self.ours else self.name


@dataclass(slots=True)
class Facts:
    """What the log of the organisation says of a request, beside what every request has. `vm`: an id or a name; None:
    the path's."""

    vm: str | None = None
    source: str = ""
    path: str = ""
    command: str = ""
    kind: str = ""
    run: Run | None = None


class Exchange:
    """`host`: the Host header, checked. `params`: the path's, by name. `caller`: whose key it is. `admitted`: the id of
    the key that the request counts for. `held`: bytes of its body that are in memory."""

    __slots__ = (
        "_receive",
        "admitted",
        "agent",
        "app",
        "caller",
        "core",
        "facts",
        "headers",
        "held",
        "host",
        "operation",
        "params",
        "request_id",
        "scope",
    )

    caller: Caller
    operation: Operation
    params: dict[str, str]
    host: str

    def __init__(
        self, app: App, scope: Scope, receive: Receive, request_id: str, headers: dict[bytes, bytes], agent: Agent
    ) -> None:
        self.app = app
        self.core: Core = app.core
        self.scope = scope
        self._receive = receive
        self.request_id = request_id
        self.headers = headers
        self.agent = agent
        self.admitted: str | None = None
        self.held = 0
        self.facts = Facts()

    async def body(self, wanted: type[R]) -> R:
        """The JSON body. BadRequest, PayloadTooLarge, Unsupported (a member that is not there yet)."""
        decoded = await self._decoded()
        assert isinstance(decoded, wanted)
        decoded.refuse_later()
        return decoded

    async def union_body(self) -> Any:
        """As `body`, where the operation takes one of several."""
        decoded = await self._decoded()
        decoded.refuse_later()
        return decoded

    async def _decoded(self) -> Any:
        return decode.json(await self.raw_body(), self.operation.body)

    async def raw_body(self) -> bytes:
        """PayloadTooLarge, BadRequest (too slow), RateLimited (its organisation sends too much at once)."""
        return await decode.read(self._receive, self.content_length, self.operation.body_limit, self.hold)

    def hold(self, size: int) -> None:
        """So many bytes of the body are in memory until it has been answered. RateLimited."""
        self.app.bodies.take(self.caller.org_id, size)
        self.held += size

    async def disconnected(self) -> None:
        """Wait until the client has gone, or its key has been revoked. Only once the body has been read."""
        receive = self.app.attended(self._receive, self.admitted)
        while (await receive())["type"] != "http.disconnect":
            pass

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body's bytes as they arrive. BadRequest: none do any more; Disconnected."""
        message = await self._receive()  # how long that may take is bounded where the head's time is: see protocol.py
        while True:
            if message["type"] != "http.request":
                raise Disconnected
            if chunk := message.get("body"):
                yield chunk
            if not message.get("more_body", False):
                return
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise BadRequest(f"the body stopped: nothing came for {SILENT_SECONDS:g} seconds") from None

    def query(self, wanted: type[Q]) -> Q:
        assert self.operation.query is wanted
        return decode.query(self.scope["query_string"], wanted)

    def header(self, name: bytes) -> str | None:
        """One that `headers` does not hold, by its name in lower case; the first if there are several."""
        found = next((value for known, value in self.scope["headers"] if known == name), None)
        return None if found is None else str(found.decode("latin-1"))

    def accepts(self, media_type: str) -> bool:
        """Does the client ask for this type by its name?"""
        given = (self.header(b"accept") or "").lower().split(",")
        return any(one.partition(";")[0].strip() == media_type for one in given)

    @property
    def content_length(self) -> int | None:
        text = self.headers.get(b"content-length")
        return int(text) if text is not None and text.isdigit() else None

    @property
    def idempotency_key(self) -> str | None:
        raw = self.headers.get(b"idempotency-key")
        if raw is None:
            return None
        if not 1 <= len(raw) <= 64 or not all(32 <= byte < 127 for byte in raw):
            said = "1 to 64 printable ASCII characters"
            raise BadRequest(f"Idempotency-Key: {said}", [("Idempotency-Key", said)])
        return raw.decode("ascii")

    @property
    def upgrades(self) -> bool:
        """Is it a request for a WebSocket?"""
        return self.scope.get("upgrades") is True

    @property
    def base_url(self) -> str:
        """Of this server, as the client reaches it."""
        return f"{self.scope['scheme']}://{self.host}"

    @property
    def under_api(self) -> bool:
        raw: bytes = self.scope["raw_path"]
        return raw.startswith(b"/api/")

    @property
    def first_generation(self) -> bool:
        """A client of 0.1 or 0.2, on a route that it shares with later ones.

        These say `Python-urllib/` and always come under /api/v1. So do 0.5 and 0.6 if they were given a base URL that
        ends in /api, and nothing in their requests tells them apart; without it they come under /v1.
        """
        return self.agent.urllib and self.under_api

    def answer(self, value: Answer, status: int = 200) -> Response:
        return Response(encode(strictly(value) if self.agent.strict else value), status, media_type=JSON)
