"""The wire of a box: a veth pair, one end in the box's network namespace, the other with the host, who routes.

Every box has a link layer of its own, with an address and neighbours that are fixed, so nobody can pretend to be
another there. Its address is as much its own as its range of uids, by which it is numbered: no two live boxes of a host
have the same. The other end has none; the gateway's is the same for all.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass

from boxwood.engine.network import netlink

GATEWAY = "169.254.1.1"  # and what answers to names, as boxes see it (see images/names.py)
POOL, BOXES, RESOLVERS = "198.18.0.0/15", "198.18.0.0/16", "198.19.0.0/16"
_FIRST_BOX, _FIRST_RESOLVER = 198 << 24 | 18 << 16, 198 << 24 | 19 << 16
PROXY_PORT = 8008  # of the resolver's address: where connections go whose requests a policy asks about
_PER_ROW = 254  # no address ends in 0 or 255: some programs take it for a network or for everybody
_GROUPS = 0x0B570000
HOST_MAC = bytes.fromhex("026277000001")
INSIDE = "eth0"


def address_of(number: int) -> str:
    """Of the box whose range of uids has this number."""
    row, place = divmod(number, _PER_ROW)
    return socket.inet_ntoa((_FIRST_BOX + row * 256 + place + 1).to_bytes(4, "big"))


def resolver_of(router: int) -> str:
    return socket.inet_ntoa((_FIRST_RESOLVER + router * 256 + 1).to_bytes(4, "big"))


def group_of(router: int) -> int:
    """Of the host's ends of all wires of a router's boxes; the next one is its resolver's."""
    return _GROUPS + 2 * router


def name_of(address: str) -> str:
    """Of the host's end: a new one each time, since one that has gone may linger for a moment."""
    return prefix_of(address) + os.urandom(4).hex()


def prefix_of(address: str) -> str:
    return "bw" + socket.inet_aton(address)[2:].hex()


def address_in(name: str) -> str:
    """The address that an interface of this name belongs to; empty if it is not one of ours."""
    if not name.startswith("bw") or len(name) != 14:
        return ""
    try:
        return socket.inet_ntoa(bytes((198, 18)) + bytes.fromhex(name[2:6]))
    except ValueError:
        return ""


@dataclass(frozen=True, slots=True)
class Wire:
    """What a box's wire will be. `router`: the number of its router."""

    address: str
    router: int
    mtu: int = 1500

    def fields(self) -> tuple[str, int, int]:
        """What makes the same wire again."""
        return self.address, self.router, self.mtu


class Plug:
    """Where a wire goes in: made in the host's network namespace, by a process that leaves it afterwards."""

    def __init__(self) -> None:
        self._host = netlink.Netlink()
        self._name = ""
        self.pings = -1  # a descriptor of the network namespace's setting of who may ping

    def settle(self, wire: Wire | None) -> None:
        """From now on the network namespace that the process is in has this wire, or none. OSError."""
        if wire is not None and not self._name:
            self._plug(wire)
        elif wire is None and self._name:
            self._remove()

    def close(self) -> None:
        self._host.close()

    def _remove(self) -> None:
        self._host.ask(netlink.delete_link(self._name))
        self._name = ""

    def _plug(self, wire: Wire) -> None:
        """Wholly, or not at all."""
        try:
            self._join(wire)
        except OSError:
            if self._name:
                self._remove()
            raise

    def _join(self, wire: Wire) -> None:
        name = name_of(wire.address)
        mac = b"\x02\x62" + socket.inet_aton(wire.address)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            add = netlink.add_veth(name, group_of(wire.router), HOST_MAC, wire.mtu, INSIDE, mac, here)
            (outside,) = netlink.links(self._host.ask(add, netlink.find_link(name)))
        finally:
            os.close(here)
        self._name = name
        self._host.ask(
            netlink.bring_up_router(outside.index),
            netlink.add_route(outside.index, wire.address, GATEWAY),
            netlink.add_neighbour(outside.index, wire.address, mac),
        )
        with contextlib.closing(netlink.Netlink()) as box:
            index = socket.if_nametoindex(INSIDE)
            box.ask(
                netlink.bring_up(index),
                netlink.add_address(index, wire.address),
                netlink.add_neighbour(index, GATEWAY, HOST_MAC),
                netlink.add_default_route(index, GATEWAY),
            )
