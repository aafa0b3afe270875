"""Connections of the server's to what listens in boxes.

A socket is made in the box's network by the zygote (sockets.py) and connected here, to the loopback in there: to what
listens on 127.0.0.1, or on all addresses, or on ::1. Some are kept ahead for each box that has been asked for one.
"""

from __future__ import annotations

import array
import asyncio
import errno
import functools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from boxwood.engine.api import BoxGone, EngineError, GuestError, NotHere
from boxwood.engine.sockets import FAMILIES

AHEAD = (8, 2)  # sockets fetched at once, of each family; nor are more kept
CONNECT_SECONDS = 10.0
_FETCH_SECONDS = 30.0
_SO_NETNS_COOKIE = 71  # socket(7), since Linux 5.14: which network a socket belongs to
_LOOPBACKS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_NOBODY = {errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT}

Ask = Callable[[str, dict[str, Any], Sequence[int]], Awaitable[dict[str, Any]]]


class Dialler:
    """`ask`: of the zygote."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._kept: dict[str, dict[int, list[socket.socket]]] = {}

    async def dial(self, box_id: str, gone: asyncio.Future[str], port: int) -> socket.socket:
        """A connection to a port in a box, not blocking; the caller's to close. `gone`: done when the box is.
        GuestError: ECONNREFUSED (nobody listens there), ETIMEDOUT (nobody answers); BoxGone, EngineError."""
        for family in FAMILIES:
            sock = await self._socket(box_id, gone, family)
            if sock is not None and await _connected(sock, (_LOOPBACKS[family], port)):
                return sock
        if gone.done():
            raise BoxGone(gone.result())
        raise GuestError(errno.ECONNREFUSED, f"nothing listens on port {port} in the VM")

    async def _socket(self, box_id: str, gone: asyncio.Future[str], family: int) -> socket.socket | None:
        """None: the host has none of this family."""
        kept = self._kept.get(box_id)
        if kept is None or not kept[family]:
            if gone.done():
                raise BoxGone(gone.result())
            fetched = await self._fetch(box_id)
            kept = self._keep(box_id, gone)
            for sock in fetched:
                kept[sock.family].append(sock)
        found = kept[family].pop() if kept[family] else None
        for most, spare in zip(AHEAD, kept.values(), strict=True):
            while len(spare) > most:  # others have fetched some at the same time
                spare.pop().close()
        return found

    def _keep(self, box_id: str, gone: asyncio.Future[str]) -> dict[int, list[socket.socket]]:
        """Until the box has gone: its network is there as long as they are."""
        kept = self._kept.get(box_id)
        if kept is None:
            kept = self._kept[box_id] = {int(family): [] for family in FAMILIES}
            gone.add_done_callback(functools.partial(self._drop, box_id))
        return kept

    def _drop(self, box_id: str, gone: asyncio.Future[str]) -> None:
        for family in self._kept.pop(box_id, {}).values():
            for sock in family:
                sock.close()

    def close(self) -> None:
        for box_id in list(self._kept):
            for family in self._kept[box_id].values():
                for sock in family:
                    sock.close()
                family.clear()

    async def _fetch(self, box_id: str) -> list[socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                try:
                    await self._ask("sockets", {"box": box_id, "counts": AHEAD}, (theirs.fileno(),))
                except EngineError as error:
                    if str(error) == "sockets: 'sockets'":
                        raise NotHere("the zygote of an older version reaches no ports: boxwood down ends it") from None
                    raise
            await _readable(ours)
            said, ancillary, *_ = ours.recvmsg(4096, socket.CMSG_SPACE(4 * 128), socket.MSG_CMSG_CLOEXEC)
        made = [socket.socket(fileno=fd) for *_, rights in ancillary for fd in array.array("i", rights)]
        if not made:
            raise EngineError(f"no socket could be made in the box: {said.decode(errors='replace') or 'no answer'}")
        try:
            _check_elsewhere(made)
        except BaseException:
            for sock in made:
                sock.close()
            raise
        return made


async def _readable(sock: socket.socket) -> None:
    """EngineError."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), _tell, ready)
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            await ready
    except TimeoutError:
        raise EngineError(f"no socket was made in the box within {_FETCH_SECONDS:g} s") from None
    finally:
        loop.remove_reader(sock.fileno())


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _check_elsewhere(made: Sequence[socket.socket]) -> None:
    """None of them may be of the server's own network: its loopback is no VM's. EngineError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        here = own.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    if any(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) == here for sock in made):
        raise EngineError("a socket that was made for a box is of the host's network")


async def _connected(sock: socket.socket, address: tuple[str, int]) -> bool:
    """False: nobody listens, and it is closed. GuestError."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, address)
        return True
    except TimeoutError:
        sock.close()
        raise GuestError(errno.ETIMEDOUT, f"what listens on port {address[1]} in the VM takes no connections") from None
    except OSError as error:
        sock.close()
        if error.errno in _NOBODY:
            return False
        raise GuestError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from None
    except BaseException:
        sock.close()
        raise
