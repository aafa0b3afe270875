"""What goes on behind the answers: Sandboxes get their VMs, Tasks are done, one at a time in each Sandbox.

There is one operator for each application. What it was at when the server ended it takes up again at the next start:
Sandboxes that wait go on waiting, Tasks that had not begun are done; nobody knows how far those were that had.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from boxwood.core.errors import CoreError, NotFound
from boxwood.core.model import Caller, Record
from boxwood.dialects.arl_kubernetes import binding, work
from boxwood.dialects.arl_kubernetes.kinds import SANDBOX, TASK
from boxwood.dialects.arl_kubernetes.sandboxes import Sandboxes, body_changed, is_ready, life_left, rest_left
from boxwood.dialects.arl_kubernetes.status import Refused
from boxwood.dialects.arl_kubernetes.store import Store
from boxwood.dialects.arl_kubernetes.tasks import FINAL, Tasks
from boxwood.dialects.arl_kubernetes.warmpools import WarmPools
from boxwood.dialects.arl_kubernetes.watching import Polls, Watches

if TYPE_CHECKING:
    from boxwood.server.app import App

MOST_WAITING = 1000  # Sandboxes of an organisation: each is told of every change of its pools
SETTLE_SECONDS = 0.25  # after the last Task, before it is told when that was: most are followed by another
Key = tuple[str, str, str]  # organisation, namespace, name of a Sandbox
log = logging.getLogger("boxwood.server")
_operators: WeakKeyDictionary[App, Operator] = WeakKeyDictionary()


class _Queue:
    """The Tasks of a Sandbox that are not over."""

    def __init__(self) -> None:
        self.tasks: deque[Record] = deque()  # without their bodies: there may be many
        self.more = asyncio.Event()
        self.busy = True


class Operator:
    def __init__(self, app: App) -> None:
        self.core = app.core
        self.stopping = app.stopping
        self.stores: dict[str, Store] = {
            "warmpools": WarmPools(self.core),
            "sandboxes": Sandboxes(self),
            "tasks": Tasks(self),
        }
        self.polls = Polls()
        self.watches = Watches()
        self._running: set[asyncio.Task[None]] = set()
        self._queues: dict[Key, _Queue] = {}
        self._waiting: Counter[str] = Counter()

    @classmethod
    def of(cls, app: App) -> Operator:
        found = _operators.get(app)
        if found is None:
            found = _operators[app] = cls(app)
        return found

    # Start and end

    async def start(self) -> None:
        """Take up what an earlier server has left."""
        self._spawn(self._stop(), "the operator's end")
        for record in await self.core.records.of_kind(TASK.changes, lasting=True):  # what is over has an end
            caller = self.core.records.caller_of(record)
            if record.body["status"]["state"] == "Pending":
                self.enqueue(caller, record)
            elif record.body["status"]["state"] not in FINAL:
                self._spawn(work.interrupted(self.core, caller, record), record.name)
        for record in await self.core.records.of_kind(SANDBOX.changes):
            caller = self.core.records.caller_of(record)
            if is_ready(record):
                self.times_changed(caller, record.namespace, record.name)
            elif record.body["status"]["phase"] != "Failed":
                self.bring_up(caller, record)

    async def _stop(self) -> None:
        await self.stopping.wait()
        for task in self._running - {asyncio.current_task()}:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work, what))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except CoreError as error:
            if not self.stopping.is_set():
                log.error("%s: %s", what, error)
        except Exception as error:
            log.error("%s", what, exc_info=error)

    # Sandboxes

    def check_room(self, caller: Caller) -> None:
        """Refused: so many Sandboxes of the organisation wait for their VMs already."""
        if self._waiting[caller.org_id] >= MOST_WAITING:
            text = f"{MOST_WAITING} sandboxes wait for their pools already: make these, or delete some"
            raise Refused(429, "TooManyRequests", text)

    def bring_up(self, caller: Caller, sandbox: Record) -> None:
        self._spawn(self._bring_up(caller, sandbox), f"sandbox {sandbox.namespace}/{sandbox.name}")

    async def _bring_up(self, caller: Caller, sandbox: Record) -> None:
        self._waiting[caller.org_id] += 1
        try:
            await binding.bind(self.core, caller, sandbox)
        finally:
            self._waiting[caller.org_id] -= 1

    def times_changed(self, caller: Caller, namespace: str, name: str) -> None:
        """A Sandbox may be idle, or live, for another time than before. While something is done in it, that counts
        from when it is done."""
        if (caller.org_id, namespace, name) not in self._queues:
            self._spawn(self._rest(caller, namespace, name, after_task=False), f"sandbox {namespace}/{name}")

    async def _rest(self, caller: Caller, namespace: str, name: str, *, after_task: bool) -> None:
        """Nothing is done in it: let it go when its time is over."""
        try:
            if after_task:
                record = await self.core.records.update(
                    caller, SANDBOX.changes, namespace, name, body_changed(binding.has_rest)
                )
            else:
                record = self.core.records.get(caller, SANDBOX.changes, namespace, name)
            if record.vm_id is not None:
                rest = rest_left(record, after_task=after_task or binding.was_used(record))
                await self.core.vms.expire_in(caller, record.vm_id, rest)
        except NotFound:
            return  # it has gone meanwhile

    # Tasks

    def is_free(self, sandbox: Record) -> bool:
        """Would a Task of this Sandbox begin at once?"""
        queue = self._queues.get((sandbox.org_id, sandbox.namespace, sandbox.name))
        return queue is None or not (queue.busy or queue.tasks)

    def enqueue(self, caller: Caller, task: Record) -> None:
        key = (task.org_id, task.namespace, task.body["spec"]["sandboxRef"])
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
            self._spawn(self._work(caller, key, queue), f"tasks of {key[1]}/{key[2]}")
        queue.tasks.append(replace(task, body={}))
        queue.more.set()

    async def _work(self, caller: Caller, key: Key, queue: _Queue) -> None:
        """The Tasks of a Sandbox, in the order in which they came, until there are none for a moment."""
        _, namespace, sandbox = key
        kept = False
        try:
            while True:
                queue.more.clear()
                queue.busy = True
                while queue.tasks:
                    kept = await self._one(caller, sandbox, queue.tasks.popleft(), kept=kept)
                queue.busy = False
                try:
                    async with asyncio.timeout(SETTLE_SECONDS):
                        await queue.more.wait()
                except TimeoutError:
                    await self._rest(caller, namespace, sandbox, after_task=True)
                    kept = False
                    if not queue.tasks:
                        return
        finally:
            del self._queues[key]

    async def _one(self, caller: Caller, sandbox: str, task: Record, *, kept: bool) -> bool:
        """`kept`: the Sandbox does not go while it is worked in. What holds of that afterwards is returned."""
        try:
            found = await work.awaited(self.core, caller, sandbox, task)
            if found is None:
                return kept
            if kept:
                await work.do(self.core, caller, task, found, self.stopping)
            else:
                done = work.do(self.core, caller, task, found, self.stopping)
                await asyncio.gather(done, self._keep(caller, found))
        except CoreError as error:  # of the store: the next one is not to wait for ever
            log.error("task %s/%s: %s", task.namespace, task.name, error)
        return True

    async def _keep(self, caller: Caller, sandbox: Record) -> None:
        """It does not go for being idle now."""
        assert sandbox.vm_id is not None
        try:
            await self.core.vms.expire_in(caller, sandbox.vm_id, life_left(sandbox))
        except CoreError as error:
            log.warning("sandbox %s: %s", sandbox.name, error)


async def start(app: App) -> None:
    await Operator.of(app).start()
