"""Requests through the proxy, by curl and by hand: what goes on, what is refused, what becomes of it on its way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxyworld import World

pytestmark = [pytest.mark.anyio]
ALLOW: dict[str, Any] = {"action": "allow", "match": {"hosts": ["api.test"], "methods": ["GET", "POST", "HEAD"]}}
VERSIONS = [("--http1.1", "tls"), ("--http2", "tls"), ("--http2", "h2"), ("--http1.1", "h2")]


@pytest.mark.parametrize(("version", "server"), VERSIONS)
async def test_what_is_allowed_goes_on(there: World, version: str, server: str) -> None:
    there.put({"api": ALLOW})
    there.aim(server)
    code, body = await there.curl(version, "-d", "name=value", "-H", "X-Own: 1", path="/a/b?c=d")
    said = json.loads(body)
    assert (code, said["method"], said["target"], said["body"]) == (200, "POST", "/a/b?c=d", "name=value")
    assert said["authority"].startswith("api.test") and said["headers"]["x-own"] == "1"
    assert not {"transfer-encoding", "connection", "te"} & said["headers"].keys() or server == "h2"


@pytest.mark.parametrize(("version", "server"), VERSIONS)
async def test_what_is_not_is_refused_with_a_word(there: World, version: str, server: str) -> None:
    there.put({"no-admin": {"action": "deny", "match": {"hosts": ["api.test"], "paths": ["/admin"]}}, "api": ALLOW})
    there.aim(server)
    code, body = await there.curl(version, path="/admin/users")
    assert (code, json.loads(body)["error"]["rule"]) == (403, "no-admin")
    code, body = await there.curl(version, "-X", "DELETE")
    assert (code, json.loads(body)["error"]["code"]) == (403, "forbidden")
    assert there.seen == [] and there.table.refused == [("api.test", "no-admin"), ("api.test", "forbidden")]


async def test_plain_http_too(there: World) -> None:
    there.put({"api": ALLOW})
    there.aim("plain")
    assert (await there.curl(scheme="http"))[0] == 200
    assert (await there.curl("-X", "PUT", scheme="http"))[0] == 403
    code, _ = await there.curl("--http2-prior-knowledge", "-X", "PUT", scheme="http")
    assert code == 403
    assert [seen.method for seen in there.seen] == ["GET"]


RULES: list[tuple[dict[str, Any], list[str], str, int]] = [
    ({"methods": ["POST"]}, ["-d", "x"], "/", 403),
    ({"methods": ["POST"]}, [], "/", 200),
    ({"paths": ["/v1/keys"]}, [], "/v1/keys/7", 403),
    ({"paths": ["/v1/keys"]}, [], "/v1/keysmith", 200),
    ({"paths": ["/v1/keys"]}, [], "/v1/%6beys", 403),  # the same, to the server
    ({"paths": ["/v1/keys"]}, ["--path-as-is"], "/v1/x/../keys", 403),
    ({"paths": ["/v1/keys"]}, ["--path-as-is"], "/v1//keys", 403),
    ({"headers": {"x-role": ["admin"]}}, ["-H", "X-ROLE: admin"], "/", 403),
    ({"headers": {"x-role": ["admin"]}}, ["-H", "x-role: guest", "-H", "x-role: admin"], "/", 403),
    ({"headers": {"x-role": ["admin"]}}, ["-H", "x-role: guest"], "/", 200),
    ({"query_params": {"do": ["wipe"]}}, [], "/?a=b&do=wipe", 403),
    ({"query_params": {"do": ["wipe"]}}, [], "/?a=b&%64o=wi%70e", 403),
    ({"query_params": {"do": ["wipe"]}}, [], "/?do=look", 200),
    ({"body_contains": ["DROP TABLE"]}, ["-d", "x; DROP TABLE y"], "/", 403),
    ({"body_contains": ["DROP TABLE"]}, ["-d", "select 1"], "/", 200),
    ({"body_contains": ["DROP TABLE"]}, ["-H", "Content-Encoding: gzip", "-d", "select 1"], "/", 415),
]


@pytest.mark.parametrize(("match", "arguments", "path", "code"), RULES)
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_what_a_rule_refuses(
    there: World, match: dict[str, Any], arguments: list[str], path: str, code: int, version: str
) -> None:
    there.put({"no": {"action": "deny", "match": match}})
    assert (await there.curl(version, *arguments, path=path))[0] == code
    assert len(there.seen) == (code == 200)


async def test_a_body_that_a_rule_names_is_what_its_server_reads(there: World) -> None:
    there.put({"api": {"action": {"rewrite": {"headers": {"x-was": "$body"}}}, "match": {"hosts": ["api.test"]}}})
    assert (await there.curl("-H", "Content-Encoding: gzip", "-d", "x"))[0] == 415 and not there.seen
    assert (await there.curl("-d", "x"))[0] == 200


async def test_a_body_that_is_too_long_to_be_judged(there: World) -> None:
    there.put({"no": {"action": "deny", "match": {"body_contains": ["x"]}}})
    code, _ = await there.curl("--data-binary", "@-", "-H", "Expect:", "-H", "Transfer-Encoding: chunked", path="/")
    assert code == 200  # curl read nothing: an empty one
    reader, writer = await there.connect_tls()
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(40):
        writer.write(b"8000\r\n" + b"y" * 0x8000 + b"\r\n")
    assert (await reader.readline()).split()[1] == b"413"
    assert len(there.seen) == 1
    writer.transport.abort()


async def test_bodies_are_streamed(there: World) -> None:
    """Both ways at once: the proxy does not wait for a body to end before it sends what it has."""
    there.put({"api": ALLOW})
    reader, writer = await there.connect_tls()

    async def ping(seen: Any, stream: Any) -> None:
        raise AssertionError("the body has not ended")

    there.answer = ping
    writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"100"
    writer.transport.abort()


async def test_what_leads_around_the_proxy_is_left_out(there: World) -> None:
    there.put({"api": ALLOW})
    _, shown = await there.curl("-i")
    assert b"alt-svc" not in shown.lower() and b"x-boxwood-policy" not in shown.lower()
