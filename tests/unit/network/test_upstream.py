"""Asking the host's servers: whom, how often, and what is believed."""

from __future__ import annotations

import asyncio
import os

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from fake_dns import addresses, ask, asked, reach, rrset

from boxwood.engine.network import nameservers
from boxwood.engine.network import upstream as module
from boxwood.engine.network.upstream import NoAnswer

SOA = "example. 600 SOA ns.example. me.example. 1 2 3 4 120"


def failing(rcode: int):
    def act(query):
        response = dns.message.make_response(query)
        response.set_rcode(rcode)
        return response

    return act


# --- the servers


async def test_the_first_server_is_asked(tmp_path, servers, clock):
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert asked(servers) == [1, 0, 0]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTAUTH])
async def test_the_next_is_asked_when_one_fails(tmp_path, servers, clock, rcode):
    servers[0].act = servers[1].act = failing(rcode)
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert asked(servers) == [1, 1, 1]


async def test_the_next_is_asked_when_one_is_silent(tmp_path, servers, clock, impatient):
    servers[0].act = lambda query: None
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert asked(servers) == [1, 1, 0]


async def test_the_next_is_asked_when_one_is_not_there(tmp_path, servers, clock):
    await servers[0].stop()
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]


@pytest.mark.parametrize("wire", [b"\x00" * 20, bytes(range(256)), b"\xff" * 65, b"\x00" * 11])
async def test_the_next_is_asked_when_one_makes_no_sense(tmp_path, servers, clock, impatient, wire):
    servers[0].act = lambda query: query.to_wire()[:2] + b"\x81\x80" + wire
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert asked(servers)[:2] == [1, 1]


async def test_a_name_that_does_not_exist_is_an_answer(tmp_path, servers, clock):
    assert (await ask(reach(tmp_path, servers, clock), "nothing.example")).rcode() == dns.rcode.NXDOMAIN
    assert asked(servers) == [1, 0, 0]


async def test_when_all_fail_it_is_their_failure(tmp_path, servers, clock):
    for server in servers:
        server.act = failing(dns.rcode.REFUSED)
    assert (await ask(reach(tmp_path, servers, clock))).rcode() == dns.rcode.REFUSED
    assert asked(servers) == [1, 1, 1]  # who has failed is not asked again


async def test_when_nobody_answers_everybody_is_asked_again_and_then_it_is_an_error(
    tmp_path, servers, clock, impatient
):
    for server in servers:
        server.act = lambda query: None
    with pytest.raises(NoAnswer) as caught:
        await ask(reach(tmp_path, servers, clock))
    assert isinstance(caught.value, OSError)
    assert asked(servers) == [2, 2, 2]


async def test_there_is_a_bound_for_all_together(tmp_path, servers, clock, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_IN_ALL", 0.05)
    servers[0].act = lambda query: None
    with pytest.raises(NoAnswer):
        await ask(reach(tmp_path, servers, clock))
    assert asked(servers) == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "servers", "seconds", "attempts"),
    [
        ("", ["127.0.0.1"], 5, 2),
        ("# nameserver 10.0.0.1\n; nameserver 10.0.0.2\nsearch corp\n", ["127.0.0.1"], 5, 2),
        ("nameserver 10.0.0.1 # mine\n\tnameserver\t10.0.0.2\n", ["10.0.0.1", "10.0.0.2"], 5, 2),
        ("nameserver 1.1.1.1\nnameserver ns.corp\nnameserver\nnameserver fd00::1\n", ["1.1.1.1", "fd00::1"], 5, 2),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(9)), ["10.0.0.0", "10.0.0.1", "10.0.0.2"], 5, 2),
        ("nameserver 10.0.0.1\noptions ndots:5 timeout:1 attempts:3 rotate\n", ["10.0.0.1"], 1, 3),
        ("nameserver 10.0.0.1\noptions timeout:0\noptions attempts:0\n", ["10.0.0.1"], 1, 1),
        ("nameserver 10.0.0.1\noptions timeout:99 attempts:99\n", ["10.0.0.1"], 5, 5),
        ("nameserver 10.0.0.1\noptions timeout:-1 attempts:x timeout\n", ["10.0.0.1"], 5, 2),
    ],
)
def test_resolv_conf(text, servers, seconds, attempts):
    settings = nameservers.settings(text, 53)
    assert [place[0] for _, place in settings.servers] == servers
    assert {place[1] for _, place in settings.servers} == {53}
    assert (settings.seconds, settings.attempts) == (seconds, attempts)


async def test_resolv_conf_is_read_again_when_it_changes(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers[:1], clock)
    await ask(upstream)
    path = tmp_path / "resolv.conf"
    new = tmp_path / "new"
    new.write_text("nameserver 127.0.0.3\n")
    os.replace(new, path)
    await ask(upstream)
    assert asked(servers) == [1, 1, 0]  # what was remembered is another network's
    path.unlink()
    assert addresses(await ask(upstream)) == ["93.184.216.34"]
    await ask(upstream, "b.example")
    assert asked(servers) == [1, 2, 0]


