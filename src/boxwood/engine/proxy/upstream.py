"""Connections to servers, for one connection of a box: to the address that is given, verified as the name given.

No name is resolved here. What can be used again is kept, for this box's connection alone: nothing is shared between
boxes, nor between two connections of one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from boxwood.engine.proxy.channel import Broken, Plain, Secure
from boxwood.engine.proxy.http1 import Http1Call
from boxwood.engine.proxy.http2 import Http2Client
from boxwood.engine.proxy.message import Call

_CONNECT_SECONDS = 20.0
_MOST_IDLE = 4  # for each place


@dataclass(frozen=True, slots=True)
class Place:
    """`host`: a name, or the address again."""

    host: str
    address: IPv4Address
    port: int
    secure: bool


class Unverified(OSError):
    """A server that cannot show that it is the one that was meant. The text says why."""


class Trust:
    """Which servers are believed: `roots` (in PEM), or the host's own authorities, read when it is made; and what is
    added."""

    def __init__(self, roots: str | None = None) -> None:
        self._contexts = {http2: self._make(http2, roots) for http2 in (False, True)}

    def add(self, roots: str) -> None:
        """In PEM. ssl.SSLError."""
        for context in self._contexts.values():
            context.load_verify_locations(cadata=roots)

    def context(self, *, http2: bool) -> ssl.SSLContext:
        return self._contexts[http2]

    @staticmethod
    def _make(http2: bool, roots: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=roots)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        return context


async def reach(address: IPv4Address, port: int) -> Plain:
    """OSError."""
    async with asyncio.timeout(_CONNECT_SECONDS):
        return Plain(*await asyncio.open_connection(str(address), port))


class Upstreams:
    """`http2`: the box speaks it, so servers may be spoken to in it."""

    def __init__(self, trust: Trust, *, http2: bool) -> None:
        self._trust = trust
        self._http2 = http2
        self._clients: dict[Place, Http2Client] = {}
        self._free: dict[Place, list[Http1Call]] = {}
        self._channels: set[Plain | Secure] = set()
        self._connecting: dict[Place, asyncio.Lock] = {}

    async def call(self, place: Place, *, fresh: bool = False) -> tuple[Call, bool]:
        """A call, and whether its connection has served before. `fresh`: it shall not have. OSError, Unverified."""
        while not fresh and (free := self._free.get(place)):
            found = free.pop()
            if not found.is_over:
                return found, True
            found.abandon()
        async with self._connecting.setdefault(place, asyncio.Lock()):
            client = self._clients.get(place)
            if client is not None:
                if not client.gone:
                    return client.call(), True
                client.leave()
            channel = await self._connect(place)
            protocol = channel.protocol if isinstance(channel, Secure) else "h2" if self._http2 else ""
            if protocol == "h2":
                client = self._clients[place] = Http2Client(channel, secure=place.secure)
                await client.connect()
                return client.call(), False
        return Http1Call(channel, self._freed(place)), False

    async def _connect(self, place: Place) -> Plain | Secure:
        plain = await reach(place.address, place.port)
        self._channels = {channel for channel in self._channels if not channel.is_closed}
        if not place.secure:
            self._channels.add(plain)
            return plain
        secure = Secure(plain, self._trust.context(http2=self._http2), name=place.host)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await secure.handshake()
        except ssl.SSLCertVerificationError as error:
            secure.abort()
            raise Unverified(error.verify_message or str(error)) from None
        except ssl.SSLError as error:
            secure.abort()
            raise Broken(f"no TLS with it: {error.reason or error}") from None
        except BaseException:
            secure.abort()
            raise
        self._channels.add(secure)
        return secure

    def _freed(self, place: Place) -> Callable[[Http1Call], None]:
        def free(call: Http1Call) -> None:
            idle = self._free.setdefault(place, [])
            if len(idle) < _MOST_IDLE:
                idle.append(call)
            else:
                call.abandon()

        return free

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        for channel in self._channels:
            channel.abort()
