"""The traps that were found by experiment (design.md, section 4), each with the attack that found it: bounds that are
counted per user, limits set on the agent, what a library looks up by name, descriptors held while a layer is sealed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import GuestError, RunSpec
from servers import Server

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine, pytest.mark.timeout(180)]

# Takes all that a user may have of something, says how it was stopped, and holds it.
INOTIFY = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
while libc.inotify_init1(0) >= 0: pass
print(ctypes.get_errno(), flush=True)
time.sleep(600)
"""
PIPES = """
import fcntl, os, time
held = []
try:
    while len(held) < 1500:
        held += [os.pipe()]
        fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, 1 << 20)
except OSError as error: print(error.errno, flush=True)
time.sleep(600)
"""
ONE_MORE = {
    "inotify": "import ctypes\nprint(ctypes.CDLL(None).inotify_init1(0) >= 0)",
    "pipes": "import fcntl, os\nprint(fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 1 << 20) == 1 << 20)",
}


async def started(runner: Runner, source: str) -> str:
    """The first line of a program that goes on."""
    name = f"/tmp/{new_id()}.py"
    await runner.box.write_file(name, source.encode())
    result = Result()
    await runner.box.start_run(RunSpec(new_id(), runner.session, f"python3 {name}".encode()), result)
    while not result.text.endswith("\n"):
        assert result.end is None, bytes(result.err)
        await runner.box.settle()
    return result.text


async def python(runner: Runner, source: str) -> str:
    await runner.box.write_file("/tmp/probe.py", source.encode())
    result = await runner.run("python3 /tmp/probe.py")
    assert result.code == 0, bytes(result.err)
    return result.text


@pytest.fixture
async def other(runner: Runner) -> AsyncIterator[Runner]:
    another = Runner(runner.engine, runner.golden)
    await another.boot()
    yield another


@pytest.mark.parametrize(("what", "source", "refused"), [("inotify", INOTIFY, "24"), ("pipes", PIPES, "1")])
async def test_bounds_per_user_are_each_box_s_own(
    runner: Runner, other: Runner, what: str, source: str, refused: str
) -> None:
    """Root in one box uses up all that a user may have; root in another, and the host's, still get some."""
    assert (await started(runner, source)).strip() == refused, "the probe: it did come to the bound"
    assert await python(other, ONE_MORE[what]) == "True\n"
    host = subprocess.run(["python3", "-c", ONE_MORE[what]], capture_output=True, text=True, check=True)
    assert host.stdout == "True\n"


async def test_nobody_sets_limits_of_the_agent(runner: Runner) -> None:
    """It would have no descriptors, or no memory, for what it is asked next."""
    (row,) = await runner.engine._living()
    before = Path(f"/proc/{row['pid']}/limits").read_text()
    source = (
        "import ctypes, os, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for pid in (PIDS):\n    for what in range(16):\n"
        "        if libc.prlimit64(pid, what, struct.pack('QQ', 0, 0), None) == 0: print('set', pid, what)\n"
    )
    assert await python(runner, source.replace("PIDS", "1, os.getppid()")) == ""
    assert Path(f"/proc/{row['pid']}/limits").read_text() == before
    probe = "p = os.fork()\nif p == 0: time.sleep(9)\nprint(libc.prlimit64(p, 7, struct.pack('QQ', 8, 8), None)); os.kill(p, 9)"
    start = "import ctypes, os, struct, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    done = subprocess.run(["python3", "-c", start + probe], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n", "the probe: outside a process of root's can set them"
    assert await python(runner, "import resource\nresource.setrlimit(7, (64, 64)); print(resource.getrlimit(7))") == (
        "(64, 64)\n"
    ), "its own are its own business"
    await runner.box.write_file("/tmp/after", b"works")


async def owned(runner: Runner) -> set[str]:
    """The names of the processes that have run what was planted, since this was last asked."""
    names = (await runner.run("cd /tmp && ls -d owned-* 2>/dev/null; rm -f owned-*; cd /")).text.split()
    return {name.removeprefix("owned-") for name in names}


