"""Ports of VMs over HTTP: the server on a real socket, over an engine in memory; what listens is in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from boxwood.core.model import Caller
from boxwood.store import keys as key_rows
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
        whole = await guest.get("/", "POST", content=b"x" * 300_000)
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


# Who may come in


async def test_keys_come_in_headers_and_stay_outside(server, guest):
    async with listening(server, guest.vm):
        for header in ({"x-api-key": guest.key}, {"authorization": f"Bearer {guest.key}"}):
            answer = await guest.get(headers=header, key=False)
            assert answer.status_code == 200 and guest.key not in answer.text
        both = await guest.get(headers={"authorization": "Bearer of-the-guest", "x-api-key": "theirs"})
        assert "authorization: Bearer of-the-guest" in both.text and "x-api-key: theirs" in both.text
        assert guest.key not in both.text


async def test_without_a_key_nobody_learns_what_there_is(server, guest):
    there = await guest.get(key=False)
    guest.host = guest.host.replace(guest.vm.lower()[-4:], "zzzz")
    missing = await guest.get(key=False)
    assert there.status_code == missing.status_code == 401
    assert there.json()["error"]["message"] == missing.json()["error"]["message"]
    assert there.headers["x-boxwood-error"] == "unauthorized"
    assert (await guest.get()).status_code == 404


async def test_keys_of_others(server, guest):
    core = server.machine.core
    await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
    guest.key = made.key
    async with listening(server, guest.vm):
        assert (await guest.get()).status_code == 404
        opened(server, auth="open")
        answer = await guest.get()
        assert answer.status_code == 200 and made.key not in answer.text


async def test_an_open_port(server, guest):
    async with listening(server, guest.vm), listening(server, guest.vm, port=81):
        opened(server, auth="open")
        answer = await guest.get(key=False, headers={"cookie": "own=1; boxwood_port=x", "authorization": "Basic eA=="})
        assert answer.status_code == 200 and "cookie: own=1\r\n" in answer.text and "Basic eA==" in answer.text
        other = Guest(server, guest.vm, 81)
        assert (await other.get(key=False)).status_code == 403
        assert (await other.get()).status_code == 403


@together(
    ("rule", "status"),
    [
        ({"action": "deny"}, 403),
        ({"match": {"ports": [8080], "ips": ["192.0.2.0/24"]}}, 403),
        ({"match": {"ports": [8080], "ips": ["127.0.0.0/8"]}}, 200),
        ({"match": {"ports": [8080], "methods": ["POST"]}}, 403),
        ({"match": {"ports": [8080], "paths": ["/in"]}}, 200),
        ({"match": {"ports": [8080], "paths": ["/out"]}}, 403),
        ({"match": {"ports": [8080], "query_params": {"a": ["b"]}}}, 200),
        ({"match": {"ports": [8080], "vm_state": "running"}}, 409),
        ({"match": {"ports": [8080], "body_contains": "x"}}, 403),  # there is no body
        ({"match": {"ports": [8080], "headers": {"x-api-key": "$arker_api_key"}}}, 403),
    ],
)
async def test_rules(server, guest, rule, status):
    async with listening(server, guest.vm):
        opened(server, **rule)
        answer = await guest.get("/in?a=b")
        assert answer.status_code == status, answer.text


async def test_a_rule_that_asks_for_a_key_in_a_header(server, guest):
    async with listening(server, guest.vm):
        opened(server, auth="open", match={"ports": [8080], "headers": {"x-api-key": "$arker_api_key"}})
        answer = await guest.get(key=False, headers={"x-api-key": guest.key})
        assert answer.status_code == 200 and guest.key not in answer.text
        assert (await guest.get(key=False, headers={"x-api-key": "$arker_api_key"})).status_code == 403


# Browsers


async def ticket(server: Running, vm: str, port: int = 8080) -> httpx2.URL:
    answer = await server.http.post(f"/v1/vms/{vm}/ports/{port}/ticket", json={})
    assert answer.status_code == 200, answer.text
    return httpx2.URL(answer.json()["url"])


async def test_a_ticket_becomes_a_cookie(server, guest):
    url = await ticket(server, guest.vm)
    assert f"{url.host}:{url.port}" == guest.host.replace("-8080.", ".")
    shown = url.query.decode()
    async with listening(server, guest.vm):
        first = await guest.get(f"/page?x=1&{shown}&y=2", key=False)
        assert (first.status_code, first.headers["location"]) == (303, "/page?x=1&y=2")
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
        sent = {"cookie": f"theirs=1; {cookie.partition(';')[0]}"}
        page = await guest.get("/page", key=False, headers=sent)
        assert page.status_code == 200 and "cookie: theirs=1\r\n" in page.text and "boxwood_port" not in page.text
        outside = await guest.get(f"//evil.example/?{shown}", key=False)
        assert outside.headers["location"].startswith("/evil.example/")


async def test_the_contracts_key_in_a_query_becomes_a_cookie(server, guest):
    first = await guest.get(f"/?arker_api_key={guest.key}", key=False)
    assert first.status_code == 303 and guest.key not in str(first.headers)
    assert (await guest.get("/?arker_api_key=bxw_wrong", key=False)).status_code == 401


async def test_a_cookie_ends_with_its_key(server, guest):
    made = (await server.http.post("/v1/api-keys", json={"name": "x"})).json()
    first = await guest.get(f"/?arker_api_key={made['key']}", key=False)
    sent = {"cookie": first.headers["set-cookie"].partition(";")[0]}
    async with listening(server, guest.vm):
        assert (await guest.get(key=False, headers=sent)).status_code == 200
        assert (await server.http.delete(f"/v1/api-keys/{made['api_key_id']}")).status_code < 300
        assert (await guest.get(key=False, headers=sent)).status_code == 401


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


async def test_a_policy_opens_a_port_and_closes_it_again(server, guest):
    async with listening(server, guest.vm):
        assert (await guest.get(key=False)).status_code == 401
        rule = {"type": "inbound", "priority": 1, "action": "allow", "auth": "open", "match": {"ports": [8080]}}
        changed = await server.http.patch(f"/v1/vms/{guest.vm}", json={"policies": {"rules": {"door": rule}}})
        assert changed.status_code == 200, changed.text
        assert (await guest.get(key=False)).status_code == 200
        await server.http.patch(f"/v1/vms/{guest.vm}", json={"policies": {"rules": {"door": None}}})
        assert (await guest.get(key=False)).status_code == 401


async def test_rules_about_open_connections_end_those_at_once(server, guest):
    """A stream that goes on, a request that has no answer yet, and a WebSocket; other rules leave them."""
    asked = asyncio.Event()

    async def answer(reader, writer):
        head = await request_head(reader)
        if b"/ws" in head:
            writer.write(b"HTTP/1.1 101 Yes\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        elif b"/stream" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        asked.set()
        assert await reader.read() == b""

    async def ruled(**match):
        rule = {"type": "inbound", "priority": 1, "action": "deny", "match": match}
        changed = await server.http.patch(f"/v1/vms/{guest.vm}", json={"policies": {"rules": {"end": rule}}})
        assert changed.status_code == 200, changed.text

    async def connected(head: bytes):
        asked.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head)
        await asked.wait()
        return reader, writer

    upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: eA==")
    async with listening(server, guest.vm, answer):
        stream, waiting, socket = [
            await connected(guest.head(*lines, path=path))
            for path, *lines in (("/stream",), ("/later",), ("/ws", *upgrade))
        ]
        assert b" 101 " in await request_head(socket[0])
        await stream[0].readuntil(b"begun")
        await ruled(methods=["GET"])  # about new ones
        await ruled(ips=["192.0.2.1"], connection_state=["open"])  # about others
        assert not any(reader.at_eof() for reader, _ in (stream, waiting, socket))
        await ruled(paths=["/stream", "/later", "/ws"], connection_state=["open"])
        refused = await request_head(waiting[0])
        assert b" 403 " in refused and b"x-boxwood-error: forbidden" in refused.lower()
        assert b"0\r\n" not in await stream[0].read(), "half of an answer must not look like all of it"
        assert await socket[0].read() == b""
        for _, writer in (stream, waiting, socket):
            writer.close()


async def test_a_request_for_which_a_box_is_made_goes_by_the_rules_of_the_end(server, guest, monkeypatch):
    """It was let in, and waited for the box; meanwhile the policy has closed the port."""
    ports = server.machine.core.ports
    connect, arrived, go = ports.connect, asyncio.Event(), asyncio.Event()

    async def late(row, port):
        arrived.set()
        await go.wait()
        return await connect(row, port)

    monkeypatch.setattr(ports, "connect", late)
    seen = []

    async def answer(reader, writer):
        seen.append(await request_head(reader))

    async with listening(server, guest.vm, answer):
        asking = asyncio.create_task(guest.get())
        await arrived.wait()
        rule = {"type": "inbound", "priority": 1, "action": "deny"}
        await server.http.patch(f"/v1/vms/{guest.vm}", json={"policies": {"rules": {"shut": rule}}})
        go.set()
        assert (await asking).status_code == 403 and not seen
