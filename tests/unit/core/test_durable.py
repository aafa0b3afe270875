"""Durable VMs: the disk comes before the acknowledgement, and what was interrupted is begun again."""

from __future__ import annotations

import asyncio
import os
import sqlite3

import pytest

from boxwood.core import errors
from boxwood.core.interruptions import MOST_RETRIES
from boxwood.core.model import Chunk, Resources, RunFilter, RunRequest
from boxwood.store import layers as layer_rows
from boxwood.store import runs as run_rows
from boxwood.store import vms as vm_rows


@pytest.fixture
def disk(world, machine, monkeypatch):
    """Notes in the machine's calls every flush of the log, with what the database held at that moment, and of files."""
    path = world.config.data / "boxwood.db"

    def watch():
        log_sync = world.core._database._log_sync
        flush = log_sync._flush

        def noted():
            with sqlite3.connect(path) as connection:
                machine.note("log", {row[0]: row[1] for row in connection.execute("SELECT id, state FROM runs")})
            connection.close()
            flush()

        monkeypatch.setattr(log_sync, "_flush", noted)

    fsync = os.fsync

    def noted(fd):
        machine.note("fsync", os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    watch()
    return watch


def names(machine):
    return [name for name, _ in machine.calls]


async def durable(world, **members):
    return await world.fork(durable=True, **members)


async def begun(world):
    """Whatever is to run does."""
    while any(run.state == "running" and run.box is None for run in world.core._lanes._live.values()):
        await asyncio.sleep(0)


async def interrupt(world, vm):
    """Everything ends at once; another server comes."""
    await begun(world)
    await world.core.close()
    if (box := world.machine.boxes.get(vm.vm_id)) is not None:
        box.die("the host stopped")
    await world.start()


async def ended(world, vm, run):
    return await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)


async def test_it_is_told_and_not_inherited(world):
    vm = await durable(world)
    assert vm.durable and (await world.core.vms.get(world.caller, vm.vm_id)).durable
    assert not (await world.fork(vm.vm_id)).durable
    assert (await world.fork(vm.vm_id, durable=True)).durable


async def test_others_wait_for_no_disk(world, machine, disk):
    vm = await world.fork()
    await world.run(vm, "echo hi; put /a 1")
    await world.run(vm, "hang", wait=0)
    await world.core.files.write(world.caller, vm.vm_id, Chunk("/f", 2, "u", 0, b"ab"))
    await world.core.sessions.create(world.caller, vm.vm_id)
    await world.fork(vm.vm_id)
    await world.core.vms.update(world.caller, vm.vm_id, description="d")
    assert not {"log", "flush", "secure", "fsync"} & set(names(machine))


async def test_a_run_is_on_the_disk_before_it_begins_and_before_it_is_told(world, machine, disk):
    vm = await durable(world)
    machine.calls.clear()
    run = await world.run(vm, "echo hi")
    begun = names(machine).index("start_run")
    assert machine.calls[begun - 1] == ("log", {run.run_id: "running"})
    assert machine.calls[-1] == ("log", {run.run_id: "completed"})
    assert "settle" in names(machine)[begun:]


async def test_a_run_that_goes_on_is_on_the_disk_as_one(world, machine, disk):
    vm = await durable(world)
    run = await world.hang(vm)
    assert [states for name, states in machine.calls if name == "log"][-1] == {run.run_id: "running"}
    row = run_rows.by_id(world.core._database.near, vm.vm_id, run.run_id)
    assert row.background and run.state == "running"


async def test_output_is_on_the_disk_before_the_end_is(world, machine, disk):
    vm = await durable(world)
    machine.calls.clear()
    run = await world.run(vm, "flood 300000")
    spool = world.config.data / "spool"
    file = str(spool / vm.vm_id / f"{run.run_id}.out")
    synced = [path for name, path in machine.calls if name == "fsync"]
    assert synced[-3:] == [file, os.path.dirname(file), str(spool)]
    states = [states[run.run_id] for name, states in machine.calls if name == "log"]
    last = machine.calls.index(("fsync", file))
    assert states[-1] == "completed"
    assert "completed" not in [states[run.run_id] for name, states in machine.calls[:last] if name == "log"]


