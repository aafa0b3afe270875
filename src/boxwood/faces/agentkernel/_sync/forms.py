"""Where the blocking form differs from the awaitable one. Written by hand: the counterpart of ../_async/forms.py."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Self, TypeVar

from boxwood.faces.agentkernel.models import StreamEvent


class Events(Iterator[StreamEvent]):
    """Events as they come. Closing it, or its end, ends the command and its VM."""

    def __init__(self, events: Generator[StreamEvent, None, None]) -> None:
        self._events = events

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def close(self) -> None:
        self._events.close()


class Starts:
    """What starts when it is made."""

    def start(self) -> Self:
        raise NotImplementedError


T = TypeVar("T", bound=Starts)


def begun(session: T) -> T:
    return session.start()
