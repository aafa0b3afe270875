"""Turns of the processor, and what a crash leaves (attacks.md, items 9 and 12)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine.api import Limits

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine, pytest.mark.timeout(120)]

TURNS = """
import os
def tried(what, call):
    try: call(); print(what, "done")
    except OSError as error: print(what, error.errno)
tried("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
tried("round robin", lambda: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)))
tried("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
"""
# In a directory that can be written, with as much room for a core as may be had: does the kernel say that it wrote one?
CRASH = """
import os, resource
try: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2); print("raised")
except (OSError, ValueError): print("refused")
os.chdir(WHERE)
pid = os.fork()
if pid == 0: os.abort()
_, status = os.waitpid(pid, 0)
print(os.WTERMSIG(status), os.WCOREDUMP(status), [name for name in os.listdir(".") if name.startswith("core")])
"""


async def python(runner: Runner, source: str) -> str:
    await runner.box.write_file("/root/probe.py", source.encode())
    result = await runner.run("python3 /root/probe.py")
    assert result.code == 0, bytes(result.err)
    return result.text


async def test_no_turn_before_others(runner: Runner) -> None:
    outside = subprocess.run(["python3", "-c", TURNS], capture_output=True, text=True, check=True).stdout
    assert outside == "fifo done\nround robin done\nnice done\n", "the probe: root of the host can"
    assert await python(runner, TURNS) == "fifo 1\nround robin 1\nnice 13\n"


async def test_a_bound_of_cores_holds(engine: object, golden: str) -> None:
    """A tenth of a core, wanted by four at once: the kernel says that they were held back."""
    runner = Runner(engine, golden)  # type: ignore[arg-type]
    await runner.boot(limits=Limits(vcpu=0.1))
    (row,) = await runner.engine._living()
    lines = Path(f"/proc/{row['pid']}/cgroup").read_text().splitlines()
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    where = next(
        (Path("/sys/fs/cgroup", names), path) for names, path in groups.items() if names.split(",")[0] in ("cpu", "")
    )
    stat = Path(f"{where[0]}{where[1]}/cpu.stat")

    def held_back() -> int:
        return int(dict(line.split(" ", 1) for line in stat.read_text().splitlines())["nr_throttled"])

    before = held_back()
    result = await runner.run(
        f"for i in 1 2 3 4; do (n=0; while [ $n -lt {amount(6000, 20000)} ]; do n=$((n+1)); done) & done; wait; echo over"
    )
    assert result.text == "over\n"
    assert held_back() > before


async def test_a_crash_leaves_nothing_and_starts_nothing(runner: Runner, tmp_path: Path) -> None:
    here = CRASH.replace("WHERE", repr(str(tmp_path)))
    outside = subprocess.run(["python3", "-c", here], capture_output=True, text=True, check=True).stdout
    assert outside.startswith("raised\n6 "), outside
    if Path("/proc/sys/kernel/core_pattern").read_text().strip() == "core":
        assert outside.startswith("raised\n6 True ['core"), "the probe: here a core is written"
    assert await python(runner, CRASH.replace("WHERE", "'/tmp'")) == "refused\n6 False []\n"
    assert (await runner.run("ulimit -Hc; grep -c '^Max core file size *1 *1 ' /proc/self/limits")).text.split()[
        -1
    ] == "1"
