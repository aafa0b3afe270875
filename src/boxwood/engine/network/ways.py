"""How a router reaches what is the host's own: its name servers, and what it knows of names.

As root it stands in the host's network and does it itself (`Here`). Without root it stands in a network of its own, and
asks the porter, which stayed behind (`Through`, see porter.py). The porter tells it besides which addresses the host
has, and whether there is a way out to the internet now.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from boxwood.engine.network.nameservers import Server

PACKET = 1 << 17
_ANSWER_SECONDS = 10.0
_GONE = "the porter of the VMs' network has died: `boxwood down`, then `boxwood up`"


class Way(Protocol):
    async def to_server(self, server: Server, kind: int) -> socket.socket:
        """A non-blocking socket (SOCK_DGRAM or SOCK_STREAM) that is being connected to this name server. OSError."""

    async def addresses(self, name: str) -> list[str]:
        """What the host finds for a name. OSError."""


class Here:
    """In the host's own network."""

    async def to_server(self, server: Server, kind: int) -> socket.socket:
        return connecting(server, kind)

    async def addresses(self, name: str) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        return sorted({str(entry[4][0]) for entry in found})


def connecting(server: Server, kind: int) -> socket.socket:
    """From a port that the kernel draws. OSError."""
    family, place = server
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            sock.connect(place)
    except BaseException:
        sock.close()
        raise
    return sock


class Through:
    """With a porter at the other end of this socket. `own`: the host's addresses, each an address or a network."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.own: list[str] = []
        self._told: asyncio.Queue[list[str] | None] = asyncio.Queue()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._up: asyncio.Future[None] | None = None

    async def open(self, seconds: float) -> None:
        """Returns when there is a way out, and the host's addresses are known. OSError says why there is none."""
        loop = asyncio.get_running_loop()
        self._up = loop.create_future()
        loop.add_reader(self._sock.fileno(), self._read)
        try:
            async with asyncio.timeout(seconds):
                await self._up
        except TimeoutError:
            raise OSError(f"pasta was not ready within {seconds:g} s") from None

    async def changes(self) -> AsyncIterator[list[str]]:
        """The host's addresses, now and whenever they have changed. OSError when the porter is gone."""
        while (own := await self._told.get()) is not None:
            yield own
        raise OSError(_GONE)

    async def to_server(self, server: Server, kind: int) -> socket.socket:
        _, fds = await self._ask({"server": [server[0], list(server[1])], "kind": kind})
        if len(fds) != 1:
            raise OSError("the porter has no socket to give")
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        return sock

    async def addresses(self, name: str) -> list[str]:
        said, _ = await self._ask({"name": name})
        return [str(one) for one in said["addresses"]]

    async def _ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        number = next(self._numbers)
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._sock.send(json.dumps({"n": number, **message}).encode(), socket.MSG_NOSIGNAL)
            async with asyncio.timeout(_ANSWER_SECONDS):
                said, fds = await future
        finally:
            del self._waiting[number]
        if "error" in said:
            raise OSError(said["error"])
        return said, fds

    def _read(self) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._sock, PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            self._lost()
            return
        said = json.loads(packet)
        future = self._waiting.get(said.get("n", 0))
        if future is not None and not future.done():
            future.set_result((said, list(fds)))
            return
        for fd in fds:  # who asked has given up
            socket.close(fd)
        if "own" in said:
            self.own = [str(place) for place in said["own"]]
            self._told.put_nowait(self.own)
        elif self._up is not None and not self._up.done():
            if "why" in said:
                self._up.set_exception(OSError(said["why"]))
            elif "up" in said:
                self._up.set_result(None)

    def _lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        if self._up is not None and not self._up.done():
            self._up.set_exception(OSError(_GONE))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(OSError(_GONE))
        self._told.put_nowait(None)


def say(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
