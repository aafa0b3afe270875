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
REMEMBERED_BYTES = 32 << 20  # … of the bodies of what has changed
BEHIND = 10_000  # changes that a listener has not taken, after which he is given up
BEHIND_BYTES = 64 << 20  # … that the listeners of an organisation have not taken: the slowest is given up
POOL = "pool"  # the kind of changes of pools; records' have the records' kind


@dataclass(frozen=True, slots=True)
class Change:
    """`size`: how much memory it holds that others do not, as bytes of JSON."""

    kind: str
    type: Literal["added", "modified", "deleted"]
    item: Record | Pool
    revision: int
    size: int = 0


class Changes:
    def __init__(self) -> None:
        self._lock = threading.Lock()  # revisions are given out on the store's thread too
        self._last = clock.now()
        self._log: deque[Change] = deque()
        self._log_bytes = 0
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
        self._log.append(change)
        self._log_bytes += change.size
        while len(self._log) > REMEMBERED or (self._log_bytes > REMEMBERED_BYTES and len(self._log) > 1):
            oldest = self._log.popleft()
            self._forgotten = oldest.revision
            self._log_bytes -= oldest.size
        for listener in list(self._listeners):
            listener.hear(change)
        if change.size:
            self._bound(change.item.org_id)

    def _bound(self, org_id: str) -> None:
        """Nobody makes the server keep more and more by listening and not reading."""
        slow = [listener for listener in self._listeners if listener.org_id == org_id and listener.bytes]
        total = sum(listener.bytes for listener in slow)
        for listener in sorted(slow, key=lambda listener: listener.bytes, reverse=True):
            if total <= BEHIND_BYTES:
                return
            total -= listener.bytes
            listener.give_up()

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
        self.org_id = org_id
        self.bytes = 0  # of changes that have not been taken
        self._among = among
        self._kinds = kinds
        self._namespace = namespace
        self._waiting: deque[Change] = deque()
        self._heard = asyncio.Event()
        self._behind = False
        self._waits = False  # for changes, whatever they are
        among.add(self)

    def hear(self, change: Change) -> None:
        item = change.item
        if item.org_id != self.org_id or change.kind not in self._kinds or self._behind:
            return
        if self._namespace is not None and item.namespace != self._namespace:
            return
        if not self._waits:
            if len(self._waiting) >= BEHIND:
                self.give_up()
                return
            self._waiting.append(change)
            self.bytes += change.size
        self._heard.set()

    def give_up(self) -> None:
        """Its reader is too slow."""
        self._behind = True
        self._forget()
        self._among.discard(self)
        self._heard.set()

    def _forget(self) -> None:
        self._waiting.clear()
        self.bytes = 0

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._behind:
                raise Expired("resource", "more has changed than could be told: list again")
            self._heard.clear()
            await self._heard.wait()
        change = self._waiting.popleft()
        self.bytes -= change.size
        return change

    async def wait(self, until: Callable[[], T | None], seconds: float) -> T | None:
        """What `until` tells as soon as it tells something; it is asked at once, then after each change. None: the
        time is over."""
        self._waits = True
        self._forget()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._heard.clear()
                    if (told := until()) is not None:
                        return told
                    await self._heard.wait()
        except TimeoutError:
            return None
        finally:
            self._waits = False

    def close(self) -> None:
        self._among.discard(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
