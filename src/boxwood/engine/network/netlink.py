"""Netlink, as far as the wires of boxes need it: requests that are acknowledged, and what the kernel tells of links.

Written out because it is part of what a fork waits for, in a process whose every import is paid for by each box; what
runs elsewhere uses `nft`. Layouts: linux/rtnetlink.h, linux/if_link.h, linux/netfilter/nfnetlink*.h.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NEWLINK, DELLINK, GETLINK, NEWADDR, NEWROUTE, NEWNEIGH = 16, 17, 18, 20, 24, 28
LINK_EVENTS = 1  # multicast group, as a bit mask
_REQUEST, _ACK, DUMP, _REPLACE, _EXCL, _CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
_ERROR, _DONE, _OVERRUN = 2, 3, 4
NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC = 1, 3, 4, 18, 26
_IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_TX_QUEUES, _IFLA_RX_QUEUES = 27, 28, 31, 32
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_INET_CONF, _INET6_ADDR_GEN_MODE = 1, 8
# linux/ip.h, IPV4_DEVCONF_*
FORWARDING, ACCEPT_REDIRECTS, SEND_REDIRECTS, RP_FILTER, ACCEPT_SOURCE_ROUTE = 1, 4, 6, 8, 9
_UP = 1
_MAIN_TABLE, _STATIC, _UNICAST, _SCOPE_LINK, _ONLINK, _PERMANENT = 254, 4, 1, 253, 4, 0x80
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_RECEIVED = 1 << 18


class Overrun(OSError):
    """The kernel had more to tell than there was room for: what is known has to be asked for again."""


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    group: int


class Netlink:
    """A socket in the network namespace that the process is in when it is made. OSError where the kernel refuses."""

    def __init__(self, protocol: int = 0, groups: int = 0) -> None:
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self.sock.bind((0, groups))
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self.sock.close()

    def ask(self, *messages: tuple[int, int, bytes]) -> list[tuple[int, bytes]]:
        """Each (type, flags, body) in order, until one is refused: OSError, with its number's place in the list as
        `filename`. What the kernel answered besides acknowledgements: (type, body)."""
        first = next(self._numbers)
        packed, number = [], first
        for number, (kind, flags, body) in zip(itertools.count(first), messages, strict=False):
            packed.append(_HEADER.pack(16 + len(body), kind, flags | _REQUEST | _ACK, number, 0) + body)
        self._numbers = itertools.count(number + 1)
        self.sock.sendall(b"".join(packed))
        found: list[tuple[int, bytes]] = []
        while True:
            for kind, at, body in self.receive():
                if not first <= at <= number:
                    continue  # an answer to what was given up
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        self._skip()
                        raise OSError(code, os.strerror(code), at - first)
                    if at == number:
                        return found
                elif kind == _DONE:
                    return found
                else:
                    found.append((kind, body))

    def _skip(self) -> None:
        """Answers to later messages of the batch, already here, are nobody's."""
        try:
            while True:
                self.sock.recv(_RECEIVED, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass

    def receive(self) -> list[tuple[int, int, bytes]]:
        """One datagram's messages: (type, number, body). Overrun."""
        try:
            data = self.sock.recv(_RECEIVED)
        except OSError as error:
            if error.errno == 105:  # ENOBUFS
                raise Overrun from None
            raise
        found, at = [], 0
        while at + 16 <= len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, at)
            if length < 16:
                break
            if kind == _OVERRUN:
                raise Overrun
            found.append((kind, number, data[at + 16 : at + length]))
            at += (length + 3) & ~3
        return found


# --- requests: (type, flags, body)

Request = tuple[int, int, bytes]


def _interface(index: int = 0, flags: int = 0, *attributes: bytes) -> bytes:
    return _LINK.pack(0, 0, index, flags, flags) + b"".join(attributes)


def _queues() -> bytes:
    return number(_IFLA_TX_QUEUES, 1) + number(_IFLA_RX_QUEUES, 1)


