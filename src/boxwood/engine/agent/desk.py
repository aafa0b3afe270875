"""Where what the server asks of sessions and runs arrives, and what they say on their own leaves (docs/architecture.md,
"The agent's link")."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from boxwood.engine.agent import files
from boxwood.engine.agent.berth import Berth
from boxwood.engine.agent.common import Common
from boxwood.engine.agent.context import Context
from boxwood.engine.agent.dialects import saved_state
from boxwood.engine.agent.intake import Intake
from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.oneshot import OneShot
from boxwood.engine.agent.ptys import Ptys
from boxwood.engine.agent.requests import Reply, ident
from boxwood.engine.agent.run import MARKER_BYTES, Command, Run, Send
from boxwood.engine.agent.session import Session
from boxwood.engine.agent.shell import SHELLS, find_shell
from boxwood.engine.agent.state import STATE_LIMIT

MOST_SESSIONS = 256
MOST_RUNS = 200  # known at once: those that ended longest ago are forgotten first
_MOST_HEADER = 60_000
_MOST_TEXT = 4096


class Desk:
    """`send(header, payload)` puts a frame on the present link; without one it is dropped, and all that matters is said
    again after `relink`."""

    def __init__(self, loop: Loop, directory: bytes, send: Send, shells: tuple[bytes, ...] = SHELLS) -> None:
        self._loop = loop
        self._send = send
        self._common = Common(loop, directory, shells)
        self._sessions: dict[str, Session | Context] = {}
        self._runs: dict[str, Run] = {}
        self._oneshots: dict[str, OneShot] = {}
        self._settling: list[Reply] = []
        self._asleep_since: float | None = None
        self._places = 0
        self.at_work: Callable[[], int] = lambda: 0  # helpers that the server is served by
        self._berth: Berth | None = None
        self._ops: dict[str, Callable[[dict[str, Any], bytes, Reply], None]] = {
            "session.open": self._open_session,
            "session.close": self._close_session,
            "run.start": self._start_run,
            "run.resume": self._resume_run,
            "run.signal": self._signal_run,
            "run.kill": self._kill_run,
            "run.stdin": self._give_input,
            "run.ack": self._ack,
            "run.forget": self._forget,
            "settle": self._settle,
            "sleeps": self._sleeps,
            "slept": self._slept,
        }
        self._ptys = Ptys(self._common, send, self._session)
        self._ops |= self._ptys.ops

    def make_ready(self, enter: Callable[[], None]) -> None:
        """Before there is a VM: all that its first session will need."""
        self._places += 1
        self._berth = Berth(self._common, self._common.directory + b"/%d" % self._places, enter)

    def open_up(self) -> None:
        """The VM's root is there."""
        try:
            exe = find_shell(self._common.shells)
        except FileNotFoundError:
            exe = None  # whoever wants to run something will hear of it
        if self._berth is not None and not self._berth.open(exe):
            self._berth = None

    def handle(self, op: str, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """Do what is asked; the answer may come later. ValueError, KeyError, TypeError: the request makes no sense."""
        known = self._ops.get(op)
        if known is None:
            reply.error(errno.ENOSYS, f"there is no operation {op[:100]!r}")
            return
        try:
            known(header, payload, reply)
        except OSError as error:
            _refuse(reply, error)

    # --- links come and go

    def hello(self) -> dict[str, Any]:
        runs = [run.header() for run in self._runs.values()]
        return {
            "ev": "hello", "runs": runs, "sessions": list(self._sessions), "programs": True, "stdin": True,
            "python": True, "files": True, "sleeps": True, "ptys": self._ptys.header(),
        }  # fmt: skip

    def unlink(self) -> None:
        """The server is gone: what it had suspended goes on, and nobody says so."""
        since, self._asleep_since = self._asleep_since, None
        if since is not None:
            self._loop.slept(since, time.monotonic())

    def relink(self) -> None:
        """There is a new link: greet, and say what the last one may not have carried."""
        for run in self._runs.values():
            run.detach()
        self._ptys.relink()
        self._settling.clear()
        self._send(self.hello())
        for session in self._sessions.values():
            session.tell_again()

    # --- sessions

    def _open_session(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        sid = ident(header, "sid")
        if sid in self._sessions:
            reply()
            return
        if len(self._sessions) >= MOST_SESSIONS:
            raise OSError(errno.EMFILE, f"a box holds at most {MOST_SESSIONS} sessions")
        session = self._made(sid, header, payload)
        session.on_state = lambda: self._tell_state(session)
        session.on_quiet = self._on_quiet
        first = not self._sessions
        self._sessions[sid] = session
        reply(hurry=False)
        if first:
            session.prepare()  # whoever opens a session in a new box is about to run something in it

    def _made(self, sid: str, header: dict[str, Any], payload: bytes) -> Session | Context:
        env, cwd = _environment(header.get("env")), _path(header.get("cwd"))
        if header.get("kind") == "python":
            length = _offset(header, "program")
            return Context(self._common, sid, env, cwd, payload[:length], payload[length:])
        state = saved_state(payload) if payload else None
        place: bytes | Berth | None
        place, self._berth = self._berth, None
        if place is None:
            self._places += 1
            place = self._common.directory + b"/%d" % self._places
        return Session(self._common, sid, place, env, cwd, state)

    def _close_session(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        sid = ident(header, "sid")
        session = self._sessions.get(sid)
        if session is None:
            reply()
            return
        self._kill_beside(sid)

        def closed() -> None:
            del self._sessions[sid]
            if not self._sessions:
                self._common.minders.close()
            reply()
            self._on_quiet()

        def close_shell() -> None:
            self._kill_beside(sid)  # what has begun while terminals were being killed
            try:
                session.close(closed)
            except OSError as error:  # somebody else has asked for it meanwhile
                _refuse(reply, error)

        self._ptys.close(sid, close_shell)

    def _kill_beside(self, sid: str) -> None:
        for oneshot in [o for o in self._oneshots.values() if o.sid == sid]:
            oneshot.kill("killed")

    def _session(self, header: dict[str, Any]) -> Session | Context:
        session = self._sessions.get(ident(header, "sid"))
        if session is None:
            raise OSError(errno.ENOENT, "there is no such session in this box")
        return session

    def _tell_state(self, session: Session | Context) -> None:
        assert session.state is not None
        packed = session.state.pack()
        if len(packed) > STATE_LIMIT:
            session.note(f"the state of the shell is larger than {STATE_LIMIT >> 20} MiB and was not saved")
            packed = b""
        header: dict[str, Any] = {"ev": "state", "sid": session.sid, "cwd": os.fsdecode(session.directory())}
        if len(header["cwd"]) > _MOST_TEXT:
            header["cwd"] = "/"
        header["notes"] = session.notes
        env = {os.fsdecode(name): os.fsdecode(value) for name, value in session.environment().items()}
        if len(json.dumps({**header, "env": env})) > _MOST_HEADER:
            header["notes"], env = ["the environment is too large to be shown"], {}
        header["env"] = env
        if packed:
            self._send(header, packed)

    # --- runs

    def _start_run(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        session, rid = self._session(header), ident(header, "rid")
        if rid in self._runs:
            raise OSError(errno.EEXIST, "there is such a run already")
        command = _command(header, payload)
        self._make_room()
        beside = any(header.get(name) is not None for name in ("env", "cwd", "user"))
        run = Run(rid, session.sid, self._send, reports=isinstance(session, Context) and not beside)
        if command.open:
            run.intake = Intake(self._loop, command.stdin or b"")
        if command.argv is not None and not beside:
            raise ValueError("a program of its own runs beside the session")
        self._runs[rid] = run
        try:
            if beside:
                oneshot = self._beside(session, command, run, header)
                session.when_saved(lambda: self._begin_beside(session, oneshot, run, reply))
            else:
                session.start(command, run, lambda error: self._started(rid, reply, error))
        except BaseException:
            self._drop(rid)
            raise

    def _drop(self, rid: str) -> None:
        """It was not started."""
        run = self._runs.pop(rid, None)
        if run is not None and run.intake is not None:
            run.intake.close()

    def _started(self, rid: str, reply: Reply, error: OSError | None) -> None:
        if error is None:
            reply(hurry=False)
        else:
            self._drop(rid)
            _refuse(reply, error)

    def _beside(
        self, session: Session | Context, command: Command, run: Run, header: dict[str, Any]
    ) -> Callable[[], OneShot]:
        """What makes a run with an environment, a directory or a user of its own, once the session's are known."""
        changes, path = _environment(header.get("env")), _path(header.get("cwd"))
        user = header.get("user") or None
        if user is not None and (not isinstance(user, str) or "\0" in user):
            raise ValueError("user must be a text")

        def make() -> OneShot:
            cwd = os.path.join(session.directory(), path).rstrip(b"/") or b"/"
            environment = session.environment()
            return OneShot(
                self._common, session.sid, command, run, environment, changes, cwd, user, self._oneshot_ended
            )

        return make

    def _begin_beside(self, session: Session | Context, make: Callable[[], OneShot], run: Run, reply: Reply) -> None:
        try:
            if session.closing:
                raise OSError(errno.ENOENT, "the session is being closed")
            self._oneshots[run.rid] = make()
        except OSError as error:
            self._drop(run.rid)
            _refuse(reply, error)
            return
        if self._oneshots[run.rid].over:
            del self._oneshots[run.rid]
        reply(hurry=False)

    def _oneshot_ended(self, oneshot: OneShot) -> None:
        self._oneshots = {rid: o for rid, o in self._oneshots.items() if o is not oneshot}

    def _make_room(self) -> None:
        if len(self._runs) >= MOST_RUNS:
            ended = next((rid for rid, run in self._runs.items() if run.end is not None), None)
            if ended is None:
                raise OSError(errno.EAGAIN, f"a box has at most {MOST_RUNS} runs at once")
            del self._runs[ended]

    def _run(self, header: dict[str, Any]) -> Run:
        run = self._runs.get(ident(header, "rid"))
        if run is None:
            raise OSError(errno.ENOENT, "there is no such run in this box")
        return run

    def _resume_run(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        run, offsets = self._run(header), _offsets(header)
        run.check(*offsets)
        reply()
        run.attach(*offsets)

    def _signal_run(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        signum = header["signal"]
        if type(signum) is not int or not 1 <= signum <= 64:
            raise ValueError("signal must be a number from 1 to 64")
        run = self._run(header)
        delivered = False
        if run.end is None:
            oneshot = self._oneshots.get(run.rid)
            delivered = oneshot.signal(signum) if oneshot is not None else self._sessions[run.sid].signal(signum)
        reply({"delivered": delivered})

    def _kill_run(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        run = self._run(header)
        if run.end is None:
            oneshot, session = self._oneshots.get(run.rid), self._sessions.get(run.sid)
            if oneshot is not None:
                oneshot.kill("killed")
            elif session is not None:
                session.kill_run(run)
        reply()

    def _give_input(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        run, at = self._run(header), header.get("at")
        if run.intake is None:
            raise OSError(errno.EPIPE, "the run's standard input is not open")
        run.intake.give(None if at is None else _offset(header, "at"), payload, header.get("eof") is True, reply)

    def _ack(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        run = self._runs.get(ident(header, "rid"))
        if run is not None:
            run.ack(*_offsets(header))

    def _forget(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        run = self._runs.get(ident(header, "rid"))
        if run is not None and run.end is not None:
            del self._runs[run.rid]

    # --- rest

    def _sleeps(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """All of the box is about to be suspended, from then on (seconds of time.monotonic)."""
        self._asleep_since = float(header["from"])

    def _slept(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """… and was, from then to then."""
        self._asleep_since = None
        self._loop.slept(float(header["from"]), float(header["to"]))

    def _settle(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        self._settling.append(reply)
        self._on_quiet()

    def _on_quiet(self) -> None:
        if not self._settling or not all(session.quiet for session in self._sessions.values()):
            return
        waiting, self._settling = self._settling, []
        runs = sum(run.end is None for run in self._runs.values())
        self._common.orphanage.collect(None)
        said: dict[str, Any] = {"runs": runs, "processes": self._count_processes()}
        if files.has_files_in_memory():
            said["files"] = True
        for reply in waiting:
            reply(said)

    def _count_processes(self) -> int:
        """All but ourselves, what we do at once, and idle shells."""
        contexts = sum(isinstance(session, Context) and session.alive for session in self._sessions.values())
        trees = [s.tree for s in self._sessions.values()] + [o.tree for o in self._oneshots.values()]
        return contexts + sum(len(tree.members({})) for tree in trees) + self._ptys.processes() + self.at_work()


def _refuse(reply: Reply, error: OSError) -> None:
    number = error.errno or errno.EIO
    text = error.strerror or str(error)
    if error.filename is not None:
        text = f"{text}: {os.fsdecode(error.filename)}"
    reply.error(number, text.encode("utf-8", "backslashreplace").decode()[:2000])


def _offset(header: Mapping[str, Any], name: str) -> int:
    value = header[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} must be an offset")
    return value


def _offsets(header: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of stdout, stderr and reports."""
    return _offset(header, "out"), _offset(header, "err"), _offset({"rep": 0, **header}, "rep")


def _encoded(value: object, what: str) -> bytes:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{what} must be a text without NUL")
    return os.fsencode(value)


def _path(value: object) -> bytes:
    return b"" if value is None else _encoded(value, "a path")


def _environment(given: object) -> dict[bytes, bytes]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError("env must be an object")
    env = {_encoded(name, "a name"): _encoded(value, "a value") for name, value in given.items()}
    if any(not name or b"=" in name for name in env):
        raise ValueError("a name in env must not be empty or contain =")
    return env


def _command(header: Mapping[str, Any], payload: bytes) -> Command:
    timeout, length, prompt = header.get("timeout"), header.get("stdin"), header.get("prompt", "auto")
    if timeout is not None and (type(timeout) not in (int, float) or not 0 <= timeout <= 1e9):
        raise ValueError("timeout must be a number of seconds")
    if length is not None and (type(length) is not int or not 0 <= length <= len(payload)):
        raise ValueError("stdin must be the length of what comes first in the payload")
    if prompt not in ("auto", "none"):
        raise ValueError("prompt must be auto or none")
    stdin = None if length is None else payload[:length]
    text = payload[length or 0 :]
    argv = None
    if header.get("argv"):
        if not text.endswith(b"\0"):
            raise ValueError("each argument must end in NUL")
        text, argv = b"", tuple(text[:-1].split(b"\0"))
    if b"\0" in text:
        raise ValueError("a command cannot contain NUL")
    is_open = header.get("open") is True
    if is_open and stdin is None:
        stdin = b""
    leaves = argv is not None and header.get("leaves") is True
    marker = _encoded(header.get("marker") or "", "marker")
    if len(marker) > MARKER_BYTES:
        raise ValueError(f"marker must have at most {MARKER_BYTES} bytes")
    return Command(text, timeout or None, stdin, prompt == "auto", argv, leaves, is_open, marker)
