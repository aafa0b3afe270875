"""Rules about what comes in that need more than the head of a request: its body, another form of it, a gate's word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from boxwood.core.shares import Shares
from boxwood.engine.api import EngineError
from boxwood.engine.proxy.questions import Question
from boxwood.server.inbound import body
from guestports import Guest, SlowGate, inbound, listening, opened, request_head, ruled

GATE = {"host": "https://gate.test", "allow_on_status": [200]}
UPGRADE = ("connection: Upgrade", "upgrade: websocket", "sec-websocket-key: abc")


class Seen:
    """What listens in the VM: all requests that it has read, each a head and a body."""

    def __init__(self) -> None:
        self.requests: list[tuple[list[str], bytes]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await request_head(reader)).decode("latin-1").split("\r\n")
        length = next((int(line.split()[1]) for line in head if line.startswith("content-length:")), 0)
        self.requests.append((head, await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    @property
    def last(self) -> tuple[list[str], bytes]:
        return self.requests[-1]


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


# body_contains


async def test_what_is_in_a_body_decides(server, guest):
    ruled(
        server,
        evil={"action": "deny", "match": {"body_contains": ["evil"]}},
        good={"action": "allow", "match": {"ports": [8080], "body_contains": ["good", "fine"]}},
        bare={"action": "allow", "match": {"ports": [8080], "methods": ["GET"]}},
    )
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for sent, status in ((b"so good", 200), (b"good and evil", 403), (b"neither", 403), (b"", 403)):
            answer = await guest.post(sent)
            assert answer.status_code == status, (sent, answer.text)
            assert ("the rule evil" in answer.text) == (b"evil" in sent)
        assert (await guest.get()).status_code == 200  # without a body it contains nothing
        assert (await guest.post(chunks(b"fi", b"ne"))).status_code == 200
    (_, first), _, (head, body) = seen.requests
    assert (first, body) == (b"so good", b"fine")
    assert "content-length: 4" in head and not any(line.startswith("transfer-encoding") for line in head)


async def test_bodies_that_are_read_whole_are_bounded(server, guest):
    opened(server, match={"ports": [8080], "body_contains": ["x"]})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        most = b"x" * body.MOST
        assert (await guest.post(most)).status_code == 200
        assert seen.last[1] == most
        assert (await guest.post(most + b"x")).status_code == 413
        assert (await guest.post(chunks(most, b"x"))).status_code == 413
        coded = await guest.post(b"x", headers={"content-encoding": "gzip"})
        assert coded.status_code == 415 and "without a coding" in coded.text
        plain = await guest.post(b"x", headers={"content-encoding": "identity"})
        assert plain.status_code == 200
    assert len(seen.requests) == 2


async def test_a_body_that_does_not_come_is_not_waited_for(server, guest, monkeypatch):
    """And it holds what it has sent no longer."""
    monkeypatch.setattr(body, "SECONDS", 0.05)
    opened(server, auth="open", match={"ports": [8080], "body_contains": ["x"]})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        answer = await server.raw(guest.head("content-length: 10", method="POST", key=False) + b"xxx")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer and not seen.requests


async def test_vms_share_what_bodies_may_take(server, guest, monkeypatch):
    """One that has much of it is told to wait; another is served; and what was taken comes back."""
    opened(server, match={"ports": [8080], "body_contains": ["x"]})
    held: list[Any] = []
    take = body.Held.take

    def noted(self: body.Held, size: int) -> None:
        held.append(self)
        take(self, size)

    monkeypatch.setattr(body.Held, "take", noted)
    async with listening(server, guest.vm, Seen()):
        assert (await guest.post(b"x")).status_code == 200
        shares = held[0]._shares
        while shares._total:
            await asyncio.sleep(0.001)
        assert shares._taken == {} and shares.take(guest.vm, body.OF_VM)
        full = await guest.post(b"x")
        assert full.status_code == 503 and "too many are on their way" in full.text
        other = Guest(server, await server.fork())
        async with listening(server, other.vm, Seen()):
            assert (await other.post(b"x")).status_code == 200
        shares.give(guest.vm, body.OF_VM)
        assert (await guest.post(b"x")).status_code == 200


async def test_a_body_is_kept_until_the_guest_has_it(server, guest, monkeypatch):
    """And not as long as its answer takes: a few that never end would keep all others out."""
    opened(server, match={"ports": [8080], "body_contains": ["x"]})
    given: asyncio.Queue[int] = asyncio.Queue()
    give = Shares.give

    def noted(self: Shares, vm_id: str, amount: int) -> None:
        give(self, vm_id, amount)
        given.put_nowait(amount)

    monkeypatch.setattr(Shares, "give", noted)

    async def streams(reader, writer):
        await request_head(reader)
        await reader.readexactly(body.MOST)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await reader.read()

    async with listening(server, guest.vm, streams):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(guest.head(f"content-length: {body.MOST}", method="POST") + b"x" * body.MOST)
        await reader.readuntil(b"begun")
        async with asyncio.timeout(10):
            assert await given.get() == body.MOST
        writer.close()


async def test_no_body_is_read_of_whom_no_rule_would_let_in(server, guest, monkeypatch):
    """Keys come first, unless a rule that could apply asks for none."""

    async def never(*_: Any, **__: Any) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(body.Body, "whole", never)
    match = {"ports": [8080], "body_contains": ["x"]}
    ruled(server, keyed={"action": "allow", "match": match}, open={"action": "deny", "match": {}})
    assert (await guest.post(b"x", key=False)).status_code == 401
    ruled(
        server,
        closed={"action": "deny", "match": match},
        keyed={"action": "allow"},
        later={"action": "allow", "auth": "open"},
    )
    assert (await guest.post(b"x", key=False)).status_code == 401
    monkeypatch.undo()
    ruled(server, keyed={"action": "allow", "match": match}, later={"action": "allow", "auth": "open"})
    async with listening(server, guest.vm, Seen()):
        assert (await guest.post(b"x", key=False)).status_code == 401
        assert (await guest.post(b"y", key=False)).status_code == 200


async def test_requests_behind_one_whose_body_was_read(server, guest):
    """On one connection, sent at once: judged, refused early, and passed on, each answered in its turn."""
    ruled(
        server,
        evil={"action": "deny", "match": {"body_contains": ["evil"]}},
        rest={"action": {"rewrite": {"body": "another", "headers": {"x-was": "$path"}}}},
    )
    seen = Seen()
    sent = [
        guest.head("content-length: 4", method="POST", path="/1") + b"good",
        guest.head("content-length: 4", method="POST", path="/2") + b"evil",
        guest.head("transfer-encoding: chunked", method="POST", path="/3") + b"2\r\ngo\r\n2\r\nod\r\n0\r\n\r\n",
        guest.head(f"content-length: {2 << 20}", method="POST", path="/4") + b"x" * (2 << 20),
        guest.head("connection: close", path="/5"),
    ]
    async with listening(server, guest.vm, seen):
        answer = await server.raw(b"".join(sent))
    codes = [part.split(b" ", 1)[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [b"200", b"403", b"200", b"413", b"200"]
    assert [head[0].split()[1] for head, _ in seen.requests] == ["/1", "/3", "/5"]
    assert all(body == b"another" for _, body in seen.requests)


async def test_what_is_open_is_judged_by_bodies_that_nobody_keeps(server, guest):
    """What had none contains nothing; what had one may have had anything in it."""

    async def begun(reader, writer):
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await reader.read()
        await reader.read()

    async with listening(server, guest.vm, begun):
        streams = []
        for head in (guest.head(), guest.head("content-length: 4", method="POST") + b"good"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head)
            await reader.readuntil(b"begun")
            streams.append((reader, writer))
        match = {"connection_state": ["open"], "body_contains": ["evil"]}
        await guest.ruled(inbound(action="deny", match=match))
        await streams[1][0].read()
        running = server.machine.core._boxes.slot(guest.vm).runs.values()
        assert [one.request.method for one in running if not one.refused] == ["GET"]
        for _, writer in streams:
            writer.close()


# rewrite


REWRITES: list[tuple[Any, ...]] = [
    ({"path": "/v2$path"}, {"path": "/users?a=1"}, "/v2/users?a=1", [], b""),
    ({"path": "/only?b=2"}, {"path": "/users?a=1"}, "/only?b=2", [], b""),
    ({"path": "/u/${header:X-User}"}, {"headers": {"x-user": "a/../b ?c"}}, "/u/a%2F..%2Fb%20%3Fc", [], b""),
    ({"remove_query_params": ["a"]}, {"path": "/x?a=1&b=2&%61=3"}, "/x?b=2", [], b""),
    ({"host": "localhost"}, {}, "/", ["host: localhost", "x-forwarded-host: {host}"], b""),
    ({"headers": {"x-at": "$domain $method $$ ${header:x-mine}"}, "remove_headers": ["X-Mine"]},
     {"headers": {"x-mine": b"\xe9"}}, "/", ["x-at: {domain} GET $ \xe9", "!x-mine"], b""),
    ({"headers": {"x-vm": "$vm_id", "x-no": "$nothing (${header:no})"}}, {}, "/", ["x-vm: {vm}", "x-no: $nothing ()"], b""),
    ({"headers": {"x-from": "${header:x-forwarded-for}"}}, {"headers": {"x-forwarded-for": "8.8.8.8"}}, "/", ["x-from: 127.0.0.1"], b""),
    ({"body": "<$body>"}, {"method": "POST", "content": b"old"}, "/", ["content-length: 5"], b"<old>"),
    ({"body": "new"}, {"method": "PUT", "headers": {"content-encoding": "gzip"}}, "/", ["content-length: 3", "!content-encoding"], b"new"),
]  # fmt: skip


async def test_rewrites(server, guest):
    seen = Seen()
    async with listening(server, guest.vm, seen):
        for rewrite, said, target, lines, body in REWRITES:
            opened(server, action={"rewrite": rewrite})
            answer = await guest.get(**{"path": "/", "method": "GET", **said})
            assert answer.status_code == 200, (rewrite, answer.text)
            head, got = seen.last
            assert (head[0].split()[1], got) == (target, body), rewrite
            names = [line.partition(":")[0] for line in head[1:]]
            assert names.count("host") == 1 and "x-boxwood-key" not in names
            for line in lines:
                wanted = line.format(host=guest.host, domain=guest.host.partition(":")[0], vm=guest.vm)
                assert wanted in head or (line.startswith("!") and line[1:] not in names), (rewrite, head)


async def test_a_chunked_body_is_replaced_by_one_with_a_length(server, guest):
    opened(server, action={"rewrite": {"body": "short"}})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        assert (await guest.post(chunks(b"a" * 100_000, b"b"))).status_code == 200
    head, got = seen.last
    assert got == b"short" and "content-length: 5" in head and not any("chunked" in line for line in head)


async def test_a_websocket_is_rewritten_too_without_a_body(server, guest):
    opened(server, action={"rewrite": {"path": "/socket", "body": "x", "headers": {"x-was": "$path"}}})
    heads = []

    async def switch(reader, writer):
        heads.append((await request_head(reader)).decode().split("\r\n"))
        writer.write(b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")

    async with listening(server, guest.vm, switch):
        answer = await server.raw(guest.head(*UPGRADE, path="/ws"))
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.endswith(b"hello")
    (head,) = heads
    assert head[0] == "GET /socket HTTP/1.1" and "x-was: /ws" in head
    assert not any(line.startswith("content-length") for line in head)


async def test_what_the_server_says_of_who_has_come_is_no_rules_to_change(server, guest):
    """Where one is written it is refused; one that was kept before anybody minded changes nothing."""
    rewrite = {"headers": {"x-forwarded-for": "8.8.8.8", "x-boxwood-key": "k"}, "remove_headers": ["x-forwarded-host"]}
    rule = inbound(action={"rewrite": rewrite})
    refused = await guest.write(rule)
    assert refused.status_code == 400 and "x-boxwood-key is what the server itself says" in refused.text
    entry = {name: value for name, value in rule.items() if name != "priority"}
    assert (await server.http.put(f"/v1/vms/{guest.vm}/policies", json={"policies": [entry]})).status_code == 400
    opened(server, action={"rewrite": rewrite})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        assert (await guest.get()).status_code == 200
    head, _ = seen.last
    assert "x-forwarded-for: 127.0.0.1" in head and f"x-forwarded-host: {guest.host}" in head
    assert not any(line.startswith("x-boxwood-key") or "8.8.8.8" in line for line in head)


async def test_rules_that_change_while_a_request_waits_are_asked_again(server, guest):
    """A gate said yes to what another rule would now make something else of: it goes in neither way."""
    gate = SlowGate(server)
    opened(server, action={"gate": GATE})
    seen = Seen()
    async with listening(server, guest.vm, seen):
        waiting = asyncio.create_task(guest.get())
        await gate.asked.acquire()
        opened(server, action={"rewrite": {"path": "/other"}})
        gate.go.set()
        answer = await waiting
    assert answer.status_code == 403 and "have changed" in answer.text and not seen.requests


# gate


async def test_a_gate_is_asked_before_anything_goes_in(server, guest):
    gate = {
        **GATE, "host": "https://gate.test:8443", "path": "/may?who=${header:X-User}&at=$path", "method": "POST",
        "headers": {"x-secret": "${secret:KEY}", "x-caller": "${header:x-forwarded-for}"},
        "body": {"what": "$method $domain $vm_id", "all": ["$body", 1]}, "timeout_ms": 1500,
    }  # fmt: skip
    server.machine.sees_requests = server.machine.engine.sees_requests = True
    action = {"gate": gate, "rewrite": {"headers": {"x-passed": "yes"}}}
    await guest.ruled(inbound(auth="open", action=action), KEY="the-secret")
    seen = Seen()
    async with listening(server, guest.vm, seen):
        answer = await guest.get("/in?x=1", "POST", content=b"b\xff", headers={"x-user": "a&b"}, key=False)
    assert answer.status_code == 200
    (asked,) = server.machine.called("ask_gate")
    assert (asked.url, asked.method, asked.path) == ("https://gate.test:8443", "POST", "/may?who=a%26b&at=/in")
    assert dict(asked.headers) == {
        b"content-type": b"application/json", b"x-secret": b"the-secret", b"x-caller": b"127.0.0.1",
    }  # fmt: skip
    told = json.loads(asked.body)
    assert told == {"what": f"POST {guest.host.partition(':')[0]} {guest.vm}", "all": ["b\udcff", 1]}
    assert (asked.allow_on_status, asked.deny_on_timeout, asked.timeout_ms) == ((200,), True, 1500)
    assert "the-secret" not in repr(asked) and Question.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    head, body = seen.last
    assert "x-passed: yes" in head and body == b"b\xff" and not any("the-secret" in line for line in head)


async def test_a_gate_that_refuses_or_cannot_be_asked(server, guest):
    """Nothing of it has reached the VM; its box was not even booted."""
    opened(server, auth="open", action={"gate": GATE})
    await server.machine.core._boxes.park(guest.vm)

    async def refuses(question: Question) -> str:
        return "its gate said 418"

    async def fails(question: Question) -> str:
        raise EngineError("no proxy here")

    for ask, status, text in ((refuses, 403, "the rule door of this VM refuses this: its gate said 418"), (fails, 503, "cannot be asked")):  # fmt: skip
        server.machine.ask_gate = ask
        answer = await guest.get(key=False)
        assert answer.status_code == status and text in answer.json()["error"]["message"]
        assert answer.headers["x-boxwood-error"] == ("forbidden" if status == 403 else "unavailable")
        assert "no proxy here" not in answer.text
        socket = await server.raw(guest.head(*UPGRADE, key=False))
        assert socket.startswith(b"HTTP/1.1 %d " % status)
    assert not server.machine.core._boxes.live(guest.vm)


async def test_a_key_comes_before_a_gate(server, guest):
    opened(server, action={"gate": GATE})
    assert (await guest.get(key=False)).status_code == 401
    assert not server.machine.called("ask_gate")


async def test_a_gate_without_its_secret_is_not_asked(server, guest):
    opened(server, action={"gate": {**GATE, "headers": {"x": "${secret:NO}"}}})
    answer = await guest.get()
    assert answer.status_code == 403 and "secret has no value" in answer.text and "NO" not in answer.text
    assert not server.machine.called("ask_gate")


async def test_a_key_that_is_revoked_ends_a_question(server, guest):
    gate = SlowGate(server)
    made = (await server.http.post("/v1/api-keys", json={"name": "x"})).json()
    opened(server, action={"gate": GATE})
    waiting = asyncio.create_task(guest.get(headers={"x-api-key": made["key"]}, key=False))
    await gate.asked.acquire()
    assert (await server.http.delete(f"/v1/api-keys/{made['api_key_id']}")).status_code < 300
    assert (await waiting).status_code == 401
    shares = server.machine.core.gates._shares
    assert shares._total == 1, "the gate is still being asked, and nobody has its place"
    gate.go.set()
    while shares._total:
        await asyncio.sleep(0.001)
