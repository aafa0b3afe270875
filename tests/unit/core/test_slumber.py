"""VMs that are suspended: who is in the way of that, and what is not left behind by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from boxwood.core import errors, expiry
from boxwood.engine.api import EngineError
from boxwood.engine.handleapi import Opening
from unit.core.test_schedules import SUSPEND, hanging, patch, row, schedule, suspended, time, until

__all__ = ["time"]  # a fixture

NOW = schedule("suspend", at="2020-01-01T00:00:00Z")


async def cancelled(world: Any, vm: Any, run: Any) -> None:
    assert await world.core.runs.cancel(world.caller, vm.vm_id, run.run_id)


async def session_deleted(world: Any, vm: Any, run: Any) -> None:
    await world.core.sessions.delete(world.caller, vm.vm_id, run.session_id)


@pytest.mark.parametrize("end", [cancelled, session_deleted])
async def test_once_nothing_runs_in_it_any_more_it_is_as_others_are(world, time, end):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    since = row(world, vm).running_since
    await end(world, vm, run)
    assert not world.core._boxes.suspended(vm.vm_id) and not world.machine.boxes[vm.vm_id].asleep
    assert world.core._boxes.slot(vm.vm_id).timer is not None, "it will be parked"
    await until(lambda: not row(world, vm).suspended)
    assert row(world, vm).running_since == since, "nobody has woken it"


async def test_the_last_file_that_is_closed(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    handle = await world.core.handles.open(world.caller, vm.vm_id, b"/f", Opening(write=True, create=True))
    await suspended(world, vm, time)
    await cancelled(world, vm, run)
    await world.core.handles.close(handle)
    assert not world.core._boxes.suspended(vm.vm_id)
    assert world.core._boxes.slot(vm.vm_id).timer is not None


@pytest.fixture
def tries(world, monkeypatch) -> list[str]:
    """VMs that were suspended, or could not be."""
    suspensions, found = world.core.vms.suspensions, []
    real = suspensions._do

    async def tried(vm_id: str) -> None:
        try:
            await real(vm_id)
        finally:
            found.append(vm_id)

    monkeypatch.setattr(suspensions, "_do", tried)
    return found


async def test_who_cannot_be_suspended_keeps_his_terminals(world, time, tries):
    """The next server has no freezer: its host has another kernel, or it is another user's."""
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    session = await world.core.sessions.create(world.caller, vm.vm_id)
    pty = await world.core.ptys.attach(world.caller, vm.vm_id, session.session_id)
    world.machine.suspend_problem = "no freezer"
    time.passes(world, 100)
    await until(lambda: tries)
    assert pty.looked_at and not pty.sent_away
    await world.core.ptys.detach(pty)


async def test_what_cannot_be_done_is_tried_again_later_and_not_whenever_something_changes(
    world, time, tries, monkeypatch
):
    monkeypatch.setattr(expiry, "MOST_SECONDS", 3600.0)
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    await hanging(world, vm)
    world.machine.fail["suspend"] = [EngineError("it does not stand still")]
    time.passes(world, 100)
    await until(lambda: tries == [vm.vm_id])
    other = await world.fork()
    await hanging(world, other)
    await patch(world, other, nap=NOW)
    await until(lambda: other.vm_id in tries)
    assert tries == [vm.vm_id, other.vm_id]


async def test_what_the_next_server_cannot_suspend_again_is_suspended_in_its_time(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    world.machine.fail["suspend"] = [EngineError("it does not stand still")]
    await world.restart()
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "running"
    await world.core._database.flush()
    assert row(world, vm).suspend_at is not None, "it has been running since then"
    await suspended(world, vm, time)


class Archive:
    """On its way into a VM: its second half is held back."""

    def __init__(self) -> None:
        self.begun, self.rest = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        self.begun.set()
        yield b""
        await self.rest.wait()


async def test_it_is_not_suspended_under_an_archive(world, time, tries, monkeypatch):
    """Neither one that comes in nor one that goes out: whoever has it would wait until somebody else wakes the VM."""
    monkeypatch.setattr(expiry, "MOST_SECONDS", 0.01)
    vm = await world.fork()
    await world.out(vm, "put /d/f x")
    await hanging(world, vm)
    slot, work = world.core._boxes.slot(vm.vm_id), world.core.filework
    archive, place = Archive(), b"/d"
    unpacking = asyncio.create_task(work.unpack(world.caller, vm.vm_id, place, archive(), owners=False))
    await archive.begun.wait()
    packed = await work.pack(world.caller, vm.vm_id, place)
    await patch(world, vm, nap=NOW)
    await until(lambda: tries)
    archive.rest.set()
    with pytest.raises(errors.BadRequest, match="tar"):
        await unpacking
    before = len(tries)
    await until(lambda: len(tries) > before + 1)
    assert not slot.suspended
    await packed.aclose()
    await until(lambda: slot.suspended)
    assert [type(one).__name__ for one in slot.runs.values()] == ["LiveRun"]


async def test_a_file_is_closed_to_the_end_before_it_is(world, time):
    vm = await world.fork(durable=True)
    await hanging(world, vm)
    boxes, handles = world.core._boxes, world.core.handles
    handle = await handles.open(world.caller, vm.vm_id, b"/f", Opening(write=True, create=True))
    begun, flushed = asyncio.Event(), asyncio.Event()

    async def flush() -> None:
        begun.set()
        await flushed.wait()

    handle.theirs.flush = flush
    closing = asyncio.create_task(handles.close(handle))
    await begun.wait()
    suspending = asyncio.create_task(boxes.suspend(vm.vm_id))
    for _ in range(20):
        await asyncio.sleep(0)
    flushed.set()
    await closing
    assert await suspending
