"""The resolver's bounds: floods, what it pins for boxes, and what it forgets."""

from __future__ import annotations

import asyncio
import gc
import weakref

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from fake_dns import addresses, errors, until

from boxwood.engine.network import pins
from boxwood.engine.network import resolver as module

ONE, TWO = "127.0.0.2", "127.0.0.3"


# --- floods


async def test_too_many_questions(world):
    """So many at once, so many more a second; of what is too much one is refused, the others are dropped."""
    box, other = world.box(), world.box(TWO)
    burst = []
    for start in range(0, 320, 20):  # no more than the socket holds
        for n in range(start, start + 20):
            box.send(dns.message.make_query("localhost", "A", id=n, use_edns=0))
        expected = min(20, max(0, 300 - start)) + (start == 300)
        burst += [dns.message.from_wire(await box.receive()) for _ in range(expected)]
    assert [answer.rcode() for answer in burst] == [dns.rcode.NOERROR] * 300 + [dns.rcode.REFUSED]
    assert errors(burst[-1]) == [dns.edns.EDECode.BLOCKED]
    assert world.denied == [("localhost", "flood")]
    assert addresses(await other.ask("localhost")) == ["127.0.0.1"]  # which all before it has been read
    with pytest.raises(BlockingIOError):
        box.sock.recv(65535)
    world.clock.now += 1 / 16  # six more
    assert [(await box.ask("localhost")).rcode() for _ in range(6)] == [dns.rcode.NOERROR] * 6
    box.send(dns.message.make_query("localhost", "A"))
    await other.ask("localhost")
    with pytest.raises(BlockingIOError):
        box.sock.recv(65535)
    world.clock.now += 1
    assert [(await box.ask("localhost")).rcode() for _ in range(101)] == [dns.rcode.NOERROR] * 100 + [dns.rcode.REFUSED]
    assert len(world.denials) == 2


async def test_large_questions_count_more(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 20)
    box = world.box()
    for rcode in (dns.rcode.NOERROR, dns.rcode.NOERROR, dns.rcode.REFUSED):
        assert (await box.ask("localhost", use_edns=0, payload=4096, pad=4000)).rcode() == rcode
    for rcode in (dns.rcode.NOERROR,) * 4:
        assert (await box.ask("localhost")).rcode() == rcode


async def test_answers_that_cost_much_count_more(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 20)
    world.server.add("large.example", "MX", *(f"large.example. 60 MX 1 mail{n}.example." for n in range(60)))
    world.server.add("small.example", "MX", *(f"small.example. 60 MX 1 mail{n}.example." for n in range(3)))
    box = world.box()
    for n in range(20):  # from memory or not
        assert (await box.ask("small.example", "MX")).rcode() == dns.rcode.NOERROR, n
    world.clock.now += 0.2
    for _ in range(3):
        await box.ask("large.example", "MX")
    assert (await box.ask("localhost")).rcode() == dns.rcode.REFUSED


async def test_debts_are_bounded(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 2)
    world.server.add("large.example", "MX", *(f"large.example. 60 MX 1 mail{n}.example." for n in range(60)))
    box = world.box()
    await box.ask("large.example", "MX")
    world.clock.now += 1 / 32  # three questions: two for the debt
    assert (await box.ask("localhost")).rcode() == dns.rcode.NOERROR
    assert (await box.ask("localhost")).rcode() == dns.rcode.REFUSED


async def test_garbage_counts_as_well(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 3)
    box = world.box()
    for _ in range(3):
        box.send(b"x")
    assert (await box.ask("localhost")).rcode() == dns.rcode.REFUSED


async def test_too_much_over_tcp_ends_the_connection(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 3)
    stream = await world.box().connect()  # which counts as one
    for _ in range(2):
        stream.send(dns.message.make_query("localhost", "A"))
        assert addresses(await stream.receive()) == ["127.0.0.1"]
    stream.send(dns.message.make_query("localhost", "A"))
    assert await stream.ended()
    assert world.denied == [("localhost", "flood")]


