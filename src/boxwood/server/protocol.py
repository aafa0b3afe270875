"""HTTP/1.1 as uvicorn speaks it, with bounds for what may come before a key has been seen, and after an answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from boxwood.server import diversion, sendfile
from boxwood.server.errors import Disconnected

HEAD_BYTES = 65536  # request line and headers together
HEAD_SECONDS = (
    20.0  # for a request's head and its body's first byte, once its connection is open or its first byte there
)
CONTINUE_SECONDS = 60.0  # … for the latter, of a client that waits to be told that it may send
UNREAD_BYTES = 64 << 20  # of a body that nobody reads, since its request has been answered
JOINED_BYTES = 65536
UNREAD_SECONDS = 60.0
WEBSOCKETS = (b"/pty", b"/shell", b"/forward")  # how paths end that have one


class _Joining:
    """A transport that holds what is written until the event loop's turn ends: the head of an answer and its body
    leave in one packet, and wake whoever waits for them once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes > JOINED_BYTES:  # a stream's worth: nobody waits for its end
            self.flush()

    @property
    def clear(self) -> bool:
        """Is nothing on the way to the socket any more?"""
        self.flush()
        return not self._transport.get_write_buffer_size()

    def flush(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        if held and not self._transport.is_closing():  # the client may have gone in this turn
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def alone(self) -> asyncio.Transport:
        """The transport itself, for somebody else."""
        self.flush()
        return self._transport

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Tunnels(Protocol):
    async def tunnel(
        self, label: str, host: str, scope: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None: ...


@runtime_checkable
class HasGuests(Protocol):
    """An application that serves ports of VMs."""

    inbound: Tunnels

    def guest(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str] | None: ...


class Tunnel(asyncio.StreamReaderProtocol):
    """A connection that carries no more requests: bytes in, bytes out."""

    def __init__(self, transport: asyncio.Transport, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.reader = asyncio.StreamReader(limit=JOINED_BYTES, loop=loop)
        super().__init__(self.reader, loop=loop)
        self._own_transport = transport
        self._connections = connections
        self.connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self, self.reader, loop)

    def eof_received(self) -> bool:
        """Whoever sends no more wants no answer either."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends."""
        self._own_transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """Whoever sends more, or is slower, is disconnected."""

    _head_bytes = 0
    _unread_bytes = 0
    _awaited = False  # has a body been announced of which nothing has come?
    _deadline: asyncio.TimerHandle | None = None
    _diverted: tuple[RequestResponseCycle, diversion.Diversion] | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(asyncio.Transport, _Joining(transport, self.loop)))
        # asyncio does this only for sockets that were made with an explicit protocol number, which uvicorn's are not:
        # the body of an answer would wait 40 ms for the acknowledgement of its head.
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._diverted is not None:
            self._diverted[1].lost()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._head_bytes = self._unread_bytes = 0
        self._start_clock()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_target()
        super().on_headers_complete()
        if getattr(self.cycle, "scope", None) is not self.scope:  # it has become a WebSocket
            self._stop_clock()
            return
        self._awaited = True
        if self.pipeline:  # nothing is read until what was asked before has been answered
            self._stop_clock()
        elif self.expect_100_continue:
            self._start_clock(CONTINUE_SECONDS)
        given: dict[str, Any] = {diversion.EXTENSION: partial(self._divert, self.cycle)}
        if self.scheme == "http":
            given[sendfile.EXTENSION] = partial(self._send_file, self.cycle)
        cast(dict[str, Any], self.scope)["extensions"] = given

    def _check_target(self) -> None:
        """A target with a host of its own must name the one of the header. ValueError."""
        if not self.url.startswith(b"/"):
            url = httptools.parse_url(self.url)
            given = [value.lower() for name, value in self.headers if name == b"host"]
            named = (url.host or b"").lower()
            if named and given not in ([named], [named + b":%d" % (url.port or 80)]):
                raise ValueError("the request names two hosts")

    async def _divert(self, cycle: RequestResponseCycle, pipe: int, most: int, seconds: float) -> int:
        """See `diversion.Divert`."""
        if cycle.disconnected:
            raise Disconnected
        fresh, cycle.body = bytes(cycle.body), bytearray()
        diverted = diversion.Diversion(self.flow, pipe, most, fresh)
        if cycle.more_body:
            self._diverted = cycle, diverted
            if not diverted.waits:
                self.flow.resume_reading()
        else:
            diverted.complete()
        try:
            return await diverted.end(seconds)
        finally:
            self._diverted = None

    async def _send_file(self, cycle: RequestResponseCycle, fd: int, at: int, size: int) -> int:
        """See `sendfile.SendFile`."""
        transport = cast(_Joining, self.transport)
        if not transport.clear:
            return 0
        sock = transport.get_extra_info("socket").fileno()
        await sendfile.send(sock, fd, at, size, lambda: cycle.disconnected or transport.is_closing())
        cycle.expected_content_length -= size
        return size

    def on_body(self, body: bytes) -> None:
        """A client that is told off in the midst of its body gets to hear it if it is let finish."""
        if self._awaited:
            self._awaited = False
            self._stop_clock()
        if self._diverted is not None and self._diverted[0] is self.cycle:
            self._diverted[1].take(body)
            return
        if self.parser.should_upgrade() and self._should_upgrade():  # whose request has none
            return
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > UNREAD_BYTES:
                self.transport.close()
            elif self._deadline is None:
                self._start_clock(UNREAD_SECONDS)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """The answer is whole: it need not wait for the turn's end. If the last of the requests behind it begins now,
        its body, if it is not there, can come from now on."""
        cast(_Joining, self.transport).flush()
        last = len(self.pipeline) == 1
        super().on_response_complete()
        if last and self._awaited and not self.transport.is_closing():
            self._start_clock(CONTINUE_SECONDS if self.cycle.waiting_for_100_continue else None)

    def on_message_complete(self) -> None:
        self._stop_clock()
        super().on_message_complete()
        if self._diverted is not None and self._diverted[0] is self.cycle:
            self._diverted[1].complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # the rest of what was too long
            return
        super().data_received(data)

    def _should_upgrade(self) -> bool:
        """Only where there is a WebSocket: every other request is answered as if it had not asked."""
        path = self.url.partition(b"?")[0]
        there = path.endswith(WEBSOCKETS) or self._guest() is not None
        return self.scope["method"] == "GET" and there and super()._should_upgrade()

    def _guest(self) -> tuple[str, str] | None:
        """See `App.guest`."""
        return self.app.guest(self.headers) if isinstance(self.app, HasGuests) else None

    def handle_websocket_upgrade(self) -> None:
        if (guest := self._guest()) is None or not isinstance(self.app, HasGuests):
            super().handle_websocket_upgrade()
            return
        url = httptools.parse_url(self.url)
        scope: dict[str, Any] = {**self.scope, "raw_path": url.path, "query_string": url.query or b""}
        transport = cast(_Joining, self.transport).alone()
        tunnel = Tunnel(transport, self.connections, self.loop)
        self.connections.discard(self)
        self.connections.add(tunnel)  # type: ignore[arg-type]  # it can be shut down as they can
        transport.set_protocol(tunnel)
        task = self.loop.create_task(self.app.inbound.tunnel(*guest, scope, tunnel.reader, tunnel.writer))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: whoever asks for an upgrade is answered, not logged."""

    def _count(self, *parts: bytes) -> None:
        self._head_bytes += sum(map(len, parts)) + 4
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the head of the request is too long")

    def _start_clock(self, seconds: float | None = None) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(seconds or HEAD_SECONDS, self.transport.close)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