async def test_output_that_the_disk_does_not_take(world, machine, disk, monkeypatch):
    vm = await durable(world)

    def failing(fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    run = await world.run(vm, "flood 300000")
    assert run.state == "failed" and "could not be written to the disk" in run.fail_reason


async def test_a_log_that_the_disk_does_not_take(world, machine, disk, monkeypatch):
    vm = await durable(world)

    def failing():
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(world.core._database._log_sync, "_flush", failing)
    with pytest.raises(errors.Internal, match="the disk did not take"):
        await world.core.vms.update(world.caller, vm.vm_id, description="d")
    with pytest.raises(errors.CoreError):
        await world.run(vm, "echo hi")
    assert "start_run" not in names(machine)


async def test_files_and_chunks(world, machine, disk):
    vm = await durable(world)
    machine.calls.clear()
    await world.core.files.write(world.caller, vm.vm_id, Chunk("/f", 2, "u1", 0, b"ab"))
    assert names(machine)[-2:] == ["flush", "log"]
    machine.calls.clear()
    await world.core.files.write(world.caller, vm.vm_id, Chunk("/g", 4, "u2", 0, b"ab"))
    place = str(world.config.data / "uploads")
    paths = [path for name, path in machine.calls if name == "fsync"]
    assert len(paths) == 2 and paths[0].startswith(place + "/") and paths[1] == place
    assert names(machine)[-1] == "log"
    await world.core.files.write(world.caller, vm.vm_id, Chunk("/g", 4, "u2", 2, b"cd"))
    assert ("flush", "/g") in machine.calls and names(machine)[-1] == "log"


async def test_what_a_fork_stands_on(world, machine, disk):
    source = await world.fork()
    await world.out(source, "put /a 1")
    machine.calls.clear()
    vm = await world.fork(source.vm_id, durable=True)
    [layers] = machine.called("secure")
    assert len(layers) == 1 and [name for name in names(machine) if name != "fsync"][-1] == "log"
    await world.hang(source, "put /b 1; hang")
    await world.fork(source.vm_id, durable=True)
    assert len(machine.called("secure")[-1]) == 2
    assert await world.out(vm, "cat /a") == "1"


async def test_a_disk_that_cannot_be_durable(make_world, machine):
    world = await make_world()
    machine.durable_problem = "no quotas"
    with pytest.raises(errors.Unsupported, match="no quotas") as refused:
        await world.fork(durable=True, resources=Resources(disk_mib=64))
    assert refused.value.details["feature"] == "durability"
    vm = await durable(world)
    with pytest.raises(errors.Unsupported, match="no quotas"):
        await world.core.vms.update(world.caller, vm.vm_id, resources=Resources(disk_mib=64))


async def test_an_interrupted_run_is_begun_again(world):
    vm = await durable(world)
    await world.out(vm, "cd /w; export K=v; put /n 1")
    run = await world.hang(vm, "echo before; pwd; env K; cat /n; hang; echo after")
    behind = await world.run(vm, "echo behind", wait=0)
    await interrupt(world, vm)
    again = await world.core.runs.get(world.caller, vm.vm_id, run.run_id)
    assert (again.state, again.retries) == ("running", 1)
    assert (await world.core.runs.get(world.caller, vm.vm_id, behind.run_id)).state == "pending"
    await world.release(vm)
    done = await ended(world, vm, run)
    assert (done.state, done.stdout, done.retries) == ("completed", b"before\n/w\nv\n1after\n", 1)
    assert (await ended(world, vm, behind)).stdout == b"behind\n"
    await world.restart()
    assert (await ended(world, vm, run)).retries == 1


async def test_once_for_each_interruption(world, machine):
    vm = await durable(world)
    run = await world.hang(vm)
    for number in range(1, 4):
        await interrupt(world, vm)
        assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).retries == number
        while vm.vm_id not in machine.boxes or run.run_id not in machine.boxes[vm.vm_id].runs:
            await asyncio.sleep(0)
    assert [spec.run_id for spec in machine.called("start_run")] == [run.run_id] * 4
    await world.restart()  # of the server alone: it goes on
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).retries == 3
    await world.release(vm)
    assert (await ended(world, vm, run)).state == "completed"


async def test_a_server_that_dies_in_the_middle_of_it_does_not_count_twice(world, machine):
    vm = await durable(world)
    run = await world.hang(vm)
    await begun(world)
    await world.core.close()
    machine.boxes[vm.vm_id].die("the host stopped")
    connection = sqlite3.connect(world.config.data / "boxwood.db")
    with connection:  # so far the first one got
        run_rows.begin_again(connection, [run.run_id])
    connection.close()
    await world.start()
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).retries == 1
    await world.release(vm)
    assert (await ended(world, vm, run)).state == "completed"
    assert len(machine.called("start_run")) == 2


