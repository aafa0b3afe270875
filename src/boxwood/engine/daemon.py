"""The server's side of the zygote: find the one that lives or start one, ask it, hear of deaths."""

from __future__ import annotations

import array
import asyncio
import hashlib
import itertools
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwood.engine import listener
from boxwood.engine.api import EngineError
from boxwood.engine.idmap import IdMap

_PACKET = 1 << 18
_START_SECONDS = 30.0
_ANSWER_SECONDS = 30.0
_END_SECONDS = 1.0  # that a zygote takes which has shut its connections


class _Gone(EngineError):
    """The connection has ended before there was an answer."""


@dataclass(frozen=True, slots=True)
class Outside:
    """What boxes may reach beside the internet, and the file that names the servers they ask for names through ours."""

    wanted: bool = True  # at once, rather than when a box first wants it
    allow: tuple[str, ...] = ()
    resolv_conf: Path = Path("/etc/resolv.conf")


class Zygote:
    """A connection to a zygote. `on_death(box id, wait status)`; `on_lost(reason)` when the zygote itself is gone.
    `ids`: of the namespace that one which is started enters, where we are not root."""

    def __init__(
        self,
        data: Path,
        images: Path,
        on_death: Callable[[str, int], None],
        on_lost: Callable[[str], None],
        outside: Outside,
        ids: IdMap | None = None,
    ) -> None:
        self._data = data
        self._images = images
        self._on_death = on_death
        self._on_lost = on_lost
        self._outside = outside
        self.ids = ids
        self._sock: socket.socket | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.io_weight = 0  # of each box; 0: the disk's time is not shared out
        self._child = 0  # its pid, if it is our child

    @property
    def connected(self) -> bool:
        return self._sock is not None

    async def connect(self, seccomp: bytes) -> None:
        """Reach the zygote of this data directory; start one if none answers. EngineError."""
        if (sock := listener.reach(self._data)) is not None:
            try:
                await self._take(sock, seccomp)
                return
            except _Gone:  # it was about to end when we knocked, or there was no room for what we said
                await asyncio.to_thread(listener.wait_end, self._data, _END_SECONDS)
                sock = listener.reach(self._data)
        if sock is None:  # one that lives would be killed with its boxes
            await asyncio.to_thread(self._start)
            sock = listener.reach(self._data)
        if sock is None:
            raise EngineError(f"the zygote does not answer: see {self._data / 'log' / 'zygote.log'}")
        await self._take(sock, seccomp)

    async def _take(self, sock: socket.socket, seccomp: bytes) -> None:
        """Have it be our connection, and the zygote know what it needs. EngineError: there is no connection."""
        sock.setblocking(False)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        program = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            os.write(program, seccomp)
            outside = {
                "network": self._outside.wanted, "allow": self._outside.allow, "resolv": str(self._outside.resolv_conf),
                "io_weight": self.io_weight,
            }  # fmt: skip
            await self.ask("configure", {"instance": instance(self._data), **outside}, (program,))
        except BaseException:
            self._disconnect(EngineError("the zygote could not be configured"))  # half a connection would pass for one
            raise
        finally:
            os.close(program)

    def close(self) -> None:
        """Let go of it; it lives on."""
        self._disconnect(EngineError("the server lets go"))

    async def ask(
        self, op: str, fields: dict[str, Any], fds: Sequence[int] = (), seconds: float = _ANSWER_SECONDS
    ) -> dict[str, Any]:
        """An answer's members. EngineError with the zygote's words."""
        if self._sock is None:
            raise EngineError("the zygote is not running")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._send(json.dumps({"op": op, "n": number, **fields}).encode(), fds)
            async with asyncio.timeout(seconds):
                answer = await future
        except TimeoutError:
            raise EngineError(f"the zygote did not answer {op} within {seconds:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            raise EngineError(f"{op}: {answer['error']}")
        return answer

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while self._sock is not None:
            try:
                self._sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                await self._writable()
            except OSError as error:
                self._lost(f"the zygote is gone: {error.strerror}")
        raise _Gone("the zygote is gone")

    async def _writable(self) -> None:
        """Many boots at once fill the socket: wait until the zygote has taken some."""
        assert self._sock is not None
        loop, sock = asyncio.get_running_loop(), self._sock
        fd = os.dup(sock.fileno())  # of its own: several may wait
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(fd, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_writer(fd)
            os.close(fd)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            packet = self._sock.recv(_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._lost("the zygote is gone")
            return
        message = json.loads(packet)
        if message.get("event") == "died":
            self._on_death(message["box"], message["status"])
        elif (future := self._waiting.get(message.get("n", 0))) is not None and not future.done():
            future.set_result(message)

    def _lost(self, reason: str) -> None:
        if self._sock is not None:
            self._disconnect(_Gone(reason))
            self._on_lost(reason)

    def _disconnect(self, error: EngineError) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()
        self._reap(os.WNOHANG)

    async def wait_gone(self) -> None:
        """After `end`: until the process is reaped, if it is our child."""
        await asyncio.to_thread(self._reap, 0)

    def _reap(self, flags: int) -> None:
        if self._child:
            try:
                pid, _ = os.waitpid(self._child, flags)
            except ChildProcessError:
                pid = self._child
            if pid:
                self._child = 0

    # --- starting

    def _start(self) -> None:
        """Returns when it takes requests. EngineError."""
        listener.end_unreachable(self._data)
        self._reap(0)  # a zygote of ours that is gone, or has just been made to go
        log = self._data / "log" / "zygote.log"
        ready, theirs = os.pipe()
        try:
            try:
                self._child = self._spawn(theirs, log)
            except OSError as error:
                raise EngineError(f"the zygote could not be started: {error.strerror}") from None
            finally:
                os.close(theirs)
            poll = select.poll()
            poll.register(ready, select.POLLIN)
            if not poll.poll(_START_SECONDS * 1e3):
                os.kill(self._child, signal.SIGKILL)
                raise EngineError(f"the zygote was not ready within {_START_SECONDS:g} s: see {log}")
            if not os.read(ready, 16):
                raise EngineError(f"the zygote did not start: see {log}")
        finally:
            os.close(ready)

    def _spawn(self, ready: int, log: Path) -> int:
        """Its pid. `ready`: a pipe that it writes to when it takes requests. OSError."""
        command = [sys.executable, "-I", "-m", "boxwood.engine.zygote"]
        options = ["--data", str(self._data), "--images", str(self._images), "--ready", "3"]
        if self.ids is not None:
            options += ["--rootless", self.ids.to_json()]
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, fd, number) for fd, number in ((out, 1), (out, 2), (ready, 3))),
        ]
        try:  # not subprocess.Popen: it is a daemon that outlives us
            return os.posix_spawn(sys.executable, command + options, {}, file_actions=actions, setsid=True)
        finally:
            os.close(out)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def instance(data: Path) -> str:
    """A ULID-shaped name for a data directory: its cgroups are called after it."""
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    digest = hashlib.sha256(str(data.resolve()).encode()).digest()
    return "0" + "".join(alphabet[b & 31] for b in digest[:25])
