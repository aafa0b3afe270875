"""Programs that are started without a shell: what is started, as what, and that nothing of it is left."""

from __future__ import annotations

import errno
import os
import signal
import stat

import pytest

from boxwood.engine.agent import minder
from boxwood.engine.agent.procs import children

NOBODY = "65534:65534"


@pytest.fixture
def go(s):
    """Run a program to its end and compare."""

    def go(*argv, code=0, out=b"", err=b"", started=True, **how):
        text = b"".join(os.fsencode(argument) + b"\0" for argument in argv)
        ran = s.run(text, code, out, err, argv=True, env=how.pop("env", {}), **how)
        assert ran.end.get("started", True) is started, ran
        return ran

    return go


def minders(office):
    return children(os.getpid())


def test_arguments_arrive_as_they_are(go):
    odd = [
        b"",
        b" ",
        b"$HOME",
        b"`id`",
        b"a'b\"c",
        b"-n",
        b"\xff\xfe",
        "ü€𝄞".encode(),
        b"line\nline\r\n",
        b"x" * 100_000,
    ]
    go("printf", "%s|", *odd, out=b"".join(one + b"|" for one in odd))


def test_environment_directory_and_input(go, s, work):
    s.run("export A=a; cd /usr")
    s.office.settle()
    go("sh", "-c", "echo $A $B; pwd", env={"B": "b"}, out=b"a b\n/usr\n")
    go("pwd", cwd=str(work), out=f"{work}\n".encode())
    go("cat", stdin=b"in\0put", out=b"in\0put")
    go("cat")
    refused = s.start(b"pwd\0", argv=True, env={}, cwd="/no/such")
    assert refused.started.errno == errno.ENOENT and "/no/such" in refused.started.text


def test_it_has_three_descriptors_and_no_signal_is_ignored_or_blocked(go):
    go("ls", "/proc/self/fd", out=b"0\n1\n2\n3\n")
    go(
        "grep",
        "-E",
        "^(SigBlk|SigIgn)",
        "/proc/self/status",
        out=r"SigBlk:\t0{16}\nSigIgn:\t0{7}[01][08]0{7}\n",  # posix_spawn of glibc ignores its own two
    )
    ran = go(
        "sh", "-c", "read -r pid comm state ppid pgid rest < /proc/self/stat; echo $pid $pgid; exec echo $$", out=None
    )
    first, second = ran.out.splitlines()
    assert first.split() == [second, second]


def test_where_it_is_looked_for(go, work):
    (work / "bin").mkdir()
    (work / "file").write_text("no program")
    mine = work / "bin" / "mine"
    mine.write_text("#!/bin/sh\necho mine $0\n")
    mine.chmod(0o755)
    path = f"/no/such:/etc/passwd:{work}/bin"
    go("mine", env={"PATH": path}, out=f"mine {mine}\n".encode())
    go("./bin/mine", out=b"mine ./bin/mine\n", cwd=str(work))
    go("mine", env={"PATH": ":/usr/bin"}, cwd=str(work / "bin"), out=b"mine mine\n")
    (work / "first").mkdir()
    (work / "first" / "mine").write_text("not executable")
    go("mine", env={"PATH": f"{work}/first:{work}/bin"}, out=f"mine {mine}\n".encode())


@pytest.mark.parametrize(
    ("make", "program", "code", "reason"),
    [
        (None, "nosuch", 127, errno.ENOENT),
        (None, "/no/such/program", 127, errno.ENOENT),
        (None, "./nosuch", 127, errno.ENOENT),
        (None, "", 127, errno.ENOENT),
        (None, "/etc/passwd/x", 126, errno.ENOTDIR),
        (None, "/usr", 126, errno.EACCES),
        ("no program", "./made", 126, errno.ENOEXEC),
        ("#!/no/such/interpreter\n", "./made", 126, errno.ENOENT),
        ("", "made", 126, errno.EACCES),
    ],
)
def test_what_cannot_be_started(go, work, make, program, code, reason):
    if make is not None:
        made = work / "made"
        made.write_text(make)
        made.chmod(0o755 if make else 0o644)
    said = f"{program}: {os.strerror(reason)}\n".encode()
    go(program, "argument", env={"PATH": f"/usr/bin:{work}"}, cwd=str(work), code=code, err=said, started=False)
    go("echo", "goes on", out=b"goes on\n")


def test_too_long_arguments(go):
    go("echo", "x" * (1 << 17), code=126, err=f"echo: {os.strerror(errno.E2BIG)}\n".encode(), started=False)


def test_codes_and_signals(go, s):
    go("sh", "-c", "exit 3", code=3)
    go("sh", "-c", "exit 127", code=127)
    go("sh", "-c", "kill -9 $$", code=137)
    go("sh", "-c", "echo on; sleep 60", code=143, out=b"on\n", poke=(b"on", s.signal(signal.SIGTERM)))


def test_it_waits_for_all_that_was_started(go, work):
    go("sh", "-c", "(sleep 0.2; echo late) &", out=b"late\n")
    go("sh", "-c", "(setsid sh -c 'sleep 0.2; touch f' >/dev/null 2>&1 &)", cwd=str(work))
    assert (work / "f").exists()


@pytest.mark.parametrize(
    "script", ["sleep 60 & setsid sleep 60 & sleep 60", "(setsid sleep 60 >/dev/null 2>&1 &) ; exit 0"]
)
def test_its_time_is_over(go, script):
    go("sh", "-c", script, code=124, timeout=0.3, reason="timeout")


