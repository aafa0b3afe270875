"""How a session's VM was after each step: forks of it, which nobody boots, each known by the number of its step.

A snapshot is taken before the next step begins, so the last step of a session costs none; a step that has written
nothing has that of the step before. Where something else runs the VM's top is copied, and if that takes long it is not
done again too soon. A step without a snapshot is reached from the one before, by doing the steps between once more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from boxwood.core.errors import CoreError, NotFound
from boxwood.core.model import VM, ForkRequest

if TYPE_CHECKING:
    from boxwood.dialects.arl_gateway.gateway import Gateway
    from boxwood.dialects.arl_gateway.session import Session

KIND = "arl.snapshot"
LABEL = "arl/snapshot-of"
MOST_SNAPSHOTS = 64  # of a session: the latest
KEPT_SECONDS = 30 * 86400.0  # should nobody delete it
SLOW_SECONDS = 0.25
SHARE = 20  # of the time at most a twentieth is spent on slow snapshots
log = logging.getLogger("boxwood.server")


async def load(gateway: Gateway, session: Session) -> dict[int, str]:
    """What is there, looked up once."""
    if session.snapshots is None:
        found = await gateway.core.records.list(session.caller, KIND, session.id)
        if session.snapshots is None:
            session.snapshots = {int(record.name): record.vm_id for record in found if record.vm_id is not None}
    return session.snapshots


async def mark(gateway: Gateway, session: Session, *, whatever_it_costs: bool = False) -> None:
    """Take the snapshot of what the last step left, unless there is one. With the session's lock held.

    That it cannot be taken harms nobody."""
    index = session.unmarked
    loop = asyncio.get_running_loop()
    if index is None or (loop.time() < session.copies_after and not whatever_it_costs):
        return
    session.unmarked = session.sealed = None
    known = await load(gateway, session)
    began = loop.time()
    try:
        vm = await _take(gateway, session, index)
    except CoreError as error:
        log.warning("session %s: no snapshot of step %d: %s", session.id, index, error)
        return
    if session.ended:  # meanwhile
        discard(gateway, session, vm.vm_id)
        return
    known[index], session.sealed = vm.vm_id, index
    took = loop.time() - began
    if took > SLOW_SECONDS:
        session.copies_after = loop.time() + SHARE * took
    while len(known) > MOST_SNAPSHOTS:
        discard(gateway, session, known.pop(min(known)))


async def _take(gateway: Gateway, session: Session, index: int) -> VM:
    """The record comes first: whatever dies in the middle, no snapshot is there that nobody knows of."""
    records, name = gateway.core.records, f"{index:010d}"
    record = await records.create(session.caller, KIND, session.id, name, {}, ttl=KEPT_SECONDS)
    request = ForkRequest(
        source_id=session.facts.vm,
        description=f"step {index} of session {session.id}",
        labels={LABEL: session.id},
        ttl=KEPT_SECONDS,
        hidden=True,
        record=record.record_id,
    )
    try:
        return await gateway.core.vms.fork(session.caller, request)
    except BaseException:
        with suppress(NotFound):
            await records.delete(session.caller, KIND, session.id, name)
        raise


def discard(gateway: Gateway, session: Session, vm_id: str) -> None:
    """Its record goes with it."""
    with suppress(CoreError):
        gateway.core.vms.discard(session.caller, vm_id)


async def drop_all(gateway: Gateway, session: Session) -> None:
    for vm_id in (await load(gateway, session)).values():
        discard(gateway, session, vm_id)
    session.snapshots = {}


async def drop_after(gateway: Gateway, session: Session, last: int) -> None:
    known = await load(gateway, session)
    for index in [index for index in known if index > last]:
        discard(gateway, session, known.pop(index))


async def sweep(gateway: Gateway) -> None:
    """At the start: those of sessions that are not there any more, and those that were being taken."""
    records = gateway.core.records
    for record in await records.of_kind(KIND):
        caller = records.caller_of(record)
        with suppress(NotFound):
            if record.vm_id is None:
                await records.delete(caller, KIND, record.namespace, record.name)
            elif (record.org_id, record.namespace) not in gateway.sessions:
                gateway.core.vms.discard(caller, record.vm_id)
