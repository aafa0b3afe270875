"""HTTP/2 on both sides, parsed and written by h2. Each stream is a request of its own, and judged by itself.

Memory is bounded by flow control: what a slow reader has not taken stays with the sender. h2 checks the order of
frames, pseudo-headers and lengths, and bounds tables, headers and CONTINUATION frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from boxwood.engine.proxy.channel import PIECE, Broken, Channel
from boxwood.engine.proxy.http1 import HEAD_BYTES, IDLE_SECONDS
from boxwood.engine.proxy.message import BadMessage, Head, Headers, Reply, Trailing, check, content, length_of, values

MOST_STREAMS = 100
_WINDOW = 1 << 18  # of a connection, beyond the 64 KiB that each stream and the connection begin with
_MOST_RESETS = 500  # of requests that were not over: whoever does more of it means harm
logging.getLogger("hpack").setLevel(logging.WARNING)  # it would tell every header, and so secrets
_SETTINGS = {
    h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
    h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_BYTES,
    h2.settings.SettingCodes.ENABLE_PUSH: 0,
}


class _Inbox(Trailing):
    """What has come on one stream and was not read."""

    def __init__(self, wire: _Wire, ident: int) -> None:
        super().__init__()
        self._wire = wire
        self._ident = ident
        self._pieces: deque[tuple[bytes, int]] = deque()
        self._came = asyncio.Event()
        self._ended = False
        self._broken = ""
        self.answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def data(self, data: bytes, counted: int) -> None:
        if not counted:
            return  # no window bounds how many there are
        self._pieces.append((data, counted))
        self._came.set()

    def over(self, trailers: Headers | None = None, broken: str = "") -> None:
        """What comes after its end, a reset or the connection's, takes nothing back."""
        if self._ended:
            return
        self.trailers = trailers or self.trailers
        self._ended, self._broken = True, broken
        self._came.set()
        if not self.answer.done():
            self.answer.set_exception(Broken(broken or "it ended without an answer"))
            self.answer.exception()  # nobody need have asked

    async def read(self) -> bytes:
        while True:
            if self._pieces:
                data, counted = self._taken()
                await self._wire.taken(self._ident, counted)
                if data:
                    return data
                continue  # it was padding
            if self._broken:
                raise Broken(self._broken)
            if self._ended:
                return b""
            self._came.clear()
            await self._came.wait()

    def _taken(self) -> tuple[bytes, int]:
        """About PIECE bytes, of however many frames, and what the window has counted for them."""
        found, size, counted = list[bytes](), 0, 0
        while self._pieces and size < PIECE:
            data, more = self._pieces.popleft()
            found.append(data)
            size, counted = size + len(data), counted + more
        return b"".join(found), counted

    async def send(self, data: bytes) -> None:
        await self._wire.send_data(self._ident, data)

    async def end(self, trailers: Headers) -> None:
        await self._wire.end(self._ident, trailers)

    def abort(self) -> None:
        self._wire.reset(self._ident, h2.errors.ErrorCodes.CANCEL)


class Http2Stream(_Inbox):
    def __init__(self, wire: _Wire, ident: int, head: Head) -> None:
        super().__init__(wire, ident)
        self.head = head

    async def respond(self, reply: Reply) -> None:
        await self._wire.send_headers(self._ident, [(b":status", b"%d" % reply.status), *_lengthy(reply)])

    async def switch(self, reply: Reply) -> Channel:
        raise Broken("a stream of HTTP/2 does not become anything else")


class Http2Call(_Inbox):
    async def open(self, head: Head, *, has_body: bool) -> None:
        scheme = b"https" if self._wire.is_secure else b"http"
        first: Headers = [
            (b":method", head.method.encode()), (b":scheme", scheme), (b":authority", head.authority.encode()),
            (b":path", head.target.encode()),
        ]  # fmt: skip
        await self._wire.send_headers(self._ident, [*first, *_lengthy(head), (b"te", b"trailers")])

    async def reply(self) -> Reply:
        return await self.answer

    def switch(self) -> Channel:
        raise Broken("a stream of HTTP/2 does not become anything else")

    def release(self) -> None:
        if not self._ended:
            self.abort()
        self._wire.forget(self._ident)


