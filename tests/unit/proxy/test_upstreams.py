"""Connections to servers that are done with: none stays open, or known, as long as the box's own goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Address

import h2.config
import h2.connection
import h2.events
import pytest

from boxwood.engine.proxy.message import Head
from boxwood.engine.proxy.upstream import Place, Trust, Upstreams

pytestmark = [pytest.mark.anyio]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """On our own loopback. `left`: of each connection, when the proxy has closed it."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.left: asyncio.Queue[None] = asyncio.Queue()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await self._serve(reader, writer)
            while await reader.read(1 << 16):
                pass
        self.left.put_nowait(None)

    @contextlib.asynccontextmanager
    async def there(self) -> AsyncIterator[Place]:
        async with await asyncio.start_server(self._accept, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            yield Place("one.test", IPv4Address("127.0.0.1"), port, False)


async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


async def _http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    answered = False
    while not answered:
        for event in state.receive_data(await reader.read(1 << 16)):
            if isinstance(event, h2.events.RequestReceived):
                state.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
                answered = True
        writer.write(state.data_to_send())
    state.close_connection()
    writer.write(state.data_to_send())


async def saying_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """And holding on to the connection."""
    await _http2(reader, writer)


async def ending_its_side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _http2(reader, writer)
    writer.write_eof()


@pytest.mark.parametrize(("serve", "http2"), [(closing, False), (saying_goodbye, True), (ending_its_side, True)])
async def test_servers_that_take_one_request_each_time(serve: Serve, http2: bool) -> None:
    server, upstreams = Server(serve), Upstreams(Trust(), http2=http2)
    async with server.there() as place:
        for _ in range(20):
            call, used = await upstreams.call(place, fresh=True)
            while used:  # its goodbye is on the way
                call.release()
                await asyncio.sleep(0)
                call, used = await upstreams.call(place, fresh=True)
            await call.open(Head("GET", "one.test", "/", [], length=0), has_body=False)
            await call.end([])
            reply = await call.reply()
            assert reply.status == (204 if http2 else 200)
            while await call.read():
                pass
            call.release()
        assert server.connections == 20
        for _ in range(18):
            await asyncio.wait_for(server.left.get(), 20)
        assert len(upstreams._channels) <= 3
        upstreams.close()
