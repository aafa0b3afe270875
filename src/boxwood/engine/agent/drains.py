"""Pipes that somebody goes on writing to when nobody listens any more: he is not to wait for that, nor to die of it."""

from __future__ import annotations

import os

from boxwood.engine.agent.loop import IN, Loop

_MOST = 16


class Drains:
    """What comes is thrown away, until the last writer has gone. Of too many the oldest is closed."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fds: list[int] = []

    def add(self, fd: int) -> None:
        """`fd`: a reading end, which is ours from now on."""

        def drain(events: int) -> None:
            try:
                gone = not os.read(fd, 1 << 18)
            except BlockingIOError:
                return
            if gone:
                self._fds.remove(fd)
                self._loop.unwatch(fd)
                os.close(fd)

        self._fds.append(fd)
        self._loop.watch(fd, IN, drain)
        if len(self._fds) > _MOST:
            self._end(self._fds.pop(0))

    def close(self) -> None:
        while self._fds:
            self._end(self._fds.pop())

    def _end(self, fd: int) -> None:
        self._loop.unwatch(fd)
        os.close(fd)
