"""Ports of VMs over HTTP: the server on a real socket, over an engine in memory; what listens is in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from guestports import Guest, listening, opened, request_head
from serving import Running
from together import together

# What is passed on


async def test_a_request_and_its_answer(server, guest):
    async with listening(server, guest.vm):
        answer = await guest.get("/a%20b//c?x=1&y=%00", headers={"x-own": "kept", "accept": "text/x"})
        lines = answer.text.split("\r\n")
        assert answer.status_code == 200
        assert lines[0] == "GET /a%20b//c?x=1&y=%00 HTTP/1.1"
        assert {f"host: {guest.host}", "x-own: kept", "accept: text/x", "x-forwarded-for: 127.0.0.1"} <= set(lines)
        assert {f"x-forwarded-host: {guest.host}", "x-forwarded-proto: http", "connection: close"} <= set(lines)
        assert "x-boxwood-error" not in answer.headers and "x-request-id" not in answer.headers


async def test_bodies_both_ways(server, guest):
    async def echo(reader, writer):
        head = await request_head(reader)
        body = await reader.readexactly(300_000) if b"content-length: 300000" in head else await chunks(reader)
        writer.write(b"HTTP/1.1 201 Made\r\ntransfer-encoding: chunked\r\nx-a: 1\r\nx-a: 2\r\n\r\n")
        for at in range(0, len(body), 70_000):
            piece = body[at : at + 70_000]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")

    async def chunks(reader):
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        return body

    async def pieces():
        for at in range(3):
            yield b"%d" % at * 100_000

    async with listening(server, guest.vm, echo):
        whole = await guest.post(b"x" * 300_000)
        assert (whole.status_code, whole.content) == (201, b"x" * 300_000)
        assert whole.headers.get_list("x-a") == ["1", "2"]
        parts = await guest.get("/", "PUT", content=pieces())
        assert parts.content == b"0" * 100_000 + b"1" * 100_000 + b"2" * 100_000


@together(
    ("method", "said", "expected"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", (200, b"")),
        ("GET", b"HTTP/1.1 204 No\r\n\r\n", (204, b"")),
        ("GET", b"HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", (304, b"")),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", (200, b"until the end")),
        ("GET", b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (200, b"ok")),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 500 more\r\n\r\n", (200, b"ok")),
    ],
)
async def test_answers_of_all_kinds(server, guest, method, said, expected):
    async def answer(reader, writer):
        await request_head(reader)
        writer.write(said)

    async with listening(server, guest.vm, answer):
        got = await guest.get("/", method)
        assert (got.status_code, got.content) == expected
        assert "link" not in got.headers


async def test_a_stream_comes_as_it_is_sent_and_ends_when_nobody_listens(server, guest):
    more, gone = asyncio.Event(), asyncio.Event()

    async def events(reader, writer):
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        writer.write(b"data: 2\n\n")
        await reader.read()
        gone.set()

    async with listening(server, guest.vm, events), httpx2.AsyncClient(timeout=20) as http:
        headers = {"host": guest.host, "x-boxwood-key": guest.key}
        async with http.stream("GET", server.said["url"], headers=headers) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"data: 1\n\n"
            more.set()
            assert await anext(pieces) == b"data: 2\n\n"
        await asyncio.wait_for(gone.wait(), 20)


async def test_a_guest_that_reads_slowly_holds_the_client_up(server, guest):
    """Neither the server nor the guest holds more than some buffers: what has not been read cannot be sent."""
    go_on = asyncio.Event()

    async def slow(reader, writer):
        await request_head(reader)
        await go_on.wait()
        left = 64 << 20
        while left:
            left -= len(await reader.read(left))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")

    async with listening(server, guest.vm, slow):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(guest.head(f"content-length: {64 << 20}", "connection: close", method="POST"))
        sent = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
                    sent += 65536
        assert sent < 32 << 20
        go_on.set()
        writer.write(b"x" * ((64 << 20) - sent - 65536))
        assert (await reader.read()).endswith(b"done")
        writer.close()


# WebSockets


async def websocket(guest: Guest, server: Running, *lines: str, key: bool = True) -> tuple[Any, Any, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    upgrade = ("connection: keep-alive, Upgrade", "upgrade: websocket", "sec-websocket-key: abc", *lines)
    writer.write(guest.head(*upgrade, path="/any/path?q", key=key))
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await request_head(reader)
    assert b"connection: Upgrade\r\nupgrade: websocket\r\n" in head and b"sec-websocket-key: abc" in head
    assert head.startswith(b"GET /any/path?q HTTP/1.1\r\n") and b"x-boxwood-key" not in head
    writer.write(
        b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: def\r\n\r\nhello"
    )
    while data := await reader.read(1000):
        writer.write(data[::-1])


async def test_a_websocket(server, guest):
    async with listening(server, guest.vm, switch):
        reader, writer, head = await websocket(guest, server)
        assert head.startswith(b"HTTP/1.1 101 ") and b"sec-websocket-accept: def\r\n" in head
        assert head.lower().count(b"upgrade: websocket") == 1
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"abc")
        assert await reader.readexactly(3) == b"cba"
        assert server.machine.core._boxes.running(guest.vm)
        writer.close()
        while server.machine.core._boxes.running(guest.vm):
            await asyncio.sleep(0.001)


async def test_a_websocket_ends_with_its_box(server, guest):
    async with listening(server, guest.vm, switch):
        reader, writer, _ = await websocket(guest, server)
        assert await reader.readexactly(5) == b"hello"
        server.machine.boxes[guest.vm].die("test")
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_goes_before_there_is_a_websocket(server, guest):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def never(reader, writer):
        await request_head(reader)
        asked.set()
        await reader.read()
        gone.set()

    async with listening(server, guest.vm, never):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(guest.head("connection: Upgrade", "upgrade: websocket"))
        await asked.wait()
        writer.close()
        await asyncio.wait_for(gone.wait(), 20)


async def test_no_websocket_after_all(server, guest):
    async with listening(server, guest.vm):
        reader, writer, head = await websocket(guest, server)
        assert head.startswith(b"HTTP/1.1 200 ") and b"connection: close" in head
        assert (await reader.read()).startswith(b"GET /any/path")
        writer.close()


async def test_a_websocket_without_a_key_or_a_port(server, guest):
    reader, writer, head = await websocket(guest, server, key=False)
    assert head.startswith(b"HTTP/1.1 401 ") and b"X-Boxwood-Key" in await reader.read()
    writer.close()
    reader, writer, head = await websocket(guest, server)
    assert head.startswith(b"HTTP/1.1 502 ") and b"nothing listens" in await reader.read()
    writer.close()


# What is missing


async def test_errors_say_what_is_missing(server, guest):
    port = await guest.get()
    assert (port.status_code, port.headers["x-boxwood-error"]) == (502, "unavailable")
    assert "nothing listens on port 8080" in port.json()["error"]["message"]
    label = guest.host.partition(".")[0]
    guest.host = guest.host.replace(label, "nobody-80")
    vm = await guest.get()
    assert vm.status_code == 404 and '"nobody"' in vm.json()["error"]["message"]
    guest.host = guest.host.replace("nobody-80", "a.b")
    assert (await guest.get()).status_code == 400


@together("said", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", b"HTTP/1.1 101 x\r\n\r\n"])
async def test_an_answer_that_makes_no_sense(server, guest, said):
    async def answer(reader, writer):
        await request_head(reader)
        writer.write(said)

    async with listening(server, guest.vm, answer):
        got = await guest.get()
        assert got.status_code == 502 and "gave no answer" in got.json()["error"]["message"]


async def test_half_an_answer_is_not_taken_for_all(server, guest):
    async def answer(reader, writer):
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf")

    async with listening(server, guest.vm, answer):
        with pytest.raises(httpx2.HTTPError):
            await guest.get()


async def test_a_box_that_goes_before_it_has_answered(server, guest):
    asked = asyncio.Event()

    async def never(reader, writer):
        await request_head(reader)
        asked.set()
        await reader.read()

    async with listening(server, guest.vm, never):
        waiting = asyncio.create_task(guest.get())
        await asked.wait()
        server.machine.boxes[guest.vm].die("test")
        got = await waiting
        assert got.status_code == 502 and "before it had answered" in got.json()["error"]["message"]


async def test_names_and_the_default_port(server, guest):
    await server.http.patch(f"/v1/vms/{guest.vm}", json={"name": "web-2"})
    async with listening(server, guest.vm), listening(server, guest.vm, port=80):
        for label in ("web-2-80", "WEB-2-80", guest.vm.lower(), f"{guest.vm}-80"):
            guest.host = f"{label}.localhost:{server.port}"
            assert (await guest.get()).status_code == 200, label
        guest.host = f"web-2-80.localhost:{server.port}"
        opened(server, auth="open", match={"ports": [80]})
        assert (await guest.get(key=False)).status_code == 401, "names are told apart by the key"


# Waking


async def test_many_requests_wake_a_parked_vm_once(server, guest):
    core = server.machine.core
    await core._boxes.park(guest.vm)
    assert not core._boxes.live(guest.vm)
    boots = len(server.machine.called("boot"))
    async with listening(server, guest.vm):
        answers = await asyncio.gather(*(guest.get() for _ in range(100)))
    assert [answer.status_code for answer in answers] == [200] * 100
    assert len(server.machine.called("boot")) == boots + 1


async def test_no_connection_is_left(server, guest):
    async with listening(server, guest.vm):
        await asyncio.gather(*(guest.get() for _ in range(20)))
    core = server.machine.core
    while core.ports._open or core._boxes.running(guest.vm):
        await asyncio.sleep(0.001)


async def test_the_hostname_of_a_vm(server, guest):
    shown = (await server.http.get(f"/v1/vms/{guest.vm}")).json()
    assert shown["hostname"] == f"{guest.vm.lower()}.localhost"
