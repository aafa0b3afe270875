"""WebSockets: how uvicorn speaks them, with bounds, and the answer that turns a request into one."""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

MESSAGE_BYTES = 256 << 10
FRAGMENTS = 64  # of one message
UNSENT_BYTES = 1 << 20  # of pongs to somebody who does not read
PING_SECONDS = 20.0  # between pings, and until the answer: who gives none has gone
GONE, PATIENT = "boxwood.gone", "boxwood.patient"
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)  # fmt: skip
NORMAL, POLICY, FAILED, RESTART = 1000, 1008, 1011, 1012


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Whoever does not keep to the bounds is disconnected. It logs nothing: a URL may hold a ticket."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.logger = self.conn.logger = logging.getLogger("boxwood.server.websocket")
        self.logger.setLevel(logging.CRITICAL)
        self._gone = asyncio.Event()

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            more: dict[str, Any] = {GONE: self._gone, PATIENT: self._be_patient}
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), **more}

    def _be_patient(self) -> None:
        self.stop_keepalive()
        if (sock := self.transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            for level, option, value in _KEEPALIVE:
                sock.setsockopt(level, option, value)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.handshake_initiated:  # the request, all of which has come, was too long for the library
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) >= FRAGMENTS:
            self.transport.abort()
            return
        super().handle_cont(event)

    def handle_ping(self) -> None:
        if self.transport.get_write_buffer_size() > UNSENT_BYTES:
            self.transport.abort()
            return
        super().handle_ping()


class Upgraded(Response):
    """The answer to a request that asks to become a WebSocket: it is one from now on."""

    @abstractmethod
    async def converse(self, receive: Receive, send: Send) -> None:
        """Accept it, and return when it is closed."""

    @abstractmethod
    async def abandon(self) -> None:
        """Called at the end, whatever has happened, and if it never came to `converse`."""


async def deny(response: Response, receive: Receive, send: Send) -> None:
    """Answer a request for a WebSocket as any other one."""
    headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
    await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body), "more_body": False})


def as_request(scope: Scope) -> Scope:
    """The GET that it was."""
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    return {**scope, "type": "http", "method": "GET", "scheme": scheme, "upgrades": True}


async def no_body() -> Message:
    """What is received of such a request."""
    return {"type": "http.request", "body": b"", "more_body": False}


def gone(scope: Scope) -> asyncio.Event:
    """Set once the connection is no more: `receive` tells of it only when all before has been received."""
    told: asyncio.Event | None = scope.get("extensions", {}).get(GONE)
    return told or asyncio.Event()


def be_patient(scope: Scope) -> None:
    """Of one that has been accepted: whoever reads nothing for a while, and so hears no ping either, has not gone. From
    now on the kernel asks."""
    patient: Callable[[], None] | None = scope.get("extensions", {}).get(PATIENT)
    if patient is not None:
        patient()


async def close(send: Send, code: int, reason: str) -> None:
    """`reason`: cut to what a close frame holds."""
    text = reason.encode()[:120].decode(errors="ignore")
    try:
        await send({"type": "websocket.close", "code": code, "reason": text})
    except (RuntimeError, OSError):  # it is closed
        pass


async def first(*waiting: asyncio.Task[Any]) -> None:
    """Wait until one of them is done, then end the others."""
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
