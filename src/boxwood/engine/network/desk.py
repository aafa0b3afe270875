"""Where the server asks a router what VMs have used, and is told when one's box has ended. Both ends of it.

A line of JSON each: `{"n": 1, "vm": …}` is answered with `{"n": 1, "usage": …}`; `{"ended": vm, "usage": …}` comes
unasked, and waits for the server if there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from boxwood.engine.api import EngineError, Usage
from boxwood.engine.network.ledger import packed, unpacked

_NAME = "router.sock"
_LINE = 1 << 20
_MOST_UNTOLD = 10_000
_ANSWER_SECONDS = 10.0
_AGAIN = 0.2  # seconds until a router that is not there yet is tried again


class Desk:
    """The router's end, in its working directory. `usage(vm)` is asked for what a VM has used so far."""

    def __init__(self, usage: Callable[[str], Awaitable[Usage]]) -> None:
        self._usage = usage
        self._server: asyncio.Server | None = None
        self._client: asyncio.StreamWriter | None = None
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
                writer.write(json.dumps({"n": asked["n"], **await self._answer(asked["vm"])}).encode() + b"\n")
        except (OSError, ValueError, KeyError):
            pass  # its server is gone, or is none
        finally:
            if self._client is writer:
                self._client = None
            writer.close()

    async def _answer(self, vm: str) -> dict[str, Any]:
        try:
            return {"usage": packed(await self._usage(vm))}
        except (RuntimeError, OSError) as error:
            return {"error": str(error)}


class Visitor:
    """The server's end: there as soon as a router is, and again when it was replaced. `on_ended(vm, usage)`."""

    def __init__(self, data: Path, on_ended: Callable[[str, Usage], None]) -> None:
        self._data = data
        self._on_ended = on_ended
        self._writer: asyncio.StreamWriter | None = None
        self._work: asyncio.Task[None] | None = None
        self._there = asyncio.Event()
        self._over = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Usage]] = {}

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
        number = next(self._numbers)
        future: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._there.wait()
                assert self._writer is not None
                self._writer.write(json.dumps({"n": number, "vm": vm}).encode() + b"\n")
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
            else:
                await self._read(reader, writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # a data directory's name may be longer than an address
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{_NAME}", limit=_LINE)
        finally:
            os.close(directory)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._there.set()
        try:
            while line := await reader.readline():
                self._hear(json.loads(line))
        except (OSError, ValueError):
            pass
        finally:
            self._writer = None
            self._there.clear()
            writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(EngineError("the router of the VMs' network is gone"))

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
            future.set_result(unpacked(said["usage"]))
