"""HTTP/1.1 as uvicorn speaks it, with bounds for what may come before a key has been seen, and after an answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65536  # request line and headers together
HEAD_SECONDS = 20.0  # for a request's head to arrive once its connection is open, or its first byte there
UNREAD_BYTES = 64 << 20  # of a body that nobody reads, since its request has been answered
JOINED_BYTES = 65536
UNREAD_SECONDS = 60.0
WEBSOCKETS = (b"/pty", b"/shell")  # how paths end that have one


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
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes > JOINED_BYTES:  # a stream's worth: nobody waits for its end
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        if held and not self._transport.is_closing():  # the client may have gone in this turn
            self._transport.write(held[0] if len(held) == 1 else b"".join(held))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Whoever sends more, or is slower, is disconnected."""

    _head_bytes = 0
    _unread_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(asyncio.Transport, _Joining(transport, self.loop)))
        # asyncio does this only for sockets that were made with an explicit protocol number, which uvicorn's are not:
        # the body of an answer would wait 40 ms for the acknowledgement of its head.
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
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
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A client that is told off in the midst of its body gets to hear it if it is let finish."""
        if self.parser.should_upgrade() and self._should_upgrade():  # whose request has none
            return
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > UNREAD_BYTES:
                self.transport.close()
            elif self._deadline is None:
                self._start_clock(UNREAD_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_clock()
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # the rest of what was too long
            return
        super().data_received(data)

    def _should_upgrade(self) -> bool:
        """Only where there is a WebSocket: every other request is answered as if it had not asked."""
        path = self.url.partition(b"?")[0]
        return self.scope["method"] == "GET" and path.endswith(WEBSOCKETS) and super()._should_upgrade()

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
