"""What parsers could read in two ways, and what names one host and goes to another: attack items 25, 26."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from proxyworld import World

pytestmark = [pytest.mark.anyio]
ONLY = {"api": {"action": "allow", "match": {"hosts": ["api.test"], "paths": ["/ok"]}}}
HELLO = b"GET /ok HTTP/1.1\r\nHost: api.test\r\n\r\n"

SMUGGLED = {
    "length beside chunks": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /no HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "chunks beside length": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nContent-Length: 4, 5\r\n\r\nabcde",
    "a signed length": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nContent-Length: +4\r\n\r\nabcd",
    "another coding": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding that hides": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunks in 1.0": b"POST /ok HTTP/1.0\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": b"GET /ok HTTP/1.1\r\nHost: api.test\r\nX: a\0b\r\n\r\n",
    "CR in a header": b"GET /ok HTTP/1.1\r\nHost: api.test\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
    "two hosts": b"GET /ok HTTP/1.1\r\nHost: api.test\r\nHost: other.test\r\n\r\n",
    "no host": b"GET /ok HTTP/1.1\r\n\r\n",
    "no host in 1.0": b"GET /ok HTTP/1.0\r\n\r\n",
    "an absolute target": b"GET http://other.test/ok HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "CONNECT": b"CONNECT api.test:22 HTTP/1.1\r\nHost: api.test:22\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "a fragment": b"GET /no#/ok HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "a fragment behind": b"GET /ok/#/no HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "a space in the target": b"GET /ok /no HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "a tab for a space": b"GET\t/no\tHTTP/1.1\r\nHost: api.test\r\n\r\n",
    "a line before": b"\r\nGET /no HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "0.9": b"GET /no\r\n",
    "bad chunk sizes": b"POST /ok HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nabcd\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", SMUGGLED)
async def test_what_can_be_read_in_two_ways_is_refused(there: World, kind: str) -> None:
    there.put(ONLY)
    there.aim("plain")
    said = await there.raw(SMUGGLED[kind])
    assert said == b"" or said.split()[1] in (b"400", b"403", b"501", b"502")
    assert b" 200 " not in said and all(seen.target == "/ok" and not seen.body for seen in there.seen)


HOSTS = [
    "other.test", "api.test.other.test", "evilapi.test", "api.test:9", "api.test\x00.other.test", "api.test@other.test",
    "api.test/", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "[::ffff:127.0.0.1]", "10.0.0.1", "api..test", "",
    "a p i.test", "api.test,other.test", "apı.test", "169.254.169.254",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
async def test_hosts_that_are_not_what_was_looked_up(there: World, host: str) -> None:
    there.put(ONLY)
    there.aim("plain")
    said = await there.raw(b"GET /ok HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")
    assert said.split()[1] in (b"400", b"403", b"421")
    assert there.seen == []


@pytest.mark.parametrize("host", ["api.test", "API.test", "api.test.", "Api.Test."])
async def test_spellings_of_one_host(there: World, host: str) -> None:
    there.put(ONLY)
    there.aim("plain")
    assert (await there.raw(b"GET /ok HTTP/1.1\r\nHost: " + host.encode() + b"\r\n\r\n")).split()[1] == b"200"


async def test_a_host_that_was_not_looked_up(there: World) -> None:
    """Whatever address a box writes into its own table: a name is of use only where the resolver has said it."""
    there.put({"all": {"action": "allow", "match": {"paths": ["/"]}}})
    there.table.names = frozenset({"other.test"})
    there.aim("plain")
    assert (await there.raw(HELLO)).split()[1] == b"421"
    there.aim("tls")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await there.connect_tls()
    assert there.table.refused == [("api.test", "misdirected")] * 2 and there.accepted == 0


async def test_tls_for_one_host_and_a_request_for_another(there: World) -> None:
    there.put({"all": {"action": "allow", "match": {"methods": ["GET"]}}})
    for version in ("--http1.1", "--http2"):
        code, _ = await there.curl(version, "-H", "Host: other.test")
        assert code == 421
    assert there.seen == []


async def test_streams_of_one_connection_are_judged_each(there: World) -> None:
    there.put(ONLY)
    import h2.connection

    reader, writer = await there.connect_tls("api.test", "h2")
    state = h2.connection.H2Connection()
    state.initiate_connection()
    for ident, (host, path) in enumerate([("api.test", "/ok"), ("other.test", "/ok"), ("api.test", "/no")]):
        head = [(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", path)]
        state.send_headers(2 * ident + 1, head, end_stream=True)
    writer.write(state.data_to_send())
    found: dict[int, bytes] = {}
    while len(found) < 3:
        for event in state.receive_data(await asyncio.wait_for(reader.read(65536), 20)):
            if isinstance(event, h2.events.ResponseReceived):
                found[event.stream_id] = dict(event.headers)[b":status"]
    assert found == {1: b"200", 3: b"421", 5: b"403"}
    assert [seen.target for seen in there.seen] == ["/ok"]
    writer.transport.abort()


async def test_a_server_that_is_another_one(there: World) -> None:
    """Its certificate is for evil.test, and good otherwise."""
    there.put(ONLY)
    there.aim("wrong")
    code, body = await there.curl(path="/ok")
    assert code == 502 and b"could not be verified" in body and there.seen == []


async def test_an_unknown_connection_or_vm(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    there.aim("plain")
    monkeypatch.setattr("boxwood.engine.proxy.guests._TOLD_SECONDS", 0.01)
    assert await there.raw(HELLO) == b""
    there.put(ONLY)
    there.table.known = False
    assert await there.raw(HELLO) == b""
    assert there.seen == []


async def test_what_is_no_http(there: World) -> None:
    """Opaque bytes have rules about requests against them, and only rules about connections for them."""
    there.aim("plain")
    there.put(ONLY)
    assert await there.raw(b"\x00\x01\x02 opaque") == b"" and there.accepted == 0
    there.put({"no": {"action": "deny", "match": {"paths": ["/no"]}}})
    assert await there.raw(b"\x00\x01\x02 opaque") == b"" and there.accepted == 0
    there.put(
        {
            "first": {"action": "allow", "match": {"hosts": ["api.test"]}},
            "x": {"action": "allow", "match": {"paths": ["/"]}},
        }
    )
    assert b"400" in await there.raw(b"\x00\x01\x02 opaque") and there.accepted == 1  # the server's own word