async def test_spooled_output_begins_anew(world, machine):
    vm = await durable(world)
    run = await world.run(vm, "flood 300000; hang", wait=0.1)
    file = world.config.data / "spool" / vm.vm_id / f"{run.run_id}.out"
    while not file.exists():
        await asyncio.sleep(0.001)
    before = file.stat().st_ino
    await interrupt(world, vm)
    await world.release(vm)
    done = await ended(world, vm, run)
    assert len(done.stdout) == 300_000 and file.stat().st_size == 300_000 and before


@pytest.mark.parametrize(
    "command, members, why",
    [
        ("type; hang", {"wait": 0.02, "stdin_open": True}, "standard input is not kept"),
        ("hang", {}, "still waiting"),
        ("hang", {"wait": 0.02, "attached": True}, "still waiting"),
    ],
)
async def test_runs_that_are_not_begun_again(world, machine, command, members, why):
    vm = await durable(world)
    starting = asyncio.create_task(world.run(vm, command, **members))
    while not (machine.boxes.get(vm.vm_id) and machine.boxes[vm.vm_id].runs):
        await asyncio.sleep(0)
    if members:
        await starting
    starting.cancel()  # the server is gone at once, and tells him nothing
    await interrupt(world, vm)
    [found] = (await world.core.runs.list(world.caller, vm.vm_id)).items
    done = await ended(world, vm, found)
    assert done.state == "failed" and "interrupted" in done.fail_reason and why.split()[-1] in done.fail_reason, done
    assert len(machine.called("start_run")) == 1


async def test_input_of_a_program_is_not_begun_again(world, machine):
    vm = await durable(world)
    assert (await world.run(vm, "prompt")).exit_code is None
    await world.restart()  # the program waits on
    run = await world.hang(vm)
    await interrupt(world, vm)
    assert "input of a program" in (await ended(world, vm, run)).fail_reason
    shell = await world.hang(vm)  # the program is gone, and this is for the shell
    await interrupt(world, vm)
    assert (await world.core.runs.get(world.caller, vm.vm_id, shell.run_id)).retries == 1


async def test_not_for_ever(world, machine):
    vm = await durable(world)
    run = await world.hang(vm)
    await world.core._database.write(
        lambda connection: connection.execute("UPDATE runs SET retries = ?", (MOST_RETRIES,))
    )
    await interrupt(world, vm)
    assert f"{MOST_RETRIES} times" in (await ended(world, vm, run)).fail_reason


async def test_a_run_with_a_key_is_begun_again_and_found(world, machine):
    vm = await durable(world)
    starting = asyncio.create_task(
        world.core.runs.start(world.caller, vm.vm_id, RunRequest("echo hi; hang"), "key"),
    )
    while not (machine.boxes.get(vm.vm_id) and machine.boxes[vm.vm_id].runs):
        await asyncio.sleep(0)
    await interrupt(world, vm)
    starting.cancel()
    await world.release(vm)
    done = await world.core.runs.start(world.caller, vm.vm_id, RunRequest("echo hi; hang"), "key")
    assert (done.state, done.stdout, done.retries) == ("completed", b"hi\n", 1)
    assert len((await world.core.runs.list(world.caller, vm.vm_id, RunFilter())).items) == 1


async def test_the_command_of_a_fork_is_begun_again(world, machine):
    vm = await durable(world, command="hang")
    [run] = (await world.core.runs.list(world.caller, vm.vm_id)).items
    while not (machine.boxes.get(vm.vm_id) and machine.boxes[vm.vm_id].runs):
        await asyncio.sleep(0)
    await interrupt(world, vm)
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).retries == 1


async def test_an_end_that_is_on_record_is_the_end(world, machine):
    vm = await durable(world)
    run = await world.run(vm, "echo once", wait=0)
    assert (await ended(world, vm, run)).state == "completed"
    await interrupt(world, vm)
    assert (await ended(world, vm, run)).retries == 0
    assert len(machine.called("start_run")) == 1


