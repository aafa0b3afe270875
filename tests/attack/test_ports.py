"""Ports of VMs that the world may see (attacks.md, item 28): confusion of hosts, WebSockets of other sites, ways to other
VMs and to the server itself, cookies of other VMs, and requests that are read in two ways."""

from __future__ import annotations

import asyncio

import pytest

from guestports import Guest, Seen, listening, opened, request_head, status
from serving import Running
from together import together

# Confusion of hosts


@together("path", ["/v1/whoami", "/v1/vms", "/boxwood/down", "/k8s/api", "/arl/v1/sessions", "/health"])
async def test_a_guests_host_never_reaches_the_api(server, guest, path):
    """Not even with the key that the API asks for; what a guest says there is not the API's word."""
    answer = await guest.get(path, headers=server.headers)
    assert answer.status_code == 502 and "x-request-id" not in answer.headers
    async with listening(server, guest.vm, Seen()):
        assert (await guest.get(path, headers=server.headers)).text == "guest"
    assert (await server.http.get("/v1/health")).status_code == 200


@together(
    "hosts",
    [
        ["{guest}", "127.0.0.1"],
        ["127.0.0.1", "{guest}"],
        ["{guest}", "{guest}"],
        ["{guest}@127.0.0.1"],
        ["127.0.0.1, {guest}"],
        ["{guest}/"],
        ["x.{guest}"],
        [".localhost"],
        ["-80.localhost"],
        [],
    ],
)
async def test_two_hosts_or_one_that_is_none(server, guest, hosts):
    seen = Seen()
    lines = [f"host: {host.format(guest=guest.host)}" for host in hosts]
    request = "\r\n".join(("GET /v1/whoami HTTP/1.1", *lines, f"x-boxwood-key: {guest.key}", "connection: close"))
    async with listening(server, guest.vm, seen):
        answer = await server.raw(f"{request}\r\nauthorization: Bearer {guest.key}\r\n\r\n".encode())
    assert status(answer) in (400, 403) and b"org" not in answer, answer
    assert not seen.connections


@pytest.mark.parametrize("spelling", ["{label}.localhost.", "{upper}.LOCALHOST", "{label}.localhost.:{port}"])
async def test_other_spellings_of_a_guests_host_are_the_guests(server, guest, spelling):
    label = guest.host.partition(".")[0]
    guest.host = spelling.format(label=label, upper=label.upper(), port=server.port)
    async with listening(server, guest.vm, Seen()):
        assert (await guest.get("/v1/whoami", headers=server.headers)).text == "guest"


async def test_a_target_with_another_host_is_refused(server, guest):
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for target, host in (
            (f"http://127.0.0.1:{server.port}/v1/whoami", guest.host),
            (f"http://{guest.host}/", f"127.0.0.1:{server.port}"),
            ("http://evil.example/", guest.host),
        ):
            request = f"GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {guest.key}\r\n\r\n"
            assert status(await server.raw(request.encode())) == 400
        assert not seen.connections
        request = f"GET http://{guest.host}/a HTTP/1.1\r\nhost: {guest.host}\r\nx-boxwood-key: {guest.key}\r\n"
        assert (await server.raw(f"{request}connection: close\r\n\r\n".encode())).endswith(b"guest")
    assert seen.connections[0].startswith(b"GET /a HTTP/1.1\r\n")


async def test_what_a_client_says_of_its_way_is_not_believed(server, guest):
    seen = Seen()
    lies = {"x-forwarded-for": "8.8.8.8", "forwarded": "for=8.8.8.8", "x-real-ip": "8.8.8.8", "x-forwarded-host": "x"}
    async with listening(server, guest.vm, seen):
        opened(server, match={"ports": [8080], "ips": ["8.8.8.8"]})
        assert (await guest.get(headers=lies)).status_code == 403
        opened(server)
        assert (await guest.get(headers=lies)).status_code == 200
    assert b"8.8.8.8" not in seen.connections[0] and b"x-forwarded-for: 127.0.0.1\r\n" in seen.connections[0]


