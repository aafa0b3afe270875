"""What the router knows of a connection that comes to the proxy: whose it is, where it was going, and by which names.

Boxes are known by their addresses, which they cannot choose; where a connection was going the kernel's table of
connections tells, and for which names the box was given that address the resolver. Nothing of it is the box's to say.

Messages of JSON, one a packet, over the socket that the router has to the proxy:

    → {"n": 1, "from": ["198.18.0.7", 40112], "at": ["198.19.0.1", 8008]}
    ← {"n": 1, "vm": "01J…", "address": "93.184.215.14", "port": 443, "names": ["example.com"]}; without vm: unknown
    → {"n": 2, "resolve": "gate.example"}
    ← {"n": 2, "addresses": ["93.184.215.15"]}
    → {"denied": "198.18.0.7", "address": …, "port": …, "host": …, "reason": …}
    ← {"gone": ["198.18.0.7"]}
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Protocol

PACKET = 1 << 16
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Origin:
    """`box`: its address; `names`: for which it was given the address that it wants to go to."""

    box: str
    vm: str
    address: IPv4Address
    port: int
    names: frozenset[str]


class Unknown(OSError):
    """The router does not know, or does not answer."""


class Origins(Protocol):
    async def of(self, source: tuple[str, int], at: tuple[str, int]) -> Origin:
        """Unknown."""

    async def resolve(self, name: str) -> list[IPv4Address]:
        """Addresses of the internet, as boxes would be told them. Unknown."""

    def denied(self, origin: Origin, host: str, reason: str) -> None:
        """Tell that something was refused, and why."""


class Router:
    """The router, at the other end of a socket. `on_gone(addresses)`: these boxes are no more."""

    def __init__(self, sock: socket.socket, on_gone: Callable[[list[str]], None]) -> None:
        self._sock = sock
        self._on_gone = on_gone
        self._sending = asyncio.Lock()  # a loop knows of one alone who waits for room
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def serve(self) -> None:
        """Until the router is gone."""
        loop = asyncio.get_running_loop()
        while packet := await loop.sock_recv(self._sock, PACKET):
            said = json.loads(packet)
            if "gone" in said:
                self._on_gone(said["gone"])
            elif (future := self._waiting.get(said["n"])) is not None and not future.done():
                future.set_result(said)

    async def of(self, source: tuple[str, int], at: tuple[str, int]) -> Origin:
        said = await self._ask({"from": source, "at": at})
        if not said.get("vm"):
            raise Unknown("the router does not know this connection")
        address = IPv4Address(said["address"])
        return Origin(source[0], said["vm"], address, int(said["port"]), frozenset(said["names"]))

    async def resolve(self, name: str) -> list[IPv4Address]:
        return [IPv4Address(text) for text in (await self._ask({"resolve": name})).get("addresses", ())]

    def denied(self, origin: Origin, host: str, reason: str) -> None:
        said = {"address": str(origin.address), "port": origin.port, "host": host[:255], "reason": reason[:64]}
        with contextlib.suppress(OSError):  # it is counted where there is room
            self._sock.send(json.dumps({"denied": origin.box, **said}).encode())

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_SECONDS):
                packet = json.dumps({"n": number, **question}).encode()
                async with self._sending:
                    await asyncio.get_running_loop().sock_sendall(self._sock, packet)
                found: dict[str, Any] = await future
                return found
        except (TimeoutError, OSError) as error:
            raise Unknown(f"the router does not answer: {error}") from None
        finally:
            del self._waiting[number]
