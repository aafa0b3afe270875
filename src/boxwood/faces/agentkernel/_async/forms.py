"""Where the awaitable form differs from the blocking one. Written by hand: the counterpart of ../_sync/forms.py.

The documents write `async for event in client.run_stream(…)` and `async with client.sandbox(…)`; published clients need
an `await` before the call. Both work here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any, Self, TypeVar

from boxwood.faces.agentkernel.models import StreamEvent

T = TypeVar("T")


class AsyncEvents(AsyncIterator[StreamEvent]):
    """Events as they come. Closing it, or its end, ends the command and its VM."""

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        self._events = events

    async def __anext__(self) -> StreamEvent:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()

    def __await__(self) -> Generator[Any, None, AsyncEvents]:
        yield from ()
        return self


class AsyncStarts:
    """What starts when it is awaited or entered."""

    async def start(self) -> Self:
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, Self]:
        return self.start().__await__()


def begun(session: T) -> T:
    """It starts later: nothing can be awaited in a call that is not."""
    return session
