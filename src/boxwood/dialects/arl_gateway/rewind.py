"""Going back: a session as it was after one of its steps, in its own place (restore) or as another session (fork); and
another session's steps done again (replay).

How a VM was after a step is shown by its snapshot. Where there is none, the nearest one before is forked, or what the
session began with, and the steps since are done again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace as with_changes
from typing import Any

from msgspec import field
from starlette.responses import Response

from boxwood.core.errors import BadRequest, Conflict, NotFound
from boxwood.core.model import VM, ForkRequest
from boxwood.dialects.arl import steps as arl_steps
from boxwood.dialects.arl_gateway import create as creation
from boxwood.dialects.arl_gateway import perform, snapshots, words
from boxwood.dialects.arl_gateway.envelope import Ended, Lenient, Told, body, now, told
from boxwood.dialects.arl_gateway.gateway import Gateway, check_owner, gateway
from boxwood.dialects.arl_gateway.history import History, Step
from boxwood.dialects.arl_gateway.session import Event, Facts, Session, SessionInfo
from boxwood.server.exchange import Exchange

REBUILT_SECONDS = 86400.0  # that doing steps again may take


class RestoreBody(Lenient, frozen=True, kw_only=True):
    snapshot_id: str | None = field(name="snapshotID", default=None)
    operation_id: str | None = field(name="operationID", default=None)


class RestoreAnswer(Told, frozen=True, kw_only=True):
    snapshot_id: str = field(name="snapshotID")
    replayed: int = field(name="stepsReplayed")


class ReplayBody(Lenient, frozen=True, kw_only=True):
    source: str | None = field(name="sourceSessionID", default=None)
    until: int | None = field(name="upToStep", default=None)
    operation_id: str | None = field(name="operationID", default=None)


class ReplayAnswer(Told, frozen=True, kw_only=True):
    replayed: int = field(name="stepsReplayed")
    errors: int


class ForkBody(Lenient, frozen=True, kw_only=True):
    step: int | None = None
    image: str | None = None
    profile: str | None = None


class ForkAnswer(Told, frozen=True, kw_only=True):
    session: SessionInfo
    parent: str = field(name="parentId")
    step: int = field(name="forkStep")


# Restore


async def restore(exchange: Exchange) -> Response:
    """The session keeps its id, and the steps up to that one their numbers; later ones are forgotten."""
    wanted = await body(exchange, RestoreBody)
    if not wanted.snapshot_id:
        raise BadRequest("snapshotID is required")
    text = wanted.snapshot_id
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise BadRequest(f"invalid snapshot ID {text[:80]!r}: it is the number of a step")
    there = await gateway(exchange)
    session = await there.active(exchange)

    async def work() -> RestoreAnswer:
        async with there.used(session), session.lock:
            count = await _restore(there, session, int(text))
        return RestoreAnswer(snapshot_id=text, replayed=count)

    return await there.operations.answer(exchange, session, wanted.operation_id, text, work)


async def _restore(there: Gateway, session: Session, index: int) -> int:
    """How many steps the session has then."""
    steps = await _steps(there, session, index)
    if session.unmarked == index:
        await snapshots.mark(there, session, whatever_it_costs=True)
    vm, marked = await rebuilt(there, session, session.facts, await snapshots.load(there, session), steps)
    async with session.writing:
        session.generation += 1  # what runs now is no step of it any more
        await replace(there, session, vm, f"session restored to step {index}")
        await session.history.load()
        await session.history.cut(index)
        session.sealed, session.unmarked = marked, index if marked is None else None
        await snapshots.drop_after(there, session, index)
    return len(steps)


async def _steps(there: Gateway, session: Session, index: int) -> list[Step]:
    """Up to one that has to be there. NotFound."""
    steps = await session.history.all(index)
    if not steps or steps[-1].index != index:
        raise NotFound("resource", f"snapshot {index} not found")
    return steps


async def rebuilt(
    there: Gateway, session: Session, facts: Facts, known: dict[int, str], steps: list[Step]
) -> tuple[VM, int | None]:
    """A VM as the session's was after the last of these steps, and the step whose snapshot it is, if it is one.
    NotFound (what it began with), Conflict: a step that is needed for it cannot be done again."""
    at, marked = _nearest(known, steps)
    try:
        vm = await fork(there, session, ForkRequest(source_id=facts.base if marked is None else known[marked]))
    except NotFound:
        raise NotFound("resource", f"snapshot {steps[-1].index} not found any more") from None
    left = steps[at + 1 :]
    try:
        if marked is None:
            await arl_steps.make_directory(there.core, session.caller, vm.vm_id, words.WORKSPACE)
            if steps[0].index:
                raise Conflict("resource", "the first steps of this session are not on record any more")
        for step in left:
            if not await perform.again(there, session.caller, vm.vm_id, facts.env, step):
                raise Conflict("resource", f"step {step.index} ({step.name[:80]}) cannot be done again")
    except BaseException:
        snapshots.discard(there, session, vm.vm_id)
        raise
    return vm, None if left else marked


def _nearest(known: dict[int, str], steps: list[Step]) -> tuple[int, int | None]:
    """The place of the last step that a snapshot shows, and whose snapshot that is; before the first, and none."""
    for at in range(len(steps) - 1, -1, -1):
        for index in (steps[at].index, steps[at].same_as):
            if index is not None and index in known:
                return at, index
    return -1, None


async def fork(there: Gateway, session: Session, source: ForkRequest) -> VM:
    """For a session to go on in: with what its VM has. It is deleted when the session is idle from the moment on in
    which it goes on there."""
    request = with_changes(source, ttl=REBUILT_SECONDS, labels={creation.LABEL: session.id})
    if source.network is None:
        try:
            now_there = await there.core.vms.get(session.caller, session.facts.vm)
        except NotFound:  # it has ended
            return await there.core.vms.fork(session.caller, request)
        request = with_changes(request, network=now_there.network, resources=now_there.resources)
    return await there.core.vms.fork(session.caller, request)


async def replace(there: Gateway, session: Session, vm: VM, message: str) -> None:
    """Let the session go on in another VM; what runs in the one that it had ends. With its lock held."""
    old, session.sealed = session.facts.vm, None
    milliseconds = int(asyncio.get_running_loop().time() * 1000)
    try:
        await there.change(session, message, vm=vm.vm_id, sandbox=f"{session.id}-r{milliseconds}")
    except BaseException:
        snapshots.discard(there, session, vm.vm_id)
        raise
    session.expires_at = 0.0
    await there.renew(session)
    snapshots.discard(there, session, old)


# Replay


async def replay(exchange: Exchange) -> Response:
    """Nothing of it is put down in this session's history."""
    wanted = await body(exchange, ReplayBody)
    if not wanted.source:
        raise BadRequest("sourceSessionID is required")
    there = await gateway(exchange)
    session = await there.active(exchange)
    steps = await _steps_of_another(there, exchange, words.session_id(wanted.source), wanted.until)

    async def work() -> ReplayAnswer:
        async with there.used(session):
            async with session.lock:
                await snapshots.mark(there, session)
                vm_id = session.facts.vm
            errors = 0
            for step in steps:
                errors += not await perform.again(there, session.caller, vm_id, session.facts.env, step)
        return ReplayAnswer(replayed=len(steps) - errors, errors=errors)

    request = [wanted.source, wanted.until]
    return await there.operations.answer(exchange, session, wanted.operation_id, request, work)