async def test_too_much_under_way(world):
    world.server.open.clear()
    box, other = world.box(), world.box(TWO)
    for n in range(64):
        box.send(dns.message.make_query(f"n{n}.example", "A"))
    await world.server.until_asked(64)
    assert (await box.ask("public.example")).rcode() == dns.rcode.REFUSED
    assert addresses(await other.ask("localhost")) == ["127.0.0.1"]
    world.server.open.set()
    assert [dns.message.from_wire(await box.receive()).rcode() for _ in range(64)] == [dns.rcode.NXDOMAIN] * 64
    await until(lambda: not world.resolver._outstanding)
    assert addresses(await box.ask("public.example")) == ["93.184.216.34"]
    assert world.denied == [("public.example", "flood")]


async def test_too_much_under_way_in_all(world, monkeypatch):
    monkeypatch.setattr(module, "_MOST_OUTSTANDING_IN_ALL", 4)
    world.server.open.clear()
    boxes = [world.box(f"127.0.0.{n}") for n in (2, 3)]
    for n in range(4):
        boxes[n % 2].send(dns.message.make_query(f"n{n}.example", "A"))
    await world.server.until_asked(4)
    assert (await boxes[0].ask("localhost")).rcode() == dns.rcode.REFUSED
    world.server.open.set()


async def test_a_loop_is_told_of_a_few_times_a_second(world):
    world.server.add("evil.example", "A", "evil.example. 60 A 10.0.0.1")
    box = world.box()
    for _ in range(50):
        assert (await box.ask("evil.example")).rcode() == dns.rcode.NXDOMAIN
    assert len(world.denials) == 5
    world.clock.now += 1
    for _ in range(50):
        await box.ask("evil.example")
    assert len(world.denials) == 7
    await world.box(TWO).ask("evil.example")
    assert len(world.denials) == 8


# --- pins


async def test_pins(world):
    world.server.add(
        "a.example", "A", "a.example. 60 CNAME b.example.", "b.example. 20 A 1.1.1.1", "b.example. 20 A 1.0.0.1"
    )
    world.server.add("c.example", "HTTPS", 'c.example. 90 HTTPS 1 . ipv4hint="8.8.8.8" ipv6hint="2a00::1"')
    box, other = world.box(), world.box(TWO)
    await box.ask("A.example")
    await box.ask("c.example", "HTTPS")
    until_then = world.clock.now + 20
    assert world.resolver.pins(ONE) == {
        "1.1.1.1": ("a.example", until_then),
        "1.0.0.1": ("a.example", until_then),
        "8.8.8.8": ("c.example", until_then + 70),
        "2a00::1": ("c.example", until_then + 70),
    }
    assert world.resolver.pins(TWO) == {} and world.resolver.name_of(TWO, "1.1.1.1") == ""
    world.clock.now += 1000
    assert world.resolver.name_of(ONE, "1.1.1.1") == "a.example"  # whoever tries now was given it then
    assert world.resolver.name_of(ONE, "1.1.1.2") == ""
    world.server.add("d.example", "A", "d.example. 60 A 1.1.1.1")
    await box.ask("d.example")
    assert world.resolver.pins(ONE)["1.1.1.1"] == ("d.example", world.clock.now + 60)
    await other.ask("d.example")
    assert list(world.resolver.pins(TWO)) == ["1.1.1.1"]


async def test_a_pin_holds_for_as_long_as_any_answer_said(world):
    world.server.add("a.example", "A", "a.example. 0 A 1.1.1.1")
    world.server.add("a.example", "HTTPS", 'a.example. 600 HTTPS 1 . ipv4hint="1.1.1.1"')
    box = world.box()
    await box.ask("a.example", "HTTPS")
    await box.ask("a.example")
    assert world.resolver.pins(ONE) == {"1.1.1.1": ("a.example", world.clock.now + 600)}
    world.server.add("b.example", "A", "b.example. 60 A 1.1.1.1")
    await box.ask("b.example")
    assert world.resolver.pins(ONE) == {"1.1.1.1": ("b.example", world.clock.now + 60)}


