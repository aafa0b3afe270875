"""The sockets on which boxes ask for names, and have their requests seen: in a network namespace of their own, so that
what comes to them is forwarded like all else that boxes send, and no firewall of the host's input has to let it in."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.network import netlink, wire

_PORT = 53
_WAITING, _MOST_WAITING = 128, 1024
_RECEIVE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sockets:
    """`udp`, `tcp`: for questions, non-blocking; `guests`: where connections come to whose requests are to be seen;
    `namespace`: a descriptor of the network namespace that they are in, which lives as long as any of them."""

    udp: socket.socket
    tcp: socket.socket
    guests: socket.socket
    namespace: int

    def close(self) -> None:
        for sock in (self.udp, self.tcp, self.guests):
            sock.close()
        os.close(self.namespace)


def open_sockets(router: int) -> Sockets:
    """OSError."""
    name, address = f"bwdns{router}", wire.resolver_of(router)
    host = netlink.Netlink()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _remove(host, name)  # of a router that was killed: its namespace may take a moment to go
        k.unshare(k.NEWNET)
        try:
            here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _plug(host, name, address, here, router)
                return Sockets(*_listen(address), here)
            except BaseException:
                os.close(here)
                raise
        finally:
            k.setns(home, k.NEWNET)
    finally:
        os.close(home)
        host.close()


def _remove(host: netlink.Netlink, name: str) -> None:
    try:
        host.ask(netlink.delete_link(name))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _plug(host: netlink.Netlink, name: str, address: str, here: int, router: int) -> None:
    mac = b"\x02\x62" + socket.inet_aton(address)
    group = wire.group_of(router) + 1
    add = netlink.add_veth(name, group, wire.HOST_MAC, 1500, wire.INSIDE, mac, here)
    (outside,) = netlink.links(host.ask(add, netlink.find_link(name)))
    host.ask(
        netlink.bring_up_router(outside.index),
        netlink.add_address(outside.index, wire.GATEWAY),
        netlink.add_route(outside.index, address, wire.GATEWAY),
        netlink.add_neighbour(outside.index, address, mac),
    )
    with contextlib.closing(netlink.Netlink()) as inside:
        index = socket.if_nametoindex(wire.INSIDE)
        inside.ask(
            netlink.bring_up(index),
            netlink.add_address(index, address),
            netlink.add_neighbour(index, wire.GATEWAY, wire.HOST_MAC),
            netlink.add_default_route(index, wire.GATEWAY),
        )


def _listen(address: str) -> tuple[socket.socket, socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    guests = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for sock, port in ((udp, _PORT), (tcp, _PORT), (guests, wire.PROXY_PORT)):
        sock.setblocking(False)
        sock.bind((address, port))
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE)
    tcp.listen(_WAITING)
    guests.listen(_MOST_WAITING)
    return udp, tcp, guests
