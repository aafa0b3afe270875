"""Terminals that somebody looks at, as the agent has them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from boxwood.engine.agent.procs import children
from boxwood.engine.agent.pty import KEPT, WINDOW

pytestmark = pytest.mark.parametrize("office", ["bash"], indirect=True)


def sh(text):
    return ["sh", "-c", text]


def test_a_login_shell_with_the_sessions_environment(office, work):
    s = office.session(work=work, env={"HOME": str(work), "PATH": os.environ["PATH"]})
    (work / ".profile").write_text("export FROM_PROFILE=yes\n")
    (work / ".bash_profile").write_text(". ~/.profile\n")
    s.run("export WORD=kept; cd /usr")
    screen = s.pty()
    screen.type("echo $0 $WORD $FROM_PROFILE $PWD $TERM $(tty) $SHELL; stty size\r")
    screen.until("-bash kept yes /usr xterm /dev/pts/")
    screen.until("24 80\r\n")
    screen.type("exit 7\r")
    assert screen.wait() == (7, "exit")


def test_the_kind_of_terminal_that_a_session_has_chosen_stays(office, work):
    s = office.session(work=work)
    s.run("export TERM=vt100")
    screen = s.pty(sh("echo $TERM"))
    assert screen.wait() == (0, "exit") and screen.data == b"vt100\r\n"


def test_job_control_and_keys(office, work):
    """Its shell is in control: Ctrl-C ends what is in the foreground, Ctrl-Z stops it."""
    screen = office.session(work=work).pty(["bash", "--norc", "-i"])
    screen.type("sleep 1000\r")
    screen.until("sleep 1000\r\n")
    office.until(lambda: b"sleep" in _names())
    screen.type("\x03")
    screen.type("echo code $?\r")
    screen.until("code 130\r\n")
    screen.type("sleep 1000\r")
    office.until(lambda: b"sleep" in _names())
    screen.type("\x1a")
    office.until(lambda: b"# " in screen.data.partition(b"Stopped")[2])
    screen.type("\x04\x04")  # there are stopped jobs
    assert screen.wait()[1] == "exit"
    office.until(lambda: b"sleep" not in _names(), 30)


def test_a_new_size_is_told(office, work):
    screen = office.session(work=work).pty(
        sh("trap 'stty size; exit 3' WINCH; echo waiting; while :; do sleep 0.05; done"), columns=100, rows=30
    )
    screen.until("waiting")
    screen.do("size", columns=132, rows=50)
    assert screen.wait() == (3, "exit")
    assert screen.data.endswith(b"50 132\r\n")


def test_who_comes_back_sees_what_there_was(office, work):
    s = office.session(work=work)
    screen = s.pty(["cat"])
    screen.type("first\r")
    screen.until("first\r\nfirst\r\n")
    screen.do("detach")
    screen.type("meanwhile\r")
    office.until(lambda: len(office.desk._ptys._ptys[screen.pty]._kept) == len(b"first\r\n" * 2 + b"meanwhile\r\n" * 2))
    again = s.pty(["never started"])
    assert again.pty == screen.pty
    again.until("first\r\nfirst\r\nmeanwhile\r\nmeanwhile\r\n")
    again.type("\x04")
    assert again.wait() == (0, "exit")
    assert b"meanwhile" not in screen.data
    assert s.pty(sh("exit 4")).wait() == (4, "exit"), "and then there is another one"


def test_two_who_come_at_once_see_the_same(office, work):
    """While what the last run has left is still being saved."""
    s, waiting, answers = office.session(work=work), [], []
    s.inside.when_saved = waiting.append
    for view in (1, 2):
        office.screens[view] = Looker()
        answers.append(office.ask(
            "pty.open", b"cat\0", sid=s.sid, pty=office.number(), columns=80, rows=24, persist=True, idle=0, view=view
        ))  # fmt: skip
    for begin in waiting:
        begin()
    assert [answer.errno for answer in answers] == [None, None]
    first, second = (answer.fields["pty"] for answer in answers)
    assert first == second and len(office.desk.hello()["ptys"]) == 1
    del s.inside.when_saved


class Looker:
    def put(self, header, payload):
        pass


def test_who_comes_back_makes_programs_draw_anew(office, work):
    s = office.session(work=work)
    screen = s.pty(sh("trap 'echo drawn' WINCH; echo begun; while :; do sleep 0.05; done"))
    screen.until("begun")
    screen.do("detach")
    again = s.pty()
    again.until("drawn\r\n")
    again.do("kill")
    assert again.wait() == (137, "killed")


def test_only_so_much_is_kept(office, work):
    s = office.session(work=work)
    screen = s.pty(sh("seq 200000; echo over; cat"))
    screen.until("over\r\n")
    screen.do("detach")
    again = s.pty()
    again.until("over\r\n")
    assert len(again.data) <= KEPT and again.begun > 0
    assert again.data.splitlines()[0].isdigit() and again.data.index(b"\r\n") < 7, "it begins with a whole line"
    assert bytes(again.data) == bytes(screen.data[again.begun :])
    again.do("kill")
    again.wait()


def test_a_slow_looker_stops_the_writer(office, work):
    """And nobody's memory grows; then nothing is missing."""
    s = office.session(work=work)
    screen = s.pty(sh(f"stty -opost; {sys.executable} -c 'print(\"x\" * 3_000_000)'"), acks=False)
    office.until(lambda: len(screen.data) >= WINDOW)
    idle = time.monotonic() + 0.3
    while time.monotonic() < idle:
        office.loop.step(0.05)
    pty = office.desk._ptys._ptys[screen.pty]
    assert len(screen.data) == WINDOW and len(pty._kept) <= WINDOW + (128 << 10) and screen.end is None
    screen.acks = True
    screen.ack()
    assert screen.wait() == (0, "exit")
    assert screen.data == b"x" * 3_000_000 + b"\n"


