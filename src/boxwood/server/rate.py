"""How much one API key may ask for: requests in a second, and requests at once; and how much an organisation may send
at once. Refused before any work is done.

The bound on requests in a second is a token bucket of which only one number is kept, the moment at which it will be
full again (GCRA): a request moves it on by one interval, and one that would move it too far is refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from boxwood.server.errors import RateLimited

KEPT = 1024  # buckets, above which those that are full again are forgotten


class Rates:
    """`per_second`: 0 is no bound. `burst`: requests that may come at once after a rest, at least one. `at_once`:
    requests of one key that have not been answered to their end; 0 is no bound."""

    def __init__(
        self, per_second: float, burst: int, at_once: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._slack = self._interval * (max(1, burst) - 0.999)  # a little more: sums are rounded
        self._at_once = at_once
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._open: dict[str, int] = {}

    def enter(self, key_id: str) -> None:
        """One request more, until `leave`. RateLimited: it is not counted, and must not be left."""
        running = self._open.get(key_id, 0)
        if self._at_once and running >= self._at_once:
            raise RateLimited(f"this key has {running} requests at once already, and may have no more", 1)
        if self._interval:
            now = self._clock()
            full_at = max(self._full_at.get(key_id, now), now)
            if (wait := full_at - now - self._slack) > 0:
                raise RateLimited("this key asks more often than it may: go slower", math.ceil(wait))
            self._full_at[key_id] = full_at + self._interval
            if len(self._full_at) > KEPT:
                self._forget(now)
        self._open[key_id] = running + 1

    def leave(self, key_id: str) -> None:
        """The request has been answered, or given up."""
        running = self._open[key_id] - 1
        if running:
            self._open[key_id] = running
        else:
            del self._open[key_id]

    def _forget(self, now: float) -> None:
        """Keys come and go. Of those in use there are few, so what is left is far below the bound."""
        self._full_at = {key_id: at for key_id, at in self._full_at.items() if at > now}


class Bodies:
    """Bytes of requests' bodies that are in memory until they have been answered, of each organisation: `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, int] = {}

    def take(self, org_id: str, size: int) -> None:
        """So many more, until they are given back. RateLimited: none of them."""
        held = self._held.get(org_id, 0) + size
        if held > self._most:
            raise RateLimited(
                f"more than {self._most} bytes of your requests wait for their answers: send less at once", 1
            )
        self._held[org_id] = held

    def give_back(self, org_id: str, size: int) -> None:
        held = self._held[org_id] - size
        if held:
            self._held[org_id] = held
        else:
            del self._held[org_id]
