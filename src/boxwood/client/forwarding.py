"""A port of a VM on this machine: every TCP connection here is one in there, each over a WebSocket of its own.

Both forms of the SDK run this, the blocking one in a thread of its own.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from boxwood.client.errors import BadRequest, BoxwoodError, ConnectionFailed
from boxwood.client.sockets import CLOSE_SECONDS, OPEN_SECONDS, OPTIONS, proxy, refused, unreachable

EOF = '{"type":"eof"}'
PIECE = 64 << 10
MOST = 512  # connections at once
# Whoever reads slowly hears no ping either: the kernel asks whether the other side is still there.
_PATIENT = {**OPTIONS, "ping_interval": None, "max_queue": 4}


class Forwarder:
    """`url`: of the WebSocket. `on_error`: hears why a connection could not be made, or broke."""

    def __init__(self, url: str, headers: Mapping[str, str], on_error: Callable[[BoxwoodError], object] | None) -> None:
        self._url = url
        self._headers = headers
        self._on_error = on_error
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> tuple[str, int]:
        """Where it listens from now on. `port` 0: any.

        :raises ConnectionFailed: the port is taken.
        """
        if not 0 <= port <= 65535:
            raise BadRequest("bad_request", "local_port: a number from 0 to 65535")
        try:
            self._server = await asyncio.start_server(self._accept, address, port, limit=PIECE)
        except OSError as error:
            raise ConnectionFailed("not_connected", f"cannot listen on {address}, port {port}: {error}") from None
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(tuple(self._open))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MOST:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await self._carry(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (OSError, ConnectionClosed, BoxwoodError) as error:
            _reset(writer)
            if isinstance(error, BoxwoodError) and self._on_error is not None:
                self._on_error(error)
        except asyncio.CancelledError:  # by `stop` alone: nobody waits for this task
            writer.transport.abort()
        finally:
            with suppress(OSError):
                await writer.wait_closed()  # before anybody closes the loop
            self._open.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await self._dial()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_out(reader, there))
                group.create_task(_in(there, writer))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            try:
                with suppress(WebSocketException, OSError):
                    await there.close()
            finally:  # also if that was cut short
                there.transport.abort()
                await there.wait_closed()

    async def _dial(self) -> ClientConnection:
        try:
            made = await connect(
                self._url, additional_headers=self._headers, proxy=proxy(self._url), open_timeout=OPEN_SECONDS,
                close_timeout=CLOSE_SECONDS, **_PATIENT,
            )  # fmt: skip
        except InvalidStatus as error:
            raise refused(error) from None
        except (OSError, WebSocketException) as error:
            raise unreachable(self._url, error) from error
        sock = made.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made


async def _out(reader: asyncio.StreamReader, there: ClientConnection) -> None:
    while data := await reader.read(PIECE):
        await there.send(data)
    await there.send(EOF)


async def _in(there: ClientConnection, writer: asyncio.StreamWriter) -> None:
    while True:
        message = await there.recv()
        if isinstance(message, str):  # no more comes from there
            writer.write_eof()
            return
        writer.write(message)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Nobody is to take what came so far for all."""
    if (sock := writer.get_extra_info("socket")) is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
