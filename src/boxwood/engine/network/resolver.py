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
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import dns.exception
import dns.message
import dns.rcode

from boxwood.engine.api import Denial
from boxwood.engine.network import answers
from boxwood.engine.network.addresses import Address
from boxwood.engine.network.answers import MOST_ASKED, TCP_SIZE, Question, Refused, Unanswerable
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.pins import Pins
from boxwood.engine.network.policing import Policing
from boxwood.engine.network.upstream import Upstream, work

_RATE, _BURST = 100, 300  # questions of a box: a second, at once
_SIZE_INCLUDED = 512  # bytes; a larger question counts as one more for each
_WORK_INCLUDED = 2.0  # milliseconds; an answer that costs more counts as a question more for each
_MOST_OUTSTANDING, _MOST_OUTSTANDING_IN_ALL = 64, 2048
_MOST_CONNECTIONS, _MOST_CONNECTIONS_IN_ALL = 8, 512
_PIPELINED = 16  # questions on one connection whose answers are not away
_IDLE_SECONDS = 10.0  # for a whole question, and for the box to take an answer
_DENIALS_RATE, _DENIALS_BURST = 2, 5  # that are told of a box
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
        pins: Pins | None = None,
        policing: Policing | None = None,
    ) -> None:
        self._exceptions = exceptions
        self._upstream = upstream
        self._on_denied = on_denied
        self._ipv6 = ipv6
        self._clock = clock
        self._pins = pins or Pins(clock)
        self._policing = policing
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
        return self._pins.name(box, address)

    def pins(self, box: str) -> dict[str, tuple[str, float]]:
        """By address: the name for which this box was given it, and the time.monotonic() until which that holds."""
        return self._pins.last(box)

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
            await self._give(asker.address, question.text, list(answers.addresses_in(response.answer)))
        except Unanswerable as unanswerable:
            return unanswerable.reply
        except Exception:  # a fault of ours that a box has found ends nothing but its own question
            if asker.complaints.take(self._clock()):
                log.exception("a question of %s", asker.address)
            return answers.failure(wire, dns.rcode.SERVFAIL)
        return answer

    async def _give(self, box: str, name: str, found: list[tuple[Address, int]]) -> None:
        """What a box is told is known to its rules before it is told."""
        if self._policing is None:
            self._pins.add(box, name, found)
        else:
            await self._policing.given(box, name, found)

    async def _resolve(self, asker: _Asker, question: Question) -> dns.message.Message:
        try:
            if self._policing is not None and not self._policing.may_ask(asker.address, question.text):
                if asker.denials.take(self._clock()):
                    self._on_denied(asker.address, _denial(question.text, "policy"))
                return question.reply(dns.rcode.NXDOMAIN, why="the policy of this VM has no use for this name")
            known = answers.answer_locally(question, self._exceptions, ipv6=self._ipv6)
            if known is not None:
                return known
            answer = await self._upstream.ask(question.to_ask())
            asker.questions.pay(work(answer.wire) - _WORK_INCLUDED if answer.wire else 0)
            response = answers.rewrite(question, answer, self._exceptions)
            self._check_way(asker.address, question, response)
            return response
        except Refused as refused:
            if asker.denials.take(self._clock()):
                self._on_denied(asker.address, _denial(question.text, "name"))
            return question.reply(dns.rcode.NXDOMAIN, why=str(refused))
        except OSError:
            return question.reply(dns.rcode.SERVFAIL)

    async def addresses(self, name: str) -> list[str]:
        """Of the internet, as a box would be told them. OSError; ValueError: it is no name."""
        try:
            question = answers.read(dns.message.make_query(name, "A").to_wire())
            known = answers.answer_locally(question, self._exceptions, ipv6=False)
            if known is None:
                known = answers.rewrite(question, await self._upstream.ask(question.to_ask()), self._exceptions)
        except (Refused, Unanswerable, dns.exception.DNSException) as error:
            raise ValueError(f"{name} has no address: {type(error).__name__}") from None
        return [str(address) for address, _ in answers.addresses_in(known.answer) if address.version == 4]

    def _check_way(self, box: str, question: Question, response: dns.message.Message) -> None:
        """Refused: an alias leads to a name that the VM's policy refuses."""
        for rrset in response.answer:
            if rrset.name != question.name and self._policing is not None:
                name = rrset.name.to_text(omit_final_dot=True).lower()
                if self._policing.forbids(box, name):
                    raise Refused("it leads to a name that the policy of this VM refuses")

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
