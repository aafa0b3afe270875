"""Whatever boxes and servers send: nothing crashes, hangs, or gets more out of the resolver than it put in."""

from __future__ import annotations

import asyncio
import random
import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from fake_dns import SOON, addresses, rrset
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.engine.network import answers, upstream
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.answers import Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions

NONE = Exceptions.parse([])
calm = settings(deadline=None, derandomize=True, max_examples=400)
NAME_BYTES = st.sampled_from(
    [b"\xc0\x0c", b"\xc0\x00", b"\xff\xff", b"\x3f" + b"a" * 63, b"\x01\x00", b"\x01.", b"\x40", b"\0"]
)
NAMES = st.lists(NAME_BYTES | st.binary(max_size=8), max_size=12).map(b"".join)
COUNTS = st.sampled_from([0, 1, 2, 65535])
HEADERS = st.builds(
    lambda ident, flags, counts: struct.pack("!6H", ident, flags, *counts),
    st.integers(0, 65535),
    st.sampled_from([0x0100, 0x0000, 0x0130, 0x2800, 0x8180, 0x7FFF]),
    st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
)
ASKED = st.builds(lambda header, name, tail: header + name + tail, HEADERS, NAMES, st.binary(max_size=60))
LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=6).filter(lambda found: sum(map(len, found)) < 240)


def look_at(wire: bytes) -> bytes:
    """What comes back at once, if anything does."""
    try:
        question = answers.read(wire)
        known = answers.answer_locally(question, NONE, ipv6=False)
        return b"" if known is None else answers.fit(known, question.udp_size)
    except Refused:
        return answers.fit(question.reply(dns.rcode.NXDOMAIN, why="a test"), question.udp_size)
    except Unanswerable as unanswerable:
        return unanswerable.reply


def check(wire: bytes) -> None:
    reply = look_at(wire)
    assert len(reply) <= len(wire) + 100  # it is no lever
    if reply:
        assert reply[:2] == wire[:2] and reply[2] & 0x80 and not wire[2] & 0x80
        dns.message.from_wire(reply) if wire[2] >> 3 & 15 == 0 else None


@calm
@given(st.binary(max_size=600))
def test_random_bytes(wire):
    check(wire)


@calm
@given(ASKED)
def test_questions_of_hostile_parts(wire):
    check(wire)


@calm
@given(LABELS, st.sampled_from(["A", "PTR", "ANY", "TXT"]), st.booleans())
def test_names_of_any_bytes(labels, rdtype, edns):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    wire = (
        struct.pack("!6H", 7, 0x0100, 1, 0, 0, int(edns))
        + name
        + struct.pack("!HH", dns.rdatatype.from_text(rdtype), 1)
    )
    if edns:
        wire += b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    check(wire)
    try:
        question = answers.read(wire)
    except Unanswerable:
        assert rdtype == "ANY"
        return
    assert question.text.isascii() and question.text.isprintable() and " " not in question.text


def mutate(wire: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(wire)
    for place, value in changes:
        changed[place % len(changed)] = value
    return bytes(changed[: len(changed) - cut])


CHANGES = st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=6)
OPTIONS = [dns.edns.ECSOption("10.0.0.1", 24), dns.edns.CookieOption(b"12345678", b""), dns.edns.EDEOption(1, "ö")]
PLAIN = dns.message.make_query("www.public.example", "HTTPS", options=OPTIONS, payload=4096, pad=128).to_wire()


@calm
@given(CHANGES, st.integers(0, 40))
def test_questions_that_were_changed(changes, cut):
    check(mutate(PLAIN, changes, cut))


QUERY = dns.message.make_query("a.example", "HTTPS", id=7)


def rich_answer() -> bytes:
    response = dns.message.make_response(QUERY)
    response.answer = [
        rrset("a.example. 60 CNAME b.example."),
        rrset('b.example. 60 HTTPS 1 . alpn="h2,h3" ipv4hint="93.184.216.34,10.0.0.1" ipv6hint="2a00::1"'),
        rrset("b.example. 60 A 10.0.0.1"),
        rrset('b.example. 60 TXT "text" "more"'),
        rrset("b.example. 60 NAPTR 1 1 u sip !.*!x! ."),
    ]
    response.authority = [rrset("example. 60 SOA ns.example. me.example. 1 2 3 4 5")]
    response.additional = [rrset("ns.example. 60 AAAA fd00::1")]
    return response.to_wire()


RICH = rich_answer()


@calm
@given(CHANGES, st.integers(0, 30))
def test_answers_that_were_changed(changes, cut):
    """From a server: it is understood or it is not, and nothing private comes through."""
    wire = mutate(RICH, [(12 + place, value) for place, value in changes], cut)
    try:
        answer = upstream._read(wire, QUERY, stream=True)
        if answer is None:
            return
        upstream._lifetime(answer, dns.rdatatype.HTTPS)
        question = answers.read(QUERY.to_wire())
        told = answers.rewrite(question, answer, NONE)
    except (ConnectionError, Refused):
        return
    assert all(is_public(address) for address, _ in answers.addresses_in(told.answer))
    dns.message.from_wire(answers.fit(told, 1232))


@calm
@given(st.binary(max_size=300))
def test_answers_of_random_bytes(tail):
    for head in (b"\0\7\x81\x80", b"\0\7\x81\x80\0\1\0\1\0\0\0\0\1a\7example\0\0\x41\0\1\xc0\x0c"):
        try:
            upstream._read(head + tail, QUERY, stream=True)
        except ConnectionError:
            pass


async def test_the_resolver_lives_through_all_of_it(world):
    """Datagrams and streams of noise, then a question."""
    noise = random.Random(1)
    box = world.box()
    for _ in range(40):
        for _ in range(7):
            box.send(
                mutate(PLAIN, [(noise.randrange(4096), noise.randrange(256)) for _ in range(4)], noise.randrange(30))
            )
            box.send(noise.randbytes(noise.randrange(1, 200)))
        world.clock.now += 1
        await asyncio.sleep(0)
    streams = [await box.connect() for _ in range(8)]
    for stream in streams:
        stream.writer.write(noise.randbytes(2000))
    other = world.box("127.0.0.3")
    assert addresses(await other.ask("public.example")) == ["93.184.216.34"]
    world.clock.now += 3
    stream = await other.connect()
    stream.send(dns.message.make_query("public.example", "A"))
    assert addresses(await stream.receive()) == ["93.184.216.34"]


@pytest.mark.parametrize("noise", [b"", b"\0" * 12, b"\xff" * 500])
async def test_a_server_of_noise_is_a_failure(world, monkeypatch, noise):
    monkeypatch.setattr(upstream, "MOST_SECONDS", 0.02)
    world.server.act = lambda query: query.to_wire()[:2] + b"\x81\x80" + noise
    async with asyncio.timeout(SOON):
        assert (await world.box().ask("public.example")).rcode() == dns.rcode.SERVFAIL
