"""One look at a terminal over a WebSocket, whatever the protocol in it."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Send

from boxwood.core.errors import CoreError
from boxwood.core.ptys import Pty
from boxwood.server.exchange import Exchange
from boxwood.server.websocket import FAILED, NORMAL, POLICY, RESTART, Upgraded, close, first, gone

TEXT_BYTES = 4096  # of an instruction


class Look(Upgraded):
    """It ends with the terminal, the client, the client's key, or the server."""

    def __init__(self, exchange: Exchange, pty: Pty) -> None:
        super().__init__()
        self._app = exchange.app
        self._pty = pty
        self._gone = gone(exchange.scope)
        self._revoked = exchange.app.revocation(exchange.caller.key_id)
        self._code, self._reason = NORMAL, ""

    @abstractmethod
    def shown(self, data: bytes) -> Message:
        """What the terminal shows, as a message."""

    @abstractmethod
    async def heard(self, message: Message) -> None:
        """A message of the client's. CoreError, ValueError, RecursionError: it makes no sense, and ends the look."""

    def farewell(self) -> Message | None:
        """A last message, where the protocol has one."""
        return None

    async def converse(self, receive: Receive, send: Send) -> None:
        await receive()  # the request for it
        await send({"type": "websocket.accept"})
        start: Any = asyncio.get_running_loop().create_task
        await first(
            start(self._show(send)), start(self._hear(receive)), start(self._revoked.wait()),
            start(self._app.stopping.wait()), start(self._gone.wait()),
        )  # fmt: skip
        if self._pty.end is not None and (last := self.farewell()) is not None:
            with suppress(OSError, RuntimeError):  # the client has gone
                await send(last)
        await close(send, *self._why())

    def _why(self) -> tuple[int, str]:
        pty = self._pty
        if self._code != NORMAL:
            return self._code, self._reason
        if pty.end is not None:
            return NORMAL, f"{pty.end.reason} {pty.end.exit_code}"
        if pty.reason is not None:
            return FAILED, pty.reason
        if pty.sent_away:
            return RESTART, "the VM was suspended: come back to the same session, and it goes on"
        if self._revoked.is_set():
            return POLICY, "the API key has been revoked"
        return RESTART, "the server is stopping: come back to the same session"

    async def _show(self, send: Send) -> None:
        with suppress(OSError):  # the client has gone
            while data := await self._pty.read():
                await send(self.shown(data))

    async def _hear(self, receive: Receive) -> None:
        try:
            while (message := await receive())["type"] == "websocket.receive":
                await self.heard(message)
        except (CoreError, ValueError, RecursionError) as error:
            self._code, self._reason = POLICY, str(error)

    async def abandon(self) -> None:
        await self._app.core.ptys.detach(self._pty)
