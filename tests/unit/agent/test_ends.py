"""Runs that end their shell, leave it broken, or try to."""

from __future__ import annotations

import errno
import os

import pytest

from boxwood.engine.agent import learner, session, shell, watchdog


def test_exit(s, office):
    s.run("x=1; f() { echo fun; }; mkdir -p sub; cd sub")
    s.run("x=2; echo before; exit 3", 3, out=b"before\n")
    s.run("echo $?; echo $x; f; pwd; echo ${PWD##*/}", out=r"^3\n2\nfun\n.*/sub\nsub\n$")
    s.run("exit", 0)
    s.run("false; exit", 1)
    if office.bash:
        s.run("exit 300", 300 & 255)
    s.run("(exit 4); exit", 4)


def test_what_is_learned_while_a_report_is_under_way_is_kept(s, monkeypatch):
    """The report was begun before the function was known, so it says nothing of it, and comes when it is."""
    monkeypatch.setattr(shell, "_GATHERING", 0.5)
    s.run("f() { echo fun; }")
    s.office.until(lambda: s.inside.quiet)
    s.run("exit", 0)
    s.run("f", out=b"fun\n")


def test_a_run_is_killed_that_waits_for_what_is_being_learned(s, office, work, monkeypatch):
    """Its shell is not there yet: it begins neither now nor then."""
    if office.bash:
        pytest.skip("bash lists its functions itself")
    gate, parses = work / "gate", learner._parses
    os.mkfifo(gate)

    def parses_later(*text):
        gate.read_bytes()  # until there is somebody to write
        return parses(*text)

    monkeypatch.setattr(learner, "_parses", parses_later)
    s.run("f() { echo fun; }; exit", 0)
    waiting = s.start("touch begun")
    office.get("run.kill", rid=waiting.rid)
    assert waiting.started.errno == errno.ECANCELED
    gate.write_bytes(b"")
    s.run("f; ls", out=b"fun\ngate\n")


def test_a_run_beside_a_session_that_is_closed_does_not_begin(office, work, monkeypatch):
    """Though it has waited for what the last run had changed, which nobody waits for any more."""
    s = office.session(work=work)
    s.run("x=1")
    monkeypatch.setattr(session.Session, "_settled", False)  # it takes its time
    waiting = s.start("touch begun", env={"y": "2"})
    assert not waiting.started.done
    s.close()
    assert waiting.started.errno == errno.ENOENT
    assert not office.desk._oneshots and not os.path.exists(work / "begun")


def test_a_run_beside_a_session_whose_terminal_is_being_killed_ends_with_it(office, work):
    s = office.session(work=work)
    s.pty(["sh", "-c", "echo up; sleep 100"]).until("up")
    closing = office.ask("session.close", sid=s.sid)
    assert not closing.done
    late = s.start("sleep 100", env={"y": "2"})
    office.until(lambda: closing.done and (late.end is not None or late.started.errno is not None))
    assert late.started.errno == errno.ENOENT or late.reason == "killed"
    assert not office.desk._oneshots


def test_errexit(s):
    """It ends the run that set it, and no other."""
    r = s.run("x=3; set -e; false; echo no", 1)
    assert r.code == 1
    s.run("echo $x; false; case $- in *e*) echo e;; esac", out=b"3\n")
    s.run("set -e; true", 0)
    s.run("false; echo on", out=b"on\n")
    s.run("set -e; (exit 4); echo no", 4)
    s.run("false; echo on", out=b"on\n")


def test_nounset(s):
    s.run("y=1; set -u; echo $nosuch; echo no", None, err=r"nosuch")
    s.run("echo $y$nosuch", None, err=r"nosuch")
    s.run("set +u; echo $y$nosuch", out=b"1\n")
    s.run("echo ${q?complaint}; echo no", None, err=r"complaint")
    s.run("echo $y", out=b"1\n")


def test_exec(s, work):
    (work / "only").touch()
    s.run("x=1")
    s.run(f"x=2; exec ls {work}/only", 0, out=b"%s/only\n" % str(work).encode())
    s.run("echo $x", out=b"1\n")
    s.run("exec sh -c 'exit 9'", 9)
    s.run("exec nosuchthing", 127, err=None)
    s.run("echo $x", out=b"1\n")


def test_a_killed_shell(s):
    s.run("x=1; arr=y")
    s.run("x=2; echo out; kill -9 $$; echo no", 137, out=b"out\n")
    s.run("echo $x", out=b"1\n")
    s.run("kill -TERM $$; echo no", 143)
    s.run("echo $x", out=b"1\n")
    s.run("(kill -9 $$; sleep 0.05)", 137)
    s.run("echo $x", out=b"1\n")


@pytest.mark.parametrize(
    "text",
    [
        "echo 'open", 'echo "open', "echo $(open", "}", ")", "if true", "fi", "{ echo", "case x in", "for", "echo `x",
        "f() {", ";;", "a=(", "&& x", "done", "((", "<<", ">",
    ],
)  # fmt: skip
def test_syntax_errors(s, text):
    s.run("x=1")
    assert s.run(text, None, None, None, reason=None).code
    s.run("echo $x", out=b"1\n")


