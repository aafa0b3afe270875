"""The sockets on which boxes ask for names: in a network namespace of their own, so that the questions are forwarded
like all else that boxes send, and no firewall of the host's input has to let them in."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from boxwood.engine import kernel as k
from boxwood.engine.network import netlink, wire

_PORT = 53
_WAITING = 128
_RECEIVE = 1 << 20


def open_sockets(router: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP, non-blocking. The namespace lives as long as they do. OSError."""
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
            finally:
                os.close(here)
            return _listen(address)
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


def _listen(address: str) -> tuple[socket.socket, socket.socket]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for sock in (udp, tcp):
        sock.setblocking(False)
        sock.bind((address, _PORT))
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE)
    tcp.listen(_WAITING)
    return udp, tcp
