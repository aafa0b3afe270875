"""Kills a shell that does not say in time what it is to say, so that another one takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable

from boxwood.engine.agent.loop import Loop, Timer
from boxwood.engine.agent.shell import Shell

START_SECONDS = 20.0
DUMP_SECONDS = 10.0
_NUDGE_SECONDS = 0.25


class Watchdog:
    """`on_lost` is called before a shell is killed that has come up well and does not dump its state."""

    def __init__(self, loop: Loop, on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._timer: Timer | None = None

    def cancel(self) -> None:
        """It has said so, or has died."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def until_it_is_up(self, shell: Shell) -> None:
        self._wait(START_SECONDS, shell.kill)

    def until_it_has_dumped(self, shell: Shell) -> None:
        """One that has come back without its state (see Job._check) is killed at once."""
        self._look(shell, 0, asked=False)

    def _look(self, shell: Shell, count: int, *, asked: bool) -> None:
        if (asked and shell.came_back) or count > DUMP_SECONDS / _NUDGE_SECONDS:
            self._on_lost()
            shell.kill()
            return
        if count and not asked and shell.has_read:
            shell.feed(b"\n")
            asked = True
        self._wait(_NUDGE_SECONDS, lambda: self._look(shell, count + 1, asked=asked))

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.cancel()
        self._timer = self._loop.at(time.monotonic() + seconds, then)
