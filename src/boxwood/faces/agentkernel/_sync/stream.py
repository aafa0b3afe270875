# Made from ../_async/stream.py by tools/unasync.py: change that one.
"""The output of a command while it runs. The contract has no stream: the run is looked at, again and again."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic

from boxwood.client._sync.run import Run
from boxwood.client.errors import Timeout
from boxwood.faces.agentkernel.models import StreamEvent
from boxwood.faces.agentkernel.outcome import Tail, last

SHORTEST, LONGEST = 0.02, 0.25  # seconds that the server holds a look back; it answers at once when the run ends
COST = 4  # … and at least so many times what a look costs: each brings all of the output so far
MOST = 5.0  # … but no more than this


def follow(run: Run, timeout: float) -> Generator[StreamEvent, None, None]:
    """Output as it comes, then how the run ended. `timeout`: seconds without an answer that the client allows."""
    tail, pause = Tail(), SHORTEST
    while True:
        fresh = tail.fresh(run)
        for event in fresh:
            yield event
        if run.ended:
            break
        pause = SHORTEST if fresh else min(pause * 1.5, LONGEST)
        pause = max(pause, min(COST * _look(run, pause, timeout), MOST))
    yield last(run)


def _look(run: Run, pause: float, timeout: float) -> float:
    """Waits for the end of the run, at most so long. Returns what that took beyond the pause, in seconds."""
    asked = monotonic()
    try:
        run.wait(pause)
    except Timeout:
        if monotonic() - asked >= pause + timeout:  # not the pause is over, but the patience with the server
            raise
    return max(0.0, monotonic() - asked - pause)