async def test_what_was_asked_before_a_change_is_not_remembered_after_it(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers[:1], clock)
    servers[0].open.clear()
    asking = asyncio.create_task(ask(upstream))
    await servers[0].until_asked(1)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.3\n# another network\n")
    await ask(upstream, "b.example")
    servers[0].open.set()
    await asking
    await ask(upstream)
    assert asked(servers) == [1, 2, 0]


# --- what is asked, and what is believed


async def test_what_is_asked_upstream(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers, clock)
    query = dns.message.make_query("A.Example", "A", options=[dns.edns.ECSOption("198.18.0.7", 32)], want_dnssec=True)
    query.flags |= dns.flags.CD
    await upstream.ask(query)
    (sent,) = servers[0].asked
    assert sent.question[0].name.to_text() == "a.example."
    assert (sent.edns, sent.payload, sent.options, sent.ednsflags) == (0, 1232, (), 0)
    assert sent.flags == dns.flags.RD


async def test_ids_and_ports_are_drawn(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers, clock)
    ports = []
    on_datagram = servers[0].on_datagram
    servers[0].on_datagram = lambda wire, source: (ports.append(source[1]), on_datagram(wire, source))
    for n in range(20):
        await ask(upstream, f"n{n}.example")
    assert len({query.id for query in servers[0].asked}) > 15
    assert len(set(ports)) > 15


def lie(query: dns.message.Message) -> dns.message.Message:
    """As somebody would answer who guesses."""
    response = dns.message.make_response(query)
    response.answer = [rrset("a.example. 60 A 6.6.6.6")]
    return response


def with_another_id(query):
    response = lie(query)
    response.id ^= 1
    return response


def with_another_name(query):
    response = lie(query)
    response.question = dns.message.make_query("b.example", "A").question
    return response


def with_another_type(query):
    response = lie(query)
    response.question = dns.message.make_query("a.example", "AAAA").question
    return response


def without_a_question(query):
    response = lie(query)
    response.question = []
    return response


def as_a_question(query):
    response = lie(query)
    response.flags &= ~dns.flags.QR
    return response


def truncated(made):
    """Who guesses wrong is not followed to TCP either."""

    def act(query):
        response = made(query)
        response.flags |= dns.flags.TC
        return response

    act.__name__ = f"truncated_{made.__name__}"
    return act


LIES = [with_another_id, with_another_name, with_another_type, without_a_question, as_a_question]


@pytest.mark.parametrize(
    "made", [*LIES, truncated(with_another_id), truncated(as_a_question)], ids=lambda made: made.__name__
)
async def test_an_answer_to_something_else_is_not_believed(tmp_path, servers, clock, made):
    server = servers[0]
    sent = server.look_up

    def act(query):
        server._datagrams.sendto(made(query).to_wire(), source[0])
        return sent(query)

    source = []
    on_datagram = server.on_datagram
    server.on_datagram = lambda wire, place: (source.append(place), on_datagram(wire, place))
    server.act = act
    upstream = reach(tmp_path, servers, clock)
    assert addresses(await ask(upstream)) == ["93.184.216.34"]
    assert addresses(await ask(upstream)) == ["93.184.216.34"]
    assert asked(servers) == [1, 0, 0]
    assert server.streams == 0


async def test_who_is_lied_to_again_and_again_asks_over_tcp(tmp_path, servers, clock):
    server = servers[0]
    on_datagram = server.on_datagram

    def flood(wire, source):
        for _ in range(16):
            server._datagrams.sendto(with_another_id(dns.message.from_wire(wire)).to_wire(), source)
        on_datagram(wire, source)

    server.on_datagram = flood
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert server.streams == 1


async def test_what_is_truncated_is_asked_for_over_tcp(tmp_path, servers, clock):
    server = servers[0]
    server.add("large.example", "TXT", *(f'large.example. 60 TXT "{n:0200}"' for n in range(20)))

    def act(query):
        whole = server.look_up(query)
        if not server.streams:
            whole.answer = []
            whole.flags |= dns.flags.TC
        return whole

    server.act = act
    answer = await ask(reach(tmp_path, servers, clock), "large.example", "TXT")
    assert len(answer.answer[0]) == 20
    assert server.streams == 1


async def test_what_is_truncated_over_tcp_as_well_is_all_there_is(tmp_path, servers, clock):
    servers[0].act = lambda query: truncated(servers[0].look_up)(query)
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert (asked(servers), servers[0].streams) == ([2, 0, 0], 1)


@pytest.mark.parametrize("made", LIES, ids=lambda made: made.__name__)
async def test_over_tcp_an_answer_to_something_else_is_not_believed(tmp_path, servers, clock, made):
    server = servers[0]

    def act(query):
        if server.streams:
            return made(query)
        truncated = dns.message.make_response(query)
        truncated.flags |= dns.flags.TC
        return truncated

    server.act = act
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert asked(servers) == [2, 1, 0]


