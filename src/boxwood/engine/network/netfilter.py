"""What the router asks of netfilter beside its rules: to forget connections, and to be told of refused packets."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from boxwood.engine.api import Denial
from boxwood.engine.network.netlink import DUMP, NESTED, Netlink, Overrun, attribute, attributes, nested, text

_NETFILTER = 12  # the netlink protocol
_CONNTRACK_GET, _CONNTRACK_DELETE = 1 << 8 | 1, 1 << 8 | 2
_LOG_PACKET, _LOG_CONFIG = 4 << 8, 4 << 8 | 1
_TUPLE_ORIG, _TUPLE_REPLY, _TUPLE_IP, _TUPLE_PROTO, _IP_SRC, _IP_DST = 1, 2, 1, 2, 1, 2
_PROTO_NUMBER, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 2, 3
_CFG_CMD, _CFG_MODE, _BIND, _COPY_PACKET = 1, 2, b"\1", 2
_PAYLOAD, _PREFIX = 9, 10
_FILTER, _FILTER_ORIG, _FILTER_IP_SRC = 25, 1, 1
_TABLE_EVENTS, _DELETED_TABLE, _TABLE_NAME = 7, 10 << 8 | 2, 1
_REQUEST, _ACK, _CREATE, _ERROR = 1, 4, 0x400, 2
_TABLES, _BATCH_BEGIN, _BATCH_END, _NEW_ELEMENT, _DELETE_ELEMENT = 10, 16, 17, 10 << 8 | 12, 10 << 8 | 14
_INET, _LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEMENT = 1, 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_TIMEOUT, _DATA_VALUE = 1, 4, 1
_HEAD_BYTES = 64  # of each packet: addresses and ports
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_MOST_AT_ONCE = 256


def _message(family: int, resource: int = 0) -> bytes:
    return struct.pack("!BBH", family, 1 if family else 0, resource)


@dataclass(frozen=True, slots=True)
class Connection:
    """Who opened it, where it was to go, and whether it goes there (`translated`: to somewhere else)."""

    source: str
    target: str
    port: int  # 0 where there is none
    protocol: str
    translated: bool


class Connections:
    """The host's table of connections."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETFILTER)

    def end(self, ends: Callable[[Connection], bool], which: bytes = b"") -> None:
        """End those that are to. `which`: attributes of those that the kernel tells at all. Each by all that it is
        known by: kernels before 6.11 know no other way. OSError."""
        dump = self._netlink.ask((_CONNTRACK_GET, DUMP, _message(socket.AF_INET) + which))
        for _, body in dump:
            known = dict(attributes(body[4:]))
            raw = known.get(_TUPLE_ORIG, b"")
            if ends(_connection(raw, known.get(_TUPLE_REPLY, b""))):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    delete = _message(socket.AF_INET) + attribute(_TUPLE_ORIG | NESTED, raw)
                    self._netlink.ask((_CONNTRACK_DELETE, 0, delete))

    def origin(self, source: tuple[str, int], at: tuple[str, int]) -> Connection | None:
        """The TCP connection from `source` that was sent to `at` instead of where it wanted to go. OSError."""
        place = nested(_TUPLE_IP, _address(_IP_SRC, at[0]), _address(_IP_DST, source[0]))
        ports = attribute(_PROTO_SRC_PORT, at[1].to_bytes(2, "big")) + attribute(
            _PROTO_DST_PORT, source[1].to_bytes(2, "big")
        )
        answer = nested(_TUPLE_REPLY, place, nested(_TUPLE_PROTO, attribute(_PROTO_NUMBER, b"\6"), ports))
        try:
            found = self._netlink.ask((_CONNTRACK_GET, 0, _message(socket.AF_INET) + answer))
        except FileNotFoundError:
            return None
        for _, body in found:
            known = dict(attributes(body[4:]))
            return _connection(known.get(_TUPLE_ORIG, b""), known.get(_TUPLE_REPLY, b""))
        return None

    def forget(self, addresses: Sequence[str]) -> None:
        """All that these have opened. For each the kernel goes through the whole table: milliseconds. OSError."""
        for address in addresses:
            self.end_of(address, lambda connection: True)

    def end_of(self, address: str, ends: Callable[[Connection], bool]) -> None:
        """Of those that this address has opened. The kernel looks for them, not we. OSError."""
        source = nested(_TUPLE_ORIG, nested(_TUPLE_IP, attribute(_IP_SRC, socket.inet_aton(address))))
        which = nested(_FILTER, attribute(_FILTER_ORIG, struct.pack("=I", _FILTER_IP_SRC)))
        self.end(lambda connection: connection.source == address and ends(connection), source + which)

    def close(self) -> None:
        self._netlink.close()


