"""The resolver as boxes meet it, over UDP and TCP."""

from __future__ import annotations

import socket

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from fake_dns import Stream, addresses, errors, until

from boxwood.engine.api import Denial
from boxwood.engine.network import resolver as module
from boxwood.engine.network import upstream as upstream_module

ONE, TWO = "127.0.0.2", "127.0.0.3"


# --- answers


async def test_a_public_name(world):
    answer = await world.box().ask("Public.Example.", use_edns=0)
    assert addresses(answer) == ["93.184.216.34"]
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.flags & dns.flags.RA and not answer.flags & dns.flags.AA
    assert answer.payload == 1232
    assert world.denials == []


async def test_an_answer_without_edns_has_none(world):
    assert (await world.box().ask("intranet")).edns == -1
    assert (await world.box().ask("public.example")).edns == -1


async def test_a_name_that_does_not_exist(world):
    world.server.add(
        "nothing.example", "A", rcode=dns.rcode.NXDOMAIN, authority="example. 60 SOA ns.example. me.example. 1 2 3 4 30"
    )
    answer = await world.box().ask("nothing.example", use_edns=0)
    assert answer.rcode() == dns.rcode.NXDOMAIN and len(answer.authority) == 1
    assert errors(answer) == [] and world.denials == []


async def test_a_private_answer_is_none_and_told(world):
    world.server.add("evil.example", "A", "evil.example. 60 A 93.184.216.34", "evil.example. 60 A 10.0.0.1")
    answer = await world.box().ask("Evil.example", use_edns=0)
    assert answer.rcode() == dns.rcode.NXDOMAIN and not answer.answer and not answer.authority
    assert errors(answer) == [dns.edns.EDECode.BLOCKED]
    assert b"10.0.0.1" not in answer.to_wire()
    ((box, denial),) = world.denials
    assert box == ONE
    assert denial == Denial(denial.at, "dns", "", 0, "evil.example", "name")
    assert world.resolver.pins(ONE) == {}


async def test_rebinding(world):
    """What was public when it was looked at first is looked at each time."""
    world.server.add("rebind.example", "A", "rebind.example. 0 A 93.184.216.34")
    box = world.box()
    assert addresses(await box.ask("rebind.example")) == ["93.184.216.34"]
    world.server.add("rebind.example", "A", "rebind.example. 0 A 169.254.169.254")
    assert (await box.ask("rebind.example")).rcode() == dns.rcode.NXDOMAIN
    assert world.denied == [("rebind.example", "name")]
    assert list(world.resolver.pins(ONE)) == ["93.184.216.34"]


async def test_a_private_answer_is_none_from_memory_too(world):
    world.server.add("evil.example", "A", "evil.example. 60 A 10.0.0.1")
    for address in (ONE, TWO):
        assert (await world.box(address).ask("evil.example")).rcode() == dns.rcode.NXDOMAIN
    assert world.server.names == ["evil.example. A"]
    assert [box for box, _ in world.denials] == [ONE, TWO]


@pytest.mark.parametrize("name", ["intranet", "x.local", "1.1.168.192.in-addr.arpa", "intranet\\000.example"])
async def test_names_of_the_operator_are_not_asked_for(world, name):
    assert (await world.box().ask(name, "PTR")).rcode() == dns.rcode.NXDOMAIN
    assert world.server.asked == []
    assert world.denied == [(name, "name")]


async def test_the_box_itself_is_nobody_elses_business(world):
    box = world.box()
    assert addresses(await box.ask("localhost")) == ["127.0.0.1"]
    assert (await box.ask("7.0.18.198.in-addr.arpa", "PTR")).rcode() == dns.rcode.NXDOMAIN
    assert (await box.ask("public.example", "AAAA")).rcode() == dns.rcode.NOERROR
    assert world.server.asked == [] and world.denials == [] and world.resolver.pins(ONE) == {}


async def test_with_ipv6_its_addresses_are_asked_for(world):
    world.server.add("public.example", "AAAA", "public.example. 60 AAAA 2a00::1")
    world.server.add("evil.example", "AAAA", "evil.example. 60 AAAA ::ffff:10.0.0.1")
    await world.serve(ipv6=True)
    box = world.box()
    assert addresses(await box.ask("public.example", "AAAA")) == ["2a00::1"]
    assert (await box.ask("evil.example", "AAAA")).rcode() == dns.rcode.NXDOMAIN
    assert world.resolver.name_of(ONE, "2a00::1") == "public.example"


