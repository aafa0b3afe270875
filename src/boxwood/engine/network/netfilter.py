"""What the router asks of netfilter beside its rules: to forget connections, and to be told of refused packets."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from boxwood.engine.api import Denial
from boxwood.engine.network.netlink import DUMP, NESTED, Netlink, Overrun, attribute, attributes, nested

_NETFILTER = 12  # the netlink protocol
_CONNTRACK_GET, _CONNTRACK_DELETE = 1 << 8 | 1, 1 << 8 | 2
_LOG_PACKET, _LOG_CONFIG = 4 << 8, 4 << 8 | 1
_TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO, _IP_SRC, _IP_DST, _PROTO_DST_PORT = 1, 1, 2, 1, 2, 3
_CFG_CMD, _CFG_MODE, _BIND, _COPY_PACKET = 1, 2, b"\1", 2
_PAYLOAD, _PREFIX = 9, 10
_FILTER, _FILTER_ORIG, _FILTER_IP_SRC = 25, 1, 1
_TABLE_EVENTS, _DELETED_TABLE, _TABLE_NAME = 7, 10 << 8 | 2, 1
_HEAD_BYTES = 64  # of each packet: addresses and ports
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_MOST_AT_ONCE = 256


def _message(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 1 if family else 0, resource)


class Connections:
    """The host's table of connections."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETFILTER)

    def end(self, ends: Callable[[str, str, int], bool], which: bytes = b"") -> None:
        """End those that are to: from, to, port. `which`: attributes of those that the kernel tells at all. Each by all
        that it is known by: kernels before 6.11 know no other way. OSError."""
        dump = self._netlink.ask((_CONNTRACK_GET, DUMP, _message(socket.AF_INET) + which))
        for _, body in dump:
            raw = dict(attributes(body[4:])).get(_TUPLE_ORIG, b"")
            if ends(*_tuple(raw)):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    delete = _message(socket.AF_INET) + attribute(_TUPLE_ORIG | NESTED, raw)
                    self._netlink.ask((_CONNTRACK_DELETE, 0, delete))

    def forget(self, addresses: Sequence[str]) -> None:
        """All that these have opened. The kernel looks for them, not we. OSError."""
        for address in addresses:
            source = nested(_TUPLE_ORIG, nested(_TUPLE_IP, attribute(_IP_SRC, socket.inet_aton(address))))
            which = nested(_FILTER, attribute(_FILTER_ORIG, struct.pack("=I", _FILTER_IP_SRC)))
            self.end(partial(_is_from, address), source + which)

    def close(self) -> None:
        self._netlink.close()


def _is_from(address: str, source: str, target: str, port: int) -> bool:
    return source == address


def _tuple(raw: bytes) -> tuple[str, str, int]:
    """Of a connection's first packet: from, to, and the port it went to (0 where there is none)."""
    parts = dict(attributes(raw))
    addresses, protocol = dict(attributes(parts.get(_TUPLE_IP, b""))), dict(attributes(parts.get(_TUPLE_PROTO, b"")))
    nowhere = bytes(4)
    port = int.from_bytes(protocol.get(_PROTO_DST_PORT, b""), "big")
    source, target = addresses.get(_IP_SRC, nowhere), addresses.get(_IP_DST, nowhere)
    return socket.inet_ntoa(source), socket.inet_ntoa(target), port


class Removals:
    """Tables of nftables that somebody removes: a socket to be read when it is readable."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETFILTER, 1 << (_TABLE_EVENTS - 1))
        self._netlink.sock.setblocking(False)

    def fileno(self) -> int:
        return self._netlink.sock.fileno()

    def read(self) -> set[str]:
        """Their names; every name, as it were ("*"), if there was more to tell than room."""
        found: set[str] = set()
        try:
            while True:
                for kind, _, body in self._netlink.receive():
                    if kind == _DELETED_TABLE:
                        found.add(
                            dict(attributes(body[4:])).get(_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace")
                        )
        except BlockingIOError:
            return found
        except Overrun:
            return {"*"}

    def close(self) -> None:
        self._netlink.close()


class Refused:
    """Packets that the table logs to a group: a socket to be read when it is readable."""

    def __init__(self, group: int) -> None:
        self._netlink = Netlink(_NETFILTER)
        mode = struct.pack("!IBB", _HEAD_BYTES, _COPY_PACKET, 0)
        self._netlink.ask((_LOG_CONFIG, 0, _message(0, group) + attribute(_CFG_CMD, _BIND)))
        self._netlink.ask((_LOG_CONFIG, 0, _message(0, group) + attribute(_CFG_MODE, mode)))
        self._netlink.sock.setblocking(False)

    def fileno(self) -> int:
        return self._netlink.sock.fileno()

    def read(self) -> Iterator[tuple[str, Denial]]:
        """The address of a box, and what it tried. What there was no room for is not told, only counted."""
        for _ in range(_MOST_AT_ONCE):
            try:
                messages = self._netlink.receive()
            except BlockingIOError:
                return
            except Overrun:
                continue
            for kind, _, body in messages:
                if kind == _LOG_PACKET and (found := _denial(dict(attributes(body[4:])))):
                    yield found

    def close(self) -> None:
        self._netlink.close()


def _denial(logged: dict[int, bytes]) -> tuple[str, Denial] | None:
    packet, reason = logged.get(_PAYLOAD, b""), logged.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace")
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return None
    head, protocol = (packet[0] & 15) * 4, packet[9]
    source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    port = 0
    if protocol in (6, 17) and len(packet) >= head + 4:
        (port,) = struct.unpack_from("!H", packet, head + 2)
    name = _PROTOCOLS.get(protocol, str(protocol))
    return source, Denial(time.time(), name, target, port, "", reason)