class _Wire:
    """A connection, read by `run` alone. Broken where it has ended."""

    def __init__(self, channel: Channel, *, client: bool, secure: bool) -> None:
        self.channel = channel
        self.is_secure = secure
        self.gone = ""
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self._state = h2.connection.H2Connection(config)
        self._state.local_settings = h2.settings.Settings(client=client, initial_values=_SETTINGS)
        self._inboxes: dict[int, Any] = {}
        self._room = asyncio.Event()
        self._resets = 0

    async def start(self) -> None:
        self._state.initiate_connection()
        self._state.increment_flow_control_window(_WINDOW)
        await self._flush()

    async def run(self) -> None:
        """Until the other end has ended."""
        try:
            while data := await self._next():
                try:
                    events = self._state.receive_data(data)
                except h2.exceptions.ProtocolError as error:
                    await self._flush()
                    raise Broken(str(error)) from None
                for event in events:
                    self._hear(event)
                await self._flush()
        finally:
            self.gone = "the connection has ended"
            for inbox in list(self._inboxes.values()):
                inbox.over(broken=self.gone)
            self._room.set()

    async def _next(self) -> bytes:
        return await self.channel.read()

    def _hear(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            self._opened(event)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            self._room.set()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.gone = "the other end has said goodbye"
        elif (inbox := self._inboxes.get(getattr(event, "stream_id", 0) or 0)) is None:
            if isinstance(event, h2.events.DataReceived):  # of what nobody wants any more
                self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.DataReceived):
            inbox.data(event.data, event.flow_controlled_length)
        elif isinstance(event, h2.events.TrailersReceived):
            inbox.over(content(event.headers))
        elif isinstance(event, h2.events.StreamEnded):
            inbox.over()
        elif isinstance(event, h2.events.StreamReset):
            self._resets += 1
            inbox.over(broken="it was reset")
            self._room.set()
            if self._resets > _MOST_RESETS:
                raise Broken("too many requests were reset")

    def _opened(self, event: Any) -> None:
        raise NotImplementedError

    def forget(self, ident: int) -> None:
        self._inboxes.pop(ident, None)

    async def taken(self, ident: int, counted: int) -> None:
        if counted and not self.gone:
            self._state.acknowledge_received_data(counted, ident)
            await self._flush()

    async def send_headers(self, ident: int, headers: Headers, *, last: bool = False) -> None:
        self._say(self._state.send_headers, ident, headers, end_stream=last)
        await self._flush()

    async def send_data(self, ident: int, data: bytes) -> None:
        while data:
            room = min(self._room_for(ident), self._state.max_outbound_frame_size)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            self._say(self._state.send_data, ident, data[:room])
            data = data[room:]
            await self._flush()

    async def end(self, ident: int, trailers: Headers) -> None:
        if trailers:
            await self.send_headers(ident, trailers, last=True)
        else:
            self._say(self._state.end_stream, ident)
            await self._flush()

    def reset(self, ident: int, code: h2.errors.ErrorCodes) -> None:
        try:
            self._state.reset_stream(ident, code)
        except (h2.exceptions.ProtocolError, h2.exceptions.NoSuchStreamError):
            return  # it is over
        self.soon()

    def soon(self) -> None:
        """Send what there is to send, without anybody's waiting for it."""
        task = asyncio.ensure_future(self._flush())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _room_for(self, ident: int) -> int:
        if self.gone:
            raise Broken(self.gone)
        try:
            return self._state.local_flow_control_window(ident)
        except h2.exceptions.ProtocolError as error:
            raise Broken(str(error)) from None

    def _say(self, say: Callable[..., None], *arguments: Any, **more: Any) -> None:
        if self.gone:
            raise Broken(self.gone)
        try:
            say(*arguments, **more)
        except h2.exceptions.ProtocolError as error:
            raise Broken(str(error)) from None

    async def _flush(self) -> None:
        if data := self._state.data_to_send():
            await self.channel.write(data)


