"""A session: a VM with a history. What is kept of it (`Facts`, a record), and what this server knows of it besides.

The VM changes when the session is brought back to an earlier step; the session's id never does.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import Struct, field

from boxwood.core.core import Core
from boxwood.core.model import VM, Caller
from boxwood.dialects.arl_gateway.envelope import Told, now
from boxwood.dialects.arl_gateway.history import History
from boxwood.dialects.arl_gateway.words import NAMESPACE

KIND = "arl.session"
DEVBOX = "devbox"
MOST_EVENTS = 200


class Port(Told, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    container_port: int = field(name="containerPort")
    protocol: str


class Event(Struct, frozen=True):
    """Something that happened to a session and is no step."""

    at: str
    message: str


class Facts(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`vm`: where it is now. `base`: the VM to fork for how things were before the first step; one of the session's own
    if `base_owned`. `owner`: the key that made it."""

    vm: str
    base: str
    sandbox: str
    owner: str
    image: str
    profile: str
    created_at: str
    idle_seconds: int
    base_owned: bool = False
    pool: str = ""
    namespace: str = NAMESPACE
    mode: str = ""
    env: dict[str, str] = {}
    status: str = "active"
    deleted_at: str = ""
    reason: str = ""
    parent: str = ""
    fork_step: int | None = None
    experiment: str = ""
    managed: bool = False
    ports: list[Port] = []
    old_client: bool = False  # it named a pool, as clients before 0.15 do
    events: list[Event] = []

    def body(self) -> dict[str, Any]:
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    @classmethod
    def read(cls, body: Any) -> Facts:
        return msgspec.convert(body, cls)

    def changed(self, message: str = "", **values: Any) -> Facts:
        if message:
            values["events"] = [*self.events, Event(now(), message)][-MOST_EVENTS:]
        return msgspec.structs.replace(self, **values)


class Connection(Told, frozen=True, kw_only=True, omit_defaults=True):
    path: str = field(name="shell")
    ports: list[Port] = field(default_factory=list)


class SessionInfo(Told, frozen=True, kw_only=True, omit_defaults=True):
    """A session as clients read it."""

    id: str
    sandbox_name: str = field(name="sandboxName")
    namespace: str
    pool_ref: str = field(name="poolRef")
    image: str
    profile: str
    pod_name: str = field(name="podName")
    created_at: str = field(name="createdAt")
    status: str
    pod_ip: str = field(name="podIP", default="")
    mode: str = ""
    deleted_at: str = field(name="deletedAt", default="")
    reason: str = field(name="deletionReason", default="")
    connection: Connection | None = field(name="connectionInfo", default=None)
    parent: str = field(name="parentSessionId", default="")
    fork_step: int | None = field(name="forkStep", default=None)
    experiment: str = field(name="experimentId", default="")
    managed: bool = False


class Session:
    """One that is there. `lock`: held by whoever starts a step, takes a snapshot or changes the VM; `writing`: by
    whoever gives a step its number."""

    def __init__(self, core: Core, caller: Caller, session_id: str, facts: Facts) -> None:
        self.id = session_id
        self.caller = caller  # whose it is, whatever the key
        self.facts = facts
        self.lock = asyncio.Lock()
        self.writing = asyncio.Lock()
        self.history = History(core, caller, session_id)
        self.snapshots: dict[int, str] | None = None  # VMs by the step after which they were taken; None: not looked up
        self.unmarked: int | None = None  # the last step, while there is no snapshot of what it left
        self.sealed: int | None = None  # the step whose snapshot shows the VM as it is while nothing is written
        self.copies_after = 0.0  # loop time before which nothing is copied for a snapshot
        self.generation = 0  # grows when the session goes back
        self.calls = 0
        self.expires_at = 0.0  # loop time
        self.beat: asyncio.TimerHandle | None = None
        self.ended = False
        self.told = 0  # how often there was something new in its log
        self._listeners: set[asyncio.Future[None]] = set()

    @property
    def key(self) -> tuple[str, str]:
        return self.caller.org_id, self.id

    def info(self, vm: VM | None = None) -> SessionInfo:
        return info(self.id, self.facts, vm)

    # Whoever follows its log

    def tell(self) -> None:
        """There is something new in its log."""
        self.told += 1
        for listener in self._listeners:
            if not listener.done():
                listener.set_result(None)

    async def news(self, told: int, seconds: float) -> None:
        """Until there has been more than that, or for so long."""
        if self.told != told:
            return
        listener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listeners.add(listener)
        try:
            await asyncio.wait((listener,), timeout=seconds)
        finally:
            self._listeners.discard(listener)


def info(session_id: str, facts: Facts, vm: VM | None = None) -> SessionInfo:
    connection = None
    if facts.mode == DEVBOX:
        connection = Connection(path=f"/v1/sessions/{session_id}/shell", ports=facts.ports)
    return SessionInfo(
        id=session_id,
        sandbox_name=facts.sandbox,
        namespace=facts.namespace,
        pool_ref=facts.pool,
        image=facts.image,
        profile=facts.profile,
        pod_name=facts.sandbox,
        created_at=facts.created_at,
        status=facts.status,
        pod_ip="" if vm is None or vm.address is None else vm.address,
        mode=facts.mode,
        deleted_at=facts.deleted_at,
        reason=facts.reason,
        connection=connection,
        parent=facts.parent,
        fork_step=facts.fork_step,
        experiment=facts.experiment,
        managed=facts.managed,
    )
