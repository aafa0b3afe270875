"""Asking the host's servers: what is remembered, and who asks the same at once."""

from __future__ import annotations

import asyncio

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from fake_dns import addresses, ask, asked, reach

from boxwood.engine.network import upstream as module
from boxwood.engine.network.upstream import NoAnswer

SOA = "example. 600 SOA ns.example. me.example. 1 2 3 4 120"


# --- memory


async def test_an_answer_is_remembered_as_long_as_it_holds(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers, clock)
    assert (await ask(upstream)).answer[0].ttl == 60
    clock.now += 59.5
    again = await ask(upstream, "A.EXAMPLE")
    assert addresses(again) == ["93.184.216.34"] and again.answer[0].ttl == 1
    assert asked(servers) == [1, 0, 0]
    clock.now += 0.5
    assert (await ask(upstream)).answer[0].ttl == 60
    assert asked(servers) == [2, 0, 0]


async def test_who_changes_an_answer_changes_it_for_nobody_else(tmp_path, servers, clock):
    upstream = reach(tmp_path, servers, clock)
    (await ask(upstream)).answer.clear()
    (await ask(upstream)).answer[0].clear()
    assert addresses(await ask(upstream)) == ["93.184.216.34"]


async def test_each_type_and_name_is_remembered_for_itself(tmp_path, servers, clock):
    """Whatever else an answer carries is no answer to another question."""
    servers[0].add("evil.example", "A", "evil.example. 60 A 1.1.1.1", "a.example. 60 A 6.6.6.6")
    upstream = reach(tmp_path, servers, clock)
    await ask(upstream, "evil.example")
    assert addresses(await ask(upstream)) == ["93.184.216.34"]
    assert (await ask(upstream, "a.example", "TXT")).rcode() == dns.rcode.NXDOMAIN
    assert servers[0].names == ["evil.example. A", "a.example. A", "a.example. TXT"]


@pytest.mark.parametrize(
    ("records", "authority", "rcode", "seconds"),
    [
        (["b.example. 86400 A 1.1.1.1"], "", 0, 3600),
        (["b.example. 0 A 1.1.1.1"], "", 0, 0),
        (["b.example. 600 CNAME c.example.", "c.example. 20 A 1.1.1.1"], "", 0, 20),
        (["b.example. 20 CNAME c.example.", "c.example. 600 A 1.1.1.1"], "", 0, 20),
        ([], SOA, dns.rcode.NXDOMAIN, 120),
        ([], SOA, 0, 120),
        ([], SOA.replace(" 120", " 9999"), dns.rcode.NXDOMAIN, 300),
        ([], SOA.replace(" 600 ", " 7 "), dns.rcode.NXDOMAIN, 7),
        ([], "", dns.rcode.NXDOMAIN, 0),
        ([], "", 0, 0),
        (["b.example. 600 CNAME c.example."], SOA, dns.rcode.NXDOMAIN, 120),
        (["b.example. 600 CNAME c.example."], "", 0, 0),
        ([], SOA, dns.rcode.SERVFAIL, 0),
    ],
)
async def test_how_long_it_is_remembered(tmp_path, servers, clock, records, authority, rcode, seconds):
    servers[0].add("b.example", "A", *records, authority=authority, rcode=rcode)
    upstream = reach(tmp_path, servers[:1], clock)
    await ask(upstream, "b.example")
    clock.now += max(0, seconds - 1)
    await ask(upstream, "b.example")
    assert len(servers[0].asked) == (1 if seconds else 2)
    clock.now += 1
    await ask(upstream, "b.example")
    assert len(servers[0].asked) == (2 if seconds else 3)


async def test_what_is_large_is_not_remembered(tmp_path, servers, clock):
    servers[0].add("large.example", "TXT", *(f'large.example. 60 TXT "{n:0250}"' for n in range(20)))
    upstream = reach(tmp_path, servers, clock)
    for _ in range(2):
        await ask(upstream, "large.example", "TXT")
    assert asked(servers) == [2, 0, 0]


async def test_what_was_wanted_last_is_remembered(tmp_path, servers, clock, monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEPT", 2)
    for name in "bc":
        servers[0].add(f"{name}.example", "A", f"{name}.example. 60 A 1.1.1.1")
    upstream = reach(tmp_path, servers, clock)
    for name in "abac":
        await ask(upstream, f"{name}.example")
    assert len(upstream._kept) == 2
    assert servers[0].names == ["a.example. A", "b.example. A", "c.example. A"]
    await ask(upstream, "a.example")
    assert len(servers[0].asked) == 3
    await ask(upstream, "b.example")
    assert len(servers[0].asked) == 4


# --- at once


async def test_the_same_question_is_asked_once_at_a_time(tmp_path, servers, clock):
    server = servers[0]
    server.add("a.example", "A", "a.example. 0 A 1.1.1.1")  # nothing to remember
    server.open.clear()
    upstream = reach(tmp_path, servers, clock)
    asking = [asyncio.create_task(ask(upstream, name)) for name in ("a.example", "A.example", "a.EXAMPLE")]
    await server.until_asked(1)
    server.open.set()
    found = await asyncio.gather(*asking)
    assert [addresses(answer) for answer in found] == [["1.1.1.1"]] * 3
    assert len({id(answer) for answer in found}) == 3
    assert asked(servers) == [1, 0, 0]
    await ask(upstream)
    assert asked(servers) == [2, 0, 0]


async def test_who_goes_leaves_the_question_to_who_stays(tmp_path, servers, clock):
    servers[0].open.clear()
    upstream = reach(tmp_path, servers, clock)
    first, second = (asyncio.create_task(ask(upstream)) for _ in range(2))
    await servers[0].until_asked(1)
    first.cancel()
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError)
    servers[0].open.set()
    assert addresses(await second) == ["93.184.216.34"]
    assert asked(servers) == [1, 0, 0]


async def test_a_question_that_nobody_waits_for_is_given_up(tmp_path, servers, clock):
    servers[0].open.clear()
    upstream = reach(tmp_path, servers, clock)
    asking = [asyncio.create_task(ask(upstream)) for _ in range(2)]
    await servers[0].until_asked(1)
    (under_way,) = upstream._under_way.values()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert not upstream._under_way
    await asyncio.wait([under_way.task])
    assert under_way.task.cancelled()
    servers[0].open.set()
    assert addresses(await ask(upstream)) == ["93.184.216.34"]
    assert asked(servers) == [2, 0, 0]


async def test_an_error_is_everybodys_who_waits(tmp_path, servers, clock, impatient):
    for server in servers:
        server.act = lambda query: None
    upstream = reach(tmp_path, servers, clock)
    found = await asyncio.gather(*(ask(upstream) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [NoAnswer] * 3
    assert not upstream._under_way and not upstream._kept
