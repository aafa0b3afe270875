"""A desk in this very process, spoken to as the server does: requests in, frames out."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time

import pytest

from boxwood.engine.agent import pipelock
from boxwood.engine.agent.desk import Desk
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.procs import children
from boxwood.engine.guest import python_program

SUBREAPER, NO_NEW_PRIVS = 36, 38
REPEATED = {
    "test_ends.py",
    "test_hostile.py",
    "test_intake.py",
    "test_oneshot.py",
    "test_output.py",
    "test_processes.py",
    "test_programs.py",
    "test_pty.py",
    "test_terminal.py",
}  # dash: as busybox, both are ash
SHELLS = [name for name in ("bash", "dash", "busybox") if shutil.which(name)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        shell = getattr(item, "callspec", None) and item.callspec.params.get("office")
        if shell == "dash" and item.path.name in REPEATED and "busybox" in SHELLS:
            item.add_marker(pytest.mark.full)


@pytest.fixture(autouse=True)
def alone():
    """The agent takes every child of its process for something that its runs have left, and may kill it."""
    assert not children(os.getpid()), "a test before has left a child, a server say: tests/unit/agent comes first"


class Answer:
    """Of one request."""

    def __init__(self):
        self.fields = None
        self.errno = None
        self.text = None

    def __call__(self, fields=None, *, hurry=True):
        assert not self.done
        self.fields = fields or {}

    def error(self, number, text):
        assert not self.done
        self.errno, self.text = number, text

    @property
    def done(self):
        return self.fields is not None or self.errno is not None


class Ran:
    """A run as the server has it."""

    def __init__(self, rid):
        self.rid = rid
        self.streams = [bytearray() for _ in range(3)]
        self.end = None
        self.frames = 0

    out = property(lambda self: bytes(self.streams[0]))
    err = property(lambda self: bytes(self.streams[1]))
    code = property(lambda self: self.end["code"])
    reason = property(lambda self: self.end["reason"])

    def __repr__(self):
        return f"<{self.end} {self.out[:300]!r} {self.err[:300]!r}>"


class Office:
    """The server's side: `acks` says whether output is acknowledged as it comes."""

    def __init__(self, directory, shell):
        self.loop = Loop()
        self.shell = shell
        self.directory = directory
        self.runs = {}
        self.states = {}
        self.told = []  # headers of state frames
        self.hellos = []
        self.screens = {}  # by the number of the look
        self.ended_ptys = {}
        self.linked = self.acks = True
        self._numbers = itertools.count(1)
        self.desk = Desk(self.loop, os.fsencode(directory), self.frame, (os.fsencode(shell),))

    def number(self):
        return f"{next(self._numbers):026d}"

    def frame(self, header, payload=b""):
        if not self.linked:
            return
        kind = header["ev"]
        if kind == "out":
            ran = self.runs[header["rid"]]
            stream = ran.streams[header["stream"] - 1]
            assert header["at"] == len(stream) and 0 < len(payload) <= 1 << 18 and ran.end is None
            stream += payload
            ran.frames += 1
            if self.acks:
                self.ask("run.ack", rid=ran.rid, out=len(ran.streams[0]), err=len(ran.streams[1]))
        elif kind == "end":
            ran = self.runs[header["rid"]]
            assert (header["out"], header["err"]) == (len(ran.out), len(ran.err)) or not self.acks
            ran.end = header
        elif kind == "state":
            self.states[header["sid"]] = payload
            self.told.append(header)
        elif kind == "pty.out":
            self.screens[header["view"]].put(header, payload)
        elif kind == "pty.end":
            self.ended_ptys[header["pty"]] = header
        elif kind == "pty.taken":
            self.taken = getattr(self, "taken", 0) + header["size"]
        else:
            assert kind == "hello"
            self.hellos.append(header)

    def ask(self, op, payload=b"", **header):
        answer = Answer()
        self.desk.handle(op, header, payload, answer)
        return answer

    def until(self, done, seconds=20):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it takes too long"
            self.loop.step(0.5)

    def get(self, op, payload=b"", **header):
        answer = self.ask(op, payload, **header)
        self.until(lambda: answer.done)
        return answer

    def settle(self):
        return self.get("settle").fields

    def session(self, **how):
        return Session(self, **how)

    def context(self, work):
        return PythonContext(self, work)

    def close(self):
        for sid in list(self.desk.hello()["sessions"]):
            self.get("session.close", sid=sid)
        self.until(lambda: not children(os.getpid()))
        self.loop.close()


class PythonContext:
    """A session of the other kind."""

    def __init__(self, office, work):
        self.office, self.sid, program = office, office.number(), python_program()
        env = {"PATH": os.environ["PATH"], "HOME": str(work)}
        opened = office.get(
            "session.open", program, sid=self.sid, kind="python", program=len(program), env=env, cwd=str(work)
        )
        assert opened.errno is None, opened.text

    @property
    def inside(self):
        """The context of the desk; for looking only."""
        return self.office.desk._sessions[self.sid]

    def start(self, text):
        ran = Ran(self.office.number())
        self.office.runs[ran.rid] = ran
        ran.started = self.office.get("run.start", text.encode(), rid=ran.rid, sid=self.sid, timeout=20)
        return ran

    def run(self, text):
        ran = self.start(text)
        assert ran.started.errno is None, ran.started.text
        self.office.until(lambda: ran.end is not None, 30)
        return ran