def test_killed(go, s):
    def kill(ran):
        s.office.get("run.kill", rid=ran.rid)

    go("sh", "-c", "setsid sleep 60 & echo on; sleep 60", code=137, out=b"on\n", reason="killed", poke=(b"on", kill))
    go("sh", "-c", "sleep 60 & echo on", code=0, out=b"on\n", reason="killed", poke=(b"on", kill))
    go("echo", "on", out=b"on\n")


def test_a_bomb_is_killed(go, s):
    bomb = "echo on; while :; do (sleep 9 &) ; done & while :; do (:); done"
    go(
        "sh",
        "-c",
        bomb,
        code=137,
        out=b"on\n",
        err=None,
        reason="killed",
        poke=(b"on", lambda ran: s.office.get("run.kill", rid=ran.rid)),
    )
    assert s.office.settle() == {"runs": 0, "processes": 0}


def test_a_minder_is_used_again_and_one_that_was_killed_is_not(go, office):
    go("true")
    idle = set(minders(office))
    go("true")
    assert set(minders(office)) == idle
    ran = go("sh", "-c", "kill -9 $PPID; sleep 0.2; echo late", code=137, out=b"late\n")
    assert ran.end["reason"] == "exit"
    go("echo", "on", out=b"on\n")


def test_one_that_is_killed_while_it_waits(go, office):
    go("true")
    idle = max(minders(office))
    os.kill(idle, signal.SIGKILL)
    os.waitid(os.P_PID, idle, os.WEXITED | os.WNOWAIT)
    go("echo", "on", out=b"on\n")


def test_one_that_is_not_needed_any_more_goes(go, office, monkeypatch):
    monkeypatch.setattr(minder, "_IDLE_SECONDS", 0.0)
    before = set(minders(office))
    go("true")
    office.until(lambda: set(minders(office)) <= before)


def test_several_at_once(s, office):
    texts = [f"sleep 0.1; (sleep 0.1; echo {n}) &" for n in range(6)]
    runs = [s.start(b"".join(one.encode() + b"\0" for one in ("sh", "-c", text)), argv=True, env={}) for text in texts]
    for number, ran in enumerate(runs):
        s.wait(ran)
        assert (ran.code, ran.out) == (0, b"%d\n" % number)
    assert office.settle() == {"runs": 0, "processes": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_as_another_user(go, s, work):
    go(
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $HOME $USER",
        user="daemon",
        cwd="/tmp",
        out=b"1\n1\n1\n/usr/sbin daemon\n",
    )
    go("id", "-ru", user=NOBODY, cwd="/tmp", out=b"65534\n")
    grep = ["grep", "-E", "^(Uid|Gid|CapPrm|CapEff)", "/proc/self/status"]
    mine = b"Uid:\t" + b"\t".join([b"65534"] * 4) + b"\nGid:\t" + b"\t".join([b"65534"] * 4)
    go(*grep, user=NOBODY, cwd="/tmp", out=mine + b"\nCapPrm:\t" + b"0" * 16 + b"\nCapEff:\t" + b"0" * 16 + b"\n")
    secret = work / "secret"
    secret.write_text("#!/bin/sh\n")
    secret.chmod(stat.S_IRWXU)
    for folder in (work, *work.parents):
        if str(folder).startswith(("/tmp/", "/dev/shm/")):
            folder.chmod(0o755)
    reason = os.strerror(errno.EACCES)
    go(str(secret), user=NOBODY, cwd="/tmp", code=126, err=f"{secret}: {reason}\n".encode(), started=False)
    go("id", "-u", out=b"0\n")
    go("sh", "-c", "read x < /proc/$PPID/environ", code=None, err=None, user=NOBODY, cwd="/tmp")


def test_it_needs_no_shell(office, work):
    session = office.session(work=work)
    office.desk._common.shells = (b"/no/such/shell",)
    session.run(b"echo\0on\0", argv=True, env={}, out=b"on\n")


def test_what_makes_no_sense(s):
    for text in (b"", b"echo"):
        with pytest.raises(ValueError, match="NUL"):
            s.start(text, argv=True, env={})
    with pytest.raises(ValueError, match="beside"):
        s.start(b"echo\0", argv=True)


def test_one_that_leaves_something(go, s, work):
    """The run ends with its program; what goes on is counted, may put things out, and ends with the session."""
    script = "(while [ ! -e go ]; do sleep 0.01; done; seq 100000; echo on >&2; touch heard; exec sleep 60) & echo said"
    go("sh", "-c", script, leaves=True, timeout=0.5, out=b"said\n", cwd=str(work))
    assert s.office.settle()["processes"] >= 1
    go("echo", "next", leaves=True, out=b"next\n")
    (work / "go").touch()
    s.office.until((work / "heard").exists)
    assert s.office.settle()["processes"] >= 1, "it has outlived the time of the run"
    (left,) = [child for minder in minders(s.office) for child in children(minder)]
    os.kill(left, signal.SIGKILL)
    s.office.until(lambda: s.office.settle()["processes"] == 0)
    go("echo", "on", leaves=True, out=b"on\n")
    go("sh", "-c", "sleep 60 & sleep 60 & wait", leaves=True, timeout=0.3, code=124, reason="timeout")
    assert s.office.settle()["processes"] == 0, "while the program runs its time is that of all it has started"


def test_what_is_left_ends_with_the_box(go, s):
    go("sh", "-c", "(setsid sleep 60 &) ; sleep 60 & exit 3", leaves=True, code=3)
    assert s.office.settle()["processes"] == 2


def test_what_is_left_cannot_be_killed_with_the_run(go, s):
    ran = go("sh", "-c", "sleep 60 & echo out", leaves=True, out=b"out\n")
    s.office.get("run.kill", rid=ran.rid)
    assert s.office.settle()["processes"] == 1