def add_veth(name: str, group: int, mac: bytes, mtu: int, peer: str, peer_mac: bytes, namespace: int) -> Request:
    """A pair: one end here, the other in the network namespace that `namespace` is a descriptor of."""
    inside = _interface(
        0, 0, text(_IFLA_IFNAME, peer), attribute(_IFLA_ADDRESS, peer_mac), number(_IFLA_MTU, mtu),
        number(_IFLA_NET_NS_FD, namespace), _queues(),
    )  # fmt: skip
    info = nested(
        _IFLA_LINKINFO, attribute(_INFO_KIND, b"veth"), nested(_INFO_DATA, attribute(_VETH_PEER | NESTED, inside))
    )
    ours = (
        text(_IFLA_IFNAME, name), attribute(_IFLA_ADDRESS, mac), number(_IFLA_MTU, mtu), number(_IFLA_GROUP, group),
        _queues(), info,
    )  # fmt: skip
    return NEWLINK, _CREATE | _EXCL, _interface(0, 0, *ours)


def find_link(name: str) -> Request:
    return GETLINK, 0, _interface(0, 0, text(_IFLA_IFNAME, name))


def list_links() -> Request:
    return GETLINK, DUMP, _interface()


def delete_link(name: str) -> Request:
    return DELLINK, 0, _interface(0, 0, text(_IFLA_IFNAME, name))


def delete_links(group: int) -> Request:
    """All of a group, in one go. Refused with ENODEV if there are none."""
    return DELLINK, 0, _interface(0, 0, number(_IFLA_GROUP, group))


def bring_up(index: int) -> Request:
    return NEWLINK, 0, _interface(index, _UP)


def bring_up_router(index: int) -> Request:
    """The host's end of a wire: it forwards, checks where packets come from, and has no address of its own."""
    conf = ((FORWARDING, 1), (ACCEPT_REDIRECTS, 0), (SEND_REDIRECTS, 0), (RP_FILTER, 1), (ACCEPT_SOURCE_ROUTE, 0))
    inet = nested(socket.AF_INET, nested(_INET_CONF, *(number(kind, value) for kind, value in conf)))
    inet6 = nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, b"\1"))
    return NEWLINK, 0, _interface(index, _UP, nested(_IFLA_AF_SPEC, inet, inet6))


def add_address(index: int, address: str) -> Request:
    raw = socket.inet_aton(address)
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    return NEWADDR, _CREATE | _REPLACE, body + attribute(1, raw) + attribute(2, raw)


def add_route(index: int, to: str, source: str) -> Request:
    """To one address, over this interface; what the host itself says there comes from `source`."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, _MAIN_TABLE, _STATIC, _SCOPE_LINK, _UNICAST, 0)
    found = attribute(1, socket.inet_aton(to)) + number(4, index) + attribute(7, socket.inet_aton(source))
    return NEWROUTE, _CREATE | _REPLACE, body + found


def add_default_route(index: int, gateway: str) -> Request:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _STATIC, 0, _UNICAST, _ONLINK)
    return NEWROUTE, _CREATE | _REPLACE, body + number(4, index) + attribute(5, socket.inet_aton(gateway))


def add_neighbour(index: int, address: str, mac: bytes) -> Request:
    body = struct.pack("=BxxxiHBB", socket.AF_INET, index, _PERMANENT, 0, 0)
    return NEWNEIGH, _CREATE | _REPLACE, body + attribute(1, socket.inet_aton(address)) + attribute(2, mac)


def parse_link(body: bytes) -> Link:
    _, _, index, _, _ = _LINK.unpack_from(body)
    name, group = "", 0
    for kind, value in attributes(body[16:]):
        if kind == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _IFLA_GROUP:
            (group,) = struct.unpack("=I", value)
    return Link(index, name, group)


def links(found: Sequence[tuple[int, bytes]]) -> list[Link]:
    return [parse_link(body) for kind, body in found if kind == NEWLINK]