class Elements:
    """What is put into sets of addresses one by one, by a process that cannot wait for `nft` each time."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._netlink = Netlink(_NETFILTER)
        self._number = 0

    def put(self, name: str, address: bytes, milliseconds: int) -> None:
        """Into this set for so long from now on, however long it was to be there before. OSError."""
        key = nested(_ELEMENT_KEY, attribute(_DATA_VALUE, address))
        lasting = key + attribute(_ELEMENT_TIMEOUT, milliseconds.to_bytes(8, "big"))
        # Kernels before 6.12 leave the time of one that is there as it is; one that is not there cannot be deleted.
        self._batch(
            (_NEW_ELEMENT, _CREATE, self._list(name, key)),
            (_DELETE_ELEMENT, 0, self._list(name, key)),
            (_NEW_ELEMENT, _CREATE, self._list(name, lasting)),
        )

    def close(self) -> None:
        self._netlink.close()

    def _list(self, name: str, element: bytes) -> bytes:
        head = struct.pack("!BBH", _INET, 0, 0) + text(_LIST_TABLE, self._table) + text(_LIST_SET, name)
        return head + nested(_LIST_ELEMENTS, nested(_LIST_ELEMENT, element))

    def _batch(self, *messages: tuple[int, int, bytes]) -> None:
        """All of it or nothing; in force when this returns. The ends of a batch are acknowledged by some kernels only,
        what is between them by all."""
        mark = struct.pack("!BBH", 0, 0, _TABLES)
        packed = [_packed(_BATCH_BEGIN, 0, self._number, mark)]
        first = self._number + 1
        packed += [_packed(kind, flags | _ACK, first + at, body) for at, (kind, flags, body) in enumerate(messages)]
        self._number = first + len(messages)
        packed.append(_packed(_BATCH_END, 0, self._number, mark))
        self._netlink.sock.sendall(b"".join(packed))
        self._number += 1
        waiting, refused = set(range(first, first + len(messages))), 0
        while waiting:
            for kind, at, body in self._netlink.receive():
                if kind == _ERROR and first - 1 <= at <= first + len(messages):
                    code = -struct.unpack_from("=i", body)[0]
                    refused = refused or code
                    waiting = waiting - {at} if not code and at >= first else set()
        if refused:
            raise OSError(refused, os.strerror(refused))


def _packed(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, number, 0) + body


def _address(kind: int, text: str) -> bytes:
    return attribute(kind, socket.inet_aton(text))


def _connection(raw: bytes, reply: bytes) -> Connection:
    """By its first packet, and by the first answer."""
    parts = dict(attributes(raw))
    addresses, protocol = dict(attributes(parts.get(_TUPLE_IP, b""))), dict(attributes(parts.get(_TUPLE_PROTO, b"")))
    answering = dict(attributes(dict(attributes(reply)).get(_TUPLE_IP, b""))).get(_IP_SRC)
    nowhere = bytes(4)
    number = int.from_bytes(protocol.get(_PROTO_NUMBER, b""), "big")
    source, target = addresses.get(_IP_SRC, nowhere), addresses.get(_IP_DST, nowhere)
    return Connection(
        socket.inet_ntoa(source),
        socket.inet_ntoa(target),
        int.from_bytes(protocol.get(_PROTO_DST_PORT, b""), "big"),
        _PROTOCOLS.get(number, str(number)),
        answering is not None and answering != target,
    )


class Removals:
    """Tables of nftables that somebody removes: a socket to be read when it is readable."""

    def __init__(self) -> None:
        self._netlink = Netlink(_NETFILTER, 1 << (_TABLE_EVENTS - 1))
        self._netlink.sock.setblocking(False)

    def fileno(self) -> int:
        return self._netlink.sock.fileno()

    def read(self) -> set[str]:
        """Their names; every name, as it were ("*"), if there was more to tell than room: the kernel tells nothing more
        before all is read that there was room for."""
        found: set[str] = set()
        while True:
            try:
                messages = self._netlink.receive()
            except BlockingIOError:
                return found
            except Overrun:
                found.add("*")
                continue
            for kind, _, body in messages:
                if kind == _DELETED_TABLE:
                    name = dict(attributes(body[4:])).get(_TABLE_NAME, b"")
                    found.add(name.rstrip(b"\0").decode(errors="replace"))

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
