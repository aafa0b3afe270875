"""Is the agent still there? Asked while somebody waits for what it says on its own, and it has been silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from boxwood.engine.api import BoxGone
from boxwood.engine.link import Answer, Link

SILENT_SECONDS = 30.0  # after which it is asked
ANSWER_SECONDS = 30.0  # … and has so long to answer: else the link breaks, and the box is replaced


class Pulse:
    """`awaited`: does somebody wait? As long as nobody does, nothing is asked, and no timer runs."""

    def __init__(self, link: Link, awaited: Callable[[], bool]) -> None:
        self._link = link
        self._awaited = awaited
        self._loop = asyncio.get_running_loop()
        self._watching = False

    def begin(self) -> None:
        """Somebody waits from now on."""
        if not self._watching:
            self._watching = True
            self._loop.call_later(SILENT_SECONDS, self._look)

    def _look(self) -> None:
        self._watching = False
        if not self._awaited():
            return
        left = self._link.heard + SILENT_SECONDS - self._loop.time()
        if left > 0:
            self._watching = True
            self._loop.call_later(left, self._look)
            return
        try:
            asked = self._link.begin("ping", {}, timeout=ANSWER_SECONDS)
        except BoxGone:
            return
        self._watching = True
        asked.add_done_callback(self._answered)

    def _answered(self, asked: asyncio.Future[Answer]) -> None:
        self._watching = False
        if not asked.cancelled() and asked.exception() is None:
            self.begin()