def test_syntax(s, office):
    s.run("x=2\n}\nx=3", None, None, None)
    s.run("echo $x", out=b"2\n")
    s.run("echo 'a\nb'; echo \"c\nd\"; echo e\\\nf", out=b"a\nb\nc\nd\nef\n")
    if not office.bash:
        s.run("echo trailing \\", out=b"trailing\n")


def test_jumps(s):
    s.run("echo a; return 5; echo no", 5, out=b"a\n")
    s.run("break; echo on", 0, out=b"on\n", err=None)
    s.run("continue; echo on", 0, out=b"on\n", err=None)
    s.run("for i in 1 2; do break; done; echo $i", out=b"1\n")
    s.run("f() { return 6; }; f", 6)
    s.run("while :; do exit 2; done", 2)


def test_traps(s):
    s.run("trap 'echo bye' EXIT; echo set", out=b"set\n")
    s.run("echo not yet", out=b"not yet\n")
    s.run("exit 4", 4, out=b"bye\n")  # it runs when a run ends the shell
    s.run("trap", out=b"trap -- 'echo bye' EXIT\n")
    s.run("trap - EXIT")
    s.run("z=1; exit 1", 1)  # ours is back
    s.run("echo $z", out=b"1\n")
    s.run("trap 'echo t; echo \"q'\\''s\"\nx' TERM; trap '' HUP")
    s.run("kill -9 $$", 137)
    s.run("kill -HUP $$; kill -TERM $$; :", out=b"t\nq's\n", err=None)
    s.run("(trap 'echo sub' EXIT; :); trap - TERM HUP", out=b"sub\n")
    s.run("trap 'echo A; exit 8' EXIT; exit 2", 8, out=b"A\n")
    s.run("trap - EXIT")


def test_a_stopped_shell_can_be_killed(s):
    s.run("x=1")
    s.run("x=2; kill -STOP $$", 124, reason="timeout", timeout=0.2)
    s.run("echo $x", out=b"1\n")


def test_directory_removed(s):
    """rm -rf takes the session's own files away, as `rm -rf /run/*` would."""
    s.run("x=1")
    place = os.fsdecode(s.inside.folder.path)
    s.run(f"x=2; rm -rf {place}; echo out", None, out=b"out\n", err=None, reason=None)
    s.run("echo $x", out=r"[12]\n")
    for name in "o", "e", "s", "r", "p", "n":
        s.run(f"rm -f {place}/{name}; echo {name}", None, out=None, err=None, reason=None)
        s.run("echo $x", None, out=r"[12]\n", reason=None)
    s.run("mkdir gone; cd gone; rmdir ../gone; x=5")
    s.run("kill -9 $$", 137)
    s.run("echo $x", out=b"5\n")
    assert "gone" in s.notes[-1]
    s.notes.clear()


def test_directory_removed_while_learning(s, office, work):
    """Functions are looked for after the answer; the files that go with them may be gone by then."""
    other = office.session(work=work)
    place = os.fsdecode(other.inside.folder.path)
    for name in "ab":
        other.run(f"{name}() {{ echo {name}; }}; rm -rf {place}", None, err=None, reason=None)
    other.run("echo on", out=b"on\n", err=None)
    other.close()


def test_planted_files(s, work, monkeypatch):
    """Links and pipes where our files are: nothing hangs, nothing outside is written."""
    monkeypatch.setattr(watchdog, "DUMP_SECONDS", 0.6)
    place = os.fsdecode(s.inside.folder.path)
    secret = work / "precious"
    secret.write_text("precious")
    for name in "new", "r", "o", "e", "i", "p", "g0", "w0":
        s.run(f"rm -rf {place}/{name}; ln -s {secret} {place}/{name}", None, None, None, reason=None)
        s.run("echo on", None, None, None, reason=None, stdin=b"x")
        s.run(f"rm -rf {place}/{name}; mkfifo {place}/{name}", None, None, None, reason=None)
        s.run("echo on", None, None, None, reason=None)
        s.run(f"rm -rf {place}/{name}; mkdir {place}/{name}", None, None, None, reason=None)
        s.start("echo on", timeout=20)
        s.office.until(lambda: s.inside.quiet and s.inside.job is None)
        assert secret.read_text() == "precious"
    s.run("kill -9 $$", None, reason=None)


def test_forged_reports(s):
    """A run that writes to the pipe on which its shell reports harms itself alone."""
    place = os.fsdecode(s.inside.folder.path)
    s.run("x=1")
    for junk in (
        "R0",
        "R999\\0",
        "R0\\0\\0\\0\\0",
        "X\\0",
        "E\\0",
        "junk\\0",
        "R\\0",
        "\\0" * 40,
        "R7\\0" + "a\\0" * 7 + "x\\0",
    ):
        s.run(f"x=2; printf '{junk}' > {place}/s; sleep 0.01", None, None, None, reason=None)
        s.run("echo ok$x", None, out=r"ok[12]\n", err=None, reason=None)
        s.run("x=1")
    s.inside.notes.clear()
