"""Watches: what changes, as it changes, one JSON line for each; and answers that are held until there is one.

ARL's published client does not watch, it asks again and again: every half second for a Task, every second for a
Sandbox. Whoever is seen to do that is answered when there is something to tell.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from boxwood.core.changes import Change, Subscription
from boxwood.core.errors import CoreError
from boxwood.dialects.arl_kubernetes import tables
from boxwood.dialects.arl_kubernetes.objects import API_VERSION, Object
from boxwood.dialects.arl_kubernetes.query import Query
from boxwood.dialects.arl_kubernetes.status import Refused, failure
from boxwood.dialects.arl_kubernetes.store import Store, pages
from boxwood.server.events import gone
from boxwood.server.exchange import JSON, Exchange, encode

HOLD_SECONDS = 10.0
POLL_SECONDS = 5.0  # between two questions of one who polls, at most
MOST_POLLED = 10_000
POLLERS = b"OpenAPI-Generator/"  # the Python client, whose users poll; kubectl's users want to see what is
BOOKMARK_SECONDS = 60.0
MOST_WATCHES = 1000  # of one organisation

Events = AsyncGenerator[bytes, None]


class Polls:
    """Which objects have been asked for lately, or made, by clients that poll."""

    def __init__(self) -> None:
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()

    def seen(self, exchange: Exchange, item: Object) -> bool:
        """Note that this one is asked for. True: it was, just before; or the client says that it waits (RFC 7240), as
        boxwood.faces.arl does."""
        if any(name == b"prefer" and value.startswith(b"wait=") for name, value in exchange.scope["headers"]):
            return True
        if not exchange.headers.get(b"user-agent", b"").startswith(POLLERS):
            return False
        key = (exchange.caller.org_id, item["metadata"]["uid"])
        now = asyncio.get_running_loop().time()
        before = self._asked.pop(key, None)
        self._asked[key] = now
        if len(self._asked) > MOST_POLLED:
            self._asked.popitem(last=False)
        return before is not None and now - before <= POLL_SECONDS


async def held(exchange: Exchange, store: Store, item: Object) -> Object:
    """The object as it is once there is nothing more to wait for, or after some seconds. Refused (it has gone)."""
    namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
    caller, core = exchange.caller, exchange.core

    def settled() -> Object | None:
        now = store.one(caller, namespace, name)
        return now if store.settled(now) else None

    with core.changes.subscribe(caller.org_id, {store.kind.changes}, namespace) as changes:
        waiting = asyncio.ensure_future(changes.wait(settled, HOLD_SECONDS))
        others = [asyncio.ensure_future(exchange.disconnected()), asyncio.ensure_future(exchange.app.stopping.wait())]
        try:
            await asyncio.wait((waiting, *others), return_when=asyncio.FIRST_COMPLETED)
            return (waiting.result() if waiting.done() else None) or store.one(caller, namespace, name)
        finally:
            for task in (waiting, *others):
                task.cancel()
            await asyncio.gather(waiting, *others, return_exceptions=True)


# Watches


class Watches:
    """How many each organisation has."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def begin(self, org_id: str) -> None:
        """Refused."""
        if self._open.get(org_id, 0) >= MOST_WATCHES:
            raise Refused(429, "TooManyRequests", f"there are {MOST_WATCHES} watches already: end some")
        self._open[org_id] = self._open.get(org_id, 0) + 1

    def end(self, org_id: str) -> None:
        self._open[org_id] -= 1
        if not self._open[org_id]:
            del self._open[org_id]


class WatchResponse(Response):
    """Each event when it is there, until the time is over, the client goes away or the server stops."""

    def __init__(self, events: Events, seconds: float, stopping: asyncio.Event, on_end: Callable[[], None]) -> None:
        super().__init__(None, 200, media_type=JSON)
        del self.headers["content-length"]
        self._events = events
        self._seconds = seconds
        self._stopping = stopping
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.ensure_future(gone(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait((left, stopping, sending), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (left, stopping, sending):
                task.cancel()
            await asyncio.gather(left, stopping, sending, return_exceptions=True)
            self._on_end()
        if not left.done() or left.cancelled():
            await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for said in events:
                await send({"type": "http.response.body", "body": said, "more_body": True})


async def events(exchange: Exchange, store: Store, namespace: str | None, query: Query) -> Events:
    """Without a revision what there is first, as if it had just been made."""
    teller = _Teller(exchange, store, query)
    caller, core, kind = exchange.caller, exchange.core, store.kind
    try:
        with core.changes.subscribe(caller.org_id, {kind.changes}, namespace, query.revision) as changes:
            async for page in pages(store, caller, namespace):
                for item in page:
                    if (said := teller.there(item)) is not None:
                        yield said
            while True:
                change = await _next(changes) if query.bookmarks else await anext(changes)
                said = teller.bookmark(core.changes.told(kind.changes)) if change is None else teller.changed(change)
                if said is not None:
                    yield said
    except CoreError as error:
        yield line("ERROR", failure(error))


async def _next(changes: Subscription) -> Change | None:
    """None: nothing has changed for a while."""
    try:
        async with asyncio.timeout(BOOKMARK_SECONDS):
            return await anext(changes)
    except TimeoutError:
        return None


class _Teller:
    """Makes events of objects and changes, for one watch. What no longer fits its selectors is deleted to it."""

    def __init__(self, exchange: Exchange, store: Store, query: Query) -> None:
        self._store = store
        self._query = query
        self._table = tables.wanted(exchange)
        self._headed = False
        self._known: dict[tuple[str, str], int] = {}  # what the client knows, as of which revision
        self._hidden: set[tuple[str, str]] = set()  # what is there and was not chosen

    def there(self, item: Object) -> bytes | None:
        """Of what is there at the beginning, which a client that says a revision knows."""
        revision = int(item["metadata"]["resourceVersion"])
        told = self._query.revision
        if not self._query.chosen(item):
            if told is None or revision <= told:
                self._hidden.add(_key(item))
            return None
        self._known[_key(item)] = revision if told is None else 0
        return self._event("ADDED", item) if told is None else None

    def changed(self, change: Change) -> bytes | None:
        item = self._store.shown(change.item)
        item["metadata"]["resourceVersion"] = str(change.revision)
        key, chosen = _key(item), self._query.chosen(item)
        if change.revision <= self._known.get(key, 0):
            return None
        known = self._known.pop(key, None) is not None
        hidden = key in self._hidden
        self._hidden.discard(key)
        if change.type == "deleted":
            return self._event("DELETED", item) if known or (chosen and not hidden) else None
        if not chosen:
            self._hidden.add(key)
            return self._event("DELETED", item) if known else None
        self._known[key] = change.revision
        return self._event("ADDED" if change.type == "added" or hidden else "MODIFIED", item)

    def bookmark(self, revision: int) -> bytes:
        kind = self._store.kind.name
        return line(
            "BOOKMARK", {"kind": kind, "apiVersion": API_VERSION, "metadata": {"resourceVersion": str(revision)}}
        )

    def _event(self, type_: str, item: Object) -> bytes:
        if self._table:
            revision = item["metadata"]["resourceVersion"]
            columns = self._store.kind.columns
            item = tables.table([item], columns, revision, self._query.included, headed=not self._headed)
            self._headed = True
        return line(type_, item)


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def line(type_: str, item: Object) -> bytes:
    return encode({"type": type_, "object": item}) + b"\n"
