"""What boxes and servers can make the proxy keep, wait for, write and say: bounded, and nobody else's room."""

from __future__ import annotations

import asyncio
import ssl
import sys
from types import FrameType
from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import pytest

from boxwood.engine.proxy import exchange, guests, hello, http1, http2, standing
from boxwood.engine.proxy.channel import PIECE, Broken
from boxwood.engine.proxy.message import Reply
from proxyworld import VM, World

pytestmark = [pytest.mark.anyio]
SECRET = "s3cret-value-of-the-key"
HOST = {"hosts": ["api.test"]}
GETS = {"get": {"action": "allow", "match": {**HOST, "methods": ["GET", "POST"]}}}
WITH_KEY = {"key": {"action": {"rewrite": {"headers": {"authorization": "Bearer ${secret:KEY}"}}}, "match": HOST}}


class Taking:
    """What an inbox tells its connection."""

    def __init__(self) -> None:
        self.counted = 0

    async def taken(self, ident: int, counted: int) -> None:
        self.counted += counted


async def test_frames_with_nothing_in_them_are_not_kept() -> None:
    wire = Taking()
    inbox = http2._Inbox(wire, 1)  # type: ignore[arg-type]
    for _ in range(5000):
        inbox.data(b"", 0)
    assert not inbox._pieces
    for _ in range(5000):  # padding alone, which the window counts
        inbox.data(b"", 1)
    inbox.data(b"x", 1)
    inbox.over()
    assert (await inbox.read(), await inbox.read()) == (b"x", b"") and wire.counted == 5001


async def test_what_comes_after_the_end_breaks_nothing() -> None:
    """A server that has answered may reset the stream, or go: the answer is whole."""
    inbox = http2._Inbox(Taking(), 1)  # type: ignore[arg-type]
    inbox.data(b"x", 1)
    inbox.over([(b"a", b"b")])
    inbox.over()
    inbox.over(broken="it was reset")
    assert (await inbox.read(), await inbox.read()) == (b"x", b"") and inbox.trailers == [(b"a", b"b")]
    inbox = http2._Inbox(Taking(), 3)  # type: ignore[arg-type]
    inbox.data(b"x", 1)
    inbox.over(broken="it was reset")
    assert await inbox.read() == b"x"
    with pytest.raises(Broken):
        await inbox.read()


async def test_frames_that_came_together_are_one_piece() -> None:
    """Of a byte each they would be as many pieces, with nobody's turn between; and no piece is without end."""
    wire = Taking()
    inbox = http2._Inbox(wire, 1)  # type: ignore[arg-type]
    for _ in range(5000):
        inbox.data(b"x", 3)
    for _ in range(20):
        inbox.data(b"y" * 16384, 16384)
    inbox.over()
    first = await inbox.read()
    assert first.startswith(b"x" * 5000 + b"y") and PIECE <= len(first) < PIECE + 16384
    assert wire.counted == 10000 + len(first)  # no window is given back for what nobody has taken
    rest = b""
    while piece := await inbox.read():
        assert len(piece) < PIECE + 16384
        rest += piece
    assert len(first + rest) == 5000 + 20 * 16384 and wire.counted == 15000 + 20 * 16384


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0b"])
async def test_headers_of_http2_that_would_be_two_in_http1(there: World, value: str) -> None:
    there.put(GETS)
    for server in ("tls", "h2"):
        there.aim(server)
        reader, writer = await there.connect_tls("api.test", "h2")
        config = h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
        state = h2.connection.H2Connection(config)
        state.initiate_connection()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "api.test"), (":path", "/"), ("x-a", value)]
        state.send_headers(1, head, end_stream=True)
        writer.write(state.data_to_send())
        assert await _end_of(state, reader) is not None
        writer.transport.abort()
    assert there.seen == []


async def _end_of(state: Any, reader: asyncio.StreamReader) -> Any:
    """How a request without an answer ended."""
    while data := await asyncio.wait_for(reader.read(65536), 20):
        for event in state.receive_data(data):
            assert not isinstance(event, h2.events.ResponseReceived)
            if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                return event
    return "closed"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("server", ["tls", "h2"])
