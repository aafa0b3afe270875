# Made from ../_async/following.py by tools/unasync.py: change that one.
"""A run as it happens, over as many connections as that takes."""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic

from boxwood.client import calls
from boxwood.client._sync.pause import sleep
from boxwood.client._sync.transport import Transport
from boxwood.client.errors import BoxwoodError, ConnectionFailed, Timeout, Unavailable
from boxwood.client.events import Follower, RunEvent

PATIENCE = 60.0  # seconds since the server was last heard, after which it is given up
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


def follow(
    transport: Transport,
    vm_id: str,
    call: calls.Call,
    follower: Follower,
) -> Generator[RunEvent, None, None]:
    """`call`: asks for the first events."""
    heard, pause, tried = monotonic(), FIRST_PAUSE, 0
    while True:
        events = transport.events(call)
        try:
            for said in events:
                heard, pause = monotonic(), FIRST_PAUSE
                for event in follower.take(said):
                    yield event
            broken: BoxwoodError = follower.cut_short()
        except (ConnectionFailed, Timeout, Unavailable) as error:
            broken = error
        finally:
            events.close()
        if follower.ended:
            return
        if follower.run_id is None:  # nothing was heard of it yet: as with any other request
            delay = transport.delay(call, broken, tried)
            tried += 1
        else:
            delay = pause if monotonic() - heard < PATIENCE else None
            pause = min(2 * pause, LONGEST_PAUSE)
            call = calls.run_events(vm_id, follower.run_id, follower.position)
        if delay is None:
            raise broken
        sleep(delay)
