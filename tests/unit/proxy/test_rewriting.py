"""What rules make of requests, secrets above all: they reach the host that they are bound to, and nobody else."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import re
import urllib.parse
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwood.engine.policies import Policies
from boxwood.engine.proxy.message import Reply
from boxwood.engine.proxy.redaction import Redaction
from boxwood.engine.proxy.standing import Standing
from proxyworld import LOOPBACK, World

pytestmark = [pytest.mark.anyio]
SECRET = "s3cret-value-of-the-key"
HOST = {"hosts": ["api.test"]}
WITH_KEY = {"key": {"action": {"rewrite": {"headers": {"Authorization": "Bearer ${secret:KEY}"}}}, "match": HOST}}


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("server", ["tls", "h2"])
async def test_a_secret_reaches_its_host_and_is_not_said_again(there: World, version: str, server: str) -> None:
    there.put(WITH_KEY, KEY=SECRET)
    there.aim(server)
    code, body = await there.curl(version, "-H", "authorization: Bearer mine", "-H", "accept-encoding: gzip")
    (seen,) = there.seen
    assert seen.headers["authorization"] == f"Bearer {SECRET}" and seen.headers["accept-encoding"] == "identity"
    assert code == 200 and SECRET.encode() not in body
    assert json.loads(body)["headers"]["authorization"] == "Bearer " + "*" * len(SECRET)


async def test_never_over_plain_http(there: World) -> None:
    there.put(WITH_KEY, KEY=SECRET)
    there.aim("plain")
    code, body = await there.curl(scheme="http")
    assert (code, there.seen) == (403, []) and b"https" in body and SECRET.encode() not in body


async def test_never_to_a_server_that_is_another_one(there: World) -> None:
    there.put(WITH_KEY, KEY=SECRET)
    there.aim("wrong")
    code, body = await there.curl()
    assert (code, there.seen) == (502, []) and SECRET.encode() not in body


async def test_never_to_another_host(there: World) -> None:
    there.put({**WITH_KEY, "rest": {"action": "allow", "match": {"methods": ["GET"]}}}, KEY=SECRET)
    there.called = "other.test"
    assert (await there.curl(host="other.test"))[0] == 200
    assert SECRET not in json.dumps(there.seen[0].headers)


async def test_a_secret_without_a_value(there: World) -> None:
    there.put(WITH_KEY)
    code, body = await there.curl()
    assert (code, there.seen) == (403, []) and b"KEY" in body


async def test_placeholders_in_what_a_box_sends_stay_what_they_are(there: World) -> None:
    there.put(WITH_KEY, KEY=SECRET)
    await there.curl("-H", "x-mine: ${secret:KEY}", "-d", "${secret:KEY}", path="/$%7Bsecret:KEY%7D")
    (seen,) = there.seen
    assert (seen.headers["x-mine"], seen.body) == ("${secret:KEY}", b"${secret:KEY}")
    assert SECRET not in seen.target


REWRITES: list[tuple[dict[str, Any], list[str], str, dict[str, Any]]] = [
    ({"path": "/v2$path"}, [], "/users?a=1", {"target": "/v2/users?a=1"}),
    ({"path": "/only?b=2"}, [], "/users?a=1", {"target": "/only?b=2"}),
    ({"path": "/k/${secret:KEY}"}, [], "/", {"target": f"/k/{SECRET}"}),
    ({"remove_query_params": ["a"]}, [], "/x?a=1&b=2&%61=3", {"target": "/x?b=2"}),
    ({"remove_headers": ["x-mine"]}, ["-H", "X-Mine: 1"], "/", {"x-mine": None}),
    ({"headers": {"x-at": "$domain$path $method $$"}}, [], "/p", {"x-at": "api.test/p GET $"}),
    ({"headers": {"x-vm": "$vm_id"}}, [], "/p", {"x-vm": "01J00000000000000000000000"}),
    ({"body": '{"was": "$body", "key": "${secret:KEY}"}'}, ["-d", "old"], "/", {"body": f'{{"was": "old", "key": "{SECRET}"}}'}),
    ({"body": "new"}, [], "/", {"body": "new"}),
    ({"headers": {"x-unknown": "$nothing ${unknown}"}}, [], "/", {"x-unknown": "$nothing ${unknown}"}),
]  # fmt: skip


@pytest.mark.parametrize(("rewrite", "arguments", "path", "wanted"), REWRITES)
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_rewrites(
    there: World, rewrite: dict[str, Any], arguments: list[str], path: str, wanted: dict[str, Any], version: str
) -> None:
    there.put({"it": {"action": {"rewrite": rewrite}, "match": HOST}}, KEY=SECRET)
    assert (await there.curl(version, *arguments, path=path))[0] == 200
    (seen,) = there.seen
    found = {"target": seen.target, "body": seen.body.decode(), **seen.headers}
    assert {name: found.get(name) for name in wanted} == wanted


async def test_a_body_becomes_no_header_with_line_ends(there: World) -> None:
    there.put({"it": {"action": {"rewrite": {"headers": {"x-body": "$body"}}}, "match": HOST}})
    code, _ = await there.curl("--data-binary", "a\r\nx-more: 1")
    assert (code, there.seen) == (400, [])


async def test_another_host(there: World) -> None:
    there.put({"it": {"action": {"rewrite": {"host": "api.test"}}, "match": {"hosts": ["other.test"]}}})
    assert (await there.curl(host="other.test"))[0] == 502  # it has no address
    there.table.hosts["api.test"] = [LOOPBACK]
    assert (await there.curl(host="other.test"))[0] == 200
    assert there.seen[0].authority.startswith("api.test")


async def test_what_a_server_says_of_a_secret_in_pieces(there: World) -> None:
    async def slowly(seen: Any, stream: Any) -> None:
        await stream.respond(Reply(200, [(b"x-key", SECRET.encode()), (b"set-cookie", b"k=" + SECRET.encode())]))
        for character in f"it is {SECRET}, s3cret- and {SECRET[:5]}":
            await stream.send(character.encode())
        await stream.end([])

    there.answer = slowly
    there.put(WITH_KEY, KEY=SECRET)
    _, body = await there.curl("-i")
    stars = "*" * len(SECRET)
    assert SECRET.encode() not in body
    assert body.endswith(f"it is {stars}, s3cret- and {SECRET[:5]}".encode()) and f"x-key: {stars}".encode() in body


def shown(secrets: list[str], text: bytes, sizes: list[int]) -> bytes:
    """In pieces of these sizes, and what is left."""
    standing = Standing()
    standing.put(Policies(), {f"S{number}": secret for number, secret in enumerate(secrets)})
    redaction, found, at = Redaction(standing.hidden), b"", 0
    for size in [*sizes, len(text)]:
        found += redaction.feed(text[at : at + size])
        at += size
    return found + redaction.end()


def test_redaction_keeps_all_else() -> None:
    text = b"ab abcab abcabdxy abcabc abcabdxyz abcabcabd ab"
    for size in (1, 2, 3, 100):
        found = shown(["abcabd", "abcabdxyz"], text, [size] * len(text))
        assert found == b"ab abcab ******xy abcabc ********* abc****** ab"


def test_a_secret_that_another_one_begins_with_is_starred_to_its_end() -> None:
    assert (
        shown(["key-of-mine", "key-of-mine-and-more"], b"x key-of-mine-and-more y", [13, 3])
        == b"x " + b"*" * 20 + b" y"
    )


def test_what_only_began_like_a_secret_is_not_starred() -> None:
    """Where a shorter one ends in what waits, also over several pieces, and at the end of all."""
    secrets = ["password-hunter2-extra", "hunter2"]
    for pieces in ([16], [1] * 99, [16, 3], [10, 6, 2]):
        assert shown(secrets, b"password-hunter2 is it", pieces) == b"password-******* is it"
        assert shown(secrets, b"password-hunter2", pieces) == b"password-*******"
        assert shown(secrets, b"a password-hunter2-extra-hunter2-", pieces) == b"a " + b"*" * 22 + b"-*******-"


ODD = 'k"ey/of\\ <ü>&more'


@pytest.mark.parametrize("spelt", [urllib.parse.quote, urllib.parse.quote_plus, json.dumps, html.escape])
def test_a_secret_as_echoes_spell_it_is_starred(spelt: Callable[[str], str]) -> None:
    """We write it into paths as URLs have it ourselves, and what answers with JSON or a page does the rest."""
    text = f"no such path: {spelt(ODD)} here".encode()
    found = shown([ODD], text, [3] * len(text))
    assert re.fullmatch(rb'no such path: "?\*+"? here', found) and len(found) == len(text)


@pytest.mark.parametrize("secret", [f"{SECRET} ", f"  {SECRET}", f"\u00a0{SECRET}\u3000", "k&y/of mine "])
async def test_a_secret_with_spaces_at_its_ends_is_starred_without_them(there: World, secret: str) -> None:
    """Headers have none there: what the server is told, and says again, is shorter than the secret."""
    there.put({"key": {"action": {"rewrite": {"headers": {"x-key": "${secret:KEY}"}}}, "match": HOST}}, KEY=secret)
    code, body = await there.curl()
    assert there.seen[0].headers["x-key"] == secret.strip()
    assert code == 200 and json.loads(body)["headers"]["x-key"] == "*" * len(secret.strip())
    assert shown([secret], f"<{secret}> <{secret.strip()}>".encode(), [3] * 99).count(b"*") == len(
        (secret + secret.strip()).encode()
    )


PART = st.text("ab", min_size=6, max_size=9)


@given(st.lists(PART, min_size=1, max_size=4), st.lists(st.text("abc", max_size=9) | PART, max_size=9), st.data())
def test_every_secret_is_starred_wherever_it_begins(secrets: list[str], parts: list[str], data: st.DataObject) -> None:
    """Within another one too, however the text is cut; and nothing else is."""
    text = "".join([*parts, data.draw(st.sampled_from(secrets)), data.draw(st.text("abc", max_size=9))]).encode()
    sizes = data.draw(st.lists(st.integers(1, 12), max_size=40))
    covered = {
        at + index
        for secret in secrets for at in range(len(text)) if text.startswith(secret.encode(), at)
        for index in range(len(secret))
    }  # fmt: skip
    assert shown(secrets, text, sizes) == bytes(42 if at in covered else byte for at, byte in enumerate(text))


GATES: list[tuple[int, int]] = [(204, 200), (403, 403), (500, 403)]


@pytest.mark.parametrize(("said", "code"), GATES)
async def test_gates(there: World, said: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate's address is loopback here, which a proxy never asks; so it is called public."""
    monkeypatch.setattr("boxwood.engine.proxy.gates.is_public", lambda address: True)
    gate = {
        "host": f"https://api.test:{there.ports['tls']}", "path": "/may", "method": "POST", "allow_on_status": [204],
        "headers": {"x-key": "${secret:KEY}"}, "body": {"what": "$method $path", "many": [1, "$vm_id"]},
    }  # fmt: skip
    there.table.hosts["api.test"] = [LOOPBACK]
    there.put({"it": {"action": {"gate": gate}, "match": {"hosts": ["api.test"]}}}, KEY=SECRET)

    async def answer(seen: Any, stream: Any) -> None:
        status = said if seen.target == "/may" else 200
        await stream.respond(Reply(status, [], 0))
        await stream.end([])

    there.answer = answer
    assert (await there.curl(path="/thing"))[0] == code
    asked = there.seen[0]
    assert json.loads(asked.body) == {"what": "GET /thing", "many": [1, "01J00000000000000000000000"]}
    assert asked.headers["x-key"] == SECRET and len(there.seen) == (2 if code == 200 else 1)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
