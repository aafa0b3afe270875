"""What a box's first bytes are, and which server it names in a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3).

Read before it is known whether the TLS is ended here. Strict: what is not exactly in order has no name, and is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MOST_HELLO = 32 << 10
_RECORD_HEAD, _HANDSHAKE, _CLIENT_HELLO = 5, 22, 1
_SERVER_NAME, _ALPN, _HOST_NAME = 0, 16, 0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ")
_METHOD_SO_FAR = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}\Z")


class Kind(Enum):
    TLS = "tls"
    HTTP1 = "http/1"
    HTTP2 = "http/2"  # without TLS
    OTHER = "other"


class BadHello(ValueError):
    """It begins like TLS, and goes on like something else."""


@dataclass(frozen=True, slots=True)
class Hello:
    """`name`: as it was sent, empty if none was; `protocols`: what is offered by ALPN."""

    name: str
    protocols: tuple[str, ...]


def kind_of(data: bytes) -> Kind | None:
    """None: more is needed to tell."""
    if not data:
        return None
    if data[0] == _HANDSHAKE:
        return Kind.TLS if len(data) > 1 and data[1] == 3 else None if len(data) == 1 else Kind.OTHER
    if data.startswith(_PREFACE):
        return Kind.HTTP2
    if _PREFACE.startswith(data):
        return None
    if _METHOD.match(data):
        return Kind.HTTP1
    return None if _METHOD_SO_FAR.match(data) else Kind.OTHER


class Reading:
    """A ClientHello that comes in pieces. What was looked at is not looked at again, however small they are: boxes that
    send byte after byte would have the proxy for themselves."""

    def __init__(self) -> None:
        self._head = b""  # of a record, as far as it is there
        self._left = 0  # bytes of a record that are to come
        self._message = bytearray()

    def feed(self, data: bytes) -> Hello | None:
        """None: it is not all there. BadHello."""
        data, place = self._head + data, 0
        while True:
            if self._left:
                piece = data[place : place + self._left]
                place += len(piece)
                self._left -= len(piece)
                self._message += piece
                if (whole := self._whole()) is not None:
                    return _hello(whole)
            self._head = data[place : place + _RECORD_HEAD]
            if self._left or len(self._head) < _RECORD_HEAD:
                return None
            size = int.from_bytes(self._head[3:], "big")
            if self._head[0] != _HANDSHAKE or self._head[1] != 3 or not 0 < size <= 1 << 14:
                raise BadHello("not a TLS record with a handshake")
            self._left, self._head, place = size, b"", place + _RECORD_HEAD

    def _whole(self) -> bytes | None:
        """The message without its head. BadHello."""
        message = self._message
        if message and message[0] != _CLIENT_HELLO:
            raise BadHello("not a ClientHello")
        if len(message) < 4:
            return None
        size = int.from_bytes(message[1:4], "big")
        if size > MOST_HELLO - 4:
            raise BadHello("a ClientHello that is too long")
        return bytes(message[4 : 4 + size]) if len(message) >= 4 + size else None


def _hello(body: bytes) -> Hello:
    fields = _Reader(body)
    fields.take(2 + 32)
    fields.block(1)  # session
    fields.block(2)  # cipher suites
    fields.block(1)  # compression
    name = ""
    protocols: tuple[str, ...] = ()
    seen: set[int] = set()
    if fields.left:
        extensions = _Reader(fields.block(2))
        while extensions.left:
            kind, content = extensions.number(2), _Reader(extensions.block(2))
            if kind in seen:
                raise BadHello("an extension is there twice")
            seen.add(kind)
            if kind == _SERVER_NAME:
                name = _name(content)
            elif kind == _ALPN:
                protocols = _protocols(content)
    if fields.left:
        raise BadHello("something behind a ClientHello")
    return Hello(name, protocols)


def _name(content: _Reader) -> str:
    listed = _Reader(content.block(2))
    if listed.number(1) != _HOST_NAME:
        raise BadHello("a server's name of an unknown kind")
    raw = listed.block(2)
    if listed.left or content.left or not raw:
        raise BadHello("not exactly one server's name")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise BadHello("a server's name that is not ASCII") from None


def _protocols(content: _Reader) -> tuple[str, ...]:
    listed, found = _Reader(content.block(2)), []
    while listed.left:
        found.append(listed.block(1).decode("latin-1"))
    return tuple(found)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise BadHello("a ClientHello that is cut short")
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """Bytes behind their number, which has `size` bytes itself."""
        return self.take(self.number(size))
