"""What stays behind in the host's network: what it gives to a router, and what it does not."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from boxwood.engine.network import behind, nameservers, porter, ways
from boxwood.engine.network.porter import Porter
from boxwood.engine.network.ways import Through


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def through(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> AsyncIterator[Through]:
    """To a porter whose host has one name server, on its loopback."""
    zygote, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with zygote, other:
        found = Porter(zygote, str(tmp_path))
        found.resolv = tmp_path / "resolv.conf"
        found.resolv.write_text("nameserver 127.0.0.53\n")
        found.admit(pair[1])
        way = Through(pair[0])
        with pytest.raises(OSError, match="was not ready"):
            await way.open(0.05)  # for there is no pasta
        yield way
        asyncio.get_running_loop().remove_reader(pair[0].fileno())
        found.close()


async def test_sockets_to_name_servers_of_the_host(through: Through) -> None:
    (server,) = nameservers.settings("nameserver 127.0.0.53\n", 53).servers
    with await through.to_server(server, socket.SOCK_DGRAM) as sock:
        assert sock.getpeername() == ("127.0.0.53", 53) and not sock.getblocking()


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        (("127.0.0.53", 22), socket.SOCK_DGRAM),
        (("127.0.0.1", 53), socket.SOCK_STREAM),
        (("93.184.215.14", 53), socket.SOCK_DGRAM),
        (("127.0.0.53", 53), socket.SOCK_RAW),
    ],
)
async def test_and_to_nobody_else(through: Through, place: tuple[str, int], kind: int) -> None:
    with pytest.raises(OSError, match="no name server"):
        await through.to_server((socket.AF_INET, place), kind)


async def test_names_are_looked_up_by_the_host(through: Through) -> None:
    assert "127.0.0.1" in await through.addresses("localhost")
    with pytest.raises(OSError, match="no name of a host"):
        await through.addresses("a name\n")


@pytest.mark.parametrize("packet", [b"x", b"[]", b"{}", b'{"n": 1}', b'{"n": 1, "server": 7, "kind": "x"}'])
async def test_a_router_that_makes_no_sense_is_dropped(
    through: Through, pair: tuple[socket.socket, socket.socket], packet: bytes
) -> None:
    pair[0].send(packet)
    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="porter"):
            async for _ in through.changes():
                pass


async def test_the_host_s_addresses_are_told(pair: tuple[socket.socket, socket.socket]) -> None:
    way = Through(pair[0])
    ways.say(pair[1], {"own": ["192.0.2.1/32"]})
    ways.say(pair[1], {"up": True})
    await way.open(10)
    assert way.own == ["192.0.2.1/32"]
    ways.say(pair[1], {"own": []})
    changes = way.changes()
    assert [await anext(changes), await anext(changes)] == [["192.0.2.1/32"], []]
    pair[1].close()
    with pytest.raises(OSError, match="porter"):
        await anext(changes)
    asyncio.get_running_loop().remove_reader(pair[0].fileno())


async def test_why_there_is_no_way(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].send(json.dumps({"why": "pasta has ended with 1"}).encode())
    way = Through(pair[0])
    with pytest.raises(OSError, match="ended with 1"):
        await way.open(10)
    asyncio.get_running_loop().remove_reader(pair[0].fileno())


def test_own_addresses() -> None:
    found = [ipaddress.ip_network(place) for place in porter.own_addresses()]
    assert any(ipaddress.ip_address("127.0.0.1") in network for network in found)


def test_pasta_has_none_of_its_comforts() -> None:
    words = porter.command("/network", "/ready")
    for flag in ("--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--ipv4-only"):
        assert flag in words
    for ports in ("-t", "-u", "-T", "-U"):
        assert words[words.index(ports) + 1] == "none"


def test_addresses_of_the_host_that_are_gone_are_open_again() -> None:
    assert behind.closing("t", ["192.0.2.1/32"]).splitlines() == [
        "flush set inet t own", "add element inet t own { 192.0.2.1/32 }",
    ]  # fmt: skip
    assert behind.closing("t", []) == "flush set inet t own\n"