async def test_exceptions(world):
    await world.serve("mirror.corp", "10.9.0.0/16")
    box = world.box()
    assert (await box.ask("mirror.corp")).rcode() == dns.rcode.SERVFAIL  # not looked up yet
    world.exceptions.set_addresses("mirror.corp", ["10.1.2.3"])
    answer = await box.ask("MIRROR.corp.")
    assert addresses(answer) == ["10.1.2.3"] and answer.answer[0].ttl == 30
    assert world.server.asked == []
    world.server.add("index.example", "A", "index.example. 60 A 10.9.1.1")
    assert addresses(await box.ask("index.example")) == ["10.9.1.1"]
    assert (await box.ask("other.corp")).rcode() == dns.rcode.NXDOMAIN
    assert world.resolver.pins(ONE) == {
        "10.1.2.3": ("mirror.corp", world.clock.now + 30),
        "10.9.1.1": ("index.example", world.clock.now + 60),
    }


async def test_when_nobody_answers_the_box_hears_of_a_failure(world, monkeypatch, caplog):
    monkeypatch.setattr(upstream_module, "MOST_SECONDS", 0.02)
    world.server.act = lambda query: None
    answer = await world.box().ask("public.example")
    assert answer.rcode() == dns.rcode.SERVFAIL and answer.question and not answer.answer
    assert world.denials == [] and not caplog.records


async def test_a_fault_of_ours_is_a_failure_of_one_question(world, monkeypatch, caplog):
    def fault(*_, **__):
        raise RuntimeError("a fault")

    box = world.box()
    with monkeypatch.context() as patched:
        patched.setattr(module.answers, "rewrite", fault)
        query = dns.message.make_query("public.example", "A")
        for _ in range(3):
            box.send(query)
            reply = await box.receive()
            assert reply[:2] == query.id.to_bytes(2, "big") and reply[3] & 15 == dns.rcode.SERVFAIL
    assert len(caplog.records) == 1
    assert addresses(await box.ask("public.example")) == ["93.184.216.34"]


# --- UDP


async def test_what_is_too_large_for_a_datagram_comes_over_tcp(world):
    records = [f'large.example. 60 TXT "{n:0100}"' for n in range(30)]
    world.server.add("large.example", "TXT", *records)
    box = world.box()
    for options, size in (({}, 512), ({"use_edns": 0, "payload": 65535}, 1232)):
        query = dns.message.make_query("large.example", "TXT", **options)
        box.send(query)
        wire = await box.receive()
        answer = dns.message.from_wire(wire)
        assert len(wire) <= size
        assert query.is_response(answer) and answer.flags & dns.flags.TC and not answer.answer
    stream = await box.connect()
    stream.send(dns.message.make_query("large.example", "TXT"))
    answer = await stream.receive()
    assert not answer.flags & dns.flags.TC and len(answer.answer[0]) == 30


async def test_a_datagram_is_as_large_as_the_box_can_take(world):
    world.server.add("medium.example", "TXT", *(f'medium.example. 60 TXT "{n:0100}"' for n in range(8)))
    box = world.box()
    assert (await box.ask("medium.example", "TXT")).flags & dns.flags.TC
    assert (await box.ask("medium.example", "TXT", use_edns=0, payload=800)).flags & dns.flags.TC
    assert not (await box.ask("medium.example", "TXT", use_edns=0, payload=1100)).flags & dns.flags.TC


async def test_an_address_that_was_not_given_out_for_want_of_room_is_not_pinned(world):
    world.server.add("many.example", "A", *(f"many.example. 60 A 93.184.216.{n}" for n in range(100)))
    box = world.box()
    assert (await box.ask("many.example")).flags & dns.flags.TC
    assert world.resolver.pins(ONE) == {}
    stream = await box.connect()
    stream.send(dns.message.make_query("many.example", "A"))
    await stream.receive()
    assert len(world.resolver.pins(ONE)) == 100


@pytest.mark.parametrize("wire", [b"", b"x", b"x" * 11, b"\0\1\x80\0" + bytes(8), b"\0" * 4097, b"\xff" * 4097])
async def test_what_is_dropped(world, wire):
    box = world.box()
    box.send(wire)
    assert addresses(await box.ask("public.example")) == ["93.184.216.34"]  # the first that is answered


async def test_refusals(world):
    box = world.box()
    for rdtype in ("ANY", "AXFR", "NULL"):
        assert (await box.ask("public.example", rdtype)).rcode() == dns.rcode.REFUSED
    assert (await box.ask("version.bind", "TXT", rdclass="CH")).rcode() == dns.rcode.REFUSED
    box.send(b"\0\7\1\0\0\2" + bytes(6))
    assert (await box.receive())[:4] == b"\0\7\x81\x81"
    assert world.server.asked == []


# --- TCP