# WebSockets of other sites


async def cookie(guest: Guest, server: Running) -> str:
    said = (await server.http.post(f"/v1/vms/{guest.vm}/ports/8080/ticket", json={})).json()["url"]
    first = await guest.get(f"/?{said.partition('?')[2]}", key=False)
    assert first.status_code == 303
    return f"cookie: {first.headers['set-cookie'].partition(';')[0]}"


UPGRADE = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-key: x")
OTHERS = ("https://evil.example", "http://localhost:18888", "null", "http://{guest}.evil.example", "https://{guest}")


async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert b"origin:" in await request_head(reader)
    writer.write(b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")


async def test_a_websocket_that_another_sites_page_opens(server, guest):
    """The browser sends the cookie along, whoever's page it is."""
    sent = await cookie(guest, server)
    async with listening(server, guest.vm, switch):
        for origin in OTHERS:
            said = f"origin: {origin.format(guest=guest.host)}"
            assert status(await server.raw(guest.head(*UPGRADE, sent, said, key=False))) == 403, origin
        own = f"origin: http://{guest.host}"
        assert status(await server.raw(guest.head(*UPGRADE, sent, own, key=False))) == 101


async def test_requests_that_another_sites_page_sends(server, guest):
    sent = await cookie(guest, server)
    header = dict([tuple(sent.split(": "))])
    async with listening(server, guest.vm, Seen()):
        for origin in OTHERS:
            more = {"origin": origin.format(guest=guest.host), **header}
            assert (await guest.get("/", "POST", key=False, headers=more)).status_code == 403
        for site in ("cross-site", "same-site"):
            more = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", **header}
            assert (await guest.get("/", key=False, headers=more)).status_code == 403
            more |= {"sec-fetch-mode": "navigate"}
            assert (await guest.get("/", key=False, headers=more)).status_code == 200  # a link that somebody follows


# Ways to elsewhere


async def test_no_name_leads_anywhere_but_into_a_vm_of_ones_own(server, guest):
    for label in (
        "localhost",
        "127.0.0.1",
        "127-0-0-1-80",
        "metadata-80",
        "0-80",
        "ubuntu-80",
        "..",
        "[--1]",
        "a_b-80",
    ):
        guest.host = f"{label}.localhost"
        answer = await guest.get()
        assert answer.status_code in (400, 403, 404), (label, answer.text)


async def test_a_box_that_shows_the_servers_own_port_shows_its_own(boxwood_server):
    """In a real box: the server's port of that number is not there, and neither is another VM's."""
    with boxwood_server.client() as client, client.fork("ubuntu") as vm:
        for port in (boxwood_server.port, 22, 80):
            label = f"{vm.id.lower()}-{port}.localhost"
            code, body = boxwood_server.request("GET", "/v1/health", host=label)
            assert code == 502, body
            assert f"nothing listens on port {port} in the VM" in body["error"]["message"]


# Cookies of other VMs


async def test_a_cookie_is_good_for_one_port_of_one_vm(server, guest):
    sent = dict([tuple((await cookie(guest, server)).split(": "))])
    other = Guest(server, await server.fork())
    for elsewhere in (other, Guest(server, guest.vm, 81)):
        async with listening(server, elsewhere.vm, Seen(), int(elsewhere.host.split(".")[0].split("-")[1])):
            assert (await elsewhere.get(key=False, headers=sent)).status_code == 401
    async with listening(server, guest.vm, Seen()):
        tossed = {"cookie": f"boxwood_port=1.x.{'a' * 43}; {sent['cookie']}"}
        assert (await guest.get(key=False, headers=tossed)).status_code == 200, (
            "another's beside ours takes ours not away"
        )
        changed = {"cookie": sent["cookie"][:-2] + "xx"}
        assert (await guest.get(key=False, headers=changed)).status_code == 401


async def test_a_ticket_is_no_cookie_and_a_cookie_no_ticket(server, guest):
    said = (await server.http.post(f"/v1/vms/{guest.vm}/ports/8080/ticket", json={})).json()["url"]
    ticket = said.rpartition("=")[2]
    assert (await guest.get(key=False, headers={"cookie": f"boxwood_port={ticket}"})).status_code == 401
    value = (await cookie(guest, server)).rpartition("=")[2]
    assert (await guest.get(f"/?boxwood_ticket={value}", key=False)).status_code == 401


async def test_a_guest_sets_no_cookie_for_others_and_none_of_ours(server, guest):
    async def answer(reader, writer):
        await request_head(reader)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n"
            b"set-cookie: a=1; Domain=localhost; Path=/\r\nSet-Cookie: b=2; dOmAiN = .ports.example ;Secure\r\n"
            b"set-cookie: boxwood_port=evil; Path=/\r\nset-cookie:  __Host-boxwood_port = evil\r\n\r\n"
        )

    async with listening(server, guest.vm, answer):
        got = await guest.get()
        assert got.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2;Secure"]


