"""Rules of a VM's policy that delete it or suspend it: at which time, and what is left of it then."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from boxwood.core import clock, errors
from boxwood.core.model import PoolRequest, RunFilter
from boxwood.core.trust import OWN
from boxwood.engine.api import EngineError
from boxwood.engine.handleapi import Opening
from boxwood.store import vms as vm_rows


class Time:
    """The core's clock, which goes on by itself, and further when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        real = clock.now
        monkeypatch.setattr(clock, "now", lambda: real() + self.ahead)

    def passes(self, world: Any, seconds: float) -> None:
        self.ahead += int(seconds * 1e6)
        world.core.vms.clocks_changed()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def schedule(action: str, **clock: Any) -> dict[str, Any]:
    return {"type": "schedule", **clock, "action": action}


DENY = {"type": "outbound", "priority": 1, "action": "deny"}
DELETE = schedule("delete", after_created=1000)
SUSPEND = schedule("suspend", after_last_running_start=100)


async def patch(world: Any, vm: Any, **rules: Any) -> Any:
    policies = world.core.policies
    return await policies.update(world.caller, vm.vm_id, policies.parse({"rules": rules}))


def row(world: Any, vm: Any) -> vm_rows.VMRow:
    found = vm_rows.by_id(world.core._database.near, vm.vm_id)
    assert found is not None
    return found


async def gone(world: Any, vm: Any) -> None:
    while vm_rows.by_id(world.core._database.near, vm.vm_id) is not None:
        await asyncio.sleep(0.001)


async def until(true: Any) -> None:
    while not true():
        await asyncio.sleep(0.001)


async def suspended(world: Any, vm: Any, time: Time, seconds: float = 100) -> None:
    """Let so much time pass that it is."""
    time.passes(world, seconds)
    while not (world.core._boxes.suspended(vm.vm_id) and row(world, vm).suspended):
        time.passes(world, 0)
        await asyncio.sleep(0.001)


async def hanging(world: Any, vm: Any, command: str = "echo a; hang; echo b") -> Any:
    run = await world.run(vm, command, wait=0)
    await until(lambda: vm.vm_id in world.machine.boxes and run.run_id in world.machine.boxes[vm.vm_id].runs)
    return run


# Deletion


@pytest.mark.parametrize("rule", [DELETE, {"type": "lifecycle", "when": {"after": 1000}, "action": "delete"}])
async def test_a_vm_is_deleted_at_its_time(world, time, rule):
    vm = await world.fork(policies={"rules": {"end": rule}}, name="short")
    assert vm.expires_at == vm.created_at + timedelta(seconds=1000)
    await world.out(vm, "pwd")
    time.passes(world, 900)
    child = await world.fork(source=vm.vm_id)
    assert child.expires_at == child.created_at + timedelta(seconds=1000), "its clock begins with it"
    time.passes(world, 100)
    await gone(world, vm)
    assert vm.vm_id not in world.machine.boxes
    assert (await world.core.vms.get(world.caller, child.vm_id)).vm_id == child.vm_id
    time.passes(world, 900)
    await gone(world, child)


async def test_the_earlier_of_a_rule_and_a_ttl_counts(world, time):
    vm = await world.fork(policies={"rules": {"end": DELETE}}, ttl=500)
    assert vm.expires_at == vm.created_at + timedelta(seconds=500)
    longer = await world.core.vms.extend(world.caller, vm.vm_id, 5000)
    assert longer.expires_at == vm.created_at + timedelta(seconds=1000)
    await patch(world, vm, end=None)
    assert (await world.core.vms.get(world.caller, vm.vm_id)).expires_at == vm.created_at + timedelta(seconds=5500)


async def test_a_clock_that_runs_from_the_last_start(world, time):
    vm = await world.fork(policies={"rules": {"end": schedule("delete", after_last_running_start=1000)}})
    assert vm.expires_at is None, "it has never run"
    await world.out(vm, "pwd")
    first = row(world, vm).delete_at
    await world.core.vms.park(world.caller, vm.vm_id)
    time.passes(world, 900)
    await world.out(vm, "pwd")
    assert row(world, vm).delete_at >= first + 900_000_000
    await world.core.vms.park(world.caller, vm.vm_id)
    time.passes(world, 1000)
    await gone(world, vm)


async def test_a_time_that_came_while_no_server_ran(world, time):
    vm = await world.fork(policies={"rules": {"end": DELETE}})
    await world.out(vm, "pwd")
    await world.core.close()
    time.ahead += 1_000_000_000
    await world.start()
    await gone(world, vm)
    assert not world.machine.boxes


