"""Things that listen on ports of VMs of an engine in memory, and a client of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from boxwood.engine.policies import parse
from serving import NO_TLS, Running

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def request_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request's own head."""
    head = await request_head(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(head) + head)


class Seen:
    """What listens in the VM, and all that it has read, byte for byte."""

    def __init__(self) -> None:
        self.connections: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = len(self.connections)
        self.connections.append(b"")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nguest")
        while data := await reader.read(65536):
            self.connections[at] += data


@asynccontextmanager
async def listening(server: Running, vm: str, handler: Handler = mirror, port: int = 8080) -> AsyncIterator[None]:
    """Something listens on a port of the VM."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    inner = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.machine.ports[vm, port] = inner.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        inner.close()
        del server.machine.ports[vm, port]


class Guest:
    """A client of one port: `get`."""

    def __init__(self, server: Running, vm: str, port: int = 8080) -> None:
        self.server = server
        self.vm = vm
        self.host = f"{vm.lower()}-{port}.localhost:{server.port}"
        self.key = server.headers["authorization"].split()[1]

    async def get(self, path: str = "/", method: str = "GET", key: bool = True, **more: Any) -> httpx2.Response:
        headers = {"host": self.host, **({"x-boxwood-key": self.key} if key else {}), **more.pop("headers", {})}
        async with httpx2.AsyncClient(timeout=20, verify=NO_TLS) as http:
            return await http.request(method, f"http://127.0.0.1:{self.server.port}{path}", headers=headers, **more)

    def head(self, *lines: str, path: str = "/", method: str = "GET", key: bool = True) -> bytes:
        keys = [f"x-boxwood-key: {self.key}"] if key else []
        return "\r\n".join((f"{method} {path} HTTP/1.1", f"host: {self.host}", *keys, *lines, "", "")).encode()


def opened(server: Running, **rule: Any) -> None:
    """A rule for all VMs."""
    found = parse({"door": {"type": "inbound", "priority": 1, "action": "allow", "match": {"ports": [8080]}, **rule}})
    server.machine.core.ports.policies_of = lambda vm_id: found


def status(answer: bytes) -> int:
    """Of an answer as it came; 0 if none did."""
    return int(answer.split(b" ")[1]) if answer else 0
