"""HTTP/1.1 on both sides, parsed and written by h11: what goes on is made of what was understood, byte for byte anew.

What parsers have been known to read differently is refused before that: a length beside chunks, requests for a proxy,
HTTP/1.0 requests with chunks, more than one Host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import h11

from boxwood.engine.proxy.channel import PIECE, Broken, Channel, Plain, Secure
from boxwood.engine.proxy.message import (
    SWITCHING,
    BadMessage,
    Head,
    Headers,
    Reply,
    Trailing,
    content,
    length_of,
    values,
)

HEAD_BYTES = 64 << 10
IDLE_SECONDS = 300.0  # without a request, or until the head of one is there
_WEBSOCKET = b"websocket"


async def serve(channel: Channel, handle: Callable[[Http1Stream], Awaitable[None]]) -> None:
    """Requests of a box, one after the other, until it ends or something cannot be gone on with. Broken."""
    wire = _Wire(channel, h11.Connection(h11.SERVER, HEAD_BYTES))
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                event = await wire.next()
            if not isinstance(event, h11.Request):
                return
            stream = Http1Stream(wire, _head(event))
        except (h11.RemoteProtocolError, BadMessage) as error:
            await _refuse(wire, str(error))
            return
        except TimeoutError:
            return
        await handle(stream)
        if stream.switched or not wire.again():
            return


class Http1Stream(Trailing):
    def __init__(self, wire: _Wire, head: Head) -> None:
        super().__init__()
        self.head = head
        self.switched = False
        self._wire = wire
        self._chunked = False

    async def read(self) -> bytes:
        if self._wire.state.they_are_waiting_for_100_continue:
            await self._wire.send(h11.InformationalResponse(status_code=100, headers=[]))
        data, trailers = await self._wire.body()
        self.trailers = trailers or self.trailers
        return data

    async def respond(self, reply: Reply) -> None:
        self._chunked = reply.length is None and self._wire.state.their_http_version == b"1.1"
        headers = _framed(reply.headers, reply.length, chunks=False)
        await self._wire.send(_made(h11.Response, status_code=reply.status, headers=headers))

    async def send(self, data: bytes) -> None:
        await self._wire.send(h11.Data(data=data))

    async def end(self, trailers: Headers) -> None:
        await self._wire.end(trailers, chunked=self._chunked)

    async def switch(self, reply: Reply) -> Channel:
        self.switched = True
        headers = [*reply.headers, (b"connection", b"upgrade"), (b"upgrade", _WEBSOCKET)]
        await self._wire.send(_made(h11.InformationalResponse, status_code=SWITCHING, headers=headers))
        return self._wire.raw()

    def abort(self) -> None:
        self._wire.channel.abort()


class Http1Call(Trailing):
    """One request at a time; `on_free`: another one may follow."""

    def __init__(self, channel: Plain | Secure, on_free: Callable[[Http1Call], None]) -> None:
        super().__init__()
        self._channel = channel
        self._wire = _Wire(channel, h11.Connection(h11.CLIENT, HEAD_BYTES * 2))
        self._on_free = on_free
        self._chunked = False

    async def open(self, head: Head, *, has_body: bool) -> None:
        self._chunked = has_body and head.length is None
        headers: Headers = [(b"host", head.authority.encode()), *_framed(head.headers, head.length, chunks=has_body)]
        if head.upgrade:
            headers += [(b"connection", b"upgrade"), (b"upgrade", _WEBSOCKET)]
        await self._wire.send(_made(h11.Request, method=head.method, target=head.target, headers=headers))

    async def send(self, data: bytes) -> None:
        await self._wire.send(h11.Data(data=data))

    async def end(self, trailers: Headers) -> None:
        await self._wire.end(trailers, chunked=self._chunked)

    async def reply(self) -> Reply:
        while True:
            try:
                event = await self._wire.next()
            except h11.RemoteProtocolError as error:
                raise Broken(str(error)) from None
            if isinstance(event, h11.ConnectionClosed):
                raise Broken("it was closed without an answer")
            if isinstance(event, h11.InformationalResponse) and event.status_code != SWITCHING:
                continue
            assert isinstance(event, h11.Response | h11.InformationalResponse)
            raw = list(event.headers)
            return Reply(event.status_code, content(raw, reply=True), length_of(raw))

    async def read(self) -> bytes:
        data, trailers = await self._wire.body()
        self.trailers = trailers or self.trailers
        return data

    def switch(self) -> Channel:
        return self._wire.raw()

    def release(self) -> None:
        if self._wire.is_done and not self._wire.state.trailing_data[0]:
            self._wire.renew()
            self.trailers = []
            self._on_free(self)
        else:
            self.abandon()

    @property
    def is_over(self) -> bool:
        """Has the server ended it?"""
        return self._channel.is_over

    def abandon(self) -> None:
        self._channel.abort()


class _Wire:
    """A channel and what h11 knows of it."""

    def __init__(self, channel: Channel, state: h11.Connection) -> None:
        self.channel = channel
        self.state = state
        self._ahead: Any = None  # what has come behind a piece of a body: its end, or what is wrong with it

    async def next(self) -> Any:
        """The next event. Broken, h11.RemoteProtocolError."""
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                self.state.receive_data(await self.channel.read())
            else:
                return event

    async def body(self) -> tuple[bytes, Headers]:
        """What has come of it, about PIECE bytes, however many chunks it came in; or its end (empty) with trailers.
        Broken."""
        while self._ahead is not None or self.state.their_state is h11.SEND_BODY:
            event, self._ahead = self._ahead, None
            if event is None:
                try:
                    event = await self.next()
                except h11.RemoteProtocolError as error:
                    event = Broken(str(error))
            if isinstance(event, Broken):
                raise event
            if isinstance(event, h11.EndOfMessage):
                return b"", content(event.headers)
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data) + self._more(PIECE - len(event.data)), []
        return b"", []

    def _more(self, most: int) -> bytes:
        """What else has come of a body: chunks of a byte each would cost the work of pieces each."""
        pieces: list[bytes] = []
        while most > 0 and self._ahead is None:
            try:
                event: Any = self.state.next_event()
            except h11.RemoteProtocolError as error:
                event = Broken(str(error))
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                most -= len(event.data)
            else:
                self._ahead = event
        return b"".join(pieces)

    async def send(self, event: Any) -> None:
        try:
            data = self.state.send(event)
        except h11.LocalProtocolError as error:
            raise Broken(str(error)) from None
        if data:
            await self.channel.write(data)

    async def end(self, trailers: Headers, *, chunked: bool) -> None:
        """Trailers have a place behind chunks alone. Broken."""
        await self.send(_made(h11.EndOfMessage, headers=trailers if chunked else []))

    @property
    def is_done(self) -> bool:
        return self.state.our_state is h11.DONE and self.state.their_state is h11.DONE

    def again(self) -> bool:
        """Make ready for the next request. False: there can be none."""
        if self.state.their_state is h11.SEND_BODY:
            # The end of a body that there is not. What is left of another one is not read: it may be endless.
            try:
                self.state.next_event()
            except h11.RemoteProtocolError:
                return False
        if not self.is_done:
            return False
        self.renew()
        return True

    def renew(self) -> None:
        self.state.start_next_cycle()
        self._ahead = None

    def raw(self) -> Channel:
        """The channel, from behind the last message on."""
        return _Ahead(self.channel, bytes(self.state.trailing_data[0]))


class _Ahead:
    """A channel of which something was read already."""

    def __init__(self, channel: Channel, ahead: bytes) -> None:
        self._channel = channel
        self._ahead = ahead
        self.write, self.finish, self.abort = channel.write, channel.finish, channel.abort

    async def read(self) -> bytes:
        if self._ahead:
            found, self._ahead = self._ahead, b""
            return found
        return await self._channel.read()


def _made(event: Any, **members: Any) -> Any:
    """Broken: it cannot be written in HTTP/1.1, whatever somebody's HTTP/2, or a rule, has put into it."""
    try:
        return event(**members)
    except h11.LocalProtocolError as error:
        raise Broken(str(error)) from None


