"""A WebSocket to a server, blocking. Written by hand: the counterpart of ../_async/socket.py."""

from __future__ import annotations

from collections.abc import Mapping

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from boxwood.client.sockets import CLOSE_SECONDS, OPEN_SECONDS, OPTIONS, closed, proxy, refused, unreachable


class Socket:
    """Messages come as bytes; `sockets.Closed` ends them. One thread may receive while another sends."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, url: str, headers: Mapping[str, str]) -> Socket:
        """:raises BoxwoodError: the server said no, or is not there."""
        try:
            connection = connect(
                url, additional_headers=headers, proxy=proxy(url), open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS, **OPTIONS,
            )  # fmt: skip
            return cls(connection.__enter__())  # left by `close`: from 17.1 on it wants to be entered
        except InvalidStatus as error:
            raise refused(error) from None
        except (OSError, WebSocketException) as error:
            raise unreachable(url, error) from error

    def receive(self, timeout: float | None) -> bytes:
        """:raises TimeoutError: nothing came for so many seconds; nothing is lost."""
        try:
            message = self._connection.recv(timeout)
        except ConnectionClosed as error:
            raise closed(error) from None
        return message.encode() if isinstance(message, str) else message

    def send(self, message: str | bytes) -> None:
        try:
            self._connection.send(message)
        except ConnectionClosed as error:
            raise closed(error) from None

    def close(self) -> None:
        self._connection.close()
