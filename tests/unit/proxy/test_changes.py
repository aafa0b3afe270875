"""Policies that change while something is open, WebSockets, servers that speak first, and what is passed on unseen."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from boxwood.engine.proxy.message import Reply
from boxwood.engine.proxy.stars import MOST_CHANGES
from proxyworld import VM, World

pytestmark = [pytest.mark.anyio]
GET = {"api": {"action": "allow", "match": {"hosts": ["api.test"], "methods": ["GET"]}}}
NOTHING = {"none": {"action": "deny"}}
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: api.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def talk(seen: Any, stream: Any) -> None:
    """Agree to a WebSocket, and say everything again."""
    channel = await stream.switch(Reply(101, [(b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]))
    while data := await channel.read():
        await channel.write(b"again: " + data)
    await channel.finish()


async def endless(seen: Any, stream: Any) -> None:
    await stream.respond(Reply(200, []))
    await stream.send(b"begun")
    await asyncio.Event().wait()


@pytest.mark.parametrize("server", ["tls", "plain"])
async def test_websockets(there: World, server: str) -> None:
    there.answer = talk
    there.put(GET)
    there.aim(server)
    reader, writer = await (there.connect_tls() if server == "tls" else there.connect())
    writer.write(UPGRADE + b"early")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and b"sec-websocket-accept" in head.lower()
    assert await reader.readexactly(12) == b"again: early"
    writer.write(b"late")
    assert await reader.readexactly(11) == b"again: late"
    there.put(NOTHING)
    assert await _rest(reader) == b""
    writer.transport.abort()


async def test_a_server_that_agrees_to_a_websocket_says_no_secret(there: World) -> None:
    async def agree(seen: Any, stream: Any) -> None:
        said = seen.headers["x-key"].encode()
        channel = await stream.switch(Reply(101, [(b"x-echo", said), (b"sec-websocket-protocol", b"a, " + said)]))
        await channel.finish()

    there.answer = agree
    rules = {"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": {"hosts": ["api.test"]}}}
    there.put(rules, KEY="first-value")
    reader, writer = await there.connect_tls()
    writer.write(UPGRADE)
    head = await reader.readuntil(b"\r\n\r\n")
    assert there.seen[0].headers["x-key"] == "first-value"
    assert head.startswith(b"HTTP/1.1 101 ") and b"x-echo: ***********\r\n" in head and b"first-value" not in head
    assert b"a, ***********\r\n" in head
    writer.transport.abort()


KEY_RULES = {"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": {"hosts": ["api.test"]}}}
EXTENDED = UPGRADE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")


def frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    return bytes((first, size)) + payload if size < 126 else bytes((first, 126)) + size.to_bytes(2, "big") + payload


async def told(there: World, pieces: list[bytes], headers: Any = ()) -> tuple[bytes, bytes]:
    """The head, and all that the guest is told over a WebSocket, of what a server with a secret says in these pieces."""

    async def agree(seen: Any, stream: Any) -> None:
        channel = await stream.switch(Reply(101, list(headers)))
        for piece in pieces:
            await channel.write(piece)
            assert await channel.read() == b"next"
        await channel.finish()

    there.answer = agree
    there.put(KEY_RULES, KEY="first-value")
    reader, writer = await there.connect_tls()
    writer.write(EXTENDED)
    head = await reader.readuntil(b"\r\n\r\n")
    for _ in pieces:
        writer.write(b"next")
    said = await reader.read(-1) if pieces else b""
    writer.transport.abort()
    assert there.seen[0].headers["x-key"] == "first-value"
    return head, said


def messages(said: bytes) -> list[tuple[int, bytes]]:
    """Those of a server, put together, and control frames between."""
    found: list[tuple[int, bytes]] = []
    open_: list[Any] = []
    while said:
        first, size, place = said[0], said[1], 2
        if size == 126:
            size, place = int.from_bytes(said[2:4], "big"), 4
        payload, said = said[place : place + size], said[place + size :]
        if first & 8:
            found.append((first, payload))
            continue
        assert bool(open_) is not bool(first & 15)
        open_ = open_ or [first & 15, b""]
        open_[1] += payload
        if first & 128:
            found.append((open_[0], open_[1]))
            open_ = []
    return found


SAID = (
    frame(0x81, b"a first-value b")
    + frame(0x02, b"x" * 300 + b"first")
    + frame(0x89, b"ping first-value")
    + frame(0x00, b"")
    + frame(0x80, b"-value" + b"first-")
    + frame(0x81, b"")
    + frame(0x81, "ü first-valu".encode())
    + frame(0x88, b"\x03\xe8first-value")
)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_what_a_websocket_says_of_a_secret_is_starred(there: World, size: int) -> None:
    """Also over frames, and however it comes; nothing else is changed."""
    _, said = await told(there, [SAID[at : at + size] for at in range(0, len(SAID), size)])
    assert "sec-websocket-extensions" not in there.seen[0].headers
    found = messages(said)
    assert found.pop(1 if found[1][0] == 0x89 else 2) == (0x89, b"ping ***********")
    assert found == [
        (1, b"a *********** b"), (2, b"x" * 300 + b"***********first-"), (1, b""), (1, "ü first-valu".encode()),
        (0x88, b"\x03\xe8***********"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        frame(0xC1, b"first-value"),
        bytes((0x81, 0x8B)) + b"maskfirst-value",
        frame(0x80, b"first-value"),
        frame(0x01, b"x") + frame(0x81, b"first-value"),
        frame(0x83, b"first-value"),
        frame(0x09, b"first-value"),
        frame(0x89, b"first-value" * 20),
        bytes((0x82, 127)) + b"\x80" + bytes(7) + b"first-value",
    ],
    ids=[
        "extension",
        "masked",
        "nothing to go on",
        "another within",
        "unknown",
        "control in pieces",
        "long control",
        "longer than any",
    ],
)
async def test_what_is_no_frame_ends_a_websocket_with_a_secret(there: World, said: bytes) -> None:
    assert (await told(there, [said]))[1] in (b"", frame(0x01, b"x"))


async def test_an_extension_that_nobody_has_asked_for_is_refused(there: World) -> None:
    head, _ = await told(there, [], [(b"sec-websocket-extensions", b"permessage-deflate")])
    assert head.startswith(b"HTTP/1.1 502 ")


async def test_a_websocket_without_a_secret_goes_through_as_it_is(there: World) -> None:
    there.answer = talk
    there.put(GET, KEY="first-value")
    reader, writer = await there.connect_tls()
    writer.write(EXTENDED + b"\xff\xff no frame")
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(18) == b"again: \xff\xff no frame"
    assert there.seen[0].headers["sec-websocket-extensions"] == "permessage-deflate"
    writer.transport.abort()


async def test_a_websocket_that_is_not_allowed(there: World) -> None:
    there.put({"no": {"action": "deny", "match": {"paths": ["/chat"]}}})
    there.aim("plain")
    assert (await there.raw(UPGRADE)).split()[1] == b"403" and there.seen == []


async def test_an_upgrade_to_anything_else_is_none(there: World) -> None:
    there.put(GET)
    there.aim("plain")
    said = await there.raw(UPGRADE.replace(b"websocket", b"h2c"))
    assert said.split()[1] == b"200" and b"upgrade" not in str(there.seen[0].headers).lower().encode()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_an_answer_under_way_is_cut(there: World, version: str) -> None:
    there.answer = endless
    there.put(GET)
    process = await asyncio.create_subprocess_exec(
        "curl", "-sSN", "--max-time", "30", version, "--cacert", str(there.bundle), "--noproxy", "*",
        "--connect-to", f"::127.0.0.1:{there.port}", f"https://api.test:{there.table.to}/",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readexactly(5) == b"begun"
    there.put({**GET, "other": {"action": "deny", "match": {"paths": ["/x"]}}})  # it may still be
    there.put(NOTHING)
    _, said = await process.communicate()
    assert process.returncode not in (0, 28), said  # cut short, and not for curl's own limit of time


async def test_the_next_request_of_a_connection_goes_by_what_holds_then(there: World) -> None:
    there.put(GET)
    there.aim("plain")
    reader, writer = await there.connect()
    for rules, code in ((GET, b"200"), (NOTHING, b"403"), (GET, b"200")):
        there.put(rules)
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == code
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-l"))
        await reader.readexactly(length)
    writer.transport.abort()


async def test_no_forbidden_request_gets_through_while_policies_change(there: World) -> None:
    """Counted: after a change has been told, and until the next one, not one."""
    there.put(GET)
    there.aim("plain")
    allowed, codes = True, []

    async def ask() -> None:
        while len(codes) < 60:
            before = allowed
            code = (await there.raw(b"GET / HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n")).split()[1]
            if before == allowed:
                codes.append((before, code))

    async def change() -> None:
        nonlocal allowed
        while len(codes) < 60:
            allowed = not allowed
            there.put(GET if allowed else NOTHING)
            for _ in range(40):
                await asyncio.sleep(0)

    changing = asyncio.ensure_future(change())
    await asyncio.gather(*(ask() for _ in range(4)))
    await changing
    assert {code for may, code in codes if not may} <= {b"403"}


async def test_a_secret_that_is_taken_away_is_not_sent_any_more(there: World) -> None:
    rules = {"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": {"hosts": ["api.test"]}}}
    there.put(rules, KEY="first-value")
    assert (await there.curl())[0] == 200
    there.put(rules, KEY="second-value")
    assert (await there.curl())[0] == 200
    there.put(rules)
    assert (await there.curl())[0] == 403
    assert [seen.headers["x-key"] for seen in there.seen] == ["first-value", "second-value"]


@pytest.mark.parametrize("after", [{"KEY": "second-value"}, {}])
async def test_a_secret_that_changes_under_way_is_starred_all_the_same(there: World, after: dict[str, str]) -> None:
    """What was sent, and what holds then, in headers, bodies that go on, and trailers."""
    changed = asyncio.Event()

    async def late(seen: Any, stream: Any) -> None:
        said = seen.headers["x-key"].encode()
        await changed.wait()
        await stream.respond(Reply(200, [(b"x-echo", said)]))
        await stream.send(b"was " + said)
        if seen.headers["x-key"] == "first-value":
            there.put(rules, KEY="third-value")
            await stream.send(b" and first-value or second-value or third-value")
        await stream.end([(b"x-trailer", said)])

    there.answer = late
    rules = {"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": {"hosts": ["api.test"]}}}
    there.put(rules, KEY="first-value")
    asking = asyncio.ensure_future(there.curl("-i", "--http1.1", "--raw"))
    async with asyncio.timeout(20):
        while not there.seen:
            await asyncio.sleep(0)
    there.put(rules, **after)
    changed.set()
    code, body = await asking
    assert code == 200 and there.seen[0].headers["x-key"] == "first-value"
    assert b"x-echo: ***********\r" in body and b"was ***********" in body and b"first-value" not in body
    assert b"x-trailer: ***********\r" in body and b"third-value" not in body
    standing = await there.standings.of(VM, 0)
    assert standing is not None and len(standing.hidden) == 1  # nothing is remembered longer


async def test_old_secrets_are_not_remembered_without_end(there: World) -> None:
    there.answer = endless
    rules = {"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": {"hosts": ["api.test"]}}}
    there.put(rules, KEY="value-number-0")
    reader, writer = await there.connect_tls()
    writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    await reader.readuntil(b"begun")
    standing = await there.standings.of(VM, 0)
    assert standing is not None
    for number in range(MOST_CHANGES + 1):
        assert len(standing._open) == 1
        for _ in range(2):  # the second one changes nothing
            there.put(rules, KEY=f"value-number-{number}")
    assert len(standing._open) == 1
    there.put(rules, KEY="one-too-many")
    assert b"begun" not in await _rest(reader)
    writer.transport.abort()


async def test_a_server_that_speaks_first(there: World) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        writer.write(b"you said " + await reader.readline())
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    there.table.to = server.sockets[0].getsockname()[1]
    there.put({"no": {"action": "deny", "match": {"ports": [443], "paths": ["/x"]}}})  # about another port
    reader, writer = await there.connect()
    assert await reader.readline() == b"220 hello\r\n"
    writer.write(b"EHLO me\r\n")
    assert await reader.readline() == b"you said EHLO me\r\n"
    writer.transport.abort()
    server.close()


async def test_tls_that_no_rule_looks_into_is_passed_on_as_it_is(there: World) -> None:
    """The certificate that the box sees is the server's own."""
    there.put({"no": {"action": "deny", "match": {"hosts": ["other.test"], "paths": ["/x"]}}})
    there.bundle.write_bytes(there.roots)
    assert (await there.curl())[0] == 200
    assert (await there.curl(host="other.test"))[0] == 0  # this one is looked into: the authority is another one
    there.put({"no": {"action": "deny", "match": {"hosts": ["api.test"]}}})
    assert (await there.curl())[0] == 0
    assert there.table.refused == [("api.test", "policy")]


async def test_tls_for_an_address(there: World) -> None:
    there.put({"all": {"action": "allow", "match": {"methods": ["GET"], "ips": ["127.0.0.0/8"]}}})
    there.called = "127.0.0.1"
    assert (await there.curl(host="127.0.0.1"))[0] == 200
    assert (await there.curl("-X", "PUT", host="127.0.0.1"))[0] == 403


async def test_a_box_that_is_gone(there: World) -> None:
    there.answer = endless
    there.put(GET)
    reader, writer = await there.connect_tls()
    writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    await reader.readuntil(b"begun")
    there.guests.gone(["127.0.0.1"])
    assert b"begun" not in await _rest(reader)
    writer.transport.abort()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(-1), 20)
    except ConnectionError:
        return b""
