"""The server's end of what the proxy is told (engine/proxy/control.py): the authority, and what holds for which VM.

Nobody is told anything before a VM has a policy that needs the proxy: then there is one a moment later. A proxy that
was replaced is told all of it again; until it has been, it lets nothing through.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwood.engine.api import EngineError
from boxwood.engine.network.desk import DIRECTORY
from boxwood.engine.network.heard import Senseless, heard

if TYPE_CHECKING:  # the router imports this module
    from boxwood.engine.proxy.questions import Question

SOCKET = f"{DIRECTORY}/proxy"
_ANSWER_SECONDS = 20.0  # in which a proxy can be started
_GATE_SECONDS = 10.0  # beyond those that a gate has: the proxy says when they are over
_AGAIN = 0.2
_LINE = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Told:
    """`secrets` is asked whenever a proxy is told: nobody keeps values here, or is told older ones."""

    vm: str
    rules: Mapping[str, Any]
    secrets: Callable[[], Mapping[str, str]]

    def message(self) -> dict[str, Any]:
        """EngineError: a secret cannot be read."""
        return {"vm": self.vm, "policies": self.rules, "secrets": dict(self.secrets())}


class Envoy:
    """`data`: the data directory; `roots`: authorities of servers that are believed beside the host's, in PEM."""

    def __init__(self, data: Path, roots: str = "") -> None:
        self._data = data
        self._roots = roots
        self._told: dict[str, _Told] = {}  # by VM
        self._authority: tuple[str, str] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._met = asyncio.Event()  # there is one, which knows all that holds
        self._work: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def certificate(self) -> str:
        """The authority's, which boxes are to trust; in PEM. OSError."""
        if self._authority is None:
            self._authority = await asyncio.to_thread(_ensure, self._data / "proxy")
        return self._authority[0]

    async def put(self, vm: str, rules: Mapping[str, Any], secrets: Callable[[], Mapping[str, str]]) -> None:
        """Returns when they hold. EngineError: they do not, nor does anything else for this VM."""
        await self.certificate()
        self._told[vm] = _Told(vm, rules, secrets)
        self._begin()
        await self._ask(vm)

    async def ask_gate(self, question: Question) -> str:
        """Empty: it lets through; else why not. EngineError: there is no proxy that could ask it."""
        await self.certificate()
        self._begin()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._met.wait()
            seconds = question.timeout_ms / 1e3 + _GATE_SECONDS
            return str((await self._say({"gate": question.to_json()}, seconds))["refusal"])
        except (TimeoutError, ConnectionError, KeyError):
            raise EngineError("the proxy of network policies does not answer") from None

    def _begin(self) -> None:
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._visit())

    @property
    def vms(self) -> Iterable[str]:
        """Those that the proxy knows, or will."""
        return tuple(self._told)

    async def repeat(self, vms: Iterable[str]) -> None:
        """Say again what holds for them, with what their secrets are now; of one that has gone meanwhile, nothing.
        EngineError."""
        await asyncio.gather(*(self._ask(vm) for vm in vms))

    async def drop(self, vm: str) -> None:
        """It needs no proxy any more, or is gone."""
        if self._told.pop(vm, None) is not None and self._writer is not None:
            with contextlib.suppress(EngineError, ConnectionError):
                await self._say({"vm": vm, "policies": None})

    async def close(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
            self._work = None

    async def _ask(self, vm: str) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                while (told := self._told.get(vm)) is not None:
                    if self._writer is not None:
                        with contextlib.suppress(ConnectionError):
                            await self._say(told.message())
                            return
                    await asyncio.sleep(_AGAIN / 4)
        except TimeoutError:
            raise EngineError("the proxy of network policies does not answer") from None

    async def _say(self, message: dict[str, Any], seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """Its answer. EngineError, ConnectionError."""
        if self._writer is None:
            raise ConnectionResetError
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(_line({"n": number, **message}))
            async with asyncio.timeout(seconds):
                found: dict[str, Any] = await future
                return found
        except TimeoutError:
            raise EngineError("the proxy of network policies does not answer") from None
        finally:
            self._waiting.pop(number, None)

    async def _visit(self) -> None:
        while True:
            try:
                reader, writer = await self._connect()
            except OSError:
                await asyncio.sleep(_AGAIN)
                continue
            try:
                await self._stay(reader, writer)
            except OSError:
                pass  # it has died: the next one is on its way
            except Senseless as error:
                log.warning("the proxy of network policies has said what makes no sense: %s", type(error).__name__)
            finally:
                self._writer = None
                self._met.clear()
                writer.close()
                for future in self._waiting.values():
                    if not future.done():
                        future.set_exception(ConnectionResetError())
            await asyncio.sleep(_AGAIN)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # a data directory's name may be longer than an address
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{SOCKET}", limit=_LINE)
        finally:
            os.close(directory)

    async def _stay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._authority is not None
        certificate, key = self._authority
        await _tell(reader, writer, {"authority": {"certificate": certificate, "key": key}, "roots": self._roots})
        await self._catch_up(reader, writer)
        self._writer = writer
        self._met.set()
        while line := await reader.readline():
            said = heard(line)
            future = self._waiting.get(said.get("n") or 0)
            if future is None or future.done():
                continue
            if "error" in said:
                future.set_exception(EngineError(f"the proxy of network policies: {said['error']}"))
            else:
                future.set_result(said)

    async def _catch_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell a new proxy all that holds, with what changes while it is told."""
        known: dict[str, _Told] = {}
        while known != self._told:
            for vm in known.keys() - self._told.keys():
                del known[vm]
                await _tell(reader, writer, {"vm": vm, "policies": None})
            for vm, told in tuple(self._told.items()):
                if known.get(vm) != told:
                    known[vm] = told
                    try:
                        wrong = await _tell(reader, writer, told.message())
                    except EngineError as error:
                        wrong = str(error)
                    if wrong:  # nothing is let through for it
                        log.warning("VM %s: the proxy could not be told its policy: %s", vm, wrong)


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: dict[str, Any]) -> str:
    """Something that nobody waits for. What is wrong with it; empty: nothing. OSError; ValueError: no proxy there."""
    writer.write(_line({"n": 0, **message}))
    await writer.drain()
    return str(heard(await reader.readline()).get("error", ""))


def _line(message: dict[str, Any]) -> bytes:
    """As short as it can be: a proxy reads no line above control.LINE."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _ensure(directory: Path) -> tuple[str, str]:
    """The authority, made if there is none: its certificate and its key, which root alone reads."""
    from boxwood.engine.proxy.authority import make

    directory.mkdir(mode=0o700, exist_ok=True)
    certificate, key = directory / "ca.crt", directory / "ca.key"
    if not certificate.exists() or not key.exists():
        made = make()
        for path, text in ((key, made[1]), (certificate, made[0])):
            part = path.with_suffix(".new")
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(text)
            part.rename(path)
    return certificate.read_text(), key.read_text()