async def test_a_server_that_knows_no_edns_is_asked_without(tmp_path, servers, clock):
    server = servers[0]
    server.act = lambda query: failing(dns.rcode.FORMERR)(query) if query.edns >= 0 else server.look_up(query)
    assert addresses(await ask(reach(tmp_path, servers, clock))) == ["93.184.216.34"]
    assert [query.edns for query in server.asked] == [0, -1]


def with_many_records() -> list[dns.rrset.RRset]:
    return [rrset(f"n{n}.example. 60 TXT x") for n in range(600)]


def with_long_names() -> list[dns.rrset.RRset]:
    """A datagram of 1200 bytes that takes 200 ms to parse."""
    tail = "a." * 118
    return [dns.rrset.from_text("a.example.", 60, "IN", "MX", *(f"1 {n:03}.{tail}" for n in range(50)))]


def with_many_bytes() -> list[dns.rrset.RRset]:
    return [dns.rrset.from_text("a.example.", 60, "IN", "TXT", " ".join(['""'] * 10000))]


@pytest.mark.parametrize("made", [with_many_records, with_long_names, with_many_bytes], ids=lambda made: made.__name__)
async def test_an_answer_that_would_take_long_is_not_read(tmp_path, servers, clock, made):
    server = servers[0]
    message = dns.message.make_response(dns.message.make_query("a.example", "MX"))
    message.answer = made()
    rest = message.to_wire()[4:]

    def act(query):
        truncated = b"" if server.streams else b"\x82"
        return query.to_wire()[:2] + (truncated or b"\x80") + b"\x80" + rest

    server.act = act
    servers[1].add("a.example", "MX", "a.example. 60 MX 1 mail.example.")
    answer = await ask(reach(tmp_path, servers, clock), "a.example", "MX")
    assert str(answer.answer[0][0]) == "1 mail.example."
    assert (len(server.asked), server.streams) == (2, 1)


def wire_of(*records: str) -> bytes:
    message = dns.message.make_response(dns.message.make_query("a.example", "MX"))
    message.answer = [rrset(record) for record in records]
    return message.to_wire()


def count(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels)


HEAD = bytes(12)


@pytest.mark.parametrize(
    ("wire", "longest"),
    {
        "nothing": (HEAD, 0),
        "the root": (HEAD + b"\0", 0),
        "a name": (HEAD + count(b"xxx", b"yyy") + b"\0", 2),
        "and one that goes on in it": (HEAD + count(b"xxx", b"yyy") + b"\0" + count(b"zzz") + b"\xc0\x0c", 3),
        "by two steps": (HEAD + b"\3xxx\0" + b"\3yyy\xc0\x0c" + b"\3zzz\xc0\x11", 3),
        "as long as it can be": (HEAD + b"\1x" * 127 + b"\0", 127),
        "longer than it can be": (HEAD + b"\1x" * 200 + b"\0", 127),  # not from the start
        "numbers as text": (HEAD + b"0" * 2000 + b"\0", 5),
        "without an end": (HEAD + b"\1x" * 20, 0),
        "a pointer to itself": (HEAD + b"\xc0\x0c", 0),
        "in a circle": (HEAD + b"\3xxx\xc0\x0c", 0),
        "half a pointer": (HEAD + b"\xc0", 0),
        "a pointer to nowhere": (HEAD + b"\xff\xff", 0),
        "an unknown kind of label": (HEAD + b"\x40" + b"x" * 64 + b"\0", 0),
    }.values(),
)
def test_the_longest_name_in_a_message(wire, longest):
    assert module._longest_name(wire) == longest


@pytest.mark.parametrize("size", [1, 3, 34, 60, 120])
def test_no_name_is_longer_than_the_longest(size):
    tail = "a." * size
    message = dns.message.make_response(dns.message.make_query("a.example", "MX"))
    message.answer = [dns.rrset.from_text("a.example.", 60, "IN", "MX", *(f"1 {n:03}.{tail}" for n in range(4)))]
    assert size < module._longest_name(message.to_wire()) <= size + 6


def test_messages_of_the_real_world_are_read():
    """Twenty addresses, the servers of the root, the keys of a zone, the texts of a large company."""
    letters = "abcdefghijklm"
    root = [f". 60 NS {letter}.root-servers.net." for letter in letters]
    glue = [f"{letter}.root-servers.net. 60 {rdtype}" for letter in letters for rdtype in ("A 1.1.1.1", "AAAA 2a00::1")]
    reverse = "1." + "0." * 31 + "ip6.arpa."
    for records in (
        [f"a.example. 60 A 93.184.216.{n}" for n in range(20)],
        root + glue,
        [f'a.example. 60 TXT "{n:0200}"' for n in range(30)],
        [f"{reverse} 60 PTR host{n}.a.b.c.example." for n in range(5)],
        [f"a.example. 60 MX {n} mail{n}.provider.example." for n in range(40)],
    ):
        assert module.work(wire_of(*records)) < module._MOST_WORK
