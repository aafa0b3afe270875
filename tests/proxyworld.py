"""The proxy on loopback, for tests: boxes are sockets of the test's, servers too, and the router is a table."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from boxwood.engine.policies import parse
from boxwood.engine.proxy import http1, http2
from boxwood.engine.proxy.authority import Mint, make
from boxwood.engine.proxy.channel import Plain, Secure
from boxwood.engine.proxy.guests import Guests
from boxwood.engine.proxy.message import Reply
from boxwood.engine.proxy.origins import Origin, Unknown
from boxwood.engine.proxy.standing import Standings
from boxwood.engine.proxy.upstream import Trust

LOOPBACK = IPv4Address("127.0.0.1")
NAMES = frozenset({"api.test", "other.test", "below.api.test"})
VM = "01J00000000000000000000000"


@dataclass
class Seen:
    """A request, as a server has read it."""

    method: str
    authority: str
    target: str
    headers: dict[str, str]
    body: bytes
    server: str


@dataclass
class Table:
    """Where connections were going: all of them to `to`."""

    to: int = 0
    names: frozenset[str] = NAMES
    address: IPv4Address = LOOPBACK
    known: bool = True
    hosts: dict[str, list[IPv4Address]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)

    async def of(self, source: tuple[str, int], at: tuple[str, int]) -> Origin:
        if not self.known:
            raise Unknown
        return Origin(source[0], VM, self.address, self.to, self.names)

    async def resolve(self, name: str) -> list[IPv4Address]:
        return self.hosts.get(name, [])

    def denied(self, origin: Origin, host: str, reason: str) -> None:
        self.refused.append((host, reason))


class World:
    def __init__(self, directory: Path) -> None:
        self.table = Table()
        self.standings = Standings()
        self.roots, roots_key = make()  # of the servers
        self.servers = Mint(self.roots, roots_key)
        self.guests = Guests(self.standings, self.table, Trust(self.roots.decode()))
        self.authority, key = make()
        self.guests.mint = Mint(self.authority, key)
        self.seen: list[Seen] = []
        self.bundle = directory / "boxwood.crt"
        self.bundle.write_bytes(self.authority)
        self.answer: Callable[[Seen, Any], Awaitable[None]] = echo
        self.accepted = 0
        self.serving: list[asyncio.Task[None]] = []
        self.called = "api.test"  # in the certificate of servers
        self.port = 0
        self.ports: dict[str, int] = {}

    def put(self, rules: dict[str, Any], **secrets: str) -> None:
        """Rules by their names; their priorities may be left out: the first is the highest."""
        made = {
            name: {"type": "outbound", "priority": 1000 - place, **rule}
            for place, (name, rule) in enumerate(rules.items())
        }
        self.standings.put(VM, parse(made), secrets)

    def aim(self, server: str) -> None:
        """What boxes connect to from now on: plain, tls, h2 or wrong (a certificate for another host)."""
        self.table.to = self.ports[server]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def connect_tls(self, name: str | None = "api.test", *protocols: str) -> tuple[Any, Any]:
        context = ssl.create_default_context(cadata=self.authority.decode())
        context.set_alpn_protocols(list(protocols or ("http/1.1",)))
        context.check_hostname = name is not None
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name or "")

    async def raw(self, data: bytes) -> bytes:
        """All that is answered to these bytes, without TLS."""
        reader, writer = await self.connect()
        writer.write(data)
        writer.write_eof()
        try:
            return await asyncio.wait_for(reader.read(-1), 20)
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()

    async def curl(
        self, *arguments: str, host: str = "api.test", path: str = "/", scheme: str = "https"
    ) -> tuple[int, bytes]:
        """A request by curl, which knows HTTP better than we: the status (0: it failed) and what was answered."""
        command = [
            "curl", "-sS", "--max-time", "20", "--cacert", str(self.bundle), "-w", "\n%{http_code}", "--noproxy", "*",
            "--connect-to", f"::127.0.0.1:{self.port}", *arguments, f"{scheme}://{host}:{self.table.to}{path}",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        body, _, code = out.rpartition(b"\n")
        return int(code), body or err

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving.append(task)
        plain = Plain(reader, writer)
        channel: Plain | Secure = plain
        try:
            if name != "plain":
                host = "evil.test" if name == "wrong" else self.called
                context = self.servers.context(host, http2=name == "h2")
                context.sni_callback = None  # type: ignore[assignment]
                channel = Secure(plain, context)
                await channel.handshake()

            async def handle(stream: Any) -> None:
                body = b""
                while piece := await stream.read():
                    body += piece
                head = stream.head
                headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
                seen = Seen(head.method, head.authority, head.target, headers, body, name)
                self.seen.append(seen)
                await self.answer(seen, stream)

            if isinstance(channel, Secure) and channel.protocol == "h2":
                await http2.serve(channel, handle, secure=True)
            else:
                await http1.serve(channel, handle)
        except (OSError, ssl.SSLError):
            pass
        finally:
            plain.abort()


DETOURS = [(b"alt-svc", b'h3=":443"'), (b"x-boxwood-policy", b"forbidden")]  # what an answer must not have any more


async def echo(seen: Seen, stream: Any) -> None:
    """What the server has been told, as JSON."""
    said = json.dumps(
        {"method": seen.method, "authority": seen.authority, "target": seen.target, "headers": seen.headers,
         "body": seen.body.decode("latin-1")}
    ).encode()  # fmt: skip
    await stream.respond(Reply(200, [(b"content-type", b"application/json"), *DETOURS], len(said)))
    if seen.method != "HEAD":
        await stream.send(said)
    await stream.end([])


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    made = World(directory)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made.port = listener.getsockname()[1]
    servers = []
    for name in ("plain", "tls", "h2", "wrong"):
        server = await asyncio.start_server(lambda r, w, name=name: made._serve(name, r, w), "127.0.0.1", 0)
        made.ports[name] = server.sockets[0].getsockname()[1]
        servers.append(server)
    made.aim("tls")
    work = asyncio.ensure_future(made.guests.serve(listener))
    try:
        yield made
    finally:
        work.cancel()
        made.guests.gone(["127.0.0.1"])
        for server in servers:
            server.close()
        for task in made.serving:
            task.cancel()
        await asyncio.gather(work, *made.serving, return_exceptions=True)
        listener.close()