def _head(request: h11.Request) -> Head:
    """BadMessage."""
    raw = [(bytes(name), bytes(value)) for name, value in request.headers]
    hosts, coding = values(raw, b"host"), values(raw, b"transfer-encoding")
    if len(hosts) != 1:
        raise BadMessage("a request must have exactly one Host")
    if coding and (values(raw, b"content-length") or request.http_version < b"1.1"):
        raise BadMessage("Transfer-Encoding does not go with Content-Length, nor with HTTP/1.0")
    method, target = request.method.decode("ascii"), request.target.decode("ascii", "strict")
    if method == "CONNECT":
        raise BadMessage("CONNECT is not for servers")
    if not target.startswith("/"):
        raise BadMessage("the target of a request must begin with a slash")
    upgrades = [word.strip().lower() for value in values(raw, b"upgrade") for word in value.split(b",")]
    tokens = [word.strip().lower() for value in values(raw, b"connection") for word in value.split(b",")]
    upgrade = method == "GET" and upgrades == [_WEBSOCKET] and b"upgrade" in tokens
    length = None if coding else length_of(raw) or 0
    return Head(method, hosts[0].decode("latin-1"), target, content(raw), upgrade, length)


def _framed(headers: Headers, length: int | None, *, chunks: bool) -> Headers:
    """With the one header that says where the body ends. h11 chunks answers by itself where need be."""
    found = [(name, value) for name, value in headers if name != b"content-length"]
    if length is not None and (length or chunks or values(headers, b"content-length")):
        found.append((b"content-length", b"%d" % length))
    elif length is None and chunks:
        found.append((b"transfer-encoding", b"chunked"))
    return found


async def _refuse(wire: _Wire, why: str) -> None:
    if wire.state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    text = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text)), (b"connection", b"close")]
    await wire.send(h11.Response(status_code=400, headers=headers))
    await wire.send(h11.Data(data=text))
    await wire.send(h11.EndOfMessage())
