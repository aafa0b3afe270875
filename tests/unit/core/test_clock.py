"""A wall clock that is set while the server runs (attacks.md, item 37)."""

from __future__ import annotations

import time

import pytest

DAY = 86400 * 1_000_000_000
real = time.time_ns


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY], ids=["back", "forth"])
async def test_a_clock_that_is_set(world, monkeypatch, jump):
    vm = await world.fork(name="before")
    going = await world.run(vm, "hang", wait=0)
    monkeypatch.setattr(time, "time_ns", lambda: real() + jump)
    later = await world.fork(name="after")
    assert later.vm_id > vm.vm_id, "ids grow on"
    assert [one.name for one in (await world.core.vms.list(world.caller)).items][:2] == ["after", "before"]
    assert await world.out(later, "put /x y; cat /x") == "y"
    await world.release(vm)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, going.run_id, 30)
    assert ended.state == "completed" and 0 <= ended.duration_ms < 60_000
    run = await world.run(later, "echo done")
    assert run.state == "completed" and run.duration_ms is not None and 0 <= run.duration_ms < 60_000
    await world.restart()
    again = await world.fork(name="again")
    assert again.vm_id not in (vm.vm_id, later.vm_id)
    assert await world.out(later, "cat /x") == "y"


async def test_a_clock_that_went_back_ends_no_vm_early(world, monkeypatch):
    vm = await world.fork(ttl=3600)
    monkeypatch.setattr(time, "time_ns", lambda: real() - DAY)
    world.core.vms.expiry.changed()
    other = await world.fork(ttl=3600)
    assert (await world.core.vms.get(world.caller, vm.vm_id)).expires_at > other.expires_at
