"""Work that must be finished even if whoever asked for it has gone away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


class Tasks:
    """Keeps its tasks from being collected, logs those that fail unheard, ends them at close."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, heard: bool = False) -> asyncio.Task[T]:
        """`heard`: somebody will await the task and so see its failure."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard if heard else self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it and return its result; should the caller be cancelled, it is done all the same."""
        return await asyncio.shield(self.start(work, heard=True))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("in the background: %s", error, exc_info=error)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