async def test_what_would_delete_at_once_is_refused(world, time):
    vm = await world.fork()
    time.passes(world, 2000)
    with pytest.raises(errors.BadRequest, match=r"rules\.end: would delete the VM at once"):
        await patch(world, vm, end=DELETE)
    with pytest.raises(errors.BadRequest, match=r"end\.at: must be in the future"):
        await patch(world, vm, end=schedule("delete", at=vm.created_at.isoformat()))
    assert world.core.policies.get(world.caller, vm.vm_id).rules == {}
    await patch(world, vm, end=schedule("delete", after_created=2500), other=schedule("suspend", after_created=1))
    await patch(world, vm, deny=DENY)  # which says nothing new of the others
    assert row(world, vm).delete_at == row(world, vm).created_at + 2_500_000_000


async def test_a_key_s_ceiling_and_its_default(world, time):
    mine = world.caller
    world.caller = replace(mine, ttl_default=100.0, ttl_most=500.0)
    for late in (DELETE, schedule("delete", at="2999-01-01T00:00:00Z")):
        with pytest.raises(errors.BadRequest, match="500 seconds at most"):
            await world.fork(policies={"rules": {"end": late}})
    vm = await world.fork(policies={"rules": {"end": schedule("delete", after_created=300)}})
    assert vm.expires_at == vm.created_at + timedelta(seconds=300), "it was told otherwise than the default"
    with pytest.raises(errors.BadRequest, match="500 seconds at most"):
        await patch(world, vm, end=DELETE)
    await patch(world, vm, end=schedule("delete", after_last_running_start=2000))
    await world.out(vm, "pwd")
    assert (await world.core.vms.get(mine, vm.vm_id)).expires_at == vm.created_at + timedelta(seconds=500)


async def test_a_moment_that_is_over_is_not_inherited(world, time):
    moment = clock.shown(clock.now() + 50_000_000).isoformat().replace("+00:00", "Z")
    rules = {"nap": schedule("suspend", at=moment), "end": DELETE}
    vm = await world.fork(policies={"rules": rules})
    child = await world.fork(source=vm.vm_id)
    assert world.core.policies.get(world.caller, child.vm_id).rules == rules
    time.passes(world, 60)
    late = await world.fork(source=vm.vm_id)
    assert world.core.policies.get(world.caller, late.vm_id).rules == {"end": DELETE}
    assert world.core.policies.get(world.caller, vm.vm_id).rules == rules
    assert late.expires_at == late.created_at + timedelta(seconds=1000)


async def test_a_snapshot_has_no_clock(world, time):
    vm = await world.fork(policies={"rules": {"end": DELETE}})
    kept = await world.core.snapshots.take(world.caller, vm.vm_id, "s")
    held = vm_rows.by_id(world.core._database.near, kept.snapshot_id)
    assert held is not None and held.delete_at is None
    made = await world.fork(source=kept.snapshot_id)
    assert made.expires_at == made.created_at + timedelta(seconds=1000)


async def test_what_waits_in_a_pool_has_no_clock_before_it_is_claimed(world, time):
    source = await world.fork(policies={"rules": {"end": DELETE, "nap": SUSPEND}})
    await world.core.pools.create(world.caller, PoolRequest("p", source_id=source.vm_id, replicas=1))
    await until(lambda: world.core.pools.get(world.caller, "p").ready == 1)
    time.passes(world, 900)
    vm = await world.core.pools.claim(world.caller, "p")
    assert vm.expires_at == vm.created_at + timedelta(seconds=1000)
    assert row(world, vm).suspend_at == row(world, vm).created_at + 100_000_000


async def test_the_network_is_not_told(world, time):
    vm = await world.fork(policies={"rules": {"end": DELETE}})
    await world.out(vm, "pwd")
    await patch(world, vm, nap=SUSPEND)
    assert world.machine.called("police") == []
    await patch(world, vm, deny=DENY)
    assert world.machine.called("police") == [(vm.vm_id, {"deny": DENY})]
    await patch(world, vm, deny=None)
    assert world.machine.called("police")[-1] == (vm.vm_id, {})


async def test_a_network_that_is_not_there_is_no_reason_to_end_a_box_for(world, time):
    vm = await world.fork(policies={"rules": {"end": DELETE}})
    await world.out(vm, "daemon")
    await world.core.close()
    world.machine.fail["police"] = [EngineError("the router does not answer")]
    await world.start()
    assert not world.machine.fail["police"] and vm.vm_id in world.machine.boxes


# Suspension