async def test_a_gate_with_a_private_address_is_not_asked(there: World, address: str) -> None:
    gate = {"host": f"http://gate.test:{there.ports['plain']}", "allow_on_status": [200]}
    there.table.hosts["gate.test"] = [IPv4Address(address)]
    there.put({"it": {"action": {"gate": gate}, "match": HOST}})
    assert (await there.curl())[0] == 403
    assert there.accepted == 0


@pytest.mark.parametrize(("deny", "code"), [(True, 403), (False, 200)])
async def test_a_gate_that_does_not_answer(
    there: World, deny: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxwood.engine.proxy.gates.is_public", lambda address: True)
    held: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: held.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    gate = {"host": f"http://gate.test:{port}", "allow_on_status": [200], "timeout_ms": 50, "deny_on_timeout": deny}
    there.table.hosts["gate.test"] = [LOOPBACK]
    there.put({"it": {"action": {"gate": gate}, "match": HOST}})
    assert (await there.curl())[0] == code
    silent.close()
    for writer in held:
        writer.transport.abort()


@pytest.mark.parametrize("deny", [True, False])
async def test_a_gate_that_is_not_there_or_breaks_off(
    there: World, deny: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is as if it had not answered in time; the second lets nothing through: what was sent may be why."""
    monkeypatch.setattr("boxwood.engine.proxy.gates.is_public", lambda address: True)
    there.table.hosts["gate.test"] = [LOOPBACK]
    closed = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    gate = {"host": f"http://gate.test:{port}", "allow_on_status": [200], "deny_on_timeout": deny}
    there.put({"it": {"action": {"gate": gate}, "match": HOST}})
    assert (await there.curl())[0] == 403
    closed.close()
    await closed.wait_closed()
    assert (await there.curl())[0] == (403 if deny else 200)


async def test_what_tokens_stand_for_is_bounded(there: World) -> None:
    rewrite = {"headers": {"x": "1"}, "body": "$body" * 10_000}
    there.put({"it": {"action": {"rewrite": rewrite}, "match": HOST}})
    code, body = await there.curl("-d", "x" * 1000)
    assert code == 400 and b"too long" in body and not there.seen


async def test_no_secret_is_ever_logged(there: World, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong: a server that breaks off, one that talks nonsense, a rule that makes nonsense."""
    caplog.set_level(logging.DEBUG)

    async def breaks_off(seen: Any, stream: Any) -> None:
        stream.abort()

    there.answer = breaks_off
    there.put(WITH_KEY, KEY=SECRET)
    _, body = await there.curl()
    there.aim("plain")  # which does not understand TLS
    _, more = await there.curl()
    texts = (caplog.text, body.decode(), more.decode(), str(there.table.refused), repr(there.standings))
    for text in texts:
        assert SECRET not in text and base64.b64encode(SECRET.encode()).decode() not in text
