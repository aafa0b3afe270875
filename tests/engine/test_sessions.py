"""Sessions in a real box: what a process in this very namespace cannot show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import GuestError, RunSpec, SessionSpec

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

DAEMON = (
    "python3 -c 'import os, time\nos.fork() and os._exit(0)\nos.setsid()\nos.fork() and os._exit(0)\n"
    'n = os.open("/dev/null", 2)\n[os.dup2(n, i) for i in range(3)]\ntime.sleep({})\nopen("/tmp/done", "w")\''
)


async def test_readers_get_end_of_file(runner: Runner) -> None:
    for command, code in ("cat", 0), ("read x", 1), ("python3 -c 'import sys; sys.exit(len(sys.stdin.read()))'", 0):
        result = await runner.run(command, timeout=20)
        assert (result.code, result.text) == (code, "")
    result = await runner.run("su user -s /bin/sh -c 'cat; echo over'", timeout=20)
    assert (result.code, result.text) == (0, "over\n")


async def test_a_repl(runner: Runner) -> None:
    result = await runner.run("python3 -q", timeout=20)
    assert result.end is not None and (result.end.reason, result.end.exit_code) == ("prompt", None)
    assert bytes(result.err) == b">>> "
    result = await runner.run("print(6 * 7)", timeout=20)
    assert result.end is not None and (result.text, result.end.reason) == ("42\n", "prompt")
    activity = await runner.box.settle()
    assert (activity.runs, activity.processes) == (0, 1)
    result = await runner.run("exit(3)", timeout=20)
    assert result.end is not None and (result.end.reason, result.end.exit_code) == ("exit", 3)
    assert (await runner.box.settle()).idle


async def test_a_repl_of_another_user(runner: Runner) -> None:
    result = await runner.run("su user -s /bin/sh -c 'python3 -q'", timeout=20)
    assert result.end is not None and result.end.reason == "prompt"
    result = await runner.run("import os; print(os.getuid())", timeout=20)
    assert result.text == "1000\n"
    assert (await runner.run("exit()", timeout=20)).code == 0


async def test_daemons_are_waited_for_and_killed(runner: Runner) -> None:
    assert (await runner.run(DAEMON.format(0.3) + "; exit 4", timeout=20)).code == 4
    assert (await runner.run("rm /tmp/done")).code == 0
    result = await runner.run(DAEMON.format(60) + "; kill -9 $$", timeout=1)
    assert result.end is not None and (result.end.reason, result.end.exit_code) == ("timeout", 124)
    assert (await runner.run("ls /tmp/done; ps -e | grep -c python3")).text == "0\n"
    assert (await runner.box.settle()).idle


async def test_a_state_goes_on_in_another_box(runner: Runner) -> None:
    await runner.run("cd /usr; x='a b'; f() { echo \"f $1\"; }; export E=e; exit 5")
    await runner.box.settle()
    cwd, env, state = runner.saved[runner.session]
    assert (cwd, env["E"]) == ("/usr", "e")
    await runner.box.kill()
    await runner.boot()
    runner.session = new_id()
    await runner.box.open_session(SessionSpec(runner.session, state=state))
    assert (await runner.run('echo "$?"; f "$x"; pwd; echo $E')).text == "5\nf a b\n/usr\ne\n"


async def test_beside_the_session_all_is_as_the_last_run_left_it(runner: Runner) -> None:
    """Its answer comes before its state has been read."""
    for number in range(25):
        await runner.run(f"mkdir -p /tmp/{number}; cd /tmp/{number}; export N={number}")
        assert (await runner.run("echo $PWD $N", env={})).text == f"/tmp/{number} {number}\n"


async def test_beside_the_session(runner: Runner) -> None:
    await runner.run("cd /usr; export E=e")
    await runner.box.settle()
    result = await runner.run("id -un; echo $E$F $HOME; pwd; cat", user="user", env={"F": "f"}, stdin=b"in")
    assert result.text == "user\nef /home/user\n/usr\nin"
    assert (await runner.run("id -G", user="user:0")).text.split()[0] == "0"
    assert (await runner.run("touch /root/x", user="user")).code == 1
    for wrong in {"user": "nobody-here"}, {"cwd": "/no/such"}:
        with pytest.raises(GuestError, match=r"there is no user|No such file"):
            await runner.run("true", **wrong)


async def test_nobody_locks_the_pipes_of_the_agent(runner: Runner) -> None:
    script = (
        "import os, ctypes\nfor call in (lambda: os.sendfile(1, 0, None, 9), lambda: os.splice(0, 1, 9)):\n"
        " try: call()\n except AttributeError: print(22)\n except OSError as e: print(e.errno)"
    )
    result = await runner.run(f"python3 -c '{script}'", timeout=20)
    assert result.text == "22\n22\n", bytes(result.err)


async def test_output_waits_for_its_acknowledgement(runner: Runner) -> None:
    size = 5_000_000
    result, spec = Result(), RunSpec(new_id(), runner.session, b"head -c %d /dev/zero" % size)
    await runner.box.start_run(spec, result)
    while len(result.out) < 1 << 20:
        await asyncio.sleep(0.01)
    assert (await runner.box.settle()).processes == 1 and result.end is None
    while result.end is None:
        runner.box.ack(spec.run_id, len(result.out), len(result.err))
        await asyncio.sleep(0.001)
    assert len(result.out) == size
    runner.box.forget(spec.run_id)


async def test_closing_a_session(runner: Runner) -> None:
    result = Result()
    await runner.box.start_run(RunSpec(new_id(), runner.session, b"echo on; sleep 60 & sleep 60"), result)
    await runner.box.close_session(runner.session)
    assert result.end is not None and result.end.reason == "killed"
    assert (await runner.box.settle()).idle


async def start(runner: Runner, *argv: str, **options: Any) -> Result:
    """A program without a shell, to its end."""
    options = {"env": {}, "timeout": 20, **options}
    result = Result()
    spec = RunSpec(new_id(), runner.session, b"", argv=tuple(map(str.encode, argv)), **options)
    await runner.box.start_run(spec, result)
    await result.wait(runner.box)
    runner.box.forget(spec.run_id)
    return result


async def test_a_program_has_what_a_shell_has_and_no_more(runner: Runner) -> None:
    """Its privileges, its place in the order of those killed when memory is short, and its terminal: none."""
    about = (
        "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Dumpable)' /proc/self/status; cat /proc/self/oom_score_adj;"
        "ls -l /proc/self/fd | wc -l; umask; ulimit -n; id -G"
    )
    beside = await runner.run(about, env={})
    for _ in range(2):  # by a new minder, and by one that has started something
        result = await start(runner, "sh", "-c", about)
        assert (result.text, bytes(result.err)) == (beside.text, b"")
    as_user = await start(runner, "sh", "-c", about, user="user", cwd="/")
    assert as_user.text == (await runner.run(about, user="user", cwd="/")).text
    assert (await start(runner, "sh", "-c", about)).text == beside.text


async def test_a_minder_cannot_be_read_or_traced(runner: Runner) -> None:
    script = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\npid = os.getppid()\n"
        "for name in ('mem', 'environ', 'maps', 'fd/3'):\n"
        " try: print(name, os.open(f'/proc/{pid}/{name}', os.O_RDONLY))\n"
        " except OSError as e: print(e.errno)\n"
        "print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno())"
    )
    result = await start(runner, "python3", "-c", script)
    assert result.text == "13\n13\n13\n13\n-1 1\n", (result.text, bytes(result.err))


async def test_what_a_program_left_is_waited_for(runner: Runner) -> None:
    result = await start(runner, "sh", "-c", "(sleep 0.3; echo late) &")
    assert (result.code, result.text) == (0, "late\n")
    assert (await start(runner, "sh", "-c", DAEMON.format(0.3) + "; ls /tmp/done")).code == 2
    assert (await start(runner, "ls", "/tmp/done")).code == 0
    result = await start(runner, "sh", "-c", DAEMON.format(60), timeout=1)
    assert result.end is not None and (result.end.reason, result.end.exit_code) == ("timeout", 124)
    assert (await runner.run("ps -e | grep -c python3")).text == "0\n"
    assert (await runner.box.settle()).idle


async def test_a_program_that_cannot_be_started(runner: Runner) -> None:
    result = await start(runner, "nosuch")
    assert result.end is not None and (result.end.exit_code, result.end.not_started) == (127, True)
    assert bytes(result.err) == b"nosuch: No such file or directory\n"
    result = await start(runner, "sh", "-c", "nosuch")
    assert result.end is not None and (result.end.exit_code, result.end.not_started) == (127, False)
    with pytest.raises(GuestError, match="No such file"):
        await start(runner, "true", cwd="/no/such")