async def test_a_shutdown_is_an_interruption(world, machine):
    """… in good order: the next server begins again what ran in the background, and nothing else."""
    vm = await durable(world)
    run = await world.hang(vm, "echo hi; hang")
    cancelled = await world.hang(vm, "hang", session_index=1)
    await world.core.runs.cancel(world.caller, vm.vm_id, cancelled.run_id)
    await world.core.shutdown()
    assert not machine.boxes
    await world.start()
    await world.release(vm)
    done = await ended(world, vm, run)
    assert (done.state, done.stdout, done.retries) == ("completed", b"hi\n", 1)
    assert (await ended(world, vm, cancelled)).state == "cancelled"


async def test_a_stopped_vm_begins_nothing(world, machine):
    vm = await durable(world)
    run = await world.hang(vm)
    await world.core.vms.stop(world.caller, vm.vm_id)
    assert (await ended(world, vm, run)).state == "cancelled"
    await world.restart()
    assert (await ended(world, vm, run)).state == "cancelled"


async def test_without_durability_it_has_failed(world, machine):
    vm = await world.fork()
    run = await world.hang(vm, "echo hi; hang")
    await interrupt(world, vm)
    done = await ended(world, vm, run)
    assert (done.state, done.retries) == ("failed", 0) and "lost" in done.fail_reason
    assert len(machine.called("start_run")) == 1


async def test_one_after_the_other_in_a_session(world, machine, disk):
    """The next run begins when what the one before it has left is on the disk."""
    vm = await durable(world)
    await world.hang(vm, "hang; cd /w")
    second = await world.run(vm, "pwd", wait=0)
    await world.release(vm)
    assert (await ended(world, vm, second)).stdout == b"/w\n"
    first_end = next(
        n for n, (name, seen) in enumerate(machine.calls) if name == "log" and "completed" in seen.values()
    )
    starts = [n for n, (name, _) in enumerate(machine.calls) if name == "start_run"]
    assert starts[0] < first_end < starts[1]


async def test_a_snapshot_and_what_it_stands_on_are_on_the_disk(world, machine, disk):
    vm = await durable(world)
    await world.run(vm, "put /a 1")
    machine.calls.clear()
    made = await world.core.snapshots.take(world.caller, vm.vm_id, "s")
    assert names(machine)[-1] == "log"
    base = vm_rows.by_id(world.core._database.near, made.snapshot_id).base
    assert any(base in layers for layers in machine.called("secure"))


async def test_a_mount_and_its_end_are_on_the_disk(world, machine, disk):
    vm = await durable(world)
    await world.core.vms.stop(world.caller, vm.vm_id)  # nothing boots it for the mount
    await world.core.filesystems.create(world.caller, "data")
    machine.calls.clear()
    mount = await world.core.mounts.create(world.caller, vm.vm_id, "data")
    assert names(machine) == ["log"]
    await world.core.mounts.delete(world.caller, vm.vm_id, mount.mount_id)
    assert names(machine).count("log") == 2


async def test_a_change_of_its_policy_is_on_the_disk(world, machine, disk):
    vm = await durable(world)
    machine.calls.clear()
    policies = world.core.policies
    rule = {"type": "outbound", "priority": 1, "action": "deny"}
    await policies.update(world.caller, vm.vm_id, policies.parse({"rules": {"none": rule}}))
    assert names(machine)[-1] == "log"


async def test_what_a_merge_puts_beneath_a_fork_meanwhile_is_on_the_disk_too(make_world, machine, monkeypatch):
    world = await make_world(layers_merged_above=2)
    world.machine.merge_gate = asyncio.Event()
    vm = await world.fork()
    for step in range(4):
        await world.run(vm, f"put /f{step} {step}")
        vm = await world.fork(vm.vm_id)
    secure, secured = world.core.engine.secure, set()

    async def merged_meanwhile(layers):
        await secure(layers)
        secured.update(layers)
        world.machine.merge_gate.set()
        await world.core.layers.settled()

    monkeypatch.setattr(world.core.engine, "secure", merged_meanwhile)
    made = await durable(world, source=vm.vm_id)
    near = world.core._database.near
    stack, images = layer_rows.chain(near, vm_rows.by_id(near, made.vm_id).base)
    assert machine.called("merge") and set(stack) - images <= secured


async def test_what_waits_at_a_prompt_is_forgotten_with_its_vm(world):
    vm = await durable(world)
    await world.run(vm, "prompt")
    ends = world.core._lanes._ends
    assert [box.vm_id for box in ends.prompts.values()] == [vm.vm_id]
    await world.core.vms.delete(world.caller, vm.vm_id)
    assert ends.prompts == {}