async def test_questions_on_one_connection(world):
    """Several in one segment, one in pieces, and the quick does not wait for the slow."""
    world.server.open.clear()
    stream = await world.box().connect()
    slow = dns.message.make_query("public.example", "A")
    quick = dns.message.make_query("localhost", "A")
    stream.send(slow, quick)
    assert quick.is_response(await stream.receive())
    world.server.open.set()
    assert slow.is_response(await stream.receive())
    pieces = dns.message.make_query("localhost", "A").to_wire(prepend_length=True)
    for byte in pieces:
        stream.writer.write(bytes([byte]))
        await stream.writer.drain()
    assert addresses(await stream.receive()) == ["127.0.0.1"]


async def test_what_was_asked_before_the_end_is_answered(world):
    world.server.open.clear()
    stream = await world.box().connect()
    query = dns.message.make_query("public.example", "A")
    stream.send(query)
    stream.writer.write_eof()
    await world.server.until_asked(1)
    world.server.open.set()
    assert query.is_response(await stream.receive())
    assert await stream.ended()


async def test_pipelining_is_bounded(world, monkeypatch):
    monkeypatch.setattr(module, "_PIPELINED", 3)
    world.server.open.clear()
    stream = await world.box().connect()
    queries = [dns.message.make_query(f"n{n}.example", "A") for n in range(10)]
    stream.send(*queries)
    await world.server.until_asked(3)
    other = world.box(TWO)
    assert addresses(await other.ask("localhost")) == ["127.0.0.1"]  # and all that could have been read has been
    assert world.resolver._outstanding == len(world.server.asked) == 3
    world.server.open.set()
    assert sorted([(await stream.receive()).id for _ in queries]) == sorted(query.id for query in queries)


async def test_a_connection_on_which_nothing_comes_is_closed(world, monkeypatch):
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.05)
    silent, slow = [await world.box().connect() for _ in range(2)]
    slow.writer.write(b"\0\x20half")
    assert await silent.ended() and await slow.ended()
    await until(lambda: not world.resolver._connections)


async def fill(world, count: int) -> Stream:
    """A connection whose other end does not read, with so many answers of 7 kB each on their way."""
    world.server.add("large.example", "TXT", *(f'large.example. 60 TXT "{n:0250}"' for n in range(28)))
    for sock in world._sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    stream = await world.box().connect(receive=1)
    stream.writer.transport.pause_reading()
    stream.send(*(dns.message.make_query("large.example", "TXT") for _ in range(count)))
    stream.writer.write_eof()
    await until(lambda: world.resolver._outstanding)
    return stream


async def test_a_box_that_takes_no_answers_is_left(world, monkeypatch):
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.2)
    await fill(world, 16)
    await until(lambda: not world.resolver._outstanding)
    await until(lambda: not world.resolver._connections)
    assert addresses(await world.box().ask("localhost")) == ["127.0.0.1"]


async def test_a_box_that_takes_its_time_gets_all(world):
    stream = await fill(world, 5)
    await until(lambda: not world.resolver._outstanding)
    await world.box().ask("localhost")
    stream.writer.transport.resume_reading()
    assert [len((await stream.receive()).answer[0]) for _ in range(5)] == [28] * 5
    assert await stream.ended()


async def test_garbage_on_a_connection(world):
    stream = await world.box().connect()
    stream.writer.write(b"\0\0" + b"\0\1x" + b"\0\x0c" + b"\0\7\1\0\0\2" + bytes(6) + b"\xff\xff" + b"\0" * 65535)
    assert (await stream.receive()).rcode() == dns.rcode.FORMERR
    assert (await stream.receive()).rcode() == dns.rcode.FORMERR
    stream.send(dns.message.make_query("localhost", "A"))
    assert addresses(await stream.receive()) == ["127.0.0.1"]


async def test_connections_of_a_box_are_bounded(world):
    streams = [await world.box().connect() for _ in range(8)]
    await until(lambda: world.resolver._connections == 8)
    assert await (await world.box().connect()).ended()
    assert [denial.reason for _, denial in world.denials] == ["flood"]
    other = await world.box(TWO).connect()
    for stream in (streams[7], other):
        stream.send(dns.message.make_query("localhost", "A"))
        assert addresses(await stream.receive()) == ["127.0.0.1"]
    streams[0].writer.close()
    await until(lambda: world.resolver._connections == 8)
    again = await world.box().connect()
    again.send(dns.message.make_query("localhost", "A"))
    assert addresses(await again.receive()) == ["127.0.0.1"]


async def test_connections_in_all_are_bounded(world, monkeypatch):
    monkeypatch.setattr(module, "_MOST_CONNECTIONS_IN_ALL", 2)
    kept = [await world.box(f"127.0.0.{n}").connect() for n in (2, 3)]
    await until(lambda: world.resolver._connections == 2)
    assert await (await world.box("127.0.0.4").connect()).ended()
    kept[0].send(dns.message.make_query("localhost", "A"))
    assert addresses(await kept[0].receive()) == ["127.0.0.1"]