def test_nobody_looking_stops_nobody(office, work):
    s = office.session(work=work)
    screen = s.pty(sh(f"read x; seq 500000; echo done > {work}/done; cat"))
    screen.do("detach")
    screen.type("go\r")
    office.until((work / "done").exists)
    assert len(office.desk._ptys._ptys[screen.pty]._kept) <= KEPT + (128 << 10)


def test_input_that_nobody_reads_is_bounded(office, work):
    s = office.session(work=work)
    screen = s.pty(sh("stty raw -echo; echo ready; exec sleep 1000"))
    screen.until("ready")
    for _ in range(8):
        screen.type(b"y" * 16384)
    with pytest.raises(ValueError, match="room"):
        for _ in range(2):
            screen.type(b"y" * 16384)
    screen.do("kill")
    assert screen.wait() == (137, "killed")


def test_much_input_arrives_and_is_told(office, work):
    s = office.session(work=work)
    office.taken = 0
    screen = s.pty(sh(f"stty raw -echo; echo ready; head -c 1000000 | cksum > {work}/sum; echo summed"))
    screen.until("ready")
    sent = 0
    while sent < 1_000_000:
        office.until(lambda sent=sent: sent - office.taken <= 65536)
        screen.type(b"z" * 20000)
        sent += 20000
    screen.until("summed")
    assert (work / "sum").read_bytes() == subprocess.run(["cksum"], input=b"z" * 1_000_000, capture_output=True).stdout


@pytest.mark.parametrize("persist", [True, False])
def test_the_link_goes(office, work, persist):
    """A new server: it is told of those that outlive whoever looked."""
    s = office.session(work=work)
    screen = s.pty(["cat"], persist=persist)
    screen.type("here\r")
    screen.until("here\r\nhere")
    office.desk.relink()
    assert office.hellos[-1]["ptys"] == [{"pty": screen.pty, "sid": s.sid}]
    if not persist:
        assert screen.wait() == (137, "killed")
        return
    again = s.pty()
    again.until("here\r\nhere\r\n")
    again.type("\x04")
    assert again.wait() == (0, "exit")


