"""Functions that want to hear of tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

COMPLETE, SUCCESS, FAILURE = "on_task_complete", "on_task_success", "on_task_failure"
Callback = Callable[[Any], object]

log = logging.getLogger("boxwood.faces.arl")


class Callbacks:
    """By event, in the order of their registration. Any text is an event; those that happen are the three above."""

    def __init__(self) -> None:
        self._functions: dict[str, list[Callback]] = {}

    def add(self, event: str, function: Callback) -> None:
        """As often as it is added, it is called."""
        if not callable(function):
            raise TypeError(f"a callback is a function of the task, not {function!r}")
        self._functions.setdefault(event, []).append(function)

    def remove(self, event: str, function: Callback | None = None) -> None:
        """`function`, however often it was added; None: all of the event. What is not there is no mistake."""
        kept = [other for other in self._functions.get(event, ()) if function is not None and other != function]
        self._functions[event] = kept

    def task_ended(self, task: dict[str, Any], succeeded: bool) -> None:
        """Calls those of `on_task_complete`, then those of success or failure. What one of them raises goes to the log,
        which writes to standard error unless it is told otherwise, and the others are called none the less."""
        for event in (COMPLETE, SUCCESS if succeeded else FAILURE):
            for function in list(self._functions.get(event, ())):
                try:
                    function(task)
                except Exception:
                    log.exception("a callback for %s failed", event)