class Session:
    def __init__(self, office, env=None, cwd=None, state=b"", work="/tmp"):
        self.office = office
        self.sid = office.number()
        env = {"PATH": os.environ["PATH"], "HOME": str(work)} if env is None else env
        answer = office.get("session.open", state, sid=self.sid, env=env, cwd=str(cwd or work))
        assert answer.errno is None, answer.text

    def start(self, text, stdin=None, **how):
        text = text if isinstance(text, bytes) else text.encode()
        ran = Ran(self.office.number())
        self.office.runs[ran.rid] = ran
        how.setdefault("timeout", 20)
        length = None if stdin is None else len(stdin)
        ran.started = self.office.ask(
            "run.start", (stdin or b"") + text, rid=ran.rid, sid=self.sid, stdin=length, **how
        )
        return ran

    def do(self, text, **how):
        """Run to the end, whatever it is."""
        ran = self.start(text, **how)
        self.wait(ran)
        return ran

    def wait(self, ran):
        self.office.until(lambda: ran.end is not None or ran.started.errno is not None, 30)
        assert ran.started.errno is None, ran.started.text

    def run(self, text, code=0, out=b"", err=b"", *, reason="exit", poke=None, **how):
        """Run and compare; out, err: bytes, or None for anything, or a pattern (str). `poke`: (what to wait for in its
        stdout, what to do then)."""
        ran = self.start(text, **how)
        if poke is not None:
            self.office.until(lambda: poke[0] in ran.out)
            settled = time.monotonic() + 0.1  # what has been said is then done
            while time.monotonic() < settled:
                self.office.loop.step(0.02)
            poke[1](ran)
        self.wait(ran)
        assert code is None or ran.code == code, ran
        assert reason is None or ran.reason == reason, ran
        for got, want in (ran.out, out), (ran.err, err):
            if isinstance(want, str):
                assert re.search(want.encode(), got, re.S), (got[:300], want)
            elif want is not None:
                assert got == want, (ran, want[:300])
        self.office.ask("run.forget", rid=ran.rid)
        return ran

    def signal(self, signum=signal.SIGINT):
        return lambda ran: self.office.get("run.signal", rid=ran.rid, signal=int(signum))

    def pty(self, argv=(), acks=True, **how):
        return Screen(self.office, self.sid, argv, acks, **how)

    @property
    def inside(self):
        """The session object of the desk; for looking only."""
        return self.office.desk._sessions[self.sid]

    @property
    def notes(self):
        return self.inside.notes

    def state(self):
        self.office.settle()
        return self.office.states[self.sid]

    def usable(self):
        self.run("set +eux 2>/dev/null; echo us''able; echo e >&2; exec 3>&-", out=b"usable\n", err=b"e\n")

    def close(self):
        self.office.get("session.close", sid=self.sid)


class Screen:
    """A look at a session's terminal."""

    def __init__(self, office, sid, argv, acks, columns=80, rows=24, persist=True, idle=0, term="xterm"):
        self.office = office
        self.acks = acks
        self.data = bytearray()
        self.at = None
        self.acked = 0
        self.view = len(office.screens) + 1
        office.screens[self.view] = self
        self.answer = office.get(
            "pty.open", b"".join(os.fsencode(one) + b"\0" for one in argv), sid=sid, pty=office.number(), columns=columns,
            rows=rows, persist=persist, idle=idle, term=term, view=self.view,
        )  # fmt: skip
        self.pty = self.answer.fields and self.answer.fields["pty"]

    def put(self, header, payload):
        if self.at is None:
            self.at = self.acked = self.begun = header["at"]
        assert header["at"] == self.at and 0 < len(payload) <= 1 << 16
        self.at += len(payload)
        self.data += payload
        self.pty = header["pty"]
        if self.acks:
            self.ack()

    def ack(self):
        self.acked = self.at
        self.office.ask("pty.ack", pty=self.pty, view=self.view, at=self.at)

    def type(self, text):
        self.office.ask("pty.in", text if isinstance(text, bytes) else text.encode(), pty=self.pty)

    def until(self, text):
        self.office.until(lambda: text.encode() in self.data)

    def do(self, op, **how):
        answer = self.office.get(f"pty.{op}", pty=self.pty, **how)
        assert answer.errno is None, answer.text

    @property
    def end(self):
        return self.office.ended_ptys.get(self.pty)

    def wait(self):
        self.office.until(lambda: self.end is not None)
        return self.end["code"], self.end["reason"]


@pytest.fixture(scope="session", autouse=True)
def subreaper():
    """Orphans of shells come to us, as they do to PID 1."""
    libc = ctypes.CDLL(None)
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    if os.geteuid():
        libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    pipelock.refuse()
    yield
    libc.prctl(SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def work(tmp_path):
    place = tmp_path / "work"
    place.mkdir()
    return place


@pytest.fixture(params=SHELLS)
def office(request):
    directory = tempfile.mkdtemp(prefix="bw", dir="/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")
    os.chmod(directory, 0o755)
    shell = shutil.which(request.param)
    if request.param == "busybox":
        shell = os.path.join(directory, "busybox")
        os.symlink(shutil.which("busybox"), shell)
    it = Office(directory, shell)
    it.bash = request.param == "bash"
    it.name = request.param
    fds = set(os.listdir("/proc/self/fd"))
    yield it
    it.close()
    shutil.rmtree(directory)
    assert len(set(os.listdir("/proc/self/fd")) - fds) == 0


@pytest.fixture
def s(office, work):
    session = office.session(work=work)
    yield session
    assert not session.notes, session.notes
    session.usable()


PYTHON = sys.executable