def test_who_does_not_persist_ends_when_nobody_looks(office, work):
    screen = office.session(work=work).pty(["cat"], persist=False)
    screen.do("detach")
    assert screen.wait() == (137, "killed")


def test_who_comes_while_it_is_being_killed_gets_another_one(office, work):
    s = office.session(work=work)
    screen = s.pty(["cat"], persist=False)
    office.ask("pty.detach", pty=screen.pty)
    again = s.pty(sh("echo new; cat"))
    assert again.pty != screen.pty and screen.end["reason"] == "killed"
    again.until("new")
    office.ask("pty.kill", pty=again.pty)
    sid, ident = s.sid, office.number()
    late = office.ask("pty.open", sid=sid, pty=ident, columns=80, rows=24, persist=True, idle=0, view=99)
    s.close()
    office.until(lambda: late.done)
    assert late.errno == 2, "the session has gone meanwhile"


def test_it_ends_when_it_is_idle_for_too_long(office, work):
    s = office.session(work=work)
    busy = office.session(work=work).pty(sh("while :; do echo x; sleep 0.1; done"), idle=0.5)
    assert s.pty(["cat"], idle=0.5).wait() == (137, "idle")
    assert busy.end is None, "output is life"
    busy.do("kill")
    busy.wait()


def test_what_it_started_is_the_sessions(office, work):
    """What outlives its shell goes on, as behind every terminal, until the session is closed."""
    s = office.session(work=work)
    daemon = f'{sys.executable} -c \'import os,time; os.fork() and os._exit(0); os.setsid(); open("{work}/pid","w").write(str(os.getpid())); time.sleep(1000)\''
    screen = s.pty(sh(f"{daemon}; while [ ! -s {work}/pid ]; do sleep 0.01; done; exit 5"))
    assert screen.wait() == (5, "exit")
    pid = int((work / "pid").read_text())
    os.kill(pid, 0)
    assert office.settle()["processes"] == 1
    assert s.pty(sh("exit 6")).wait() == (6, "exit"), "and the session may have another one"
    s.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not office.desk._ptys._ptys


def test_a_box_with_one_is_not_idle(office, work):
    s = office.session(work=work)
    assert office.settle()["processes"] == 0
    screen = s.pty(["cat"])
    screen.do("detach")
    assert office.settle()["processes"] == 1
    screen.do("kill")
    screen.wait()
    assert office.settle()["processes"] == 0


def test_a_kill_takes_all(office, work):
    screen = office.session(work=work).pty(["bash", "--norc", "-i"])
    screen.type("(sleep 1000 & sleep 1000 & wait) &\r")
    screen.type("setsid sleep 1000 & sleep 1000\r")
    office.until(lambda: _names().count(b"sleep") == 4)
    screen.do("kill")
    assert screen.wait() == (137, "killed")
    office.until(lambda: b"sleep" not in _names())


def test_what_is_refused(office, work):
    s = office.session(work=work)
    assert "no program" in s.pty(["nothing-of-that-name"]).answer.text
    for wrong in {"columns": 0}, {"rows": 1001}, {"columns": "80"}:
        with pytest.raises(ValueError, match="columns and rows"):
            s.pty(["cat"], **wrong)
    for wrong in {"term": "x\nPATH=/"}, {"term": "a/../b"}, {"idle": -1}:
        assert s.pty(["cat"], **wrong).answer.errno == 22
    assert not office.desk._ptys._ptys


def test_a_flood_from_who_is_left_behind_does_not_hold_up_the_end(office, work):
    s = office.session(work=work)
    screen = s.pty(sh("trap '' HUP; yes & sleep 0.2; exit 8"))
    assert screen.wait() == (8, "exit")
    s.close()
    office.until(lambda: b"yes" not in _names())


def _names():
    """Of all that descends from us."""
    found, left = [], children(os.getpid())
    while left:
        pid = left.pop()
        left += children(pid)
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                found.append(file.read().strip())
        except OSError:
            pass
    return found