async def test_the_oldest_pins_go(world, monkeypatch):
    monkeypatch.setattr(pins, "_MOST_ADDRESSES", 3)
    monkeypatch.setattr(pins, "_MOST_BOXES", 2)
    for n in range(5):
        world.server.add(f"n{n}.example", "A", f"n{n}.example. 60 A 1.1.1.{n}")
    box = world.box()
    for n in (0, 1, 2, 0, 3, 4):
        await box.ask(f"n{n}.example")
    assert list(world.resolver.pins(ONE)) == ["1.1.1.0", "1.1.1.3", "1.1.1.4"]
    for address in (TWO, ONE, "127.0.0.4"):
        await world.box(address).ask("n0.example")
    assert [bool(world.resolver.pins(address)) for address in (ONE, TWO, "127.0.0.4")] == [True, False, True]


async def test_what_is_handed_out_is_a_copy(world):
    await world.box().ask("public.example")
    world.resolver.pins(ONE).clear()
    assert world.resolver.name_of(ONE, "93.184.216.34") == "public.example"


# --- forgetting


async def test_forgetting_a_box_leaves_nothing_of_it(world):
    resolver = world.resolver
    box, other = world.box(), world.box(TWO)
    for asking in (box, other):
        await asking.ask("public.example")
    streams = [await asking.connect() for asking in (box, other)]
    world.server.open.clear()
    for n, stream in enumerate(streams):
        stream.send(dns.message.make_query(f"stream{n}.example", "A"), dns.message.make_query("shared.example", "A"))
    for n, asking in enumerate((box, other)):
        asking.send(dns.message.make_query(f"datagram{n}.example", "A"))
    await world.server.until_asked(6)
    assert (resolver._outstanding, resolver._connections) == (6, 2)
    forgotten = weakref.ref(resolver._askers[ONE])

    resolver.forget(ONE)
    assert resolver.pins(ONE) == {} and resolver.name_of(ONE, "93.184.216.34") == ""
    assert list(resolver._askers) == [TWO] and list(resolver._pins._boxes) == [TWO]
    assert await streams[0].ended()
    await until(lambda: (resolver._outstanding, resolver._connections) == (3, 1))
    assert sorted(key[0] for key in world.upstream._under_way) == [
        b"\6shared\7example\0",
        b"\7stream1\7example\0",
        b"\x09datagram1\7example\0",
    ]
    gc.collect()
    assert forgotten() is None

    world.server.open.set()
    assert {(await streams[1].receive()).rcode() for _ in range(2)} == {dns.rcode.NXDOMAIN}
    assert dns.message.from_wire(await other.receive()).rcode() == dns.rcode.NXDOMAIN
    await world.box(TWO).ask("localhost")
    with pytest.raises(BlockingIOError):
        box.sock.recv(65535)
    assert list(resolver._askers) == [TWO] and resolver.pins(ONE) == {}


async def test_the_next_box_with_this_address_starts_anew(world, monkeypatch):
    monkeypatch.setattr(module, "_BURST", 2)
    box = world.box()
    for _ in range(2):
        await box.ask("localhost")
    assert (await box.ask("localhost")).rcode() == dns.rcode.REFUSED
    world.resolver.forget(ONE)
    world.resolver.forget(ONE)  # nor does it matter that it has been done
    assert addresses(await box.ask("localhost")) == ["127.0.0.1"]


async def test_boxes_of_which_nobody_says_that_they_are_gone(world, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ASKERS", 2)
    kept = await world.box(ONE).connect()
    for address in (TWO, "127.0.0.4", "127.0.0.5"):
        await world.box(address).ask("localhost")
        await until(lambda: not world.resolver._outstanding)
    assert list(world.resolver._askers) == [ONE, "127.0.0.5"]
    kept.send(dns.message.make_query("localhost", "A"))
    assert addresses(await kept.receive()) == ["127.0.0.1"]


async def test_the_end_of_serving_is_the_end_of_everything(world):
    world.server.open.clear()
    box = world.box()
    stream = await box.connect()
    stream.send(dns.message.make_query("a.example", "A"))
    box.send(dns.message.make_query("b.example", "A"))
    await world.server.until_asked(2)
    sockets = world._sockets
    world._task.cancel()
    await asyncio.gather(world._task, return_exceptions=True)
    assert (world.resolver._outstanding, world.resolver._connections) == (0, 0)
    assert await stream.ended()
    assert all(sock.fileno() >= 0 for sock in sockets)  # these are the caller's
    assert asyncio.get_running_loop().remove_reader(sockets[0].fileno()) is False
