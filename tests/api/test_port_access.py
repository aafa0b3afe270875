"""Who may come in to ports of VMs over HTTP: keys, rules, browsers with tickets and cookies; as in test_ports.py."""

from __future__ import annotations

import asyncio

import httpx2

from boxwood.core.model import Caller
from boxwood.store import keys as key_rows
from guestports import Guest, inbound, listening, opened, request_head
from serving import Running
from together import together

# Keys and rules


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


# Policies that change


async def test_a_policy_opens_a_port_and_closes_it_again(server, guest):
    async with listening(server, guest.vm):
        assert (await guest.get(key=False)).status_code == 401
        await guest.ruled(inbound(auth="open"))
        assert (await guest.get(key=False)).status_code == 200
        await guest.ruled(None)
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

    async def denied(**match):
        await guest.ruled(inbound(action="deny", match=match))

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
        await denied(methods=["GET"])  # about new ones
        await denied(ips=["192.0.2.1"], connection_state=["open"])  # about others
        assert not any(reader.at_eof() for reader, _ in (stream, waiting, socket))
        await denied(paths=["/stream", "/later", "/ws"], connection_state=["open"])
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
        await guest.ruled(inbound(action="deny"))
        go.set()
        assert (await asking).status_code == 403 and not seen
