"""A run is over when all that it spawned is; a timeout or a kill takes exactly that."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from amounts import amount
from boxwood.engine.agent.procs import children

DAEMON = (
    "import os,sys,time\n"
    "os.fork() and os._exit(0)\nos.setsid()\nos.fork() and os._exit(0)\n"
    "os.chdir('/')\nn=os.open('/dev/null',2)\n[os.dup2(n,i) for i in range(3)]\nos.closerange(3,100)\n"
    "time.sleep(float(sys.argv[1]))\nopen(sys.argv[2],'w').write('done')\n"
)


@pytest.fixture
def daemon(work):
    """A daemon that hides: two forks, setsid, no environment, nothing open."""
    return lambda seconds, name: f'env -i {sys.executable} -c "{DAEMON}" {seconds} {work}/{name}'


def done(work, name):
    file = work / name
    return file.exists() and file.read_text() == "done"


def alive(s):
    return s.inside.tree.live()


def test_background(s, work):
    s.run("{ sleep 0.2; echo done >f; } & echo started", out=b"started\n")
    assert (work / "f").exists()
    s.run("{ sleep 0.1; echo late; } & echo early", out=b"early\nlate\n")
    s.run("sleep 60 & echo x", 124, out=b"x\n", timeout=0.2, reason="timeout")
    assert not alive(s)
    s.run("wait; jobs", None, None, None)


def test_daemons(s, daemon, work):
    s.run(daemon(0.2, "d1") + "; echo x", out=b"x\n")
    assert done(work, "d1")
    s.run(daemon(60, "d2"), 124, timeout=0.5, reason="timeout")
    assert not (work / "d2").exists() and not alive(s)
    s.run(daemon(0.2, "d3") + "; kill -9 $$", 137)  # and the shell dies meanwhile
    assert done(work, "d3")
    s.run(daemon(60, "d4") + "; exit 2", 124, timeout=0.5, reason="timeout")
    assert not alive(s)
    s.run(daemon(0.1, "d5") + "; exec sleep 0.01", 0)
    assert done(work, "d5")


def test_timeout(s):
    s.run("x=1; cd /")
    s.run(
        "x=2; echo some; sleep 60 & (sleep 60; :) | sleep 61; echo no",
        124,
        out=b"some\n",
        timeout=0.2,
        reason="timeout",
    )
    assert not alive(s)
    s.run("echo $x; pwd", out=b"1\n/\n")
    for text in (
        "while :; do :; done",
        "trap '' TERM INT HUP; while :; do sleep 0.01; done",
        "sleep 30 | read y",
        "i=0; while [ $i -lt 100 ]; do (sleep 30 & sleep 30 &) & i=$((i+1)); done; wait; sleep 30",
    ):
        s.run(text, 124, None, None, timeout=0.3, reason="timeout")
        assert not alive(s)
    s.run("echo $x", out=b"1\n")


def test_a_timeout_kills_only_its_own(s, work):
    """What an earlier run left (because it was let go) goes on."""
    other = s.office.session(work=work)
    ran = other.start("sleep 300 & exec sleep 301", timeout=None)
    s.office.until(lambda: len(alive(other)) >= 1)
    before = set(children(os.getpid()))
    s.run("x=1; sleep 60", 124, timeout=0.2, reason="timeout")
    assert before - set(children(os.getpid())) <= {s.inside.tree.root, *before}
    assert ran.end is None and alive(other)
    other.close()
    assert ran.end["reason"] == "killed"


def test_churn(s):
    """A timeout against processes that keep replacing themselves."""
    s.run("x=1")
    s.run(
        "c() { sleep 0.002; c & }; c & c & c & c & sleep 0.01; exit 3", 124, None, None, timeout=0.5, reason="timeout"
    )
    assert not alive(s)
    s.run("c() { c & }; c", None, None, None, timeout=0.3, reason=None)  # (ends by itself in dash: 1000 levels)
    assert not alive(s)
    s.run("(setsid sleep 0.2 >/dev/null 2>&1 &); wait; echo $x", out=b"1\n")  # `wait` and adopted children


def test_interrupt(s, office):
    s.run("x=1")
    s.run("x=2; echo on; sleep 30; echo no", 130, out=b"on\n", err=None, poke=(b"on", s.signal()))
    s.run("echo $x", out=r"[12]\n")
    s.run("echo on; while :; do :; done", 130, out=b"on\n", poke=(b"on", s.signal()))
    s.run(
        "trap 'echo int' INT; echo on; sleep 0.3; echo off",
        0,
        out=b"on\nint\noff\n",
        err=None,
        poke=(b"on", s.signal()),
    )
    s.run("trap - INT")
    program = "import time\ntry:\n print(1, flush=True); time.sleep(30)\nexcept KeyboardInterrupt: print('caught')"
    s.run(f'{sys.executable} -c "{program}"; echo on', None, out=r"1\ncaught\n", err=None, poke=(b"1", s.signal()))
    if office.bash:
        s.run("set -m; echo on; sleep 30; echo no", None, None, None, poke=(b"on", s.signal()), timeout=10)


def test_an_interrupt_while_the_shell_starts_somebody_is_not_lost(s, office):
    """It comes when the shell has just put something out: bash's child may still hear it in the shell's way."""
    for _ in range(amount(12, 40)):
        ran = s.start("echo on; sleep 30; echo no", timeout=None)
        office.until(lambda ran=ran: ran.out)
        s.signal()(ran)
        s.wait(ran)
        assert (ran.code, ran.out) == (130, b"on\n")


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("HUP", 129), ("KILL", 137)])
def test_a_signal_while_the_shell_starts_somebody_is_for_him(s, office, name, code):
    """And not for the shell, which ignores it or dies of it."""
    for _ in range(amount(5, 15)):
        ran = s.start("echo on; sleep 30; echo $?", timeout=None)
        office.until(lambda ran=ran: ran.out)
        s.signal(getattr(signal, "SIG" + name))(ran)
        s.wait(ran)
        assert (ran.code, ran.out) == (0, f"on\n{code}\n".encode())


def test_a_signal_to_a_shell_that_starts_nobody(s, office):
    ran = s.start("trap 'echo heard; going=' USR1; going=1; echo on; while test $going; do :; done", timeout=None)
    office.until(lambda: ran.out)
    s.signal(signal.SIGUSR1)(ran)
    s.wait(ran)
    assert (ran.code, ran.out) == (0, b"on\nheard\n")


def test_who_has_heard_an_interrupt_hears_it_once(s, office):
    """Also one who was just started."""
    program = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'heard\\n'))\n"
        "print('on', flush=True); time.sleep(1); print('off')"
    )
    ran = s.start(f'{sys.executable} -S -c "{program}"', timeout=None)
    office.until(lambda: ran.out)
    s.signal()(ran)
    s.wait(ran)
    assert ran.out == b"on\nheard\noff\n"
    ran = s.start("trap '' INT; echo on; sleep 0.5; echo slept; trap - INT", timeout=None)
    office.until(lambda: ran.out)
    s.signal()(ran)
    s.wait(ran)
    assert (ran.code, ran.out) == (0, b"on\nslept\n")


def test_other_signals_leave_the_shell(s):
    s.run("echo on; sleep 30; echo $?; x=1", out=b"on\n143\n", err=None, poke=(b"on", s.signal(signal.SIGTERM)))
    s.run("echo on; sleep 30; echo $?; x=1", out=b"on\n137\n", err=None, poke=(b"on", s.signal(signal.SIGKILL)))
    s.run("echo $x", out=b"1\n")
    ran = s.do("echo over")
    assert s.signal()(ran).fields == {"delivered": False}


def test_kill(s):
    s.run("x=1")
    kill = lambda ran: s.office.get("run.kill", rid=ran.rid)  # noqa: E731
    s.run("x=2; echo on; sleep 60 & sleep 60", 137, out=b"on\n", reason="killed", poke=(b"on", kill))
    assert not alive(s)
    s.run("sleep 60 & echo on; x=3", 0, out=b"on\n", reason="killed", poke=(b"on", kill))
    s.run("echo $x", out=r"[13]\n")
    kill(s.do("echo over"))


def test_closing_takes_everything(office, daemon, work):
    s = office.session(work=work)
    ran = s.start("echo on; " + daemon(60, "c1") + "; sleep 60", timeout=None)
    office.until(lambda: ran.out)
    s.close()
    assert (ran.code, ran.reason) == (137, "killed")
    assert not children(os.getpid()) and s.sid not in office.desk.hello()["sessions"]


def test_closing_kills_what_a_command_that_is_over_has_left(office, daemon, work):
    """Whichever way it comes to its end, the run was killed."""
    s = office.session(work=work)
    ran = s.start(daemon(60, "c2"), timeout=None)
    office.until(lambda: s.inside.job.report.code is not None)
    s.close()
    assert ran.reason == "killed"


def test_orphans_of_two_sessions_are_told_apart(s, office, daemon, work):
    other = office.session(work=work)
    other.run("x=other")
    theirs = other.start("sleep 60 >/dev/null 2>&1 & echo on; sleep 0.1; kill -9 $$", timeout=None)
    s.run(daemon(0.2, "e1") + "; kill -9 $$", 137)
    office.until(lambda: len(other.inside.tree.orphans) == 1)
    s.run("echo mine", out=b"mine\n")
    assert theirs.end is None
    office.get("run.kill", rid=theirs.rid)
    other.wait(theirs)
    assert theirs.reason == "killed"
    other.run("echo $x", out=b"other\n")
    other.close()


def test_many_at_once(s, office, work):
    many = [office.session(work=work) for _ in range(amount(8, 20))]
    for i, one in enumerate(many):
        one.run(f"id={i}")
    running = [
        one.start("(until [ -e on$id ]; do sleep 0.02; done; echo bg$id) & echo fg$id; : > on$id") for one in many
    ]
    for i, (one, ran) in enumerate(zip(many, running, strict=True)):
        one.wait(ran)
        assert (ran.code, ran.out) == (0, b"fg%d\nbg%d\n" % (i, i)), ran
        one.close()


def test_one_at_a_time(s):
    ran = s.start("sleep 0.2; echo first")
    second = s.start("echo second")
    assert second.started.errno is not None and "has a run" in second.started.text
    s.wait(ran)
    assert ran.out == b"first\n"


def test_settle(s, office, work):
    assert office.settle() == {"runs": 0, "processes": 0}
    s.run("x=1")
    assert office.settle() == {"runs": 0, "processes": 0} and office.states[s.sid]
    ran = s.start("sleep 0.5 & sleep 0.4")
    office.until(lambda: len(alive(s)) == 2)
    assert office.settle() == {"runs": 1, "processes": 2}
    s.wait(ran)
    assert office.settle() == {"runs": 0, "processes": 0}
