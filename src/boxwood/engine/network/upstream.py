"""Asking the host's own name servers, as the host's /etc/resolv.conf names them, and remembering what they said.

What is asked has nothing of a box in it but the name and the type, and what is remembered is what a server answered to
just that: no record of an answer is ever taken for an answer to something else. So a box can fill the memory, and can
measure whether a name is in it, but cannot put anything false there.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.SOA import SOA

from boxwood.engine.network import nameservers
from boxwood.engine.network.nameservers import MOST_SECONDS, Server, Settings
from boxwood.engine.network.ways import Here, Way

_RESOLV_CONF = Path("/etc/resolv.conf")
_PORT = 53
_SECONDS_IN_ALL = 10.0
_UDP_SIZE = 1232
_MOST_STRAYS = 16  # datagrams with another id or question: somebody guesses, and TCP cannot be guessed
_MOST_WORK = 20.0  # milliseconds for one message, as `work` has them
_NO_NAME = 256  # bytes: a name has at most 255
_MOST_KEPT = 4096
_MOST_KEPT_BYTES = 4096  # of one message
_LONGEST_KEPT = 3600
_LONGEST_KEPT_NEGATIVE = 300
_SECTIONS = struct.Struct("!4H")

Key = tuple[bytes, RdataType]  # the name as labels in small letters


class NoAnswer(OSError):
    """No server answered in time, or none in a way that could be understood."""


class _Truncated(Exception):
    """The server has more to say than a datagram holds."""


@dataclass(slots=True)
class _Answer:
    wire: bytes
    since: float
    until: float  # when it is to be forgotten
    parsed: dns.message.Message | None  # for who is first to want it

    def message(self, now: float) -> dns.message.Message:
        """A message of the caller's own, whose TTLs have gone down meanwhile."""
        message, self.parsed = self.parsed or dns.message.from_wire(self.wire), None
        for rrset in (*message.answer, *message.authority):
            rrset.ttl = max(0, rrset.ttl - int(now - self.since))
        return message


@dataclass(slots=True, eq=False)
class _UnderWay:
    task: asyncio.Task[_Answer]
    waiting: int = 0


class Upstream:
    def __init__(
        self,
        path: Path = _RESOLV_CONF,
        *,
        port: int = _PORT,
        clock: Callable[[], float] = time.monotonic,
        way: Way | None = None,
    ) -> None:
        self._path = path
        self._port = port
        self._clock = clock
        self._way = way or Here()
        self._seen: tuple[int, ...] = ()
        self._settings = Settings()
        self._kept: OrderedDict[Key, _Answer] = OrderedDict()  # what was wanted last is the last
        self._under_way: dict[Key, _UnderWay] = {}

    async def ask(self, query: dns.message.Message) -> dns.message.Message:
        """The answer to this message's question, whatever its code. NoAnswer, OSError."""
        self._reread()
        (asked,) = query.question
        key = (asked.name.to_digestable(), asked.rdtype)
        answer = self._recall(key)
        if answer is None:
            answer = await self._join(key, dns.message.make_query(asked.name.canonicalize(), asked.rdtype))
        return answer.message(self._clock())

    async def _join(self, key: Key, query: dns.message.Message) -> _Answer:
        """Ask, or wait with those who have asked the same. When nobody waits any more the question is given up."""
        found = self._under_way.get(key)
        if found is None:
            found = self._under_way[key] = _UnderWay(asyncio.create_task(self._find(key, query)))
            found.task.add_done_callback(lambda _: self._over(key, found))
        found.waiting += 1
        try:
            await asyncio.wait([found.task])
        finally:
            found.waiting -= 1
            if not found.waiting and not found.task.done():
                self._over(key, found)
                found.task.cancel()
        return found.task.result()

    def _over(self, key: Key, ended: _UnderWay) -> None:
        if self._under_way.get(key) is ended:
            del self._under_way[key]
        if ended.task.done() and not ended.task.cancelled():
            ended.task.exception()  # it may be that nobody looks

    # --- memory

    def _recall(self, key: Key) -> _Answer | None:
        answer = self._kept.get(key)
        if answer is None:
            return None
        if answer.until <= self._clock():
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return answer

    async def _find(self, key: Key, query: dns.message.Message) -> _Answer:
        settings = self._settings
        message = await _ask_all(self._way, settings, query)
        now = self._clock()
        wire = message.wire or b""
        answer = _Answer(wire, now, now + _lifetime(message, key[1]), message)
        if answer.until > now and len(wire) <= _MOST_KEPT_BYTES and settings is self._settings:
            self._kept[key] = answer
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return answer

    def _reread(self) -> None:
        """The host's settings may have changed, and with them what its names mean."""
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            text = self._path.read_text(errors="replace")
        except OSError:
            if self._seen:
                return  # it is being replaced: what was in it holds until then
            seen, text = (0, 0, 0), ""
        self._seen = seen
        self._settings = nameservers.settings(text, self._port)
        self._kept.clear()


