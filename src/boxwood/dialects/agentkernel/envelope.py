"""How agentkernel's clients are answered: `{"success": true, "data": …}` or `{"success": false, "error": "…"}`.

`data` is never null: clients in Rust and Swift refuse that. Of the statuses only 400, 401 and 404 mean something to a
client; everything else is a server error to it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, Internal, NotFound
from boxwood.server import decode
from boxwood.server.errors import NoSuchRoute, headers_of, status_of
from boxwood.server.exchange import JSON, Exchange, encode
from boxwood.server.schema.common import Request

BODY_LIMIT = 16 << 20


class Lenient(Request, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A request body: members that nobody knows are ignored, null is the same as leaving one out."""


R = TypeVar("R", bound=Lenient)


class NoSandbox(NotFound):
    """No such sandbox, or another organisation's."""

    def __init__(self) -> None:
        super().__init__("vm", "Sandbox not found")


class CommandFailed(CoreError):
    """The command ran and ended with another code than 0: an error in this protocol. Its text holds all that clients
    let their users see."""

    code = "conflict"

    def __init__(self, exit_code: int, output: str) -> None:
        super().__init__(f"Command exited with code {exit_code}: {output}")
        self.exit_code = exit_code
        self.output = output


class CommandLost(Internal):
    """The command did not come to its end."""

    def __init__(self, why: str) -> None:
        super().__init__(f"Command failed: {why}")


def done(data: Any, status: int = 200) -> Response:
    return Response(encode({"success": True, "data": data}), status, media_type=JSON)


def refusal(exchange: Exchange, error: CoreError) -> Response:
    """An error in this protocol's shape."""
    body: dict[str, Any] = {"success": False, "error": _text(exchange, error)}
    if isinstance(error, CommandFailed):
        body |= {"exit_code": error.exit_code, "output": error.output}
    return Response(encode(body), status_of(error), headers_of(error), media_type=JSON)


def _text(exchange: Exchange, error: CoreError) -> str:
    if isinstance(error, NoSuchRoute):
        return "Not found"
    if isinstance(error, NotFound) and error.resource == "vm":
        return "Sandbox not found"  # it went away between two steps: the core's text names an id
    if error.code == "unauthorized":
        header = exchange.headers.get(b"authorization")
        if header is None:
            return "Missing Authorization header"
        if not header.startswith(b"Bearer "):
            return "Invalid authorization format. Use: Bearer <api_key>"
        return "Invalid API key"
    return error.message or error.code


async def body(exchange: Exchange, wanted: type[R]) -> R:
    """The JSON body. BadRequest, PayloadTooLarge, Unsupported (a member that asks for what is not there)."""
    raw = await exchange.raw_body()
    try:
        decoded = decode.json(raw, wanted)
    except BadRequest as error:
        raise BadRequest(f"Invalid JSON: {error.message}") from None
    assert isinstance(decoded, wanted)
    decoded.refuse_later()
    return decoded
