"""What all boxes of a host share is nobody's to use up or to look at; and a hostile tree harms nobody but its VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine.kernel import capabilities

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine, pytest.mark.timeout(120)]


async def python(runner: Runner, source: str) -> str:
    await runner.box.write_file("/tmp/probe.py", source.encode())
    result = await runner.run("python3 /tmp/probe.py", timeout=60)
    assert result.code == 0, bytes(result.err).decode()
    return result.text


async def test_terminals_of_the_host_cannot_be_used_up(runner: Runner) -> None:
    source = (
        "import os, resource\nfds = []\ntry:\n    while len(fds) < 4000: fds.append(os.open('/dev/ptmx', os.O_RDWR))\n"
        "except OSError as error: print(error.errno, len(fds) <= 256)"
    )
    assert await python(runner, source) == "28 True\n"


async def test_asynchronous_io_of_the_host_cannot_be_used_up(runner: Runner) -> None:
    """fs.aio-max-nr is one number for the host."""
    source = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nctx = ctypes.c_ulong(0)\n"
        "print(libc.syscall(206, 60000, ctypes.byref(ctx)), ctypes.get_errno())"
    )
    assert await python(runner, source) == "-1 38\n"
    assert Path("/proc/sys/fs/aio-nr").read_text() == "0\n"


async def test_the_payload_dies_before_the_agent(runner: Runner) -> None:
    """And before what else lives on the host: no process of a box can have itself spared."""
    scores = await runner.run("cat /proc/1/oom_score_adj /proc/$$/oom_score_adj /proc/self/oom_score_adj")
    agent, shell, program = map(int, scores.text.split())
    assert 0 < agent < shell == program
    await runner.run("echo 0 > /proc/$$/oom_score_adj; echo -500 > /proc/$$/oom_score_adj")
    lowest = agent if capabilities() >> 24 & 1 else 0  # a host's root without CAP_SYS_RESOURCE can set no lower bound
    assert int((await runner.run("cat /proc/$$/oom_score_adj")).text) == lowest


async def test_no_disk_of_the_host_is_named(runner: Runner) -> None:
    """/sys/devices holds serial numbers, and the paths of files behind loop devices."""
    found = await runner.run("find /sys/devices -mindepth 1 -maxdepth 1; cat /proc/diskstats")
    assert found.text == "/sys/devices/system\n"
    assert (await runner.run("cat /sys/devices/system/cpu/online")).text.strip()
    disks = "find /sys -type f '(' -name serial -o -name backing_file ')'"
    assert (await runner.run(f"{disks} 2>/dev/null; echo seen")).text == "seen\n"


async def test_a_tree_deeper_than_any_path(runner: Runner) -> None:
    """It is listed as far as it can be named; the box is not lost over it."""
    source = (
        "import os\nos.makedirs('/deep'); os.chdir('/deep'); open('top', 'w').close()\n"
        f"for _ in range({amount(600, 3000)}):\n    os.mkdir('d' * 8); os.chdir('d' * 8); open('f', 'w').close()"
    )
    await python(runner, source)
    manifest = await runner.box.manifest("/deep")
    paths = [entry.path for entry in manifest.entries]
    assert "top" in paths and len(paths) > 400
    assert max(len(f"/deep/{path}") for path in paths) < 4096
    assert (await runner.run("echo alive")).text == "alive\n" and not runner.box.gone.done()
    await runner.box.kill()
    await runner.engine.remove([runner.stack.top])
    assert runner.stack.top not in await runner.engine.stored()
