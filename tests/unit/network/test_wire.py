"""Addresses of boxes, and what is read of the kernel's messages."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from boxwood.engine.api import MOST_DENIALS, Denial, Usage
from boxwood.engine.network import netfilter, netlink, wire
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.ledger import packed, unpacked


def test_every_range_of_uids_has_an_address_of_its_own() -> None:
    found = [wire.address_of(number) for number in range(32766)]
    assert len(set(found)) == len(found)
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network(wire.BOXES) for address in found)
    assert {address.rpartition(".")[2] for address in found}.isdisjoint({"0", "255"})
    resolvers = [wire.resolver_of(number) for number in range(32)]
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network(wire.RESOLVERS) for address in resolvers)
    assert not any(is_public(ipaddress.ip_address(address)) for address in (*found[::99], *resolvers, wire.GATEWAY))


def test_routers_share_no_group() -> None:
    groups = [group for number in range(32) for group in (wire.group_of(number), wire.group_of(number) + 1)]
    assert len(set(groups)) == 64 and max(groups) < 1 << 31


def test_a_name_tells_its_address_and_is_never_the_same() -> None:
    names = {wire.name_of("198.18.129.7") for _ in range(50)}
    assert len(names) == 50 and all(len(name) < 16 for name in names)
    assert {wire.address_in(name) for name in names} == {"198.18.129.7"}


@pytest.mark.parametrize(
    "name", ["eth0", "bw", "bwdns0", "bwzzzz12345678", "bw0001", "docker0", "", "bw00011234567890"]
)
def test_a_stranger_s_name_tells_none(name: str) -> None:
    assert wire.address_in(name) == ""


def test_a_plan_s_wire_is_the_one_that_was_sent() -> None:
    made = wire.Wire("198.18.0.1", 3, 1400)
    assert wire.Wire(*made.fields()) == made


@pytest.mark.parametrize("data", [b"", b"\0", b"\x03\0\x01\0", b"\x04\0\x01\0\xff", b"\xff\xff\x01\0abc"])
def test_cut_off_attributes_end(data: bytes) -> None:
    assert all(len(value) <= len(data) for _, value in netlink.attributes(data))


def _logged(packet: bytes, prefix: bytes = b"private\0") -> dict[int, bytes]:
    return {9: packet, 10: prefix}


def _packet(protocol: int, payload: bytes, options: bytes = b"") -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | (20 + len(options)) // 4, 0, 40, 1, 0, 64, protocol, 0,
        socket.inet_aton("198.18.0.9"), socket.inet_aton("10.0.0.1"),
    )  # fmt: skip
    return head + options + payload


@pytest.mark.parametrize(
    ("packet", "protocol", "port"),
    [
        (_packet(6, struct.pack("!HH", 40000, 22)), "tcp", 22),
        (_packet(17, struct.pack("!HH", 40000, 53), bytes(8)), "udp", 53),
        (_packet(1, b"\x08\0\0\0"), "icmp", 0),
        (_packet(47, b""), "47", 0),
        (_packet(6, b"\1"), "tcp", 0),
    ],
)
def test_a_refused_packet_is_told(packet: bytes, protocol: str, port: int) -> None:
    found = netfilter._denial(_logged(packet))
    assert found is not None
    box, denial = found
    assert box == "198.18.0.9"
    assert (denial.protocol, denial.address, denial.port, denial.reason) == (protocol, "10.0.0.1", port, "private")


@pytest.mark.parametrize("packet", [b"", b"\x45" * 19, b"\x60" + bytes(40)])
def test_what_is_no_packet_is_not(packet: bytes) -> None:
    assert netfilter._denial(_logged(packet)) is None


def test_usages_add_up_and_travel() -> None:
    many = tuple(Denial(float(at), "tcp", "10.0.0.1", 80) for at in range(40))
    total = Usage(1, 2, 3, 40, many) + Usage(10, 20, 30, 40, many)
    assert (total.sent, total.received, total.connections, total.denied) == (11, 22, 33, 80)
    assert len(total.denials) == MOST_DENIALS and total.denials[-1].at == 39.0
    assert unpacked(packed(total)) == total
