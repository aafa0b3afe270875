"""Things that listen on ports of VMs of an engine in memory, and a client of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from boxwood.engine.policies import parse
from boxwood.engine.proxy.questions import Question
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

    async def post(self, content: bytes | AsyncIterator[bytes], **more: Any) -> httpx2.Response:
        return await self.get("/", "POST", content=content, **more)

    async def write(self, rule: dict[str, Any] | None, **secrets: str) -> httpx2.Response:
        """What is said to a rule, as `inbound` makes it, that is to be the one of the VM's policy; None: to none."""
        policies = {"rules": {"door": rule}, **({"secrets": secrets} if secrets else {})}
        return await self.server.http.patch(f"/v1/vms/{self.vm}", json={"policies": policies})

    async def ruled(self, rule: dict[str, Any] | None, **secrets: str) -> None:
        """`write`, which must succeed."""
        changed = await self.write(rule, **secrets)
        assert changed.status_code == 200, changed.text

    def head(self, *lines: str, path: str = "/", method: str = "GET", key: bool = True) -> bytes:
        keys = [f"x-boxwood-key: {self.key}"] if key else []
        return "\r\n".join((f"{method} {path} HTTP/1.1", f"host: {self.host}", *keys, *lines, "", "")).encode()


def inbound(**rule: Any) -> dict[str, Any]:
    """A rule about port 8080, unless it says otherwise."""
    return {"type": "inbound", "priority": 1, "action": "allow", "match": {"ports": [8080]}, **rule}


def opened(server: Running, **rule: Any) -> None:
    """A rule for all VMs."""
    ruled(server, door=rule)


def ruled(server: Running, **rules: dict[str, Any]) -> None:
    """Rules for all VMs, the first the highest."""
    made = parse({name: inbound(priority=100 - at, **rule) for at, (name, rule) in enumerate(rules.items())})
    server.machine.core.ports.policies_of = lambda vm_id: made


class SlowGate:
    """All gates: each lets in whoever asks as soon as `go` is set. `asked` is released at each question."""

    def __init__(self, server: Running) -> None:
        self.asked, self.go = asyncio.Semaphore(0), asyncio.Event()
        server.machine.ask_gate = self

    async def __call__(self, question: Question) -> str:
        self.asked.release()
        await self.go.wait()
        return ""


def status(answer: bytes) -> int:
    """Of an answer as it came; 0 if none did."""
    return int(answer.split(b" ")[1]) if answer else 0
