"""What has changed among records and pools, for those who want to hear of it.

Every change has a revision; revisions grow, over restarts too. The latest changes are remembered, so that whoever knows
how things were at a revision can be told what has happened since.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeVar

from boxwood.core import clock
from boxwood.core.errors import Expired
from boxwood.core.model import Pool, Record

T = TypeVar("T")
REMEMBERED = 4096
BEHIND = 10_000  # changes that a listener has not taken, after which he is given up
POOL = "pool"  # the kind of changes of pools; records' have the records' kind


@dataclass(frozen=True, slots=True)
class Change:
    kind: str
    type: Literal["added", "modified", "deleted"]
    item: Record | Pool
    revision: int


class Changes:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # revisions are given out on the store's thread too
        self._last = clock.now()
        self._log: deque[Change] = deque(maxlen=REMEMBERED)
        self._forgotten = self._last  # nothing is known of changes up to this revision
        self._listeners: set[Subscription] = set()

    @property
    def revision(self) -> int:
        """The newest."""
        return self._last

    def told(self, kind: str) -> int:
        """The newest change of a kind that has been told: whoever looks at all there is now and then subscribes since
        this revision misses nothing, and hears of the latest perhaps twice."""
        return next((change.revision for change in reversed(self._log) if change.kind == kind), self._forgotten)

    def next(self) -> int:
        """A revision that is newer than all others; the clock's, so that they grow over restarts."""
        with self._lock:
            self._last = max(self._last + 1, clock.now())
            return self._last

    def begin_after(self, revision: int) -> None:
        """At the start: the clock may have been set back since this was given out."""
        self._last = self._forgotten = max(self._last, revision)

    def tell(self, change: Change) -> None:
        if len(self._log) == self._log.maxlen:
            self._forgotten = self._log[0].revision
        self._log.append(change)
        for listener in list(self._listeners):
            listener.hear(change)

    def subscribe(
        self, org_id: str, kinds: Collection[str], namespace: str | None = None, since: int | None = None
    ) -> Subscription:
        """What changes from now on, or since a revision. To be used in a `with`. Expired: nobody remembers so far."""
        listener = Subscription(self._listeners, org_id, frozenset(kinds), namespace)
        if since is not None:
            if since < self._forgotten:
                raise Expired("resource", f"what has changed since revision {since} is not remembered: list again")
            for change in self._log:
                if change.revision > since:
                    listener.hear(change)
        return listener


class Subscription:
    """An async iterator of changes; ends with Expired if its reader falls too far behind."""

    def __init__(self, among: set[Subscription], org_id: str, kinds: frozenset[str], namespace: str | None) -> None:
        self._among = among
        self._org_id = org_id
        self._kinds = kinds
        self._namespace = namespace
        self._waiting: deque[Change] = deque()
        self._heard = asyncio.Event()
        self._behind = False
        among.add(self)

    def hear(self, change: Change) -> None:
        item = change.item
        if item.org_id != self._org_id or change.kind not in self._kinds or self._behind:
            return
        if self._namespace is not None and item.namespace != self._namespace:
            return
        if len(self._waiting) >= BEHIND:
            self._behind = True
            self._waiting.clear()
            self._among.discard(self)
        else:
            self._waiting.append(change)
        self._heard.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._behind:
                raise Expired("resource", "more has changed than could be told: list again")
            self._heard.clear()
            await self._heard.wait()
        return self._waiting.popleft()

    async def wait(self, until: Callable[[], T | None], seconds: float) -> T | None:
        """What `until` tells as soon as it tells something; it is asked at once, then after each change. None: the
        time is over."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._waiting.clear()
                    self._heard.clear()
                    if (told := until()) is not None:
                        return told
                    await self._heard.wait()
        except TimeoutError:
            return None

    def close(self) -> None:
        self._among.discard(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
