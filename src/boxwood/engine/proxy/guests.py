"""Connections of boxes: whose each is, what it speaks, and what is to become of it.

What a box has sent first decides: TLS is ended here if a rule may be about what is in it, and passed on as it is if
none can; HTTP is judged request by request; everything else is judged as a connection whose requests nobody sees. Some
servers speak first (mail, SSH, databases): if the box is silent, what its connection alone is allowed is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter

from boxwood.engine.policies import Malformed, Outcome, Policies, canonical, connection_verdict
from boxwood.engine.proxy import hello, http1, http2
from boxwood.engine.proxy.authority import Mint
from boxwood.engine.proxy.channel import PIECE, Broken, Plain, Secure, splice
from boxwood.engine.proxy.exchange import Exchange, Line
from boxwood.engine.proxy.hello import BadHello, Kind
from boxwood.engine.proxy.message import Stream
from boxwood.engine.proxy.origins import Origin, Origins
from boxwood.engine.proxy.standing import Standing, Standings
from boxwood.engine.proxy.upstream import Trust, Upstreams, reach

LEAST_OF_A_BOX, MOST_OF_A_BOX, MOST = 16, 512, 8192  # connections
_TOLD_SECONDS = 10.0  # for the server to tell what holds, after a start
_SILENT_SECONDS = 0.3  # then it is perhaps the server that speaks first
_FIRST_SECONDS = 120.0  # for a box to say anything at all
_HANDSHAKE_SECONDS = 20.0
_BREATH = 0.1
_ACCESS_DENIED = bytes((21, 3, 3, 0, 2, 2, 49))  # a TLS alert, fatal
log = logging.getLogger(__name__)


class Guests:
    """`mint` is there once the server has told of the authority."""

    def __init__(self, standings: Standings, origins: Origins, trust: Trust) -> None:
        self.mint: Mint | None = None
        self.trust = trust
        self._standings = standings
        self._origins = origins
        self._of_box: Counter[str] = Counter()
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled. The listener is non-blocking."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError:  # it has gone again, or there are no descriptors
                await asyncio.sleep(_BREATH)
                continue
            box = peer[0]
            room = MOST - len(self._tasks)  # of which nobody takes so much that there is none for others
            if self._of_box[box] >= min(MOST_OF_A_BOX, max(LEAST_OF_A_BOX, room // 4)) or not room:
                sock.close()
                continue
            self._of_box[box] += 1
            task = loop.create_task(self._take(sock))
            self._tasks[task] = box
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        box = self._tasks.pop(task)
        self._of_box[box] -= 1
        if not self._of_box[box]:
            del self._of_box[box]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection of %s failed: %s", box, type(error).__name__)  # its text may be the box's

    def gone(self, boxes: list[str]) -> None:
        """Their addresses are about to be others'."""
        for task, box in list(self._tasks.items()):
            if box in boxes:
                task.cancel()

    async def _take(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source, at = sock.getpeername(), sock.getsockname()
        reader, writer = await asyncio.open_connection(sock=sock, limit=PIECE)
        plain = Plain(reader, writer)
        try:
            origin = await self._origins.of(source, at)
            standing = await self._standings.of(origin.vm, _TOLD_SECONDS)
            if standing is None or self.mint is None:
                self._origins.denied(origin, "", "policy unknown")
                plain.abort()
                return
            await _Guest(self, origin, standing, plain, self._origins, self.mint).run()
            await plain.close()
        except (OSError, ssl.SSLError):  # Broken and Unknown among them
            plain.abort()
        except BaseException:
            plain.abort()
            raise


class _Guest:
    """One connection."""

    def __init__(
        self, guests: Guests, origin: Origin, standing: Standing, plain: Plain, origins: Origins, mint: Mint
    ) -> None:
        self._guests = guests
        self._origin = origin
        self._standing = standing
        self._plain = plain
        self._origins = origins
        self._mint = mint

    async def run(self) -> None:
        kind = await self._kind()
        if kind is Kind.TLS:
            await self._run_tls()
        elif kind is Kind.OTHER:
            await self._pass_on(self._origin.names, opaque=True)
        elif kind is not None:
            await self._run_http(self._plain, is_http2=kind is Kind.HTTP2, secure=False)

    # --- what it is

    async def _kind(self) -> Kind | None:
        """None: it has been dealt with. What was read is unread."""
        data = b""
        reading = asyncio.ensure_future(self._plain.read())
        try:
            done, _ = await asyncio.wait({reading}, timeout=_SILENT_SECONDS)
            if not done and await self._server_first(reading):
                return None
            async with asyncio.timeout(_FIRST_SECONDS):
                data = await reading
                while (kind := hello.kind_of(data)) is None:
                    if not (piece := await self._plain.read()):
                        kind = Kind.OTHER
                        break
                    data += piece
        except TimeoutError:
            raise Broken("it has said nothing") from None
        finally:
            reading.cancel()
        self._plain.unread(data)
        return kind

    async def _server_first(self, reading: asyncio.Future[bytes]) -> bool:
        """Open what is not said a word on, if that may be. True: the server has spoken first, and all is over."""
        passage = _Passage(self._origin, self._origin.names, self._plain, opaque=True)
        if not passage.holds(self._standing.policies):
            return False
        try:
            server = await reach(self._origin.address, self._origin.port)
        except OSError:
            return False
        hearing = asyncio.ensure_future(server.read())
        try:
            await asyncio.wait({reading, hearing}, return_when=asyncio.FIRST_COMPLETED, timeout=_FIRST_SECONDS)
            if reading.done() or not hearing.done():
                server.abort()
                return False
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._plain.unread(await reading)
            server.unread(hearing.result())
            await self._join(passage, server)
            return True
        finally:
            hearing.cancel()

    # --- what becomes of it

    async def _run_tls(self) -> None:
        data, reading, said = bytearray(), hello.Reading(), None
        try:
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                while said is None:
                    if not (piece := await self._plain.read()) or len(data) > 2 * hello.MOST_HELLO:
                        raise BadHello("a ClientHello that does not end")
                    data += piece
                    said = reading.feed(piece)
            name = canonical("host", said.name) if said.name else ""
        except (BadHello, Malformed):
            await self._deny_tls("", "tls")
            return
        self._plain.unread(bytes(data))
        if name and name not in self._origin.names:
            await self._deny_tls(name, "misdirected")
            return
        names = frozenset((name,)) if name else self._origin.names
        verdict = self._verdict(names)
        if verdict is Outcome.ALLOW:
            await self._pass_on(names, opaque=False)
        elif verdict is Outcome.DENY:
            await self._deny_tls(name, "policy")
        else:
            is_http2 = "h2" in said.protocols
            context = self._mint.context(name or str(self._origin.address), named=bool(name), http2=is_http2)
            secure = Secure(self._plain, context)
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await secure.handshake()
            await self._run_http(secure, is_http2=secure.protocol == "h2", secure=True, name=name)
            await secure.close()

    async def _deny_tls(self, name: str, reason: str) -> None:
        self._origins.denied(self._origin, name, reason)
        await self._plain.write(_ACCESS_DENIED)

    def _verdict(self, names: frozenset[str]) -> Outcome:
        origin = self._origin
        return connection_verdict(self._standing.policies, names, origin.address, origin.port, "tcp").outcome

    async def _pass_on(self, names: frozenset[str], *, opaque: bool) -> None:
        passage = _Passage(self._origin, names, self._plain, opaque=opaque)
        if not passage.holds(self._standing.policies):
            self._origins.denied(self._origin, min(names, default=""), "not http")
            self._plain.abort()
            return
        await self._join(passage, await reach(self._origin.address, self._origin.port))

    async def _join(self, passage: _Passage, server: Plain) -> None:
        passage.server = server
        self._standing.opened(passage)
        try:
            if passage.holds(self._standing.policies):  # they may have changed meanwhile
                await splice(self._plain, server)
                await server.close()
        finally:
            self._standing.closed(passage)
            server.abort()

    async def _run_http(self, channel: Plain | Secure, *, is_http2: bool, secure: bool, name: str = "") -> None:
        trust = self._guests.trust
        upstreams = Upstreams(trust, http2=is_http2)
        line = Line(self._origin, self._standing, self._origins, trust, upstreams, secure, name)

        async def handle(stream: Stream) -> None:
            await Exchange(line, stream).run()

        try:
            if is_http2:
                await http2.serve(channel, handle, secure=secure)
            else:
                await http1.serve(channel, handle)
        finally:
            upstreams.close()


class _Passage:
    """Bytes that go through unseen, as long as a policy lets connections through without a look at their requests.
    `opaque`: what they are is not known, so rules about requests have them as they have other protocols than TCP."""

    def __init__(self, origin: Origin, names: frozenset[str], guest: Plain, *, opaque: bool) -> None:
        self._origin = origin
        self._names = names
        self._guest = guest
        self._protocol = "udp" if opaque else "tcp"
        self.server: Plain | None = None

    def holds(self, policies: Policies) -> bool:
        origin = self._origin
        verdict = connection_verdict(policies, self._names, origin.address, origin.port, self._protocol)
        return verdict.outcome is Outcome.ALLOW

    def cut(self) -> None:
        self._guest.abort()
        if self.server is not None:
            self.server.abort()
