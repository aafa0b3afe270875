"""Cgroups of this very host: limits that hold, processes that stand still, nothing left over."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servers
from boxwood.engine.api import Limits
from boxwood.engine.cgroups import files, finding, orphans
from boxwood.engine.cgroups.cgroups import Cgroups, LimitUnavailable
from boxwood.engine.cgroups.files import MOUNTS
from boxwood.engine.cgroups.separate import Separate
from boxwood.engine.cgroups.unified import Unified

BOX = "01J8Z3K4M5N6P7Q8R9S0T1V2W4"
V2_LINE = re.compile(r"^\S+ (\S+) cgroup2 ", re.MULTILINE)
COUNT = "import os, sys\nn = 0\nwhile True:\n    n += 1\n    os.pwrite(1, n.to_bytes(8, 'little'), 0)\n"


JOIN = 'program="$1"; shift; for at; do echo 0 > "$at/cgroup.procs"; done; exec "$0" -c "$program"'


def new_id() -> str:
    return "0" + "".join(secrets.choice("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for _ in range(25))


@pytest.fixture(params=["found", "version 2"])
def groups(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cgroups]:
    """What this host uses, and version 2 where it is mounted at all: it freezes and kills without controllers too."""
    mounts = MOUNTS
    if request.param == "version 2":
        line = V2_LINE.search(MOUNTS.read_text())
        if line is None:
            pytest.skip("version 2 is not mounted")
        mounts = tmp_path / "mounts"
        mounts.write_text(line.group(0) + "rw 0 0\n")
    found = finding.find(new_id(), mounts)
    yield found
    assert found.sweep() == set()
    parents = list(found._parents())
    found.close()
    assert [parent for parent in parents if os.path.exists(parent)] == []


@pytest.fixture
def start(groups: Cgroups) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(directories: list[str], program: str, **more: object) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", JOIN, sys.executable, program, *directories]
        process = subprocess.Popen(command, **more)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def unlimited() -> Limits:
    return Limits(vcpu=0, memory_mib=0, pids=0)


def test_processes_stand_still_and_go_on(
    groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    directories = groups.make(BOX, unlimited())
    with open(tmp_path / "count", "w+b", buffering=0) as counter:
        start(directories, COUNT, stdout=counter)

        def count() -> int:
            return int.from_bytes(os.pread(counter.fileno(), 8, 0), "little")

        while not count():
            os.sched_yield()
        groups.freeze(BOX)
        still = count()
        subprocess.run(["true"], check=True)
        assert count() == still
        groups.thaw(BOX)
        while count() == still:
            os.sched_yield()


def test_a_busy_group_is_not_waited_for(groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    directories = groups.make(BOX, unlimited())
    process = start(directories, "print('up', flush=True); input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert groups.remove(BOX) is False
    process.kill()
    process.wait()
    while not groups.remove(BOX):
        os.sched_yield()
    assert [directory for directory in directories if os.path.exists(directory)] == []


def test_sweep_kills_even_what_is_frozen(groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    directories = groups.make(BOX, unlimited())
    process = start(directories, "print('up', flush=True); input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    groups.freeze(BOX)
    assert groups.sweep() == set()
    assert process.wait() == -signal.SIGKILL
    assert [directory for directory in directories if os.path.exists(directory)] == []


def test_groups_of_an_instance_that_was_killed_are_orphans(
    groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    parents = list(groups._parents())
    directories = groups.make(BOX, unlimited())
    process = start(directories, "print('up', flush=True); input()", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    assert not orphans._clear(parents, 0)  # it lives
    for fd in groups._held:
        os.close(fd)
    groups._held.clear()
    assert not orphans._clear(parents, 3600) and not orphans._clear(parents, 0)  # young; not without processes
    process.kill()
    process.wait()
    servers.until(lambda: orphans._clear(parents, 0))
    assert [parent for parent in parents if os.path.exists(parent)] == []
    groups._held += [files.hold(parent) for parent in parents]


def test_limits_hold(groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    if not groups.controllers >= {"memory", "pids"}:
        with pytest.raises(LimitUnavailable):
            groups.make(BOX, Limits(memory_mib=64))
        return
    directories = groups.make(BOX, Limits(vcpu=1, memory_mib=64, pids=3))
    eater = start(directories, "x = bytearray(256 << 20)")
    assert eater.wait() == -signal.SIGKILL
    assert groups.usage(BOX).oom_kills == 1
    forker = start(
        directories,
        "import os\nfor _ in range(4):\n    os.fork() or os._exit(os.read(0, 1) and 0)",
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert forker.wait() == 1  # BlockingIOError: the fourth process


def test_limits_are_raised_and_lifted(groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    if not groups.controllers >= {"memory", "pids"}:
        pytest.skip("this hierarchy has no memory controller")
    tight, wide = Limits(vcpu=1, memory_mib=64, pids=3), Limits(vcpu=2, memory_mib=512, pids=30)
    directories = groups.make(BOX, tight)
    groups.limit(BOX, wide, tight)
    assert start(directories, "x = bytearray(256 << 20)").wait() == 0
    groups.limit(BOX, tight, wide)
    assert start(directories, "x = bytearray(256 << 20)").wait() == -signal.SIGKILL
    groups.limit(BOX, unlimited(), tight)
    many = "import os\nfor _ in range(40):\n    os.fork() or os._exit(0)\nx = bytearray(256 << 20)"
    assert start(directories, many).wait() == 0


def test_this_host_is_recognised() -> None:
    found = finding.find(new_id())
    try:
        assert isinstance(found, Unified | Separate)
        usage_of_nothing = found.controllers
        assert "freezer" in usage_of_nothing
    finally:
        found.close()


def test_usage_counts(groups: Cgroups, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    directories = groups.make(BOX, unlimited())
    process = start(
        directories,
        "x = b'x' * (8 << 20); print('up', flush=True); input()",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    usage = groups.usage(BOX)
    if "memory" in groups.controllers:
        assert usage.memory_bytes is not None and usage.memory_bytes > 4 << 20
    if "pids" in groups.controllers:
        assert usage.pids == 1