async def test_an_answer_of_a_guests_is_not_the_servers(server, guest):
    """Whoever reads X-Boxwood-Error knows that it is ours."""

    async def answer(reader, writer):
        await request_head(reader)
        writer.write(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\nX-Boxwood-Error: unauthorized\r\nx-own: 1\r\n\r\n")

    async with listening(server, guest.vm, answer):
        got = await guest.get()
        assert got.status_code == 401 and got.headers["x-own"] == "1" and "x-boxwood-error" not in got.headers


# Requests that are read in two ways


SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


@together(
    "lines",
    [
        ["content-length: 40", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 40"],
        ["content-length: 40", "content-length: 5"],
        ["content-length: 40, 40"],
        ["content-length: +40"],
        ["content-length: 0x28"],
        ["transfer-encoding: xchunked"],
        ["transfer-encoding: chunked, identity"],
        ["transfer-encoding : chunked"],
        ["transfer-encoding:\x0bchunked"],
        ["transfer-encoding: identity", "transfer-encoding: chunked"],
        [" transfer-encoding: chunked"],
        ["x: y\n transfer-encoding: chunked"],
        ["x: y\rtransfer-encoding: chunked"],
        ["x\0: y", "content-length: 40"],
        ["connection: content-length", "content-length: 40"],
        ["connection: host, x-forwarded-for, content-length, transfer-encoding", "content-length: 40"],
    ],
)
async def test_a_request_is_one_request(server, guest, lines):
    """Whatever its lines say: either it is refused, or the guest reads one request, framed in one way."""
    seen = Seen()
    async with listening(server, guest.vm, seen):
        answer = await server.raw(guest.head(*lines, "connection: close", method="POST") + SMUGGLED)
    assert len(seen.connections) <= 1, answer
    for said in seen.connections:
        head, _, body = said.partition(b"\r\n\r\n")
        names = [line.partition(b":")[0] for line in head.split(b"\r\n")]
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert names.count(b"host") == 1 and not any(name != name.strip() for name in names[1:])
        if b"/smuggled" in said:
            assert b"content-length: 40" in head and body == SMUGGLED, "it is a body of the length that was said"


async def test_an_answer_does_not_get_into_another(server, guest):
    """What a guest sends behind its answer is nobody's."""

    async def two(reader, writer):
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nownHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with listening(server, guest.vm, two):
        first, second = guest.head(), guest.head("connection: close", path="/v1/vms")
        answer = await server.raw(first + second)
        assert answer.count(b"own") == 2 and b"evil" not in answer


@together(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y: a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_is_read_in_two_ways(server, guest, said):
    async def answer(reader, writer):
        await request_head(reader)
        writer.write(said)

    async with listening(server, guest.vm, answer):
        assert (await guest.get()).status_code == 502


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_methods_that_are_for_the_next_hop(server, guest, method):
    seen = Seen()
    async with listening(server, guest.vm, seen):
        assert status(await server.raw(guest.head("connection: close", method=method))) == 400
    assert not seen.connections
