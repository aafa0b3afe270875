"""Helpers: forks of the agent for file work that may take long. What they find goes into a pipe that the server has
given, never over the agent's link: a helper waits as long as nobody reads, and ends when nobody will.

A helper ends by itself: at the latest after the seconds that the server grants, or, while it has something to say, as
soon as the pipe is shut.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.place import because, raw
from boxwood.engine.agent.procs import reset_signals
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.records import DATA, DATA_BYTES, END, record

MOST = 32  # at once
_MOST_SECONDS = 3600.0
_GRACE = 2.0  # seconds from the moment when it is to come to an end to the one when it is killed


class TimeUp(Exception):
    """The seconds that the work may take are over."""


class Out:
    """The pipe to the server. Lines are gathered; `flush` sends them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._gathered = bytearray()
        self._writing = False
        self._late = False

    def line(self, fields: dict[str, Any]) -> int:
        """Bytes of the line."""
        text = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
        self._gathered += text
        if len(self._gathered) >= DATA_BYTES // 2:
            self.flush()
        return len(text)

    def flush(self) -> None:
        gathered, self._gathered = bytes(self._gathered), bytearray()
        self.data(gathered)

    def data(self, data: bytes | memoryview) -> None:
        for at in range(0, len(data), DATA_BYTES):
            self._write(record(DATA, bytes(data[at : at + DATA_BYTES])))

    def end(self, fields: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.flush()
        self._write(record(END, json.dumps(fields, separators=(",", ":")).encode("ascii")))

    def _write(self, data: bytes) -> None:
        """A record is written whole: who is interrupted there stops behind it."""
        view = memoryview(data)
        self._writing = True
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        finally:
            self._writing = False
        if self._late:
            self._late = False
            raise TimeUp

    def limit(self, seconds: float) -> None:
        """From now on so long; then `TimeUp` is raised wherever the work is, and soon after that it is killed. 0:
        as long as it takes."""

        def late(signum: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, _GRACE)
            if self._writing:
                self._late = True
            else:
                raise TimeUp

        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)


Work = Callable[[dict[str, Any], Out, int], dict[str, Any]]
"""(what is asked, where to, the pipe to read from or -1) -> how it went."""


class Helpers:
    def __init__(self, loop: Loop, works: dict[str, Work]) -> None:
        self._loop = loop
        self._works = works
        self._pids: set[int] = set()

    def start(self, header: dict[str, Any], fds: list[int]) -> None:
        """`{do, seconds, …}` with the pipe to write to and, for some, one to read from. Refusal, OSError."""
        work, seconds = self._works.get(str(header["do"])), header["seconds"]
        if work is None:
            raise Refusal(errno.ENOSYS, f"there is no such file work: {str(header['do'])[:40]}")
        if type(seconds) not in (int, float) or not 0 < seconds <= _MOST_SECONDS or len(fds) not in (1, 2):
            raise Refusal(errno.EINVAL, "file work has seconds, and one pipe or two")
        if len(self._pids) >= MOST:
            raise Refusal(errno.EAGAIN, f"the VM has {MOST} walks, transfers and watches at once: end one of them")
        pid = os.fork()
        if pid == 0:
            _help(work, header, fds)
        self._pids.add(pid)
        self._loop.child(pid, lambda status: self._pids.discard(pid))  # ours, and nobody's orphan

    def count(self) -> int:
        """Those that are at work now: one whose end has not been heard of yet is none."""
        for pid in [*self._pids]:
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._loop.disown(pid)
                self._pids.discard(pid)
        return len(self._pids)


def _help(work: Work, header: dict[str, Any], fds: list[int]) -> NoReturn:
    try:
        gc.disable()
        reset_signals()
        os.umask(0o022)
        close_all_but(*fds)
        out = Out(fds[0])
        try:
            out.limit(header["seconds"])
            end = work(header, out, fds[1] if len(fds) > 1 else -1)
        except TimeUp:
            end = {"errno": errno.ETIME, "error": f"it was not done within {header['seconds']:g} seconds"}
        except Refusal as refusal:
            end = {"errno": refusal.errno, "error": refusal.text[:2000]}
        except OSError as error:
            refused = because(error, raw(header.get("path", "")))
            end = {"errno": refused.errno, "error": refused.text[:2000]}
        except Exception as error:  # whatever it was, it is told: nobody else sees the child
            end = {"errno": errno.EINVAL, "error": f"{header['do']}: {type(error).__name__}: {error}"[:2000]}
        out.end(end)
    finally:
        os._exit(0)
