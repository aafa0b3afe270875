"""Inbound rules that change requests and ask gates, as strangers would use them: other headers, other requests, other
hosts than their author meant, and the server's memory."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from boxwood.core import gates as core_gates
from boxwood.engine.policies import Sought
from boxwood.engine.proxy import gates
from boxwood.engine.proxy.authority import make
from boxwood.engine.proxy.upstream import Trust
from boxwood.server.inbound.body import Held
from guestports import Seen, SlowGate, inbound, listening, opened, status
from proxyworld import Table

GATE = {"host": "https://gate.test", "allow_on_status": [200]}
TOKENS = {"headers": {"x-made": "${header:x-evil}", "x-path": "$path", "x-body": "$body", "x-all": "${header:cookie}"}}


async def test_no_token_makes_another_header(server, guest):
    seen = Seen()
    opened(server, auth="open", action={"rewrite": TOKENS})
    async with listening(server, guest.vm, seen):
        for line, body in (
            ("x: 1", b"a\r\nx-injected: 1"), ("x: 1", b"a\nx-injected: 1"), ("x: 1", b"\0"), ("x-evil: a\x01b", b""),
            ("x-evil: a\rx-injected: 1", b""),
        ):  # fmt: skip
            head = guest.head(f"content-length: {len(body)}", line, "connection: close", method="POST", key=False)
            assert status(await server.raw(head + body)) == 400, (line, body)
        assert not seen.connections
        assert (await guest.post(b"b", headers={"x-evil": "e"}, key=False)).status_code == 200
    assert b"x-made: e\r\n" in seen.connections[0] and b"x-body: b\r\n" in seen.connections[0]


async def test_no_token_makes_another_request_line(server, guest):
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for rewrite in ("/app/$body", "/app$path", "/app/${header:x-evil}"):
            opened(server, auth="open", action={"rewrite": {"path": rewrite}})
            for evil in ("a HTTP/1.1", "x#y", "a\tb", "plain"):
                path = f"/{evil}" if not set(evil) & set(" \t") else "/"
                lines = (f"content-length: {len(evil)}", f"x-evil: {evil}", "connection: close")
                answer = await server.raw(guest.head(*lines, method="POST", path=path, key=False) + evil.encode())
                assert status(answer) in ((200,) if evil == "plain" or "header" in rewrite else (200, 400)), answer
    assert 6 <= len(seen.connections) <= 9
    for said in seen.connections:
        line = said.partition(b"\r\n")[0]
        assert line.startswith(b"POST /app") and line.endswith(b" HTTP/1.1") and line.count(b" ") == 2
        assert b"#" not in line and b"\t" not in line


async def test_what_is_ours_stays_outside_whatever_a_rule_names(server, guest):
    """The key in each header it comes in, the cookie; a gate is told no more than the guest."""
    names = ("x-boxwood-key", "x-api-key", "authorization", "cookie", "connection")
    tokens = {f"x-{place}": f"<${{header:{name}}}>" for place, name in enumerate(names)}
    opened(
        server, action={"rewrite": {"headers": tokens}, "gate": {**GATE, "headers": tokens, "body": [*tokens.values()]}}
    )
    said = (await server.http.post(f"/v1/vms/{guest.vm}/ports/8080/ticket", json={})).json()["url"]
    first = await guest.get(f"/?{said.partition('?')[2]}", key=False)
    cookie = first.headers["set-cookie"].partition(";")[0]
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for headers in (
            {"x-boxwood-key": guest.key}, {"x-api-key": guest.key}, {"authorization": f"Bearer {guest.key}"},
            {"cookie": f"own=1; {cookie}"}, {"x-api-key": guest.key, "cookie": f"{cookie}; own=1"},
        ):  # fmt: skip
            assert (await guest.get(headers=headers, key=False)).status_code == 200
    asked = server.machine.called("ask_gate")
    shown = [*seen.connections, *(repr(one.to_json()).encode() + one.body for one in asked)]
    assert len(shown) == 10
    for text in shown:
        assert guest.key.encode() not in text and b"boxwood_port" not in text and cookie.encode() not in text
    assert b"x-3: <own=1>" in seen.connections[3]


SMUGGLED = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


FRAMINGS = (
    (400, ["content-length: 40", "transfer-encoding: chunked"]),
    (400, ["content-length: 40", "content-length: 5"]),
    (400, ["content-length: +40"]),
    (400, ["transfer-encoding: xchunked"]),
    (200, ["connection: content-length, transfer-encoding", "content-length: 40"]),
    (200, ["transfer-encoding: chunked"]),
    (200, ["content-length: 40"]),
    (200, ["expect: 100-continue", "content-length: 40"]),
)


async def test_a_body_that_was_read_ahead_is_framed_in_one_way(server, guest):
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for action in ({"rewrite": {"body": "$body"}}, {"rewrite": {"body": "x"}}, {"gate": {**GATE, "body": "$body"}}):
            opened(server, action=action)
            for code, lines in FRAMINGS:
                answer = await server.raw(guest.head(*lines, "connection: close", method="POST") + SMUGGLED)
                assert status(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")) == code, (lines, answer)
    assert (
        len(seen.connections) >= 12
    )  # where no rule needs the body, a request goes in before its length is known to be wrong
    for said in seen.connections:
        head, _, body = said.partition(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith((b"content-length:", b"transfer-encoding:"))]
        assert lengths == [b"content-length: %d" % len(body)]
        assert b"/smuggled" not in said or body == SMUGGLED


PRIVATE = (
    "127.0.0.1", "0.0.0.0", "10.0.0.1", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "168.63.129.16",
    "198.18.0.5", "198.19.255.2", "224.0.0.1", "255.255.255.255",
)  # fmt: skip


async def test_no_gate_leads_to_what_is_not_of_the_internet(server, guest, monkeypatch):
    """Judged behind the name, and connected to what was judged: nothing is looked up twice."""
    table, tried, looked = Table(), [], []

    async def reach(place: Any, port: int) -> Any:
        tried.append(place)
        raise OSError

    async def resolve(name: str) -> list[IPv4Address]:
        looked.append(name)
        return table.hosts[name] if len(looked) == 1 else [IPv4Address("127.0.0.1")]

    monkeypatch.setattr("boxwood.engine.proxy.upstream.reach", reach)
    monkeypatch.setattr(table, "resolve", resolve)
    server.machine.ask_gate = partial(gates.passes, origins=table, trust=Trust(make()[0].decode()))
    opened(server, auth="open", action={"gate": {**GATE, "host": "http://gate.test:8080", "deny_on_timeout": False}})
    for address in PRIVATE:
        table.hosts["gate.test"] = [IPv4Address(address)]
        answer = await guest.get(key=False)
        assert answer.status_code == 403 and "no address on the internet" in answer.text and not tried, address
        looked.clear()
    table.hosts["gate.test"] = [IPv4Address("10.0.0.1"), IPv4Address("93.184.215.14")]
    assert (await guest.get(key=False)).status_code == 502  # it is not there, and nothing listens in the VM
    assert tried == [IPv4Address("93.184.215.14")] and looked == ["gate.test"]


async def test_a_gate_is_called_by_a_name(server, guest):
    """Addresses in any spelling, credentials and paths are refused where they are written."""
    for host in (
        "http://127.0.0.1", "http://[::1]", "http://[::ffff:169.254.169.254]", "http://2130706433", "http://0x7f.1",
        "http://localhost", "http://a.localhost", "http://u@gate.test", "http://gate.test:0", "ftp://gate.test",
        "http://gate.test/x", "http://gate.test?x", "http://$domain",
    ):  # fmt: skip
        answer = await guest.write(inbound(action={"gate": {**GATE, "host": host}}))
        assert answer.status_code == 400 and "gate.host" in answer.text, host


async def test_what_a_stranger_sends_does_not_open_a_gate_that_fails_open(server, guest):
    """`deny_on_timeout: false` is for a gate that is not there: not for a question that cannot be asked, nor for a gate
    that a request has made break off."""
    opened(server, auth="open", action={"gate": {**GATE, "path": "/may$path", "deny_on_timeout": False}})
    raw = guest.head("connection: close", path="/\xe9", key=False)
    assert status(await server.raw(raw)) == 400
    opened(
        server,
        auth="open",
        action={"gate": {**GATE, "headers": {"x": "${header:x-long}" * 2}, "deny_on_timeout": False}},
    )
    assert (await guest.get(key=False, headers={"x-long": "x" * 40_000})).status_code == 400
    assert not server.machine.called("ask_gate")


async def test_a_rule_that_names_the_body_often_takes_no_more_memory(server, guest):
    """A body of a mebibyte, thirteen thousand times."""
    for action in ({"rewrite": {"body": "$body" * 13_000}}, {"gate": {**GATE, "body": ["$body" * 800] * 16}}):
        opened(server, action=action)
        seen = Seen()
        async with listening(server, guest.vm, seen):
            answer = await guest.post(b"x" * (1 << 20))
        assert answer.status_code == 400 and "too long" in answer.text and not seen.connections


async def test_a_vm_has_so_many_questions_open(server, guest):
    """Also when those who asked have gone: until its gate has answered."""
    gate = SlowGate(server)
    opened(server, auth="open", action={"gate": GATE})
    shares = server.machine.core.gates._shares
    assert shares.take(guest.vm, 127)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(guest.head(*("connection: Upgrade", "upgrade: websocket"), key=False))
    await gate.asked.acquire()
    writer.close()
    assert (await guest.get(key=False)).status_code == 503
    gate.go.set()
    while shares._taken[guest.vm] > 127:
        await asyncio.sleep(0.001)
    assert (await guest.get(key=False)).status_code == 502


async def test_a_secret_in_the_path_of_a_gate_is_one_like_others(server, guest):
    """Told by TLS alone; and known to be one."""
    server.machine.sees_requests = server.machine.engine.sees_requests = True
    gate = {**GATE, "path": "/may?key=${secret:KEY}"}
    plain = inbound(action={"gate": {**gate, "host": "http://gate.test"}})
    refused = await guest.write(plain, KEY="a/secret")
    assert refused.status_code == 400 and "must be asked by https" in refused.text
    await guest.ruled(inbound(action={"gate": gate}), KEY="a/secret")
    async with listening(server, guest.vm, Seen()):
        assert (await guest.get()).status_code == 200
    (asked,) = server.machine.called("ask_gate")
    assert asked.path == "/may?key=a%2Fsecret"
    opened(server, action=plain["action"])  # kept from earlier days
    assert (await guest.get()).status_code == 400 and len(server.machine.called("ask_gate")) == 1


async def test_no_gate_is_told_a_body_that_the_guest_reads_in_another_way(server, guest):
    opened(server, auth="open", action={"gate": {**GATE, "body": "$body"}})
    coded = await guest.post(b"x", headers={"content-encoding": "gzip"}, key=False)
    assert coded.status_code == 415 and not server.machine.called("ask_gate")


async def test_what_the_server_and_its_rules_say_is_said_by_nobody_else(server, guest):
    """Nor in the spelling that many programs take for the same."""
    opened(server, action={"rewrite": {"headers": {"x-user": "known"}, "remove_headers": ["x-admin"]}})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        lines = (
            "X_User: a",
            "X_Admin: a",
            "X_Forwarded_For: 8.8.8.8",
            "Content_Length: 7",
            "Mine_Own: b",
            "connection: close",
        )
        assert status(await server.raw(guest.head(*lines))) == 200
    head = seen.connections[0].lower()
    assert b"mine_own: b" in head and b"x-user: known" in head
    for line in (b"x_user", b"x_admin", b"x_forwarded_for", b"content_length"):
        assert line not in head


async def test_work_that_rules_make_of_each_request_is_bounded(server, guest):
    """Where they are written: one request could keep everybody waiting for seconds."""
    texts = [f"text {place}" for place in range(65)]
    refused = await guest.write(inbound(match={"ports": [8080], "body_contains": texts}))
    assert refused.status_code == 400 and "look for 65 texts" in refused.text
    await guest.ruled(inbound(match={"ports": [8080], "body_contains": texts[:64]}))
    for action in ({"rewrite": {"body": "$path" * 513}}, {"gate": {**GATE, "body": ["$path" * 257] * 2}}):
        refused = await guest.write(inbound(action=action))
        assert refused.status_code == 400 and "tokens" in refused.text


async def test_long_bodies_are_looked_through_beside_the_event_loop(server, guest, monkeypatch):
    threads = []
    look_for = Sought.look_for

    def noted(self: Sought, texts: Any) -> None:
        threads.append(threading.current_thread())
        look_for(self, texts)
        walked = self.__dict__["_found"]
        assert walked == {b"x": True, b"y": False}

    monkeypatch.setattr(Sought, "look_for", noted)
    opened(server, match={"ports": [8080], "body_contains": ["x", "y"]})
    async with listening(server, guest.vm, Seen()):
        assert (await guest.post(b"x" * 1000)).status_code == 200
        assert not threads
        assert (await guest.post(b"x" * (1 << 20))).status_code == 200
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


async def test_questions_take_so_much_memory(server, guest, monkeypatch):
    """However few they are: a gate that never answers keeps them here, and in the proxy of everybody."""
    gate = SlowGate(server)
    monkeypatch.setattr(server.machine.core.gates, "_bytes", core_gates.Shares(of_vm=3 << 20, least=1, of_all=1 << 30))
    opened(server, action={"gate": {**GATE, "body": ["${header:x}" * 40]}})
    long = {"headers": {"x": "x" * 50_000}}
    async with listening(server, guest.vm, Seen()):
        first = asyncio.create_task(guest.get(**long))
        await gate.asked.acquire()
        assert (await guest.get(**long)).status_code == 503
        gate.go.set()
        assert (await first).status_code == 200
        assert (await guest.get(**long)).status_code == 200
    assert server.machine.core.gates._bytes._taken == {} == server.machine.core.gates._shares._taken


async def test_a_websocket_takes_nothing_of_what_bodies_may(server, guest, monkeypatch):
    """As long as it is open, and its rule makes a body for each that is not one."""
    opened(server, action={"rewrite": {"body": "x" * 60_000, "headers": {"x-was": "$path"}}})
    taken: list[int] = []
    monkeypatch.setattr(Held, "take", lambda self, size: taken.append(size))

    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
        await reader.read()

    async with listening(server, guest.vm, switch):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(guest.head("connection: Upgrade", "upgrade: websocket", "sec-websocket-key: abc"))
        await reader.readuntil(b"hello")
        assert not taken
        writer.close()
