"""Runs of a program and its arguments, without a shell: what is passed on, what is kept, what is refused."""

from __future__ import annotations

import pytest

from boxwood.core import errors
from boxwood.core.argv import argv_of, text_of
from boxwood.core.model import RunRequest

ODD = ("argv", "", " ", "it's", "''", "'\"'\"'", "a\nb\t", "$HOME", "ü€𝄞", "-n", "\\", "a  b")


@pytest.mark.parametrize("argv", [("true",), ODD, tuple("'\"\\ \n$x"), ("'" * 50_000, "x y" * 50_000)])
def test_there_and_back(argv):
    assert argv_of(text_of(argv)) == argv


def beside(*argv, **more):
    return RunRequest("", argv=argv, beside=True, **more)


async def test_arguments_are_passed_and_kept_as_they_are(world):
    vm = await world.fork()
    run = await world.core.runs.start(world.caller, vm.vm_id, beside(*ODD))
    assert (run.argv, run.state, run.exit_code, run.not_started) == (ODD, "completed", 0, False)
    assert run.command == text_of(ODD)
    (spec,) = world.machine.called("start_run")
    assert (spec.argv, spec.command) == (tuple(word.encode() for word in ODD), b"")
    assert await world.core.runs.get(world.caller, vm.vm_id, run.run_id) == run
    assert (await world.core.runs.list(world.caller, vm.vm_id)).items[0].argv == ODD
    text = await world.run(vm, "echo 'a' b")
    assert text.argv is None


async def test_what_could_not_be_started_is_known_later_too(world):
    vm = await world.fork()
    run = await world.core.runs.start(world.caller, vm.vm_id, beside("nosuch", "argument"))
    assert (run.state, run.exit_code, run.not_started) == ("completed", 127, True)
    assert run.stderr == b"nosuch: No such file or directory\n"
    assert await world.core.runs.get(world.caller, vm.vm_id, run.run_id) == run
    assert (await world.core.runs.list(world.caller, vm.vm_id)).items[0].not_started
    assert not (await world.run(vm, "nosuch")).not_started


async def test_a_pending_one_is_started_by_the_next_server(world):
    vm = await world.fork()
    run = await world.core.runs.start(world.caller, vm.vm_id, beside("sh", "-c", "hang; echo it's", wait=0))
    await world.restart()
    assert (await world.core.runs.get(world.caller, vm.vm_id, run.run_id)).argv == ("sh", "-c", "hang; echo it's")
    await world.release(vm)
    ended = await world.core.runs.wait(world.caller, vm.vm_id, run.run_id)
    assert (ended.state, ended.stdout, ended.argv) == ("completed", b"it's\n", run.argv)


@pytest.mark.parametrize(
    "request_",
    [
        RunRequest("", argv=("true",)),
        RunRequest("true", argv=("true",), beside=True),
        RunRequest("", argv=(), beside=True),
        beside("a\0b"),
        beside("\udcff"),
    ],
)
async def test_what_is_refused(world, request_):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.core.runs.start(world.caller, vm.vm_id, request_)


async def test_bounds(world):
    vm = await world.fork()
    for argv in (("x" * (4 << 20),), ("",) * 500_000):
        with pytest.raises(errors.PayloadTooLarge):
            await world.core.runs.start(world.caller, vm.vm_id, beside(*argv))


async def test_only_programs_leave_something(world):
    vm = await world.fork()
    with pytest.raises(errors.BadRequest):
        await world.run(vm, "echo", leaves=True)
    run = await world.run(vm, "", argv=("echo", "x"), beside=True, leaves=True)
    assert run.stdout == b"x\n"
    (spec,) = world.machine.called("start_run")
    assert spec.leaves is True