async def _steps_of_another(there: Gateway, exchange: Exchange, source: str, until: int | None) -> list[Step]:
    """Also of one that has ended. NoSession, Forbidden."""
    found = there.sessions.get((exchange.caller.org_id, source))
    if found is not None:
        check_owner(exchange.caller, found.facts)
        return await found.history.all(until)
    there.remembered(exchange.caller, source)
    return await History(there.core, exchange.caller, source).all(until)


# Fork


async def fork_session(exchange: Exchange) -> Response:
    """A new session that begins as this one was after a step."""
    wanted = await body(exchange, ForkBody)
    if wanted.step is None or wanted.step < 0:
        raise BadRequest("step is required and must not be negative")
    there = await gateway(exchange)
    try:
        source = await there.find(exchange)
    except Ended:
        facts = there.remembered(exchange.caller, exchange.params["id"])
        source = Session(there.core, exchange.caller, exchange.params["id"], facts)
    async with there.used(source), source.lock:
        made = await _fork(there, exchange, source, wanted.step)
        made.expires_at = 0.0
        await there.renew(made)
    return told(ForkAnswer(session=made.info(), parent=source.id, step=wanted.step), 201)


async def _fork(there: Gateway, exchange: Exchange, source: Session, index: int) -> Session:
    steps = await _steps(there, source, index)
    if source.unmarked == index:
        await snapshots.mark(there, source, whatever_it_costs=True)
    vm, _ = await rebuilt(there, source, source.facts, await snapshots.load(there, source), steps)
    base: VM | None = None
    try:
        labels: dict[str, Any] = {snapshots.LABEL: source.id}
        base = await there.core.vms.fork(
            source.caller, ForkRequest(source_id=vm.vm_id, labels=labels, ttl=snapshots.KEPT_SECONDS, hidden=True)
        )
        session_id = words.new_session_id(source.facts.image)
        facts = source.facts.changed(
            vm=vm.vm_id,
            base=base.vm_id,
            base_owned=True,
            sandbox=session_id,
            owner=exchange.caller.key_id,
            created_at=now(),
            status="active",
            deleted_at="",
            reason="",
            parent=source.id,
            fork_step=index,
            events=[Event(now(), f"session forked from step {index} of {source.id}")],
        )
        return await there.add(exchange.caller, session_id, facts)
    except BaseException:
        for one in (vm, base):
            if one is not None:
                snapshots.discard(there, source, one.vm_id)
        raise
