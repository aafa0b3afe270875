"""How ARL's gateway answers: plain JSON without null, and `{"error": "…", "detail": "…"}` for every refusal.

Its clients show the text of `error` and the number of the status, and take one of them apart: an operation that nobody
knows is a 404 whose text has the word "operation" in it, which no other 404 has.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from msgspec import Struct
from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, Expired, Forbidden, InvalidState, NotFound
from boxwood.server import decode
from boxwood.server.errors import MethodNotAllowed, NoSuchRoute, headers_of, status_of
from boxwood.server.exchange import JSON, Exchange, encode
from boxwood.server.schema.common import Request

BODY_LIMIT = 10 << 20
_STATUS = {"unsupported_operation": 501}  # a 422 is a build that failed, to these clients


class Lenient(Request, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A request body: members that nobody knows are ignored, null is the same as leaving one out."""


class Told(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer: what has a default is left out while it has it, for clients refuse null."""


R = TypeVar("R", bound=Lenient)


class NoSession(NotFound):
    """No such session, or another organisation's."""

    def __init__(self, session_id: str) -> None:
        super().__init__("resource", f"session not found: {session_id[:80]}")


class NoOperation(NotFound):
    def __init__(self, operation_id: str) -> None:
        super().__init__("resource", f"operation {operation_id} not found")


class Ended(Expired):
    """A session that was there and is remembered."""

    def __init__(self, session_id: str, reason: str, at: str) -> None:
        super().__init__("resource", f"session {session_id} has ended")
        self.detail = f"reason={reason} deletedAt={at}"


class Suspended(InvalidState):
    def __init__(self, session_id: str) -> None:
        super().__init__("vm", "running", f"session {session_id} is suspended: resume it first")


class OperationError(CoreError):
    """An operation came to a bad end of which only the text is known any more."""


def told(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type=JSON)


def nothing() -> Response:
    return Response(status_code=204)


def refusal(exchange: Exchange, error: CoreError) -> Response:
    """An error in this protocol's shape."""
    body = {"error": _text(exchange, error)}
    if detail := getattr(error, "detail", ""):
        body["detail"] = detail
    headers = headers_of(error)
    if error.code == "unauthorized":
        headers["www-authenticate"] = 'Bearer realm="arl-gateway"'
    return Response(encode(body), _STATUS.get(error.code, status_of(error)), headers, media_type=JSON)


def _text(exchange: Exchange, error: CoreError) -> str:
    if isinstance(error, NoSuchRoute | MethodNotAllowed):
        return "404 page not found"
    if isinstance(error, NotFound) and error.resource == "vm":
        return "session not found"  # it went away between two steps: the core's text names another id
    if error.code == "unauthorized":
        header = exchange.headers.get(b"authorization", b"")
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            return "missing or invalid Authorization header"
        return "invalid API key"
    return error.message or error.code


async def body(exchange: Exchange, wanted: type[R]) -> R:
    """The JSON body, whatever its Content-Type. BadRequest, PayloadTooLarge, Unsupported."""
    raw = await exchange.raw_body()
    try:
        decoded = decode.json(raw, wanted)
    except BadRequest as error:
        raise BadRequest(f"invalid request: {error.message}") from None
    assert isinstance(decoded, wanted)
    decoded.refuse_later()
    return decoded


def header(exchange: Exchange, name: bytes) -> bytes | None:
    """BadRequest if it is there twice."""
    found = [value for one, value in exchange.scope["headers"] if one == name]
    if len(found) > 1:
        raise BadRequest(f"{name.decode('ascii')}: the header is there twice")
    return found[0] if found else None


def check_admin(exchange: Exchange) -> None:
    """Forbidden."""
    if exchange.caller.role != "admin":
        raise Forbidden("admin access required")


def shown(at: datetime) -> str:
    """RFC 3339, in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def now() -> str:
    return shown(datetime.now(UTC))