class _Server(_Wire):
    def __init__(self, channel: Channel, handle: Callable[[Http2Stream], Awaitable[None]], *, secure: bool) -> None:
        super().__init__(channel, client=False, secure=secure)
        self._handle = handle
        self.tasks: set[asyncio.Task[None]] = set()

    async def _next(self) -> bytes:
        """As if it had ended, if there was no request for so long."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    return await self.channel.read()
            except TimeoutError:
                if not self._inboxes:
                    return b""

    def _opened(self, event: Any) -> None:
        try:
            head = _head(event.headers, secure=self.is_secure, ended=event.stream_ended is not None)
        except BadMessage:
            self.reset(event.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        stream = Http2Stream(self, event.stream_id, head)
        self._inboxes[event.stream_id] = stream
        task = asyncio.ensure_future(self._serve(stream, event.stream_id))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, stream: Http2Stream, ident: int) -> None:
        try:
            await self._handle(stream)
        except (Broken, BadMessage):
            self.reset(ident, h2.errors.ErrorCodes.INTERNAL_ERROR)
        finally:
            self.forget(ident)
            if not stream._ended:
                self.reset(ident, h2.errors.ErrorCodes.NO_ERROR)  # the rest of its body is of no use


async def serve(channel: Channel, handle: Callable[[Http2Stream], Awaitable[None]], *, secure: bool) -> None:
    """Requests of a box, many at once, until it ends. Broken."""
    wire = _Server(channel, handle, secure=secure)
    try:
        await wire.start()
        await wire.run()
    finally:
        for task in wire.tasks:
            task.cancel()
        await asyncio.gather(*wire.tasks, return_exceptions=True)


class Http2Client(_Wire):
    """A connection to a server, for many calls."""

    def __init__(self, channel: Channel, *, secure: bool) -> None:
        super().__init__(channel, client=True, secure=secure)
        self._running: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.start()
        self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self.run()
        except Broken:
            pass  # whoever has a call is told
        finally:
            self.channel.abort()  # there can be no more calls, and the server may have ended its side alone

    def forget(self, ident: int) -> None:
        super().forget(ident)
        if self.gone:
            self.leave()

    def leave(self) -> None:
        """The other end takes no more calls: with the last of them it is closed, whatever that end does."""
        if not self._inboxes:
            self.close()

    def call(self) -> Http2Call:
        """Broken: there can be no more."""
        if self.gone:
            raise Broken(self.gone)
        try:
            ident = self._state.get_next_available_stream_id()
        except h2.exceptions.ProtocolError as error:
            raise Broken(str(error)) from None
        made = self._inboxes[ident] = Http2Call(self, ident)
        return made

    def _opened(self, event: Any) -> None:
        if (inbox := self._inboxes.get(event.stream_id)) is not None and not inbox.answer.done():
            raw = list(event.headers)
            try:
                check(raw)
                status = int(values(raw, b":status")[0])
                inbox.answer.set_result(Reply(status, content(raw, reply=True), length_of(raw)))
            except (BadMessage, ValueError, IndexError):
                inbox.over(broken="an answer that makes no sense")

    def close(self) -> None:
        self.channel.abort()
        if self._running is not None:
            self._running.cancel()


def _head(headers: Iterable[tuple[bytes, bytes]], *, secure: bool, ended: bool) -> Head:
    """BadMessage. That each pseudo-header is there once, and agrees with Host, is h2's to check."""
    raw = [(bytes(name), bytes(value)) for name, value in headers]
    check(raw)
    first = dict(raw)
    try:
        method, target = first[b":method"].decode("ascii"), first[b":path"].decode("ascii")
        authority = first.get(b":authority", first.get(b"host", b"")).decode("ascii")
    except (KeyError, UnicodeDecodeError):
        raise BadMessage("a request without method, path or authority") from None
    if first.get(b":scheme") != (b"https" if secure else b"http") or not target.startswith("/"):
        raise BadMessage("not what this connection is for")
    kept = content(raw)
    cookies = values(kept, b"cookie")
    if len(cookies) > 1:  # RFC 9113 8.2.3: pieces of one
        kept = [(name, value) for name, value in kept if name != b"cookie"] + [(b"cookie", b"; ".join(cookies))]
    length = 0 if ended else length_of(raw)
    return Head(method, authority, target, kept, length=length)


def _lengthy(message: Head | Reply) -> Headers:
    found = [(name, value) for name, value in message.headers if name != b"content-length"]
    if message.length is not None and (message.length or isinstance(message, Reply)):
        found.append((b"content-length", b"%d" % message.length))
    return found
