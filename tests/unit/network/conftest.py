"""A resolver on loopback, boxes that ask it, and the servers that it asks."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from boxwood.engine.api import Denial
from boxwood.engine.network import upstream
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.resolver import Resolver
from boxwood.engine.network.upstream import Upstream

_SPEC = importlib.util.spec_from_file_location("fake_dns", Path(__file__).with_name("fake_dns.py"))
assert _SPEC is not None and _SPEC.loader is not None
fake_dns = sys.modules.setdefault("fake_dns", importlib.util.module_from_spec(_SPEC))
_SPEC.loader.exec_module(fake_dns)


class World:
    def __init__(self, server: fake_dns.FakeServer, resolv_conf: Path) -> None:
        self.server = server
        self.clock = fake_dns.Clock()
        self.denials: list[tuple[str, Denial]] = []
        self.upstream = Upstream(resolv_conf, port=server.port, clock=self.clock)
        self.resolver: Resolver
        self._boxes: list[fake_dns.Box] = []
        self._task: asyncio.Task[None] | None = None

    async def serve(self, *exceptions: str, ipv6: bool = False) -> None:
        await self.stop()
        self.exceptions = Exceptions.parse(exceptions)
        self.resolver = Resolver(
            self.exceptions,
            self.upstream,
            lambda box, denial: self.denials.append((box, denial)),
            ipv6=ipv6,
            clock=self.clock,
        )
        for _ in range(50):
            self._sockets = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
            for sock in self._sockets:
                sock.setblocking(False)
            try:
                self._sockets[0].bind(("127.0.0.1", 0))
                self.place = self._sockets[0].getsockname()
                self._sockets[1].bind(self.place)
                break
            except OSError:
                for sock in self._sockets:
                    sock.close()
        self._sockets[1].listen(1024)
        self._task = asyncio.create_task(self.resolver.serve(*self._sockets))

    def box(self, address: str = "127.0.0.2") -> fake_dns.Box:
        self._boxes.append(box := fake_dns.Box(address, self.place))
        return box

    @property
    def denied(self) -> list[tuple[str, str]]:
        return [(denial.name, denial.reason) for _, denial in self.denials]

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
        for thing in (*self._sockets, *self._boxes):
            thing.close()
        self._task = None


@pytest.fixture
async def server():
    started = await fake_dns.FakeServer().start()
    started.add("public.example", "A", "public.example. 60 A 93.184.216.34")
    yield started
    await started.stop()


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    return path


@pytest.fixture
async def world(server, resolv_conf: Path):
    made = World(server, resolv_conf)
    await made.serve()
    yield made
    await made.stop()


@pytest.fixture
def clock():
    return fake_dns.Clock()


@pytest.fixture
async def servers():
    """Three, on three addresses and one port."""
    first = await fake_dns.FakeServer("127.0.0.1").start()
    started = [first]
    for address in ("127.0.0.3", "127.0.0.4"):
        started.append(await fake_dns.FakeServer(address).start(first.port))
    for server in started:
        server.add("a.example", "A", "a.example. 60 A 93.184.216.34")
    yield started
    for server in started:
        await server.stop()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(upstream, "MOST_SECONDS", 0.05)
