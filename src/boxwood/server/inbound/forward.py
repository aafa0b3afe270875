"""A TCP connection to a port of a VM over a WebSocket.

Binary messages are its bytes, both ways; the text message `{"type":"eof"}` says that no more bytes come from this side,
as half a TCP connection is closed. It is over when both have said so, or the WebSocket is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
from starlette.types import Receive, Send

from boxwood.core.ports import Connection
from boxwood.server.exchange import Exchange
from boxwood.server.inbound.guest import PIECE
from boxwood.server.websocket import FAILED, NORMAL, POLICY, RESTART, Upgraded, be_patient, close, first, gone

EOF = '{"type":"eof"}'
TEXT_BYTES = 4096


class _Said(msgspec.Struct, frozen=True):
    type: str = ""


class Forwarding(Upgraded):
    """It ends with the connection, the client, the client's key, the box, or the server."""

    def __init__(self, exchange: Exchange, connection: Connection) -> None:
        super().__init__()
        self._app = exchange.app
        self._scope = exchange.scope
        self._connection = connection
        self._gone = gone(exchange.scope)
        self._revoked = exchange.app.revocation(exchange.caller.key_id)
        self._lost = asyncio.Event()
        self._why: str | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def converse(self, receive: Receive, send: Send) -> None:
        self._connection.lost_hook = self._on_lost
        reader, self._writer = await asyncio.open_connection(sock=self._connection.sock, limit=PIECE)
        await receive()  # the request for it
        await send({"type": "websocket.accept"})
        be_patient(self._scope)
        start: Any = asyncio.get_running_loop().create_task
        await first(
            start(self._both(start(_out(reader, send)), start(self._in(receive, self._writer)))),
            start(self._revoked.wait()), start(self._app.stopping.wait()), start(self._gone.wait()),
            start(self._lost.wait()),
        )  # fmt: skip
        await close(send, *self._end())

    def _on_lost(self, reason: str) -> None:
        self._why = reason
        self._lost.set()

    async def _both(self, outward: asyncio.Task[None], inward: asyncio.Task[None]) -> None:
        """Until both directions are done, or one has failed."""
        try:
            await asyncio.wait((outward, inward), return_when=asyncio.FIRST_EXCEPTION)
            for task in (outward, inward):
                if task.done() and (error := task.exception()) is not None:
                    self._why = str(error) or type(error).__name__
        finally:
            outward.cancel()
            inward.cancel()
            await asyncio.gather(outward, inward, return_exceptions=True)

    async def _in(self, receive: Receive, writer: asyncio.StreamWriter) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            if (data := message.get("bytes")) is not None:
                writer.write(data)
                await writer.drain()
                continue
            text = message["text"]
            if len(text) > TEXT_BYTES or msgspec.json.decode(text, type=_Said).type != "eof":
                raise ValueError("a text message that makes no sense")
            writer.write_eof()
            return
        raise ConnectionResetError("the client has gone")

    def _end(self) -> tuple[int, str]:
        if self._why is not None:
            return FAILED, self._why
        if self._revoked.is_set():
            return POLICY, "the API key has been revoked"
        return (RESTART, "the server is stopping") if self._app.stopping.is_set() else (NORMAL, "")

    async def abandon(self) -> None:
        self._connection.leave()
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._connection.sock.close()


async def _out(reader: asyncio.StreamReader, send: Send) -> None:
    while data := await reader.read(PIECE):
        await send({"type": "websocket.send", "bytes": data})
    with suppress(OSError):
        await send({"type": "websocket.send", "text": EOF})
