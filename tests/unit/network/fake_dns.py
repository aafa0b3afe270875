"""A name server on loopback that says what a test tells it to, and boxes that ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from boxwood.engine.network import answers
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.upstream import Upstream

SOON = 20  # seconds after which a test that hangs fails
NONE = Exceptions.parse([])  # of what boxes may reach beside the internet


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeServer:
    """Answers over UDP and TCP on one port. `act` makes the answer to a query; None: silence."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.address = address
        self.port = 0
        self.asked: list[dns.message.Message] = []
        self.streams = 0
        self.act: Callable[[dns.message.Message], dns.message.Message | bytes | None] = self.look_up
        self.open = asyncio.Event()  # answers wait for it
        self.open.set()
        self.arrived = asyncio.Condition()
        self._records: dict[tuple[dns.name.Name, str], dns.message.Message] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> FakeServer:
        loop = asyncio.get_running_loop()
        for _ in range(50):
            self._stream = await asyncio.start_server(self._converse, self.address, port)
            self.port = self._stream.sockets[0].getsockname()[1]
            try:
                place = (self.address, self.port)
                self._datagrams, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), place)
                return self
            except OSError:  # TCP's port is somebody's UDP port
                self._stream.close()
        raise AssertionError("no port is free")

    async def stop(self) -> None:
        self._stream.close()
        self._datagrams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, name: str, rdtype: str, *records: str, rcode: int = dns.rcode.NOERROR, authority: str = "") -> None:
        """What is answered to this question: records as `owner ttl type data`."""
        answer = dns.message.Message()
        answer.answer = [rrset(record) for record in records]
        answer.authority = [rrset(authority)] if authority else []
        answer.set_rcode(rcode)
        self._records[dns.name.from_text(name), rdtype] = answer

    def look_up(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        asked = query.question[0]
        found = self._records.get((asked.name, dns.rdatatype.to_text(asked.rdtype)))
        if found is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        else:
            response.answer, response.authority = found.answer, found.authority
            response.set_rcode(found.rcode())
        return response

    @property
    def names(self) -> list[str]:
        return [f"{query.question[0].name} {dns.rdatatype.to_text(query.question[0].rdtype)}" for query in self.asked]

    async def until_asked(self, count: int) -> None:
        async with asyncio.timeout(SOON), self.arrived:
            await self.arrived.wait_for(lambda: len(self.asked) >= count)

    async def reply(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        self.asked.append(query)
        async with self.arrived:
            self.arrived.notify_all()
        await self.open.wait()
        answer = self.act(query)
        return answer.to_wire(max_size=65535) if isinstance(answer, dns.message.Message) else answer or b""

    def on_datagram(self, wire: bytes, source: tuple[str, int]) -> None:
        async def answer() -> None:
            if reply := await self.reply(wire):
                self._datagrams.sendto(reply, source)

        self._tasks.add(task := asyncio.create_task(answer()))
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams += 1
        try:
            wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            reply = await self.reply(wire)
            writer.write(len(reply).to_bytes(2, "big") + reply)
            await writer.drain()
        except (EOFError, OSError):
            pass
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.on_datagram(data, addr)


class Box:
    """Who asks, from an address of its own on loopback."""

    def __init__(self, address: str, server: tuple[str, int]) -> None:
        self.address = address
        self.server = server
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((address, 0))
        self.sock.connect(server)
        self._writers: list[asyncio.StreamWriter] = []

    def send(self, message: dns.message.Message | bytes) -> None:
        self.sock.send(message if isinstance(message, bytes) else message.to_wire())

    async def receive(self) -> bytes:
        async with asyncio.timeout(SOON):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65535)

    async def ask(self, name: str, rdtype: str = "A", **options) -> dns.message.Message:
        query = dns.message.make_query(name, rdtype, **options)
        self.send(query)
        answer = dns.message.from_wire(await self.receive())
        assert query.is_response(answer)
        return answer

    async def connect(self, receive: int = 1 << 20) -> Stream:
        """`receive`: bytes that the kernel keeps for a box that does not read."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        sock.setblocking(False)
        sock.bind((self.address, 0))
        await asyncio.get_running_loop().sock_connect(sock, self.server)
        reader, writer = await asyncio.open_connection(sock=sock)
        self._writers.append(writer)
        return Stream(reader, writer)

    def close(self) -> None:
        self.sock.close()
        for writer in self._writers:
            writer.transport.abort()


class Stream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *messages: dns.message.Message) -> None:
        """In one segment."""
        self.writer.write(b"".join(message.to_wire(prepend_length=True) for message in messages))

    async def receive(self) -> dns.message.Message:
        async with asyncio.timeout(SOON):
            size = int.from_bytes(await self.reader.readexactly(2), "big")
            return dns.message.from_wire(await self.reader.readexactly(size))

    async def ended(self) -> bool:
        """The other side has closed it; what came before is lost."""
        async with asyncio.timeout(SOON):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass
        return True


def rrset(record: str) -> dns.rrset.RRset:
    owner, ttl, rdtype, *data = record.split(" ", 3)
    return dns.rrset.from_text(owner, int(ttl), "IN", rdtype, *data)


def addresses(message: dns.message.Message) -> list[str]:
    return sorted(
        rdata.address
        for found in message.answer
        for rdata in found
        if rdata.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
    )


def errors(message: dns.message.Message) -> list[int]:
    return [option.code for option in message.options if option.otype == dns.edns.OptionType.EDE]


async def until(condition) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0)


def asking(name: str = "a.example", rdtype: str = "A", **options) -> answers.Question:
    return answers.read(dns.message.make_query(name, rdtype, **options).to_wire())


def said(question: answers.Question, *records: str, rcode: int = 0, authority: tuple[str, ...] = ()):
    """An answer as it comes from the wire."""
    message = dns.message.make_response(question.message)
    message.answer = [rrset(record) for record in records]
    message.authority = [rrset(record) for record in authority]
    message.set_rcode(rcode)
    return dns.message.from_wire(message.to_wire())


def reach(tmp_path: Path, servers: list[FakeServer], clock: Clock, *lines: str) -> Upstream:
    path = tmp_path / "resolv.conf"
    path.write_text("\n".join([*(f"nameserver {server.address}" for server in servers), *lines]))
    return Upstream(path, port=servers[0].port, clock=clock)


async def ask(upstream: Upstream, name: str = "a.example", rdtype: str = "A") -> dns.message.Message:
    async with asyncio.timeout(SOON):
        return await upstream.ask(dns.message.make_query(name, rdtype))


def asked(servers: list[FakeServer]) -> list[int]:
    return [len(server.asked) for server in servers]