async def test_trailers_for_which_there_is_no_place(there: World, version: str, server: str) -> None:
    """Behind a body of a known length: left out, and the answer is whole."""

    async def answer(seen: Any, stream: Any) -> None:
        await stream.respond(Reply(200, [], 2))
        await stream.send(b"ok")
        await stream.end([(b"x-checked", b"1")])

    there.put(GETS)
    there.answer = answer
    there.aim(server)
    assert await there.curl(version) == (200, b"ok")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("server", ["tls", "h2"])
async def test_trailers_are_no_way_around(there: World, version: str, server: str) -> None:
    """What no server may say in its headers it may not say behind its body."""

    async def answer(seen: Any, stream: Any) -> None:
        await stream.respond(Reply(200, []))
        await stream.send(b"ok")
        await stream.end([(b"x-boxwood-policy", b"forbidden"), (b"alt-svc", b'h3=":443"'), (b"x-sum", b"1")])

    there.put(GETS)
    there.answer = answer
    there.aim(server)
    arguments = ["-v", "--stderr", "-"] if version == "--http2" else ["--raw", "-i"]
    code, said = await there.curl(version, *arguments)
    assert code == 200 and b"x-sum: 1" in said
    assert b"alt-svc" not in said.lower() and b"x-boxwood-policy" not in said.lower()


class Said:
    """A channel on which something has come in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ONES = b"1\r\nx\r\n" * 1000


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ((CHUNKED, ONES + b"0\r\nx-sum: 1\r\n\r\n"), [1000, "end"]),
        ((CHUNKED + ONES, ONES, b"0\r\nx-sum: 1\r\n\r\n"), [1000, 1000, "end"]),
        ((CHUNKED + ONES[:-3], b"x\r\n0\r\nx-sum: 1\r\n\r\n"), [999, 1, "end"]),
        ((CHUNKED + ONES + b"nonsense\r\n", b""), [1000, "broken"]),
        ((CHUNKED + ONES, b""), [1000, "broken"]),
        ((CHUNKED + b"nonsense\r\n",), ["broken"]),
    ],
)  # fmt: skip
async def test_chunks_that_came_together_are_one_piece(pieces: tuple[bytes, ...], wanted: list[Any]) -> None:
    """And how a body ended is known only behind all of it."""
    call = http1.Http1Call(Said(*pieces), lambda call: None)  # type: ignore[arg-type]
    for event in (h11.Request(method="GET", target="/", headers=[("host", "a")]), h11.EndOfMessage()):
        call._wire.state.send(event)
    assert (await call.reply()).status == 200
    found: list[Any] = []
    try:
        while piece := await call.read():
            found.append(len(piece))
        found.append("end")
        assert call.trailers == [(b"x-sum", b"1")] and await call.read() == b""
    except Broken:
        found.append("broken")
    assert found == wanted


async def test_a_connection_is_used_again_after_a_body_nobody_read_to_its_end() -> None:
    """What had come with the last piece, its end, is not taken for the next body's."""
    kept: list[Any] = []
    call = http1.Http1Call(Said(CHUNKED + ONES + b"0\r\n\r\n", CHUNKED + b"1\r\ny\r\n0\r\n\r\n"), kept.append)  # type: ignore[arg-type]
    for last in (False, True):
        for event in (h11.Request(method="GET", target="/", headers=[("host", "a")]), h11.EndOfMessage()):
            call._wire.state.send(event)
        await call.reply()
        assert await call.read() == (b"y" if last else b"x" * 1000)
        call.release()
    assert kept == [call, call]


