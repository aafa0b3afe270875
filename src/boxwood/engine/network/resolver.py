"""Names for boxes: the one server that they can ask, over UDP and TCP.

It asks the host's servers (upstream.py), tells a box nothing of what is not on the internet (answers.py), remembers for
which name a box was given an address, and bounds what a box can have of it. Names and texts can carry other things than
names (DNS tunnels): that cannot be prevented wholly, the bounds on rate, types and sizes are what there is against it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import dns.message
import dns.rcode

from boxwood.engine.api import Denial
from boxwood.engine.network import answers
from boxwood.engine.network.addresses import Address
from boxwood.engine.network.answers import MOST_ASKED, TCP_SIZE, Question, Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.upstream import Upstream, work

_RATE, _BURST = 100, 300  # questions of a box: a second, at once
_SIZE_INCLUDED = 512  # bytes; a larger question counts as one more for each
_WORK_INCLUDED = 2.0  # milliseconds; an answer that costs more counts as a question more for each
_MOST_OUTSTANDING, _MOST_OUTSTANDING_IN_ALL = 64, 2048
_MOST_CONNECTIONS, _MOST_CONNECTIONS_IN_ALL = 8, 512
_PIPELINED = 16  # questions on one connection whose answers are not away
_IDLE_SECONDS = 10.0  # for a whole question, and for the box to take an answer
_DENIALS_RATE, _DENIALS_BURST = 2, 5  # that are told of a box
_MOST_BOXES_PINS, _MOST_PINS = 512, 2048
_MOST_ASKERS = 1024  # remembered though they have nothing under way
_AT_ONCE = 64  # datagrams read before others have their turn
_BREATH = 0.1  # seconds to wait when no connection can be accepted
log = logging.getLogger(__name__)


class Resolver:
    """`on_denied(box, denial)` is told of what boxes were refused, a few times a second for each at most."""

    def __init__(
        self,
        exceptions: Exceptions,
        upstream: Upstream,
        on_denied: Callable[[str, Denial], None],
        *,
        ipv6: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exceptions = exceptions
        self._upstream = upstream
        self._on_denied = on_denied
        self._ipv6 = ipv6
        self._clock = clock
        self._pins = _Pins(clock)
        self._askers: OrderedDict[str, _Asker] = OrderedDict()  # by address, who asked last is the last
        self._outstanding = 0
        self._connections = 0

    async def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Until cancelled. The sockets are non-blocking, bound, and closed by the caller."""
        loop = asyncio.get_running_loop()
        loop.add_reader(udp.fileno(), self._on_datagrams, udp)
        try:
            await self._accept(tcp)
        finally:
            loop.remove_reader(udp.fileno())
            ending = [task for asker in self._askers.values() for task in asker.close()]
            await asyncio.gather(*ending, return_exceptions=True)

    def name_of(self, box: str, address: str) -> str:
        """The name for which this box was last given this address, valid or not; empty if none is kept."""
        return self._pins.of(box).get(address, ("", 0.0))[0]

    def pins(self, box: str) -> dict[str, tuple[str, float]]:
        """By address: the name for which this box was given it, and the time.monotonic() until which that holds."""
        return dict(self._pins.of(box))

    def forget(self, box: str) -> None:
        """The box is gone, and all that is known of it or under way for it."""
        self._pins.forget(box)
        if (asker := self._askers.pop(box, None)) is not None:
            asker.close()

    # --- questions

    async def _answer(self, asker: _Asker, wire: bytes, size: int | None) -> bytes:
        """`size`: of the largest answer, if it is not the question that says so. Empty: there is nothing to say."""
        try:
            question = answers.read(wire)
            response = await self._resolve(asker, question)
            answer = answers.fit(response, size or question.udp_size)
        except Unanswerable as unanswerable:
            return unanswerable.reply
        except Exception:  # a fault of ours that a box has found ends nothing but its own question
            if asker.complaints.take(self._clock()):
                log.exception("a question of %s", asker.address)
            return answers.failure(wire, dns.rcode.SERVFAIL)
        self._pins.add(asker.address, question.text, answers.addresses_in(response.answer))
        return answer

    async def _resolve(self, asker: _Asker, question: Question) -> dns.message.Message:
        try:
            known = answers.answer_locally(question, self._exceptions, ipv6=self._ipv6)
            if known is not None:
                return known
            answer = await self._upstream.ask(question.to_ask())
            asker.questions.pay(work(answer.wire) - _WORK_INCLUDED if answer.wire else 0)
            return answers.rewrite(question, answer, self._exceptions)
        except Refused as refused:
            if asker.denials.take(self._clock()):
                self._on_denied(asker.address, _denial(question.text, "name"))
            return question.reply(dns.rcode.NXDOMAIN, why=str(refused))
        except OSError:
            return question.reply(dns.rcode.SERVFAIL)

    def _has_room(self, asker: _Asker, wire: bytes) -> bool:
        if not asker.questions.take(self._clock(), 1 + len(wire) // _SIZE_INCLUDED):
            return False
        return len(asker.outstanding) < _MOST_OUTSTANDING and self._outstanding < _MOST_OUTSTANDING_IN_ALL

    def _start(self, asker: _Asker, answering: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(answering)
        asker.outstanding.add(task)
        self._outstanding += 1

        def over(task: asyncio.Task[None]) -> None:
            asker.outstanding.discard(task)
            self._outstanding -= 1

        task.add_done_callback(over)
        return task

    def _complain(self, asker: _Asker, wire: bytes = b"") -> bytes:
        """Too much at once: this is said, and told, once in a second."""
        if not asker.complaints.take(self._clock()):
            return b""
        name, reply = "", b""
        try:
            question = answers.read(wire)
            name, reply = question.text, question.reply(dns.rcode.REFUSED, why="too much at once").to_wire()
        except Unanswerable as unanswerable:
            reply = unanswerable.reply
        self._on_denied(asker.address, _denial(name, "flood"))
        return reply

    def _asker(self, address: str) -> _Asker:
        asker = self._askers.get(address)
        if asker is None:
            asker = self._askers[address] = _Asker(address)
            self._sweep()
        self._askers.move_to_end(address)
        return asker

    def _sweep(self) -> None:
        """Boxes that nobody has told us are gone: forget the one that has been silent for longest."""
        if len(self._askers) > _MOST_ASKERS:
            silent = (address for address, asker in self._askers.items() if asker.is_silent)
            if (oldest := next(silent, None)) is not None:
                del self._askers[oldest]

    # --- UDP

    def _on_datagrams(self, udp: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                wire, source = udp.recvfrom(MOST_ASKED + 1)
            except OSError:  # BlockingIOError: that was the last one
                return
            if len(wire) > MOST_ASKED:
                continue
            asker = self._asker(source[0])
            if self._has_room(asker, wire):
                self._start(asker, self._answer_datagram(asker, udp, wire, source))
            else:
                _send(udp, self._complain(asker, wire), source)

    async def _answer_datagram(self, asker: _Asker, udp: socket.socket, wire: bytes, source: tuple[str, int]) -> None:
        _send(udp, await self._answer(asker, wire, None), source)

    # --- TCP

    async def _accept(self, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, source = await loop.sock_accept(tcp)
            except OSError:  # it has gone again, or there are no descriptors
                await asyncio.sleep(_BREATH)
                continue
            asker = self._asker(source[0])
            full = len(asker.connections) >= _MOST_CONNECTIONS or self._connections >= _MOST_CONNECTIONS_IN_ALL
            if full or not asker.questions.take(self._clock()):
                self._complain(asker)
                sock.close()
            else:
                await self._connect(source[0], sock)

    async def _connect(self, address: str, sock: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=sock, limit=MOST_ASKED)
        except BaseException as error:
            sock.close()
            if isinstance(error, Exception):
                return  # it has gone: the next one is waiting
            raise
        asker = self._asker(address)
        task = asyncio.create_task(self._converse(asker, reader, writer))
        asker.connections[task] = writer
        self._connections += 1
        task.add_done_callback(partial(self._disconnected, asker))

    def _disconnected(self, asker: _Asker, task: asyncio.Task[None]) -> None:
        _abort(asker.connections.pop(task))
        self._connections -= 1

    async def _converse(self, asker: _Asker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer whatever comes, as soon as it is known, until nothing more comes."""
        room = asyncio.Semaphore(_PIPELINED)
        started: set[asyncio.Task[None]] = set()

        def over(task: asyncio.Task[None]) -> None:
            started.discard(task)
            room.release()

        while True:
            await room.acquire()
            if (wire := await _next(reader)) is None:
                break
            if not self._has_room(asker, wire):
                self._complain(asker, wire)
                return
            task = self._start(asker, self._answer_stream(asker, writer, wire))
            started.add(task)
            task.add_done_callback(over)
        if started:
            await asyncio.wait(started)
        await _closed(writer)

    async def _answer_stream(self, asker: _Asker, writer: asyncio.StreamWriter, wire: bytes) -> None:
        answer = await self._answer(asker, wire, TCP_SIZE)
        if answer and not writer.is_closing():
            writer.write(len(answer).to_bytes(2, "big") + answer)
            await _drained(writer)


class _Asker:
    """A box: what it may still have, and what it has under way."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.questions = _Bucket(_RATE, _BURST)
        self.denials = _Bucket(_DENIALS_RATE, _DENIALS_BURST)
        self.complaints = _Bucket(1, 1)
        self.outstanding: set[asyncio.Task[None]] = set()
        self.connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def is_silent(self) -> bool:
        return not self.outstanding and not self.connections

    def close(self) -> list[asyncio.Task[None]]:
        """End everything; what is ending."""
        tasks = [*self.outstanding, *self.connections]
        for task in tasks:
            task.cancel()
        return tasks


class _Bucket:
    """So many at once, and so many a second on the whole."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = float("-inf")

    def take(self, now: float, count: int = 1) -> bool:
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < count:
            return False
        self._left -= count
        return True

    def pay(self, more: float) -> None:
        """For what turned out to cost more. There may be debts, so what comes next has to wait."""
        self._left = max(self._left - max(0.0, more), -self._burst)


class _Pins:
    """Which box was given which address for which name, the oldest first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._boxes: OrderedDict[str, OrderedDict[str, tuple[str, float]]] = OrderedDict()

    def of(self, box: str) -> OrderedDict[str, tuple[str, float]]:
        return self._boxes.get(box, OrderedDict())

    def add(self, box: str, name: str, given: Iterable[tuple[Address, int]]) -> None:
        now = self._clock()
        for address, ttl in given:
            if address.is_loopback:
                continue
            pins = self._boxes.setdefault(box, OrderedDict())
            self._boxes.move_to_end(box)
            before, until = pins.pop(str(address), ("", 0.0))
            pins[str(address)] = name, max(now + ttl, until if before == name else 0.0)
            if len(pins) > _MOST_PINS:
                pins.popitem(last=False)
        if len(self._boxes) > _MOST_BOXES_PINS:
            self._boxes.popitem(last=False)

    def forget(self, box: str) -> None:
        self._boxes.pop(box, None)


def _denial(name: str, reason: str) -> Denial:
    return Denial(time.time(), "dns", name=name, reason=reason)


def _send(udp: socket.socket, answer: bytes, source: tuple[str, int]) -> None:
    if answer:
        try:
            udp.sendto(answer, source)
        except OSError:
            pass  # it is gone, or does not listen fast enough: it will ask again


async def _next(reader: asyncio.StreamReader) -> bytes | None:
    """The next message on a connection; None when none comes, or it comes too slowly."""
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            size = int.from_bytes(await reader.readexactly(2), "big")
            return await reader.readexactly(size)
    except (EOFError, OSError):
        return None


async def _drained(writer: asyncio.StreamWriter) -> None:
    """The box has taken enough of what was said to it, or is spoken to no more."""
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            await writer.drain()
    except OSError:
        _abort(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """The box has taken everything, or has had time enough."""
    writer.close()
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            await writer.wait_closed()
    except OSError:
        pass


def _abort(writer: asyncio.StreamWriter) -> None:
    try:
        writer.transport.abort()
    except AttributeError:  # CPython 3.11: it was closed, and has just sent the last of what it had
        pass
