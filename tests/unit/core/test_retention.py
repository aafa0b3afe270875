"""Runs that are forgotten in time."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from boxwood.core import clock, errors
from boxwood.core.model import Chunk, ForkRequest


async def kept(world, vm) -> list[str]:
    """Their commands, the oldest first."""
    return [run.command for run in reversed((await world.core.runs.list(world.caller, vm.vm_id)).items)]


async def until_kept(world, vm, wanted) -> None:
    while await kept(world, vm) != wanted:
        await asyncio.sleep(0.002)


async def test_only_so_many_runs_of_a_vm(make_world):
    world = await make_world(runs_kept=3)
    vm, other = await world.fork(), await world.fork()
    await world.out(other, "echo other")
    first = await world.run(vm, "echo 0")
    for number in range(1, 10):
        await world.out(vm, f"echo {number}")
    await until_kept(world, vm, ["echo 7", "echo 8", "echo 9"])
    assert await kept(world, other) == ["echo other"]
    with pytest.raises(errors.NotFound):
        await world.core.runs.get(world.caller, vm.vm_id, first.run_id)


async def test_only_so_much_output_of_a_vm(make_world):
    world = await make_world(runs_kept_bytes=500_000)
    vm = await world.fork()
    for _ in range(3):
        await world.run(vm, "flood 200000")
    last = await world.run(vm, "flood 300000")
    spool = world.config.data / "spool" / vm.vm_id
    while len(await kept(world, vm)) > 2 or len(list(spool.iterdir())) > 2:
        await asyncio.sleep(0.002)
    assert len((await world.core.runs.get(world.caller, vm.vm_id, last.run_id)).stdout) == 300_000


async def test_the_newest_run_is_kept_however_large(make_world):
    world = await make_world(runs_kept_bytes=1000)
    vm = await world.fork()
    await world.out(vm, "echo small")
    await world.run(vm, "flood 200000")
    await until_kept(world, vm, ["flood 200000"])


async def test_runs_that_go_on_are_kept(make_world):
    world = await make_world(runs_kept=1)
    vm = await world.fork()
    going = await world.run(vm, "hang", wait=0)
    for number in range(3):
        await world.run(vm, f"echo {number}", session_index=1)
    await until_kept(world, vm, ["hang", "echo 2"])
    await world.release(vm)
    assert (await world.core.runs.wait(world.caller, vm.vm_id, going.run_id, 10)).state == "completed"


async def test_old_runs_are_gone_at_the_next_start(world):
    vm = await world.fork()
    old, large = await world.run(vm, "echo old"), await world.run(vm, "flood 200000")
    await world.run(vm, "echo new")
    spool = world.config.data / "spool" / vm.vm_id
    assert list(spool.iterdir())
    await world.core.close()
    with sqlite3.connect(world.config.data / "boxwood.db") as database:
        for run in (old, large):
            aged = "0000" + run.run_id[4:]
            database.execute("UPDATE runs SET id = ?, completed_at = 1 WHERE id = ?", (aged, run.run_id))
            for file in spool.glob(f"{run.run_id}.*"):
                file.rename(file.with_stem(aged))
    database.close()
    await world.start()
    await until_kept(world, vm, ["echo new"])
    while list(spool.iterdir()):
        await asyncio.sleep(0.002)


async def test_fewer_are_kept_from_a_start_on(world):
    vm = await world.fork()
    for number in range(5):
        await world.run(vm, f"echo {number}")
    await world.restart(runs_kept=2)
    await until_kept(world, vm, ["echo 3", "echo 4"])


async def test_keys_of_requests_and_parts_of_files_are_forgotten_when_the_operator_says(make_world, monkeypatch):
    world = await make_world(idempotency_seconds=60, uploads_seconds=120)
    request = ForkRequest(source_name="ubuntu", name="first")
    vm = await world.core.vms.fork(world.caller, request, "key")
    part = Chunk("/root/f", 10, "up", 0, b"half")
    await world.core.files.write(world.caller, vm.vm_id, part)
    uploads, now = world.config.data / "uploads", clock.now()
    for seconds, remembered, there in ((59, True, 1), (61, False, 1), (121, False, 0)):
        monkeypatch.setattr(clock, "now", lambda seconds=seconds: now + seconds * 1_000_000)
        await world.core._retention.sweep()
        assert len(list(uploads.iterdir())) == there
        if remembered:
            assert (await world.core.vms.fork(world.caller, request, "key")).vm_id == vm.vm_id
        else:
            other = ForkRequest(source_name="ubuntu", name=f"after-{seconds}")
            assert (await world.core.vms.fork(world.caller, other, f"key{seconds}")).name == other.name
    again = ForkRequest(source_name="ubuntu", name="another")
    assert (await world.core.vms.fork(world.caller, again, "key")).vm_id != vm.vm_id