def _lifetime(message: dns.message.Message, rdtype: RdataType) -> float:
    """Seconds for which this holds; 0: it is not to be kept."""
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return 0
    bounds = [_LONGEST_KEPT, *(rrset.ttl for rrset in message.answer)]
    if message.rcode() == dns.rcode.NXDOMAIN or not any(rrset.rdtype == rdtype for rrset in message.answer):
        starts = [rrset for rrset in message.authority if rrset.rdtype == RdataType.SOA]
        lasting = [min(rrset.ttl, rdata.minimum) for rrset in starts for rdata in rrset if isinstance(rdata, SOA)]
        bounds += [_LONGEST_KEPT_NEGATIVE, *(lasting or [0])]
    return min(bounds)


# --- the wire


async def _ask_all(way: Way, settings: Settings, query: dns.message.Message) -> dns.message.Message:
    """The first server that knows; what another one said is the answer if none does. NoAnswer."""
    willing = list(settings.servers)
    other: dns.message.Message | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS_IN_ALL):
            for _ in range(settings.attempts):
                for server in tuple(willing):
                    answer = await _ask_one(way, server, query, settings.seconds)
                    if answer is None:
                        continue  # perhaps later
                    if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                        return answer
                    other = answer
                    willing.remove(server)
    if other is None:
        raise NoAnswer("no name server of the host answers")
    return other


async def _ask_one(way: Way, server: Server, query: dns.message.Message, seconds: float) -> dns.message.Message | None:
    try:
        async with asyncio.timeout(min(seconds, MOST_SECONDS)):
            answer = await _exchange(way, server, query, edns=True)
            if answer.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):  # it may be from before 1999
                answer = await _exchange(way, server, query, edns=False)
            return answer
    except (OSError, EOFError):
        return None


async def _exchange(way: Way, server: Server, query: dns.message.Message, *, edns: bool) -> dns.message.Message:
    query.id = secrets.randbelow(1 << 16)
    query.use_edns(0 if edns else None, payload=_UDP_SIZE)
    wire = query.to_wire()
    try:
        return await _over_udp(way, server, wire, query)
    except _Truncated:
        return await _over_tcp(way, server, wire, query)


async def _over_udp(way: Way, server: Server, wire: bytes, query: dns.message.Message) -> dns.message.Message:
    with await way.to_server(server, socket.SOCK_DGRAM) as sock:  # nobody else's datagrams come in
        sock.send(wire)
        for _ in range(_MOST_STRAYS):
            data = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
            if (answer := _read(data, query, stream=False)) is not None:
                return answer
    raise _Truncated


async def _over_tcp(way: Way, server: Server, wire: bytes, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(sock=await way.to_server(server, socket.SOCK_STREAM))
    try:
        writer.write(len(wire).to_bytes(2, "big") + wire)
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = _read(await reader.readexactly(size), query, stream=True)
    finally:
        writer.transport.abort()
    if answer is None:
        raise ConnectionError("an answer to something else")
    return answer


def _read(data: bytes, query: dns.message.Message, *, stream: bool) -> dns.message.Message | None:
    """The answer to this query; None if it is one to another. ConnectionError: from a server that makes no sense.
    `stream`: there is no other way to hear more."""
    if len(data) < 12 or int.from_bytes(data[:2], "big") != query.id or not data[2] & 0x80:
        return None
    if data[2] & 0x02 and not stream:
        raise _Truncated
    if work(data) > _MOST_WORK:
        raise ConnectionError("an answer that would take too long to read")
    try:
        answer = dns.message.from_wire(data)
    except Exception as error:  # whatever it stumbles over
        raise ConnectionError(f"an answer that cannot be read: {error}") from None
    return answer if query.is_response(answer) else None


def work(wire: bytes) -> float:
    """Milliseconds of parsing that a message may cost, roughly and at most.

    They grow with the records, and for each name with the square of its labels: measured, dnspython 2.9. Who owns a
    zone can so make a datagram for which everybody would wait a fifth of a second. Which bytes are names only the
    parser could tell, so the longest that there may be is taken for all.
    """
    records: int = sum(_SECTIONS.unpack_from(wire, 4))
    longest = _longest_name(wire)
    return records * (0.08 + 0.0004 * longest * longest) + 0.002 * len(wire)


def _longest_name(wire: bytes) -> int:
    """Labels of the longest name that may begin anywhere in a message."""
    sizes = [-1] * len(wire)  # bytes of the name that begins here; -1: not looked at
    labels = [0] * len(wire)
    longest = 0
    for start in range(12, len(wire)):
        place, path = start, []
        while sizes[place] < 0:
            sizes[place] = _NO_NAME  # until it turns out to have an end: in a circle it has none
            size, after = wire[place], place + 1
            if size == 0:
                sizes[place] = 1
            elif size < 64 and after + size < len(wire):
                path.append(place)
                place = after + size
            elif size >= 192 and after < len(wire) and (target := (size & 63) << 8 | wire[after]) < len(wire):
                path.append(place)
                place = target
        for before in reversed(path):
            inline = wire[before] < 64
            sizes[before] = min(sizes[place] + (1 + wire[before] if inline else 0), _NO_NAME)
            labels[before] = labels[place] + inline
            place = before
        if sizes[start] < _NO_NAME:
            longest = max(longest, labels[start])
    return longest
