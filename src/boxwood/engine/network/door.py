"""The router's end of what the proxy asks it: where a connection was going, whose it is, and under which names. The
messages are in engine/proxy/origins.py.

What the proxy says is parsed by the bytes of boxes and of the internet, so it is believed in nothing but a question: it
can ask where connections were going that have come to it, what a name's addresses are, and tell of refusals.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from boxwood.engine.api import Denial

_PACKET = 1 << 16
_AT_ONCE = 64
_MOST_RESOLVING = 256
log = logging.getLogger("boxwood.router")
Place = tuple[str, int]


class Door:
    """`before(source, at)`: where a connection was going; `vm_of(box)`; `names(box, address)`; `resolve(name)`;
    `denied(box, denial)`. `keeper`: over which each new proxy's socket comes."""

    def __init__(
        self,
        keeper: socket.socket,
        *,
        before: Callable[[Place, Place], Place | None],
        vm_of: Callable[[str], str],
        names: Callable[[str, str], Collection[str]],
        resolve: Callable[[str], Awaitable[list[str]]],
        denied: Callable[[str, Denial], None],
    ) -> None:
        self._keeper = keeper
        self._before = before
        self._vm_of = vm_of
        self._names = names
        self._resolve = resolve
        self._denied = denied
        self._proxy: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        self._keeper.setblocking(False)
        asyncio.get_running_loop().add_reader(self._keeper.fileno(), self._on_keeper)

    def close(self) -> None:
        """The keeper ends, and the proxy with it."""
        asyncio.get_running_loop().remove_reader(self._keeper.fileno())
        self._lose()
        self._keeper.close()

    def gone(self, boxes: list[str]) -> None:
        """These are no more: nothing of theirs goes on in the proxy."""
        self._say({"gone": boxes})

    def _on_keeper(self) -> None:
        try:
            _, found, _, _ = socket.recv_fds(self._keeper, 16, 1)
        except BlockingIOError:
            return
        self._lose()
        if not found:
            log.error("the keeper of the proxy has ended: requests are not let through before the router is replaced")
            asyncio.get_running_loop().remove_reader(self._keeper.fileno())
            return
        self._proxy = socket.socket(fileno=found[0])
        self._proxy.setblocking(False)
        asyncio.get_running_loop().add_reader(self._proxy.fileno(), self._on_proxy)

    def _lose(self) -> None:
        if self._proxy is not None:
            asyncio.get_running_loop().remove_reader(self._proxy.fileno())
            self._proxy.close()
            self._proxy = None

    def _on_proxy(self) -> None:
        for _ in range(_AT_ONCE):
            if self._proxy is None:
                return
            try:
                packet = self._proxy.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lose()
                return
            try:
                self._hear(json.loads(packet))
            except (ValueError, KeyError, TypeError, OSError) as error:
                log.warning("the proxy has said what makes no sense: %s", type(error).__name__)

    def _hear(self, said: dict[str, Any]) -> None:
        if "denied" in said:
            text = str(said["host"])[:255]
            denial = Denial(
                time.time(), "http", str(said["address"]), int(said["port"]), text, str(said["reason"])[:64]
            )
            if self._vm_of(said["denied"]):
                self._denied(said["denied"], denial)
        elif "resolve" in said:
            if len(self._tasks) >= _MOST_RESOLVING:
                self._say({"n": said["n"]})
                return
            task = asyncio.get_running_loop().create_task(self._look_up(said["n"], str(said["resolve"])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._say({"n": said["n"], **self._origin(said)})

    def _origin(self, said: dict[str, Any]) -> dict[str, Any]:
        box, port = said["from"]
        address, at = said["at"]
        vm, found = self._vm_of(box), self._before((box, port), (address, at))
        if not vm or found is None:
            return {}
        return {"vm": vm, "address": found[0], "port": found[1], "names": sorted(self._names(box, found[0]))[:1000]}

    async def _look_up(self, number: int, name: str) -> None:
        found: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            found = await self._resolve(name)
        self._say({"n": number, "addresses": found})

    def _say(self, message: dict[str, Any]) -> None:
        if self._proxy is not None:
            with contextlib.suppress(OSError):  # it is not itself, or gone: what it asked for is not let through
                self._proxy.send(json.dumps(message).encode())