async def test_a_run_stands_still_until_an_empty_request(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    core, caller = world.core, world.caller
    assert (await core.runs.get(caller, vm.vm_id, run.run_id)).state == "pending"
    assert [one.state for one in (await core.runs.list(caller, vm.vm_id)).items] == ["pending"]
    for state, count in (("pending", 1), ("running", 0)):
        assert len((await core.runs.list(caller, vm.vm_id, RunFilter(state=state))).items) == count
    seen = await core.vms.get(caller, vm.vm_id)
    assert seen.state == "idle" and seen.live and [one.state for one in seen.sessions] == ["pending"]
    with pytest.raises(errors.InvalidState, match="suspended"):
        await core.runs.signal(caller, vm.vm_id, 15)
    assert world.machine.boxes[vm.vm_id].asleep
    time.passes(world, 50)
    resumed = asyncio.create_task(core.runs.resume(caller, vm.vm_id))
    await until(lambda: not world.machine.boxes[vm.vm_id].asleep)
    assert (await core.runs.get(caller, vm.vm_id, run.run_id)).state == "running"
    await world.release(vm)
    ended = await resumed
    assert (ended.run_id, ended.state, ended.stdout) == (run.run_id, "completed", b"a\nb\n")
    assert not row(world, vm).suspended


async def test_once_for_each_clock(world, time):
    """A start of the VM, and a wake, are when `after_last_running_start` begins again; the others come once."""
    rules = {"nap": SUSPEND, "once": schedule("suspend", after_created=150)}
    vm = await world.fork(policies={"rules": rules})
    await hanging(world, vm, "hang")
    began = row(world, vm).running_since
    await suspended(world, vm, time)
    await until(lambda: row(world, vm).suspend_at == row(world, vm).created_at + 150_000_000)
    await world.core.files.read(world.caller, vm.vm_id, "/etc/os-release")
    woken = row(world, vm).running_since
    assert woken >= began + 100_000_000 and not world.core._boxes.suspended(vm.vm_id)
    await suspended(world, vm, time, 50)
    await world.core.files.read(world.caller, vm.vm_id, "/etc/os-release")
    assert row(world, vm).suspend_at == row(world, vm).running_since + 100_000_000
    await suspended(world, vm, time)


async def test_a_past_moment_suspends_at_once(world, time):
    vm = await world.fork()
    await hanging(world, vm)
    nap = schedule("suspend", at="2020-01-01T00:00:00Z")
    await patch(world, vm, nap=nap)
    await until(lambda: world.core._boxes.suspended(vm.vm_id))
    await until(lambda: row(world, vm).suspend_at is None)
    await world.core.files.read(world.caller, vm.vm_id, "/etc/os-release")
    await patch(world, vm, nap=nap)
    assert row(world, vm).suspend_at is None, "it is the same rule, and has had its time"


async def test_an_idle_vm_is_left_alone(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    await world.out(vm, "pwd")
    time.passes(world, 100)
    await until(lambda: row(world, vm).suspend_at is None)
    assert world.machine.called("suspend") == [] and world.machine.called("settle")
    never = await world.fork(policies={"rules": {"nap": schedule("suspend", after_created=10)}})
    time.passes(world, 10)
    await until(lambda: row(world, never).suspend_at is None)
    assert never.vm_id not in world.machine.boxes


async def test_another_run_wakes_it_also_behind_the_one_that_stands_still(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    behind = await world.run(vm, "echo c", wait=0)
    await until(lambda: not world.machine.boxes[vm.vm_id].asleep)
    await world.release(vm)
    for one, out in ((run, b"a\nb\n"), (behind, b"c\n")):
        assert (await world.core.runs.ended(world.caller, vm.vm_id, one.run_id)).stdout == out


async def test_a_terminal_is_detached_and_found_again(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    session = await world.core.sessions.create(world.caller, vm.vm_id)
    pty = await world.core.ptys.attach(world.caller, vm.vm_id, session.session_id)
    assert await pty.read() == b"$ "
    await pty.write(b"hello")
    shown = await pty.read()
    reading = asyncio.create_task(pty.read())
    await suspended(world, vm, time)
    assert await reading == b"" and not pty.over and pty.sent_away
    await pty.write(b"more")
    await world.core.ptys.detach(pty)
    again = await world.core.ptys.attach(world.caller, vm.vm_id, session.session_id)
    assert not world.machine.boxes[vm.vm_id].asleep and again.id == pty.id
    assert await again.read() == b"$ " + shown
    await world.core.ptys.detach(again)


async def test_it_stays_suspended_when_the_server_is_another(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    await until(lambda: row(world, vm).suspend_at is None)
    await world.restart()
    assert world.machine.boxes[vm.vm_id].asleep
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "pending"
    resumed = asyncio.create_task(world.core.runs.resume(world.caller, vm.vm_id))
    await world.release(vm)
    assert (await resumed).stdout == b"a\nb\n"
    await world.restart()
    assert len(world.machine.called("suspend")) == 2


async def test_a_run_of_a_suspended_vm_whose_box_is_gone_is_not_begun_again(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    await world.core.close()
    world.machine.boxes[vm.vm_id].die("the host was restarted")
    await world.start()
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert ended.state == "failed" and not row(world, vm).suspended


async def fork_it(world: Any, vm: Any) -> None:
    assert await world.out(await world.fork(source=vm.vm_id), "cat /f") == "x"


async def snapshot_it(world: Any, vm: Any) -> None:
    await world.core.snapshots.take(world.caller, vm.vm_id, "s")


async def change_it(world: Any, vm: Any) -> None:
    await world.core.vms.update(world.caller, vm.vm_id, name="other")


async def police_it(world: Any, vm: Any) -> None:
    world.machine.sees_requests = world.core.engine.sees_requests = True
    action = {"rewrite": {"headers": {"a": "b"}}}
    rule = {"type": "outbound", "priority": 1, "action": action, "match": {"hosts": ["a.example"]}}
    await patch(world, vm, rewrite=rule)
    assert OWN in world.machine.called("write_file"), "the box is given a certificate"


async def park_it(world: Any, vm: Any) -> None:
    with pytest.raises(errors.ResourceBusy):
        await world.core.vms.park(world.caller, vm.vm_id)


async def end_another_session(world: Any, vm: Any) -> None:
    session = await world.core.sessions.at(row(world, vm), 5)
    await world.core.sessions.delete(world.caller, vm.vm_id, session.id)


@pytest.mark.parametrize("work", [fork_it, snapshot_it, change_it, police_it, park_it, end_another_session])
async def test_what_needs_the_box_does_not_wake_the_vm(world, time, work):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    await world.out(vm, "put /f x")
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    await work(world, vm)
    assert world.core._boxes.suspended(vm.vm_id) and world.machine.boxes[vm.vm_id].asleep
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "pending"
    assert row(world, vm).suspended


@pytest.mark.parametrize("how", ["cancel", "stop", "delete", "shutdown"])
async def test_what_stands_still_can_be_ended(world, time, how):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    await suspended(world, vm, time)
    if how == "cancel":
        assert await world.core.runs.cancel(world.caller, vm.vm_id, run.run_id)
        assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "cancelled"
        return
    if how == "shutdown":
        await world.core.shutdown()
    else:
        await getattr(world.core.vms, how)(world.caller, vm.vm_id)
    assert not world.machine.boxes
    if how == "stop":
        assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "cancelled"
        assert not row(world, vm).suspended


async def test_what_will_not_stand_still_goes_on_and_is_tried_again(world, time):
    vm = await world.fork(policies={"rules": {"nap": SUSPEND}})
    run = await hanging(world, vm)
    world.machine.fail["suspend"] = [EngineError("it does not stand still")]
    time.passes(world, 100)
    await until(lambda: not world.machine.fail["suspend"])
    await until(lambda: not world.core._boxes.slot(vm.vm_id).lock.locked())
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).state == "running"
    world.core.vms.suspensions._again(vm.vm_id)  # as in a minute
    await suspended(world, vm, time, 0)


async def test_a_host_that_cannot_refuses_the_rule(world):
    world.machine.suspend_problem = "no freezer; get one"
    with pytest.raises(errors.Unsupported, match="cannot suspend VMs: no freezer; get one") as refused:
        await world.fork(policies={"rules": {"nap": SUSPEND}})
    assert refused.value.details["feature"] == "network_policy"
    await world.fork(policies={"rules": {"end": DELETE}})


async def test_an_open_file_stays_open_and_closing_it_wakes_nobody(world, time):
    vm = await world.fork(policies={"rules": {"pause": SUSPEND}})
    await hanging(world, vm)
    handles = world.core.handles
    first, second = [
        await handles.open(world.caller, vm.vm_id, b"/f", Opening(read=True, write=True, create=True)) for _ in range(2)
    ]
    await handles.write(first, 0, b"kept")
    await suspended(world, vm, time)
    await handles.close(second)
    assert world.core._boxes.suspended(vm.vm_id)
    assert await handles.read(first, 0, 9) == b"kept"
    assert not world.core._boxes.suspended(vm.vm_id)
    await handles.close(first)