async def test_an_error_does_not_cite_a_secret(there: World) -> None:
    """A server that says it again where HTTP has a status line."""

    async def answer(seen: Any, stream: Any) -> None:
        await stream._wire.channel.write(f"{seen.headers['authorization']}\r\n\r\n".encode())
        stream.abort()

    there.put(WITH_KEY, KEY=SECRET)
    there.answer = answer
    code, body = await there.curl("--http1.1")
    assert code == 502 and SECRET.encode() not in body
    assert there.seen[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_whole_bodies_of_a_vm_are_bounded_together(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_HELD", 10)
    there.put({"x": {"action": "allow", "match": {**HOST, "body_contains": ["x"]}}})
    there.aim("plain")
    reader, writer = await there.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 9\r\n\r\nxxxxxxxx")
    vm = await there.standings.of(VM, 0)
    assert vm is not None
    async with asyncio.timeout(20):
        while not vm.held:
            await asyncio.sleep(0)
    assert (await there.curl("-d", "xxxxx", scheme="http"))[0] == 503
    assert vm.held == 8 and there.seen == []
    writer.write(b"x")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()
    async with asyncio.timeout(20):
        while vm.held:
            await asyncio.sleep(0)
    assert (await there.curl("-d", "xxxxx", scheme="http"))[0] == 200


async def test_requests_of_a_vm_that_are_under_way_are_bounded(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a connection to a server: over HTTP/2 a box has a hundred times as many as it has connections."""
    monkeypatch.setattr(standing, "MOST_OPEN", 2)
    go, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def answer(seen: Any, stream: Any) -> None:
        waiting.release()
        await go.wait()
        await stream.respond(Reply(200, [], 0))
        await stream.end([])

    there.put(GETS)
    there.answer = answer
    first = [asyncio.ensure_future(there.curl("--http2")) for _ in range(2)]
    async with asyncio.timeout(20):
        for _ in first:
            await waiting.acquire()
    code, body = await there.curl("--http2")
    assert code == 503 and b"under way" in body and len(there.seen) == 2
    go.set()
    assert [code for code, _ in await asyncio.gather(*first)] == [200, 200]
    assert (await there.curl("--http2"))[0] == 200


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_who_says_nothing_is_not_waited_for(there: World, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http1, http2):
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    there.put(GETS)
    there.aim("tls")
    reader, writer = await there.connect_tls("api.test", protocol)
    if protocol == "h2":
        state = h2.connection.H2Connection()
        state.initiate_connection()
        writer.write(state.data_to_send())
    else:
        writer.write(b"GET / HTTP/1.1\r\nHost: ap")
    async with asyncio.timeout(20):
        while await reader.read(65536):
            pass
    writer.transport.abort()


async def test_a_hello_that_does_not_end(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_HANDSHAKE_SECONDS", 0.05)
    there.put(GETS)
    reader, writer = await there.connect()
    writer.write(b"\x16\x03\x01\x02\x00\x01")
    async with asyncio.timeout(20):
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
    writer.transport.abort()


def client_hello() -> bytes:
    """The message, without the head of its record."""
    context, out = ssl.create_default_context(), ssl.MemoryBIO()
    context.set_alpn_protocols(["h2", "http/1.1"])
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="api.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()[5:]


def of_one_byte_each(message: bytes) -> bytes:
    return b"".join(b"\x16\x03\x01\x00\x01%c" % byte for byte in message)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 5000])
def test_a_hello_in_pieces(size: int) -> None:
    whole = of_one_byte_each(client_hello())
    reading = hello.Reading()
    said = [reading.feed(whole[at : at + size]) for at in range(0, len(whole), size)]
    assert said[:-1] == [None] * (len(said) - 1)
    assert said[-1] == hello.Hello("api.test", ("h2", "http/1.1"))


def test_a_hello_in_pieces_is_looked_at_once() -> None:
    """Counted in steps: twice as much of it is twice the work."""

    def steps(size: int) -> int:
        found = 0

        def step(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal found
            found += 1

        reading, pieces = hello.Reading(), of_one_byte_each(b"\1\0\x70\0" + bytes(size))
        sys.setprofile(step)
        try:
            for at in range(len(pieces)):
                reading.feed(pieces[at : at + 1])
        finally:
            sys.setprofile(None)
        return found

    assert steps(2000) < 3 * steps(1000)


async def test_one_box_leaves_room_for_others(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twenty places it takes four: a quarter of what is left then."""
    monkeypatch.setattr(guests, "MOST", 20)
    monkeypatch.setattr(guests, "LEAST_OF_A_BOX", 2)
    there.put(GETS)
    there.aim("plain")
    connections = [await there.connect() for _ in range(5)]
    try:
        assert await asyncio.wait_for(connections[4][0].read(), 20) == b""
    except ConnectionResetError:
        pass
    for reader, writer in connections[:4]:
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    for _, writer in connections:
        writer.transport.abort()
