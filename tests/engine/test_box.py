"""What a box is: its root, its limits, its first process, and how it comes and goes."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import socket
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxGone, BoxSpec, EngineError, GuestError, Limits, SessionSpec, Stack
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]


async def test_a_command_runs(runner: Runner) -> None:
    result = await runner.run("echo out; echo err >&2; exit 3")
    assert (result.text, bytes(result.err), result.code) == ("out\n", b"err\n", 3)


async def test_it_is_a_computer_of_its_own(runner: Runner) -> None:
    text = (
        await runner.run("hostname; id -u; cat /proc/1/comm; echo $$; ls /proc | grep -c '^[0-9]'; pwd")
    ).text.split()
    assert text[:3] == ["testbox", "0", "agent"] and int(text[3]) < 20 and int(text[4]) < 10 and text[5] == "/root"


async def test_loopback_is_up_and_nothing_else_is_there(runner: Runner) -> None:
    script = (
        "import socket; s=socket.create_server(('127.0.0.1', 80)); c=socket.create_connection(s.getsockname()); "
        "print('ok', [n for _, n in socket.if_nameindex()])"
    )
    assert (await runner.run(f'python3 -c "{script}"')).text == "ok ['lo']\n"


async def test_everyday_programs_work(runner: Runner) -> None:
    """Others, and what they need of the image: test_images.py."""
    commands = (
        "python3 -c 'import threading; threading.Thread(target=print, args=(42,)).start()' && "
        "tar cf - /etc/passwd 2>/dev/null | tar tf - && su user -s /bin/sh -c 'id -u; touch /home/user/x' && "
        "mkfifo /tmp/f && ls /dev/pts"
    )
    result = await runner.run(commands)
    assert result.code == 0, bytes(result.err)
    assert result.text.startswith("42\n") and "etc/passwd\n1000\n" in result.text


async def test_files_go_in_and_out(runner: Runner) -> None:
    for content in (b"", b"x", os.urandom(3 << 20)):
        assert await runner.box.write_file("/a/new/dir/file", content) == len(content)
        opened = await runner.box.read_file("/a/new/dir/file")
        try:
            assert os.pread(opened.fd, 8 << 20, 0) == content and opened.size == len(content) and opened.mode == 0o644
        finally:
            os.close(opened.fd)


async def test_a_file_keeps_its_mode_and_owner(runner: Runner) -> None:
    await runner.run("echo old > /tmp/f; chmod 750 /tmp/f; chown user:user /tmp/f")
    await runner.box.write_file("/tmp/f", b"new")
    assert (await runner.run("stat -c '%a %u' /tmp/f; cat /tmp/f")).text == "750 1000\nnew"


async def test_a_link_is_written_through(runner: Runner) -> None:
    await runner.run("ln -s /tmp/target /tmp/link; echo old > /tmp/target")
    await runner.box.write_file("/tmp/link", b"new")
    assert (await runner.run("readlink /tmp/link; cat /tmp/target")).text == "/tmp/target\nnew"


NO_FILES = [
    ("/nowhere/file", errno.ENOENT), ("/tmp", errno.EISDIR), ("/etc/passwd/x", errno.ENOTDIR),
    ("/proc/meminfo", errno.EACCES), ("/proc/self/environ", errno.EACCES),
    ("/sys/devices/system/cpu/online", errno.EACCES), ("/dev/zero", errno.EINVAL), ("/tmp/fifo", errno.EINVAL),
    ("/run/file", errno.EACCES), ("/dev/shm/file", errno.EACCES), ("/tmp/to-proc", errno.EACCES),
    ("relative", errno.EINVAL), ("/nul\0byte", errno.EINVAL), ("/" + "x" * 300, errno.ENAMETOOLONG),
]  # fmt: skip


async def test_what_is_no_file_is_refused(runner: Runner) -> None:
    await runner.run("mkfifo /tmp/fifo; echo x > /run/file; echo x > /dev/shm/file; ln -s /proc/version /tmp/to-proc")
    for path, number in NO_FILES:
        with pytest.raises(GuestError) as refused:
            os.close((await runner.box.read_file(path)).fd)
        assert refused.value.errno == number, path
        assert (await runner.run("echo on")).text == "on\n", path


async def test_what_cannot_be_written_is_refused(runner: Runner) -> None:
    for path in ("/proc/x", "/dev/shm/x", "/run/x", "/sys/x", "/tmp", "/tmp/", "/dev/null"):
        with pytest.raises(GuestError):
            await runner.box.write_file(path, b"x")
            pytest.fail(path)


async def test_a_manifest(runner: Runner) -> None:
    await runner.run(
        "mkdir -p /w/d/e; printf hello > /w/a; printf x > /w/d/e/b; ln -s a /w/link; mkfifo /w/p; chmod 600 /w/a"
    )
    found = await runner.box.manifest("/w/")
    shown = [(e.path, e.size, e.mode & 0o777, e.hash[:8]) for e in found.entries]
    assert shown == [("a", 5, 0o600, "2cf24dba"), ("d/e/b", 1, 0o644, "2d711642")] and found.root == "/w"
    assert (await runner.box.manifest("/missing")).entries == ()
    assert (await runner.box.manifest("/usr/bin", 5)).truncated
    with pytest.raises(GuestError):
        await runner.box.manifest("/etc/passwd")


async def test_limits_hold(engine: HostEngine, golden: str) -> None:
    runner = Runner(engine, golden)
    await runner.boot(limits=Limits(vcpu=1, memory_mib=128, pids=64))
    hog = await runner.run("python3 -c 'x = bytearray(400 << 20)'")
    assert hog.code == 137
    wait = "os.close(w) or os.read(r, 1) and os._exit(0) or os._exit(0)"  # for whoever has made it to end
    bomb = f"import os\nn, (r, w) = 0, os.pipe()\ntry:\n    while n < 500:\n        n += 1\n        os.fork() or {wait}\nexcept OSError: print(n)"
    await runner.box.write_file("/tmp/bomb.py", bomb.encode())
    forked = await runner.run("python3 /tmp/bomb.py", timeout=60)
    assert 30 < int(forked.text) < 64
    assert (await runner.run("echo alive")).text == "alive\n"


async def test_the_death_of_a_box_is_told(runner: Runner) -> None:
    await runner.run("kill -9 -1")  # everything but PID 1
    assert (await runner.run("echo still")).text == "still\n"
    await runner.box.kill()
    assert runner.box.gone.done()
    with pytest.raises(BoxGone):
        await runner.box.settle()


async def test_what_cannot_be_mounted_is_told(engine: HostEngine, golden: str) -> None:
    stack = Stack((new_id(), golden), new_id(), frozenset({golden}))
    with pytest.raises(EngineError, match="overlay"):
        await engine.boot(BoxSpec(new_id(), stack))
    with pytest.raises(EngineError, match="at most 400"):
        await engine.boot(BoxSpec(new_id(), Stack(tuple(new_id() for _ in range(401)), new_id())))
    with pytest.raises(EngineError, match="hostname"):
        await engine.boot(BoxSpec(new_id(), Stack((golden,), new_id(), frozenset({golden})), "../x"))


async def test_what_was_written_is_there_in_the_next_box(runner: Runner) -> None:
    await runner.run("echo kept > /root/file; rm /etc/hostname; rm -r /home/user && mkdir /home/user")
    await runner.box.kill()
    await runner.boot(top=runner.stack.top)
    text = (await runner.run("cat /root/file; ls -A /home/user; ls /etc/hostname 2>&1 | grep -c 'No such'")).text
    assert text == "kept\n1\n"


@pytest.mark.parametrize("limits", [Limits(), Limits(disk=32 << 20)], ids=["plain", "in a file"])
async def test_what_the_root_directory_looks_like_is_inherited(engine: HostEngine, golden: str, limits: Limits) -> None:
    """By new tops, of whatever lies below them; and to have changed that alone is to have written something."""
    look = "stat -c '%a %u:%g' /; python3 -c 'import os; print(os.getxattr(\"/\", \"user.mine\"))'"
    source = Runner(engine, golden)
    await source.boot(limits=limits)
    await source.run("true")
    assert await engine.is_empty(source.stack.top) and (await engine.contents(source.stack.top)).empty
    await source.run('chmod 1711 /; chown 7:8 /; python3 -c \'import os; os.setxattr("/", "user.mine", b"x")\'')
    assert (await source.run(look)).text == "1711 7:8\nb'x'\n"
    assert not await engine.is_empty(source.stack.top) and not (await engine.contents(source.stack.top)).empty
    await source.box.kill()
    assert not await engine.is_empty(source.stack.top) and not (await engine.contents(source.stack.top)).empty
    below = (source.stack.top,)
    for other in dict.fromkeys((limits, Limits())):
        child = Runner(engine, golden)
        await child.boot(layers=below, limits=other)
        assert (await child.run(look)).text == "1711 7:8\nb'x'\n"
        assert await engine.is_empty(child.stack.top) and (await engine.contents(child.stack.top)).empty
        await child.run("chmod 755 /; chown 0:0 /")
        await child.box.kill()
        assert not await engine.is_empty(child.stack.top)
        await child.boot(layers=below, top=child.stack.top, limits=other)
        assert (await child.run(look)).text == "755 0:0\nb'x'\n"  # as the VM has it by now
        await child.box.kill()
    reader = Runner(engine, golden)
    await reader.boot(layers=below, read_only=True)
    assert (await reader.run(look)).text == "1711 7:8\nb'x'\n"


@pytest.mark.own_engine
async def test_an_engine_that_comes_back_adopts_its_boxes(
    engine: HostEngine, golden: str, data: object, images: object
) -> None:
    runner = Runner(engine, golden)
    box = await runner.boot()
    await runner.run("cd /tmp; export A=b; x=1")
    await engine.close()
    again = HostEngine(data, images, network=False)  # type: ignore[arg-type]
    adopted = await again.start()
    try:
        assert [(b.vm_id, b.top) for b in adopted] == [(box.vm_id, runner.stack.top)]  # type: ignore[attr-defined]
        runner.box = adopted[0]
        runner.box.listen(runner)
        assert (await runner.run("pwd; echo $A$x")).text == "/tmp\nb1\n"
    finally:
        await again.close()
        await engine.start()


async def test_many_boxes_at_once(engine: HostEngine, golden: str) -> None:
    async def one(number: int) -> None:
        runner = Runner(engine, golden)
        await runner.boot()
        assert (await runner.run(f"echo {number} > /root/n; cat /root/n")).text == f"{number}\n"
        await runner.box.kill()

    await asyncio.gather(*(one(n) for n in range(amount(10, 24))))


async def test_a_copied_top_is_the_same_and_the_source_goes_on(runner: Runner) -> None:
    await runner.run("mkdir /w; for i in $(seq 200); do echo $i > /w/$i; done; rm -rf /srv; ln -s a /w/link")
    loop = "python3 -c \"import time\nfor i in range(10**6):\n open('/w/log','a').write(f'{i}\\n')\n time.sleep(0.001)\" >/dev/null 2>&1 &"
    from boxfixtures import Result
    from boxwood.engine.api import RunSpec

    writer = Result()
    run_id = new_id()
    await runner.box.start_run(RunSpec(run_id, runner.session, loop.encode()), writer)
    async with asyncio.timeout(30):
        while not (await runner.box.settle()).processes:
            pass
    target = new_id()
    report = await runner.engine.copy_top(runner.box, runner.stack.top, target)
    assert report.inodes > 200 and 0 < report.frozen_ms <= report.total_ms
    child = Runner(runner.engine, runner.golden)
    await child.boot(layers=(target,))
    lines = (await child.run("cat /w/log; ls /w | wc -l; readlink /w/link")).text.split()
    numbers = [int(n) for n in lines[:-2]]
    assert numbers == list(range(len(numbers))) and int(lines[-2]) >= 201 and lines[-1] == "a"
    assert (await runner.box.settle()).processes
    await runner.box.kill_run(run_id)
    await writer.wait(runner.box)


@pytest.mark.own_engine
async def test_a_stranger_cannot_speak_to_the_zygote(engine: HostEngine, data: object) -> None:
    def attempt() -> bytes:
        pid = os.fork()
        if pid == 0:
            os.setresuid(65534, 65534, 65534)
            try:
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(f"{data}/zygote.sock")
            except PermissionError:
                os._exit(7)
            os._exit(0)
        return bytes([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])])

    assert attempt() == b"\x07"


async def test_a_session_comes_back_with_what_was_saved(runner: Runner) -> None:
    await runner.run("cd /tmp; export E='a b'; x=plain; f() { echo \"f $1\"; }")
    await runner.box.settle()
    saved = runner.saved[runner.session]
    assert saved[0] == "/tmp" and saved[1]["E"] == "a b"
    await runner.box.kill()
    await runner.boot(top=runner.stack.top)
    session = new_id()
    await runner.box.open_session(SessionSpec(session, state=saved[2]))
    runner.session = session
    assert (await runner.run('pwd; echo "$E|$x"; f 1')).text == "/tmp\na b|plain\nf 1\n"


async def test_a_session_without_functions_comes_back(runner: Runner) -> None:
    await runner.run("cd /tmp; x=1")
    await runner.box.settle()
    saved = runner.saved[runner.session]
    await runner.box.kill()
    await runner.boot(top=runner.stack.top)
    runner.session = new_id()
    await runner.box.open_session(SessionSpec(runner.session, state=saved[2]))
    assert (await runner.run("pwd; echo $x")).text == "/tmp\n1\n"


@pytest.mark.slow
@pytest.mark.own_engine
async def test_a_zygote_that_nobody_can_reach_ends(engine: HostEngine, data: Path, images: Path) -> None:
    """Its data directory was removed, or another zygote has taken its place: it must not stay for ever."""
    state = json.loads((data / "zygote.json").read_text())
    pidfd = os.pidfd_open(state["pid"])
    await engine.close()
    (data / "zygote.sock").unlink()
    gone = await asyncio.to_thread(select.select, [pidfd], [], [], 60)
    os.close(pidfd)
    assert gone[0]
    await engine.start()


async def test_limits_and_name_of_a_live_box_change(engine: HostEngine, golden: str) -> None:
    runner = Runner(engine, golden)
    await runner.boot(limits=Limits(vcpu=1, memory_mib=64, pids=64))
    hog = "python3 -c 'print(len(bytearray([7]) * (90 << 20)))'"
    assert (await runner.run(f"{hog} || echo killed")).text == "killed\n"
    await engine.change(runner.box, "renamed", Limits(vcpu=1, memory_mib=256, pids=64))
    assert (await runner.run(hog)).text == f"{90 << 20}\n"
    assert (await runner.run("hostname")).text == "renamed\n"
    await runner.run("mkfifo /run/hold /run/held")
    program = "data = bytearray([7]) * (90 << 20); open('/run/held', 'w').write('.'); open('/run/hold').read()"
    holding = asyncio.create_task(runner.run(f'python3 -c "{program}"'))
    assert (await runner.run("cat /run/held", env={})).text == "."  # beside the session, in which it holds on
    with pytest.raises(EngineError, match="use more"):
        await engine.change(runner.box, "again", Limits(vcpu=1, memory_mib=64, pids=64))
    assert (await runner.run("hostname; echo > /run/hold", env={})).text == "renamed\n"
    assert (await holding).code == 0
