"""Requests and answers as the proxy has them in between, whatever version of HTTP they came in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from boxwood.engine.proxy.channel import Channel

Headers = list[tuple[bytes, bytes]]  # names in small letters
# What says how a message is sent on one connection, and is said anew on the next (RFC 9110 7.6.1).
_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
     b"transfer-encoding", b"trailer", b"upgrade", b"http2-settings", b"expect", b"host")
)  # fmt: skip
# Ways around the proxy that servers offer: another protocol, or the same on another port.
_DETOURS = frozenset((b"alt-svc", b"alternate-protocol"))
OURS = b"x-boxwood-policy"  # of answers that are the proxy's: no server says it
SWITCHING = 101


class BadMessage(ValueError):
    """It cannot be understood in one way only. The text is safe to show to whoever sent it."""


@dataclass(slots=True)
class Head:
    """Of a request. `authority`: what it says it is for; `target`: path and query; `upgrade`: it asks for a WebSocket.
    `length`: of its body, None if it will be seen."""

    method: str
    authority: str
    target: str
    headers: Headers
    upgrade: bool = False
    length: int | None = None


@dataclass(slots=True)
class Reply:
    """Of a server: all but its body."""

    status: int
    headers: Headers
    length: int | None = None


class Stream(Protocol):
    """One request of a box, and the answer to it."""

    head: Head
    trailers: Headers

    async def read(self) -> bytes:
        """The next of its body; empty at the end, when `trailers` are known. Broken, BadMessage."""

    async def respond(self, reply: Reply) -> None: ...

    async def send(self, data: bytes) -> None: ...

    async def end(self, trailers: Headers) -> None: ...

    async def switch(self, reply: Reply) -> Channel:
        """Agree to what it asked for: bytes from now on."""

    def abort(self) -> None:
        """It ends here, visibly cut short."""


class Call(Protocol):
    """One request to a server, and its answer."""

    trailers: Headers

    async def open(self, head: Head, *, has_body: bool) -> None: ...

    async def send(self, data: bytes) -> None: ...

    async def end(self, trailers: Headers) -> None: ...

    async def reply(self) -> Reply: ...

    async def read(self) -> bytes: ...

    def switch(self) -> Channel: ...

    def release(self) -> None:
        """All has been read, or nothing more is wanted."""


@dataclass(slots=True)
class Trailing:
    """Headers behind a body, once that has been read."""

    trailers: Headers = field(default_factory=list)


def content(headers: Iterable[tuple[bytes, bytes]], *, reply: bool = False) -> Headers:
    """Those that are about the message itself, not about the connection that it came on."""
    found = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower() for name, value in found if name == b"connection" for word in value.split(b",") if word
    }
    dropped = _HOP | named | (_DETOURS | {OURS} if reply else frozenset())
    return [(name, value) for name, value in found if name not in dropped and not name.startswith(b":")]


def check(headers: Headers) -> None:
    """BadMessage: a value could be read as more than one line."""
    if any(byte in value for _, value in headers for byte in (b"\r", b"\n", b"\0")):
        raise BadMessage("a header has line ends or NUL in it")


def values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def length_of(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """What Content-Length says. BadMessage."""
    found = set(values(headers, b"content-length"))
    if not found:
        return None
    text = found.pop()
    if found or not (text.isdigit() and len(text) < 20):
        raise BadMessage("Content-Length is not one number")
    return int(text)
