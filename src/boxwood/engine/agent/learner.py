"""Finds the functions that a run has defined, for shells that cannot print theirs.

From `name()` to the first `}` or `)` at which the shell's own parser (-n) is content. That takes a millisecond for each
try, so a forked child does it, one text after the other.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from boxwood.engine.agent.dialects import Dialect
from boxwood.engine.agent.loop import IN, Loop, Timer
from boxwood.engine.agent.procs import reset_signals
from boxwood.engine.descriptors import close_all_but

_MOST_TRIES = 300
_SECONDS = 5.0
_READ = 1 << 16
_MOST_FOUND = 1 << 20


class Learner:
    """`on_learned` gets texts of definitions by name, perhaps none, once for every text in which there may be some."""

    def __init__(self, loop: Loop, on_learned: Callable[[dict[bytes, bytes]], None]) -> None:
        self._loop = loop
        self._on_learned = on_learned
        self._queue: list[tuple[bytes, Dialect, bytes]] = []
        self._child: int | None = None
        self._alive = False
        self._pipe = -1
        self._found = b""
        self._limit: Timer | None = None

    @property
    def busy(self) -> bool:
        return self._child is not None

    def learn(self, exe: bytes, kind: Dialect, text: bytes) -> None:
        if next(kind.definitions(text), None) is not None:
            self._queue.append((exe, kind, text))
            self._next()

    def _next(self) -> None:
        if self._child is not None or not self._queue:
            return
        exe, kind, text = self._queue.pop(0)
        try:
            r, w = os.pipe2(os.O_CLOEXEC)
        except OSError:  # the box is full: what is not learned now is lost with the shell
            return
        try:
            pid = os.fork()
        except OSError:
            os.close(r)
            os.close(w)
            return
        if pid == 0:
            _find(exe, kind, text, w)
        os.close(w)
        os.set_blocking(r, False)
        self._pipe = r
        self._child, self._found = pid, b""
        self._alive = True
        self._loop.child(pid, self._on_exit)
        self._loop.watch(self._pipe, IN, self._on_readable)
        self._limit = self._loop.at(time.monotonic() + _SECONDS, self._stop)

    def _on_exit(self, status: int) -> None:
        self._alive = False

    def _on_readable(self, events: int) -> None:
        try:
            data = os.read(self._pipe, _READ)
        except BlockingIOError:
            return
        if data and len(self._found) < _MOST_FOUND:
            self._found += data
            return
        self._end()
        fields = self._found.split(b"\0")[:-1]
        self._next()
        self._on_learned(dict(zip(fields[::2], fields[1::2], strict=False)))

    def _end(self) -> None:
        self._child = None
        self._loop.unwatch(self._pipe)
        os.close(self._pipe)
        if self._limit is not None:
            self._limit.cancel()

    def _stop(self) -> None:
        """It has had its time: what it has found so far will do."""
        if self._child is not None and self._alive:
            os.kill(self._child, signal.SIGKILL)

    def close(self) -> None:
        self._queue.clear()
        if self._child is not None:
            self._stop()
            self._end()


def _find(exe: bytes, kind: Dialect, text: bytes, out: int) -> NoReturn:
    """In the child: write name NUL text NUL for each definition."""
    try:
        reset_signals()
        close_all_but(out)
        tries = _MOST_TRIES
        for name, candidates in kind.definitions(text):
            for candidate in candidates:
                tries -= 1
                if tries < 0:
                    os._exit(0)
                if _parses(exe, kind, candidate):
                    record = memoryview(name + b"\0" + candidate + b"\0")
                    while record:
                        record = record[os.write(out, record) :]
                    break
    finally:
        os._exit(0)


def _parses(exe: bytes, kind: Dialect, text: bytes) -> bool:
    fd = os.memfd_create("text", os.MFD_CLOEXEC)
    try:
        view = memoryview(text + b"\n")
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        silence = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_WRONLY, 0) for number in (1, 2)]
        actions = [(os.POSIX_SPAWN_DUP2, fd, 0), *silence]
        pid = os.posix_spawn(exe, [kind.argv[0], b"-n"], {}, file_actions=actions)
        return os.waitpid(pid, 0)[1] == 0
    finally:
        os.close(fd)