async def test_encodings_of_the_vm_are_not_the_agent_s(runner: Runner) -> None:
    """Python looks encodings up by name, in files, when they are first used: in the VM these are the VM's."""
    evil = (
        "import posix\nname = posix.read(posix.open('/proc/self/comm', 0), 16).strip()\n"
        "posix.close(posix.open(b'/tmp/owned-' + name, posix.O_CREAT | posix.O_WRONLY, 0o644))\n"
    )
    await runner.box.write_file("/tmp/evil.py", evil.encode())
    plant = "for d in /usr/lib/python3*/encodings; do for f in $d/*.py; do cp /tmp/evil.py $f; done; rm -rf $d/__pycache__; done"
    await runner.run(f"{plant}; python3 -c 1")
    assert await owned(runner) == {"python3"}, "the probe: an interpreter of the VM's does run them"
    await strain(runner)
    assert await owned(runner) == set()


async def test_name_services_of_the_vm_are_not_the_agent_s(runner: Runner, tmp_path: Path) -> None:
    """Whoever asks the C library for a user loads what /etc/nsswitch.conf names: in the VM that is the VM's."""
    if shutil.which("gcc") is None:
        pytest.skip("NOT TESTED: a name service of the VM's own; it needs a C compiler (apt install gcc)")
    source = tmp_path / "nss.c"
    source.write_text(
        "#include <fcntl.h>\n#include <stdio.h>\n#include <sys/prctl.h>\n"
        "__attribute__((constructor)) static void owned(void) {\n"
        '    char name[17] = "", path[64];\n    prctl(PR_GET_NAME, name);\n'
        '    snprintf(path, sizeof path, "/tmp/owned-%s", name);\n    open(path, O_CREAT | O_WRONLY, 0644);\n}\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "nss.so", source], check=True)
    await runner.box.write_file("/usr/lib/libnss_evil.so.2", (tmp_path / "nss.so").read_bytes())
    await runner.run("printf 'passwd: evil\\ngroup: evil\\nhosts: evil\\n' > /etc/nsswitch.conf; ldconfig")
    await runner.run("getent passwd nobody")
    assert "getent" in await owned(runner), "the probe: whoever asks the library in the VM does load it"
    (row,) = await runner.engine._living()
    await strain(runner)
    assert "agent" not in await owned(runner)
    assert "evil" not in Path(f"/proc/{row['pid']}/maps").read_text()


async def strain(runner: Runner) -> None:
    """What the agent does that could have it look something up by a name: users, directories, bytes that are no text."""
    for options in ({"user": "nobody"}, {"user": "nobody:nogroup"}, {"user": "65534"}, {"cwd": "/tmp/\udcff"}):
        with contextlib.suppress(GuestError):
            await runner.run("true", **options)
    await runner.run(b"printf '\\377\\376' > /tmp/$(printf 'a\\377'); cd /tmp; export B=$(printf '\\377')")
    await runner.run(f"cd /tmp; mkdir -p '{'ü' * 40}'; cd '{'ü' * 40}'; pwd")
    await runner.box.settle()
    await runner.box.manifest("/tmp")
    for path in ("/tmp/nothing", "/tmp", "/dev/null", "/tmp/\u0130\u212a"):
        with pytest.raises(GuestError):
            await runner.box.read_file(path)


async def test_no_descriptor_to_write_with_leaves_a_box(runner: Runner) -> None:
    """Nobody holds one when a layer is sealed: it would write into what is never to change."""
    await runner.box.write_file("/root/f", b"sealed")
    opened = await runner.box.read_file("/root/f")
    try:
        assert fcntl.fcntl(opened.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(opened.fd, b"x")
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(opened.fd, 0)
    finally:
        os.close(opened.fd)


@pytest.mark.parametrize("holder", ["an idle shell", "a process"])
def test_who_holds_a_file_open_writes_to_no_sealed_layer(boxwood_server: Server, holder: str) -> None:
    with boxwood_server.client() as client:
        vm = client.fork("ubuntu")
        vm.run("exec 3>> /root/f; echo before >&3", check=True)
        if holder == "a process":
            vm.run(
                "(while ! test -e /root/go; do sleep 0.02; done; echo after >&3; echo done > /root/went) & ",
                background=True,
            )
            vm.run("test -e /root/f", session=1, check=True)
        child = vm.fork()
        vm.run("touch /root/go; echo later >> /root/f", session=1, check=True)
        vm.run("echo mine >&3 2>/dev/null || echo mine >> /root/f" if holder == "an idle shell" else "true", session=2)
        if holder == "a process":
            vm.run("while ! test -e /root/went; do sleep 0.02; done", session=1, check=True)
            assert "after" in vm.read_text("/root/f")
        assert child.read_text("/root/f") == "before\n"
        assert vm.fork().read_text("/root/f") == vm.read_text("/root/f")
        assert child.fork().read_text("/root/f") == "before\n"
