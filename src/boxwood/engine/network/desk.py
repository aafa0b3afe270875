"""Where the server tells a router the policies of boxes, asks it what VMs have used, and is told when one's box has
ended. Both ends of it.

A line of JSON each: `{"n": 1, "vm": …}` is answered with `{"n": 1, "usage": …}`; `{"n": 2, "vm": …, "address": …,
"rules": …}` with `{"n": 2, "in_force": true}` once they are; what failed with an `error`. `{"ended": vm, "usage": …}`
comes unasked, and waits for the server if there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from boxwood.engine.api import EngineError, Usage
from boxwood.engine.network.heard import Senseless, heard
from boxwood.engine.network.ledger import packed, unpacked

DIRECTORY = "router"  # of the data directory: all that a router may write there
_NAME = f"{DIRECTORY}/socket"
_LINE = 1 << 20
_MOST_UNTOLD = 10_000
_ANSWER_SECONDS = 10.0
_AGAIN = 0.2  # seconds until a router that is not there yet, or makes no sense, is tried again
log = logging.getLogger(__name__)


class _Gone(EngineError):
    """A router ended before it answered."""


class Desk:
    """The router's end, in its working directory. `usage(vm)` is asked for what a VM has used so far; `police(address,
    vm, rules)` puts rules in force."""

    def __init__(
        self,
        usage: Callable[[str], Awaitable[Usage]],
        police: Callable[[str, str, dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._usage = usage
        self._police = police
        self._server: asyncio.Server | None = None
        self._client: asyncio.StreamWriter | None = None
        # Of whom is answered: nothing of an earlier server's holds later than a newer one's.
        self._turn = asyncio.Lock()
        self._untold: deque[dict[str, Any]] = deque(maxlen=_MOST_UNTOLD)

    async def open(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        Path(_NAME).unlink(missing_ok=True)
        sock.bind(_NAME)
        os.chmod(_NAME, 0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=_LINE)

    async def close(self) -> None:
        """What was told is on its way."""
        if self._server is not None:
            self._server.close()
            Path(_NAME).unlink(missing_ok=True)
        if (client := self._client) is not None:
            client.close()
            with contextlib.suppress(OSError):
                await client.wait_closed()

    def tell(self, message: dict[str, Any]) -> None:
        self._untold.append({**message, "usage": packed(message["usage"])})
        self._flush()

    def _flush(self) -> None:
        while self._client is not None and not self._client.is_closing() and self._untold:
            self._client.write(json.dumps(self._untold.popleft()).encode() + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._client is not None:
            self._client.close()  # one server at a time: the newest
        self._client = writer
        self._flush()
        try:
            while line := await reader.readline():
                asked = json.loads(line)
                async with self._turn:
                    if self._client is not writer:
                        break  # what it has sent and nobody has read yet may be older than what the newer one knows
                    writer.write(json.dumps({"n": asked["n"], **await self._answer(asked)}).encode() + b"\n")
        except (OSError, ValueError, KeyError):
            pass  # its server is gone, or is none
        finally:
            if self._client is writer:
                self._client = None
            writer.close()

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if "rules" in asked:
                await self._police(asked["address"], asked["vm"], asked["rules"])
                return {"in_force": True}
            return {"usage": packed(await self._usage(asked["vm"]))}
        except (RuntimeError, OSError) as error:
            return {"error": str(error)}


class Visitor:
    """The server's end: there as soon as a router is, and again when it was replaced. `on_ended(vm, usage)`; `on_met()`
    whenever a router is there."""

    def __init__(self, data: Path, on_ended: Callable[[str, Usage], None], on_met: Callable[[], None]) -> None:
        self._data = data
        self._on_ended = on_ended
        self._on_met = on_met
        self._writer: asyncio.StreamWriter | None = None
        self._work: asyncio.Task[None] | None = None
        self._there = asyncio.Event()
        self._over = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def open(self) -> None:
        """Begin to visit, until `close`."""
        self._over = False
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._visit())

    async def close(self, *, at_end: bool = False) -> None:
        """`at_end`: the router is ending; what it has yet to tell is heard before."""
        self._over = True
        if self._work is not None:
            if at_end and self._writer is not None:
                await asyncio.wait({self._work}, timeout=_ANSWER_SECONDS)
            self._work.cancel()
            await asyncio.wait({self._work})
            self._work = None

    @property
    def there(self) -> bool:
        """Is there a router that answers?"""
        return self._there.is_set()

    async def usage(self, vm: str) -> Usage:
        """EngineError: there is no router."""
        return unpacked((await self._ask({"vm": vm}))["usage"])

    async def police(self, vm: str, address: str, rules: dict[str, Any]) -> None:
        """Returns when the rules are in force; a router that goes meanwhile leaves it to the next one. EngineError."""
        message = {"vm": vm, "address": address, "rules": rules}
        until = asyncio.get_running_loop().time() + _ANSWER_SECONDS
        while True:
            try:
                said = await self._ask(message)
                break
            except _Gone:
                if asyncio.get_running_loop().time() >= until:
                    raise
        if not said.get("in_force"):
            raise EngineError("the router of an older version knows no policies: boxwood down ends it")

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._there.wait()
                assert self._writer is not None
                self._writer.write(json.dumps({"n": number, **message}).encode() + b"\n")
                return await future
        except TimeoutError:
            raise EngineError("the router of the VMs' network does not answer") from None
        finally:
            self._waiting.pop(number, None)

    async def _visit(self) -> None:
        while not self._over:
            try:
                reader, writer = await self._connect()
            except OSError:
                await asyncio.sleep(_AGAIN)
                continue
            try:
                await self._read(reader, writer)
            except OSError:
                pass
            except Senseless as error:
                log.warning("the router of the VMs' network has said what makes no sense: %s", type(error).__name__)
                await asyncio.sleep(_AGAIN)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # a data directory's name may be longer than an address
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{_NAME}", limit=_LINE)
        finally:
            os.close(directory)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the router is gone. OSError, Senseless."""
        self._writer = writer
        self._there.set()
        self._on_met()
        try:
            while line := await reader.readline():
                self._hear(heard(line))
        finally:
            self._writer = None
            self._there.clear()
            writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(_Gone("the router of the VMs' network is gone"))

    def _hear(self, said: dict[str, Any]) -> None:
        if "ended" in said:
            self._on_ended(said["ended"], unpacked(said["usage"]))
            return
        future = self._waiting.get(said.get("n", 0))
        if future is None or future.done():
            return
        if "error" in said:
            future.set_exception(EngineError(said["error"]))
        else:
            future.set_result(said)
