"""A session of kind `python`: an interpreter that outlives its runs, so that their variables live on.

A run is over when its code is. What it has left (threads, processes) belongs to the context and lives with it; what
that writes between runs nobody hears. A run that is stopped is interrupted first (KeyboardInterrupt) and loses its
context only if it does not stop. What ends the interpreter ends all that it has started; the next run has a new one,
and says so.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from boxwood.engine.agent.common import Common
from boxwood.engine.agent.drains import Drains
from boxwood.engine.agent.interpreter import Interpreter, find_python
from boxwood.engine.agent.kept import opened_with
from boxwood.engine.agent.loop import Timer
from boxwood.engine.agent.procs import in_memory, stat
from boxwood.engine.agent.run import Command, Run, Source
from boxwood.engine.agent.trees import Killing, ProcessTree

GRACE_SECONDS = 3.0  # for code that has been interrupted because its time is up, or it was cancelled
_MOST_NAME = 4096
_MOST_ROUNDS = 100
_BOX_GONE = "the interpreter ended with the VM's box, or stayed in the VM that this one was forked from"

Answer = Callable[[OSError | None], None]


class Remains(NamedTuple):
    """What another box is told of a context: that there was one."""

    runs: int

    def pack(self) -> bytes:
        return b'{"python": %d}' % self.runs


class _Pending(NamedTuple):
    command: Command
    run: Run
    answer: Answer


class Context:
    """What a desk asks of a session; see `Session`. `program`: what the interpreter executes. `state`: of a context in
    another box, if there was one."""

    def __init__(
        self, common: Common, sid: str, env: Mapping[bytes, bytes], cwd: bytes, program: bytes, state: bytes
    ) -> None:
        self.common = common
        self.loop = common.loop
        self.sid = sid
        self.tree = ProcessTree(common.orphanage)
        self.state: Remains | None = None
        self.notes: list[str] = []
        self.on_state: Callable[[], None] = lambda: None
        self.on_quiet: Callable[[], None] = lambda: None
        self._env, self._cwd = opened_with(env, cwd)
        self._program = program
        self._lost = _BOX_GONE if state else ""  # why the last interpreter is not there any more
        self._interpreter: Interpreter | None = None
        self._run: Run | None = None
        self._sources: list[Source] = []
        self._before: dict[int, int] = {}
        self._reason = "exit"
        self._code = 0
        self._died = False
        self._killing = False  # all that there is: nothing begins before the last of it is dead
        self._striking = False  # and somebody is at it
        self._interrupt = False  # once it is ready
        self._timer: Timer | None = None
        self._pending: _Pending | None = None
        self._drains = Drains(common.loop)
        self._closed: Callable[[], None] | None = None

    # --- what others ask

    @property
    def quiet(self) -> bool:
        return self._pending is None

    @property
    def alive(self) -> bool:
        """It has an interpreter, with what runs have left in it."""
        return self._interpreter is not None and self._interpreter.alive

    @property
    def closing(self) -> bool:
        return self._closed is not None

    def environment(self) -> dict[bytes, bytes]:
        return dict(self._env)

    def directory(self) -> bytes:
        return self._cwd

    def when_saved(self, work: Callable[[], None]) -> None:
        work()

    def prepare(self) -> None:
        """An interpreter comes up with its first run, whose output says what goes wrong."""

    def note(self, text: str) -> None:
        self.notes = [text[:200]]

    def tell_again(self) -> None:
        if self.state is not None:
            self.on_state()

    def start(self, command: Command, run: Run, answer: Answer) -> None:
        """Run source text. OSError: busy."""
        if self._closed is not None:
            raise OSError(errno.ENOENT, "the session is being closed")
        if self._run is not None or self._pending is not None:
            raise OSError(errno.EBUSY, "the session has a run")
        self._pending = _Pending(command, run, answer)
        self._go()

    def signal(self, signum: int) -> bool:
        interpreter = self._interpreter
        if interpreter is None or self._run is None or not interpreter.alive:
            return False
        if not interpreter.ready and signum == signal.SIGINT:
            self._interrupt = True
            return True
        return interpreter.signal(signum)

    def kill_run(self, run: Run) -> None:
        if self._run is run:
            self._stop("killed")
        elif self._pending is not None and self._pending.run is run:
            pending, self._pending = self._pending, None
            pending.answer(OSError(errno.ECANCELED, "the run was killed before it began"))

    def close(self, done: Callable[[], None]) -> None:
        if self._closed is not None:
            raise OSError(errno.EALREADY, "the session is being closed")
        self._closed = done
        if self._reason == "exit":
            self._reason = "killed"
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.answer(OSError(errno.ECANCELED, "the session was closed"))
        if self._interpreter is None:
            self._all_dead()
        else:
            self._end_all()

    # --- a run begins

    def _go(self) -> None:
        if self._pending is None or self._run is not None or self._killing:
            return
        (command, run, answer), self._pending = self._pending, None
        try:
            self._begin(command, run)
        except OSError as error:
            answer(error)
            return
        answer(None)
        self.state = Remains((self.state.runs if self.state is not None else 0) + 1)
        if self.state.runs == 1:
            self.on_state()

    def _begin(self, command: Command, run: Run) -> None:
        """OSError: nothing runs."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            for _ in range(3):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                ours.append(reading)
                theirs.append(writing)
                os.set_blocking(reading, False)
            theirs.append(self._input(command, run))
            out, err, reports, stdin = theirs
            interpreter = self._interpreter or self._start((out, err))
            self._before = self._members()
            interpreter.order(command.text, (stdin, out, err, reports))
        except OSError:
            for fd in ours:
                os.close(fd)
            if self._interpreter is not None and self._interpreter.deaf:
                self._end_all()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._run, self._reason, self._code, self._died, self._interrupt = run, "exit", 0, False, False
        new = interpreter.orders == 1
        about = {"new": new, "number": interpreter.orders, "lost": self._lost or None if new else None}
        self._lost = ""
        run.put(3, json.dumps({"context": about}).encode() + b"\n")
        self._sources = [Source(self.loop, fd, stream) for stream, fd in enumerate(ours[:2], 1)]
        self._sources.append(Source(self.loop, ours[2], 3, after=tuple(self._sources)))
        for source in self._sources:
            source.flow(run)
        if command.timeout:
            self._timer = self.loop.at(time.monotonic() + command.timeout, lambda: self._stop("timeout"))

    def _input(self, command: Command, run: Run) -> int:
        if run.intake is not None:
            stdin, pipe = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(pipe, False)
            run.intake.attach(pipe, has_reader=True)
            return stdin
        return in_memory(command.stdin) if command.stdin else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _start(self, outputs: tuple[int, int]) -> Interpreter:
        exe = find_python(self._env)
        cwd = self._cwd if os.path.isdir(self._cwd) else b"/"
        place = os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            env = {**self._env, b"PWD": cwd}
            made = Interpreter(self.common, exe, env, place, outputs, self._program, self.tree)
        finally:
            os.close(place)
        made.on_ready, made.on_done = self._on_ready, self._on_done
        made.on_death, made.on_gone = self._on_death, lambda: self._end(made)
        self._interpreter = made
        return made

    def _on_ready(self) -> None:
        if self._interrupt and self._interpreter is not None:
            self._interpreter.signal(signal.SIGINT)

    # --- and ends

    def _stop(self, reason: str) -> None:
        """Interrupt it; if that does not end it soon, the context ends with it."""
        if self._reason != "exit" or self._run is None:
            return
        self._reason = reason
        self._cancel_timer()
        if not self._killing:
            self.signal(signal.SIGINT)
            self._timer = self.loop.at(time.monotonic() + GRACE_SECONDS, self._end_all)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_done(self, code: int, environment: dict[bytes, bytes]) -> None:
        """The interpreter says that the run is over."""
        if self._run is None or self._killing:
            return
        self._code = code
        self._cancel_timer()
        if self._reason == "exit":
            self._finish()
        else:
            self._kill_rest(1)
        self._look_around(environment)
        self._go()

    def _members(self) -> dict[int, int]:
        """All live processes of the context but the interpreter: pid -> start time."""
        own = None if self._interpreter is None else self._interpreter.pid
        found = {pid: stat(pid) for pid in self.tree.members({}) if pid != own}
        return {pid: about.start for pid, about in found.items() if about is not None and about.state not in "ZX"}

    def _kill_rest(self, number: int) -> None:
        """What the run that was stopped has started goes with it; in rounds, until there is nothing."""
        if self._killing or self._run is None:
            return
        rest = [pid for pid, start in self._members().items() if self._before.get(pid) != start]
        if not rest:
            self._finish()
            self._go()
        elif number > _MOST_ROUNDS:
            self._end_all()
        else:
            self.tree.signal(rest, signal.SIGKILL)
            pause = min(0.001 * number, 0.05)
            self._timer = self.loop.at(time.monotonic() + pause, lambda: self._kill_rest(number + 1))

    def _look_around(self, environment: dict[bytes, bytes]) -> None:
        """Directory and environment, which another interpreter is to have."""
        cwd = self._interpreter.directory() if self._interpreter is not None else b""
        environment.pop(b"PWD", None)
        environment = environment or self._env
        if cwd[:1] == b"/" and len(cwd) <= _MOST_NAME and (cwd, environment) != (self._cwd, self._env):
            self._cwd, self._env = cwd, environment
            self.on_state()

    def _finish(self) -> None:
        self._cancel_timer()
        run, self._run = self._run, None
        for source in self._sources:
            source.catch_up()
            source.stop()
            if not source.ended and source.held():
                self._drains.add(source.fd)
            else:
                self.loop.unwatch(source.fd)
                os.close(source.fd)
        self._sources = []
        if run is not None:
            code = {"timeout": 124, "killed": 137}.get(self._reason, self._code)
            reason = "died" if self._died and self._reason == "exit" else self._reason
            run.finish(code, reason, lost=self._died)

    def _on_death(self, code: int) -> None:
        self._died = True
        self._code = code if code >= 0 else 128 - code
        if self._reason == "timeout":
            self._lost = "the interpreter did not stop when its run had timed out, and was killed"
        elif self._reason == "killed":
            self._lost = "the interpreter did not stop when its run was cancelled, and was killed"
        elif code < 0:
            self._lost = f"the interpreter was killed by signal {-code}"
        else:
            self._lost = f"the interpreter ended with exit code {code}"
        self._end_all()

    def _end_all(self) -> None:
        """Kill all that there is, however often something new begins meanwhile; then the run is over."""
        if self._killing or self._interpreter is None:
            return
        if not self._interpreter.alive and not self.tree.live():
            self._all_dead()
            return
        self._killing = self._striking = True
        interpreter = self._interpreter
        Killing(self.loop, self.tree, {}, True, lambda root_too: self._on_killed(interpreter, root_too))

    def _on_killed(self, interpreter: Interpreter, root_too: bool) -> None:
        self._striking = False
        if not root_too or interpreter.gone:
            self.loop.soon(lambda: self._end(interpreter))  # else it is told when the minder is dead

    def _end(self, interpreter: Interpreter) -> None:
        """See whether anything is left of this one, unless there is another one by now."""
        if self._interpreter is interpreter and not self._striking:
            self._killing = False
            self._end_all()

    def _all_dead(self) -> None:
        interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.give_back()
        self._finish()
        if self._closed is not None:
            self._drains.close()
            self._closed()
            return
        self._go()
        self.on_quiet()
