"""A WebSocket to a server, awaitable. Written by hand: the counterpart of ../_sync/socket.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from boxwood.client.sockets import CLOSE_SECONDS, OPEN_SECONDS, OPTIONS, closed, proxy, refused, unreachable


class AsyncSocket:
    """Messages come as bytes; `sockets.Closed` is raised when there are no more."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, url: str, headers: Mapping[str, str]) -> AsyncSocket:
        """:raises BoxwoodError: the server said no, or is not there."""
        try:
            return cls(
                await connect(
                    url, additional_headers=headers, proxy=proxy(url), open_timeout=OPEN_SECONDS,
                    close_timeout=CLOSE_SECONDS, **OPTIONS,
                )
            )  # fmt: skip
        except InvalidStatus as error:
            raise refused(error) from None
        except (OSError, WebSocketException) as error:
            raise unreachable(url, error) from error

    async def receive(self, timeout: float | None) -> bytes:
        """:raises TimeoutError: nothing came for so many seconds; nothing is lost."""
        try:
            async with asyncio.timeout(timeout):
                message = await self._connection.recv()
        except ConnectionClosed as error:
            raise closed(error) from None
        return message.encode() if isinstance(message, str) else message

    async def send(self, message: str | bytes) -> None:
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            raise closed(error) from None

    async def aclose(self) -> None:
        await self._connection.close()
