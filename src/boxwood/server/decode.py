"""From bytes and query strings to the types of `schema`; what does not fit is a BadRequest that names the member."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.types import Receive

from boxwood.core.errors import BadRequest, PayloadTooLarge
from boxwood.server.errors import Disconnected

T = TypeVar("T")

BODY_SECONDS = 120.0  # for a body to arrive: whoever is slower holds memory for nothing
QUERY_BYTES = 16384
QUERY_FIELDS = 64

_PLACE = re.compile(r"^(?P<said>.*?)(?: - at `(?:key in )?\$\.?(?P<place>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_TOO_LONG = re.compile(r"^Expected `str` of length <= (?P<most>[0-9]+)$")
_EMPTY = "Expected `str` of length >= 1"
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


async def read(receive: Receive, length: int | None, maximum: int, hold: Callable[[int], None]) -> bytes:
    """The whole body. `length`: what Content-Length says; `hold` is told of bytes before they are kept, and may raise.
    PayloadTooLarge, BadRequest (too slow), Disconnected."""
    if length is not None and length > maximum:
        raise PayloadTooLarge(f"the body has {length} bytes, at most {maximum} are taken here", maximum, length)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        _check(len(body), maximum)
        hold(len(body))
        return body
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_on(receive, message, maximum, hold)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_SECONDS:g} seconds") from None


async def _read_on(receive: Receive, message: Mapping[str, Any], maximum: int, hold: Callable[[int], None]) -> bytes:
    body = bytearray()
    while True:
        if message["type"] != "http.request":
            raise Disconnected
        piece: bytes = message.get("body", b"")
        _check(len(body) + len(piece), maximum)
        hold(len(piece))
        body += piece
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()


def _check(size: int, maximum: int) -> None:
    if size > maximum:
        raise PayloadTooLarge(f"the body has more than the {maximum} bytes that are taken here", maximum)


@cache
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)


def json(body: bytes, wanted: Any) -> Any:
    """An empty body is an empty object."""
    try:
        return _decoder(wanted).decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise _refusal(error, "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None


def query(text: bytes, wanted: type[T]) -> T:
    """Parameters by name; an empty one counts as not given."""
    if len(text) > QUERY_BYTES:
        raise BadRequest(f"the query has more than {QUERY_BYTES} bytes")
    given: dict[str, str] = {}
    try:
        fields = text.split(b"&", QUERY_FIELDS)
        if len(fields) > QUERY_FIELDS:
            raise ValueError
        pairs = [field.partition(b"=") for field in fields if field]
        named = [(_plain(name), _plain(value)) for name, _, value in pairs]
    except ValueError:
        raise BadRequest("the query cannot be read") from None
    for name, value in named:
        if name in given:
            raise BadRequest(f"{name or 'query'}: given twice", [(name or "query", "given twice")])
        given[name] = value
    try:
        return msgspec.convert({name: value for name, value in given.items() if value != ""}, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise _refusal(error, "query") from None


def _plain(part: bytes) -> str:
    """UnicodeError."""
    text = part.replace(b"+", b" ").decode("ascii")
    return unquote_to_bytes(text).decode() if "%" in text else text


def segments(raw_path: bytes) -> tuple[str, ...] | None:
    """The parts of a path, each decoded on its own, so that an encoded slash stays within its part. None: not UTF-8."""
    parts = raw_path.split(b"/")[1:]
    try:
        return tuple([(unquote_to_bytes(part) if b"%" in part else part).decode() for part in parts])
    except UnicodeDecodeError:
        return None


def _refusal(error: msgspec.ValidationError, whole: str) -> BadRequest:
    """`whole`: what is named if it is no single member."""
    found = _PLACE.match(str(error))
    said, place = (found["said"], found["place"] or "") if found is not None else (str(error), "")
    for pattern, text in ((_UNKNOWN, "there is no such member"), (_MISSING, "is needed")):
        if (named := pattern.match(said)) is not None:
            place, said = f"{place}.{named['name']}".lstrip("."), text
    if (longest := _TOO_LONG.match(said)) is not None:
        said = f"at most {longest['most']} characters"
    elif said == _EMPTY:
        said = "must not be empty"
    field = place or whole
    return BadRequest(f"{field}: {said}", [(field, said)])
