"""What the gateway knows beside the core: which sessions are there, who uses them, and when they end.

A session's VM is deleted by the core when it has been idle for too long; what is left of the session is put away here.
Sessions that have ended are remembered for a day, so that whoever asks is told why.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from boxwood.core.errors import CoreError, Forbidden, NotFound
from boxwood.core.model import VM, Caller, Record
from boxwood.dialects.arl_gateway import snapshots, words
from boxwood.dialects.arl_gateway.envelope import Ended, NoSession, Suspended, now
from boxwood.dialects.arl_gateway.operations import Operations
from boxwood.dialects.arl_gateway.session import KIND, Facts, Session

if TYPE_CHECKING:
    from boxwood.server.app import App
    from boxwood.server.exchange import Exchange

SWEEP_SECONDS = 30.0
ENDED_SECONDS = 86400.0
MOST_ENDED = 1000  # of one organisation that are remembered
RECORDS = "sessions"  # the namespace of their records
LEAST_SLACK, MOST_SLACK = 0.5, 60.0
BEAT_SECONDS = 300.0
QUIET_SECONDS = 0.05  # without a call
log = logging.getLogger("boxwood.server")


class Gateway:
    def __init__(self, app: App) -> None:
        self.core = app.core
        self.stopping = app.stopping
        self.sessions: dict[tuple[str, str], Session] = {}
        self.operations = Operations(self)
        self._ended: dict[str, deque[str]] = defaultdict(deque)  # by organisation, the oldest first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started: asyncio.Task[None] | None = None

    # Start

    async def start(self) -> None:
        """Once, whoever asks first: take up the sessions that an earlier server has left."""
        if self._started is None:
            self._started = asyncio.get_running_loop().create_task(self._start())
        await asyncio.shield(self._started)

    async def _start(self) -> None:
        for record in await self.core.records.of_kind(KIND):
            try:
                facts = Facts.read(record.body)
            except msgspec.ValidationError as error:
                log.error("session %s: its record cannot be read: %s", record.name, error)
                continue
            if facts.status == "deleted":
                self._ended[record.org_id].append(record.name)
            else:
                await self._take_up(record, facts)
        await snapshots.sweep(self)
        await self.operations.start()
        self.spawn(self._sweep_often())

    async def _take_up(self, record: Record, facts: Facts) -> None:
        session = Session(self.core, self.core.records.caller_of(record), record.name, facts)
        self.sessions[session.key] = session
        try:
            ends = (await self.core.vms.get(session.caller, facts.vm)).expires_at
            left = 0.0 if ends is None else (ends - datetime.now(UTC)).total_seconds()
        except NotFound:  # its time was over while there was no server
            left = 0.0
        session.expires_at = asyncio.get_running_loop().time() + left

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Work that goes on whether or not anybody waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, CoreError):
            log.error("arl gateway: %s", error, exc_info=error)

    # Looking

    async def find(self, exchange: Exchange) -> Session:
        """The session that the path names. NoSession, Ended, Forbidden (another user's)."""
        session, _ = await self.seen(exchange)
        return session

    async def active(self, exchange: Exchange) -> Session:
        """… to do something in it. Also Suspended."""
        session = await self.find(exchange)
        if session.facts.status == "suspended":
            raise Suspended(session.id)
        return session

    async def seen(self, exchange: Exchange) -> tuple[Session, VM]:
        """… and its VM."""
        caller, name = exchange.caller, words.session_id(exchange.params["id"])
        session = self.sessions.get((caller.org_id, name))
        if session is None:
            facts = self.remembered(caller, name)
            raise Ended(name, facts.reason, facts.deleted_at)
        check_owner(caller, session.facts)
        vm = await self.vm_of(session)
        if vm is None:
            raise Ended(name, session.facts.reason, session.facts.deleted_at)
        return session, vm

    def remembered(self, caller: Caller, name: str) -> Facts:
        """Of a session that has ended. NoSession, Forbidden."""
        try:
            facts = Facts.read(self.core.records.get(caller, KIND, RECORDS, name).body)
        except NotFound:
            raise NoSession(name) from None
        check_owner(caller, facts)
        if facts.status != "deleted":  # it is being put away
            raise NoSession(name)
        return facts

    async def vm_of(self, session: Session) -> VM | None:
        """None: it is gone, and so is the session."""
        try:
            return await self.core.vms.get(session.caller, session.facts.vm)
        except NotFound:
            if session.lock.locked():  # it is being replaced
                async with session.lock:
                    with suppress(NotFound):
                        return await self.core.vms.get(session.caller, session.facts.vm)
            late = asyncio.get_running_loop().time() >= session.expires_at - 1
            with suppress(NoSession):
                await self.end(session, "idle_timeout" if late and not session.calls else "runtime_lost")
            return None

    async def of(self, caller: Caller) -> list[tuple[Session, VM]]:
        """Those of the caller's organisation that are there, the oldest first."""
        found = []
        mine = [session for (org_id, _), session in self.sessions.items() if org_id == caller.org_id]
        for at, session in enumerate(sorted(mine, key=lambda one: (one.facts.created_at, one.id))):
            if at % 100 == 99:
                await asyncio.sleep(0)
            vm = await self.vm_of(session)
            if vm is not None:
                found.append((session, vm))
        return found

    # Coming

    async def add(self, caller: Caller, session_id: str, facts: Facts) -> Session:
        """A new session, whose VM is there. PayloadTooLarge, CapacityUnavailable."""
        owner = Caller(caller.org_id, caller.org_name, "")
        await self.core.records.create(owner, KIND, RECORDS, session_id, facts.body())
        session = Session(self.core, owner, session_id, facts)
        session.snapshots = {}
        self.sessions[session.key] = session
        session.expires_at = asyncio.get_running_loop().time() + facts.idle_seconds
        return session

    async def change(self, session: Session, message: str = "", **values: Any) -> None:
        """On record, and here. NoSession."""
        if session.ended:
            raise NoSession(session.id)
        facts = session.facts.changed(message, **values)
        try:
            await self.core.records.update(session.caller, KIND, RECORDS, session.id, lambda _: facts.body())
        except NotFound:
            raise NoSession(session.id) from None
        session.facts = facts
        session.tell()

    # Going

    async def end(self, session: Session, reason: str) -> None:
        """Delete its VM and its snapshots, and remember the rest for a while. NoSession: somebody else does."""
        if session.ended:
            raise NoSession(session.id)
        session.ended = True
        await asyncio.shield(self.spawn(self._end(session, reason)))

    async def _end(self, session: Session, reason: str) -> None:
        try:
            with suppress(NotFound):
                await self.core.vms.delete(session.caller, session.facts.vm)
            await snapshots.drop_all(self, session)
            if session.facts.base_owned:
                snapshots.discard(self, session, session.facts.base)
            facts = session.facts.changed(f"session ended: {reason}", status="deleted", deleted_at=now(), reason=reason)
            await self.core.records.update(
                session.caller, KIND, RECORDS, session.id, lambda _: facts.body(), ttl=ENDED_SECONDS
            )
        except BaseException:
            session.ended = False
            raise
        session.facts = facts
        self.sessions.pop(session.key, None)
        if session.beat is not None:
            session.beat.cancel()
        session.tell()
        self.spawn(self._remember(session))

    async def _remember(self, session: Session) -> None:
        """Its history is kept as long as it is; of those that have ended the latest alone are."""
        ended = self._ended[session.caller.org_id]
        ended.append(session.id)  # now: how long the rest takes is another's affair
        await session.history.keep_for(ENDED_SECONDS)
        while len(ended) > MOST_ENDED:
            oldest = ended.popleft()
            with suppress(NotFound):
                await self.core.records.delete(session.caller, KIND, RECORDS, oldest)
            await Session(self.core, session.caller, oldest, session.facts).history.forget()

    async def _sweep_often(self) -> None:
        while not self.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self.stopping.wait()
                    return
            await self.sweep()

    async def sweep(self) -> None:
        """Put away those whose VMs have been deleted meanwhile, and operations that nobody will ask for any more."""
        late = asyncio.get_running_loop().time()
        for session in list(self.sessions.values()):
            if not session.calls and session.expires_at < late and session.facts.status == "active":
                await self.vm_of(session)
        self.operations.sweep()

    # Use

    @asynccontextmanager
    async def used(self, session: Session) -> AsyncIterator[None]:
        """Something is done with a session: it does not end while it lasts, nor for its idle time afterwards."""
        session.calls += 1
        try:
            await self.renew(session)
            if session.beat is None:
                self._beat(session)
            yield
        finally:
            session.calls -= 1
            if not session.calls and session.beat is not None:
                session.beat.cancel()
                session.beat = None
            if not session.calls and session.unmarked is not None:
                asyncio.get_running_loop().call_later(QUIET_SECONDS, self._is_quiet, session, session.unmarked)
            if not session.ended and not self.stopping.is_set() and self._is_due(session):
                self.spawn(self.renew(session))

    def _is_quiet(self, session: Session, index: int) -> None:
        """While nobody waits for it the snapshot of the last step is taken, and a box made for the next one."""
        if not session.calls and session.unmarked == index and not session.ended and not self.stopping.is_set():
            self.spawn(self._mark(session))

    async def _mark(self, session: Session) -> None:
        async with session.lock:
            await snapshots.mark(self, session)
            if not session.ended and session.facts.status == "active":
                await self.core.vms.start(session.caller, session.facts.vm)

    def _is_due(self, session: Session) -> bool:
        left = session.expires_at - asyncio.get_running_loop().time()
        return session.facts.status == "active" and left < session.facts.idle_seconds

    async def renew(self, session: Session) -> None:
        """A little longer than it may be idle, so that not every use has to be written down."""
        if not self._is_due(session):
            return
        idle = session.facts.idle_seconds
        seconds = idle + min(MOST_SLACK, max(LEAST_SLACK, idle / 20))
        try:
            await self.core.vms.expire_in(session.caller, session.facts.vm, seconds)
        except NotFound:
            await self.vm_of(session)
            raise NoSession(session.id) from None
        session.expires_at = asyncio.get_running_loop().time() + seconds

    def _beat(self, session: Session) -> None:
        """While something runs that takes long."""
        wait = min(BEAT_SECONDS, session.facts.idle_seconds / 2)
        session.beat = asyncio.get_running_loop().call_later(wait, self._beaten, session)

    def _beaten(self, session: Session) -> None:
        session.beat = None
        if session.calls and not session.ended and not self.stopping.is_set():
            self.spawn(self.renew(session))
            self._beat(session)


def check_owner(caller: Caller, facts: Facts) -> None:
    if caller.role != "admin" and caller.key_id != facts.owner:
        raise Forbidden("access denied: session owned by another user")


_gateways: weakref.WeakKeyDictionary[App, Gateway] = weakref.WeakKeyDictionary()


def of_app(app: App) -> Gateway:
    found = _gateways.get(app)
    if found is None:
        found = _gateways[app] = Gateway(app)
    return found


async def start(app: App) -> None:
    """Take up what an earlier server has left."""
    await of_app(app).start()


async def gateway(exchange: Exchange) -> Gateway:
    found = of_app(exchange.app)
    await found.start()
    return found
