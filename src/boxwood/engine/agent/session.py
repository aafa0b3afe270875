"""A shell that outlives its runs, and a state that outlives the shell.

The shell comes up with the first run: a fresh one is fed its environment and the run in one go; one with a saved state
is first compared with a bare shell (`base`) and given the differences. After every run the state is dumped, after the
answer; whatever ends the shell, the next one goes on from the last dump.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from boxwood.engine.agent.berth import Berth
from boxwood.engine.agent.common import Common
from boxwood.engine.agent.dialects import KINDS, Dialect, dialect
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.functions import Functions
from boxwood.engine.agent.job import Job
from boxwood.engine.agent.learner import Learner
from boxwood.engine.agent.loop import Timer
from boxwood.engine.agent.outputs import Outputs
from boxwood.engine.agent.procs import Killing, ProcessTree, Vigil, children, stat
from boxwood.engine.agent.run import Command, Run
from boxwood.engine.agent.shell import Shell, find_shell
from boxwood.engine.agent.sourcing import Sourcing
from boxwood.engine.agent.state import STATE_LIMIT, Report, State
from boxwood.engine.agent.terminal import Terminal

START_SECONDS = 20.0
DUMP_SECONDS = 10.0
_NUDGE_SECONDS = 0.25
_MOST_NOTES = 20
_WHOLE_GROUP = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGSTOP, signal.SIGCONT}
_DEFAULTS = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/root", b"USER": b"root", b"LOGNAME": b"root", b"LANG": b"C.UTF-8", b"TERM": b"dumb",
}  # fmt: skip


class _Pending(NamedTuple):
    command: Command
    run: Run
    answer: Callable[[OSError | None], None]


class Session:
    """`on_state` is called when there is a state that differs from the last one; `on_quiet` when it has
    become quiet."""

    def __init__(
        self,
        common: Common,
        sid: str,
        place: bytes | Berth,
        env: Mapping[bytes, bytes],
        cwd: bytes,
        state: State | None,
    ) -> None:
        self.common = common
        self.loop = common.loop
        self.sid = sid
        self.folder = place.folder if isinstance(place, Berth) else Folder(place)
        self.state = state
        self.tree = place.tree if isinstance(place, Berth) else ProcessTree(common.orphanage)
        self.tree.on_change = self._on_orphan
        self.job: Job | None = None
        self.notes: list[str] = []
        self.on_state: Callable[[], None] = lambda: None
        self.on_quiet: Callable[[], None] = lambda: None
        self.saved_at_exit = False
        self._env = {**_DEFAULTS, **env}
        self._cwd = cwd or (b"/root" if os.path.isdir(b"/root") else b"/")
        self._code = state.code if state is not None else 0
        self._shell: Shell | None = None
        self._exe = b""
        self._kind: Dialect = KINDS[b"sh"]
        self._phase = "ready"  # or "base", "restoring": what the next report is; "leaving": it is being killed
        self._awaited: Report | None = None
        self._watchdog: Timer | None = None
        self._pending: _Pending | None = None
        self._sourcing = Sourcing(self.folder)
        self._poisoned = False
        self._told: int | None = None  # fingerprint of the state that on_state has had
        self.outputs = Outputs(common.loop, self.folder, place.outputs if isinstance(place, Berth) else None)
        self._terminal: Terminal | None = None
        self._waiting: Shell | None = None  # one that was started ahead
        if isinstance(place, Berth):
            self._waiting, self._terminal = place.shell, place.terminal
            place.terminal.on_output, place.terminal.is_full = self._on_terminal, self._is_full
        self._learner = Learner(common.loop, self._learned)
        self._functions = Functions(self.folder, state.functions if state is not None else {})
        self._afterwards: list[Callable[[], None]] = []  # when what the last run has changed is known
        self._closed: Callable[[], None] | None = None
        self._closing_vigil: Vigil | None = None
        self._ended = False

    # --- what others ask

    @property
    def quiet(self) -> bool:
        """A run is going on, or all that is to be saved is saved."""
        return self.job is not None or (self._pending is None and self._settled)

    @property
    def _settled(self) -> bool:
        return self._phase == "ready" and self._awaited is None and not self._learner.busy

    @property
    def closing(self) -> bool:
        return self._closed is not None

    def environment(self) -> dict[bytes, bytes]:
        """What the session exports, as of the last saved state."""
        if self.state is None:
            return dict(self._env)
        return KINDS[self.state.kind].exported(self.state.sections)

    def directory(self) -> bytes:
        return (self.state.sections[b"cwd"] if self.state is not None else self._cwd) or b"/"

    def when_saved(self, work: Callable[[], None]) -> None:
        """Call `work` when `environment` and `directory` are as the last run has left them: its answer comes before. At
        once, while another run goes on."""
        if self.job is not None or self._settled or self._closed is not None or self._shell is None:
            work()
        else:
            self._afterwards.append(work)
            self._shell.hurry()

    def _do_afterwards(self) -> None:
        works, self._afterwards = self._afterwards, []
        for work in works:
            work()

    @property
    def terminal(self) -> Terminal:
        if self._terminal is None or self._terminal.closed:
            self._terminal = Terminal(self.loop, self._on_terminal, self._is_full)
        return self._terminal

    @property
    def open_terminal(self) -> Terminal | None:
        """The terminal, if it is there."""
        return self._terminal if self._terminal is not None and not self._terminal.closed else None

    def _on_terminal(self, data: bytes) -> None:
        """What a program writes to the terminal itself is output too."""
        if self.job is not None and self.job.run is not None:
            self.job.run.put(1, data)

    def _is_full(self) -> bool:
        return self.job is not None and self.job.run is not None and self.job.run.outputs[0].full

    def prepare(self) -> None:
        """Start the shell, though there is no run yet."""
        if self._shell is None and self._closed is None:
            self._start()

    def start(self, command: Command, run: Run, answer: Callable[[OSError | None], None]) -> None:
        """Run a command; `answer` is called when the shell has it, or when none can be started. OSError: busy."""
        if self._closed is not None:
            raise OSError(errno.ENOENT, "the session is being closed")
        if self.job is not None and self.job.run is None:
            if command.stdin is not None:
                raise OSError(errno.EBUSY, "a program waits for input at its prompt: its input is the text of a run")
            self.job.take_input(run, command)
            answer(None)
            return
        if self.job is not None or self._pending is not None:
            raise OSError(errno.EBUSY, "the session has a run")
        self._pending = _Pending(command, run, answer)
        self._go()

    def signal(self, signum: int) -> bool:
        """To the foreground: as a key of a terminal would to the shell's group and, under `set -m`, its newest job's;
        signals that no key sends to what the shell has started, or else to the shell. False: nobody is there."""
        shell = self._shell
        if shell is None:
            return self.tree.signal(self.tree.members({}), signum)
        if signum in _WHOLE_GROUP:
            found = [s for pid in children(shell.pid) if (s := stat(pid)) and s.pgid != shell.pid]
            groups = [s.pgid for s in sorted(found, key=lambda s: s.start)[-1:] if s.pgid > 1]
            return self.tree.signal([-group for group in (*groups, shell.pid)], signum)
        members = self.tree.members(self.job.before if self.job is not None else {})
        return self.tree.signal(members or [shell.pid], signum)

    def kill_run(self, run: Run) -> None:
        """Kill all that this run has started; it then ends as killed."""
        if self.job is not None and self.job.run is run:
            self.job.kill("killed")
        elif self._pending is not None and self._pending.run is run and self._shell is not None:
            pending = self._take_pending()
            assert pending is not None
            pending.answer(OSError(errno.ECANCELED, "the run was killed before it began"))

    def close(self, done: Callable[[], None]) -> None:
        """Kill the shell and all that the session has left running; its run ends as killed."""
        if self._closed is not None:
            raise OSError(errno.EALREADY, "the session is being closed")
        self._closed = done
        self._do_afterwards()
        self._learner.close()
        if self._watchdog is not None:
            self._watchdog.cancel()
        pending = self._take_pending()
        if pending is not None:
            pending.answer(OSError(errno.ECANCELED, "the session was closed"))
        self._closing_vigil = Vigil(self.loop, self._close_down)
        Killing(self.loop, self.tree, {}, True, lambda _: self._close_down())

    def _close_down(self) -> None:
        """Again until nothing is left."""
        assert self._closing_vigil is not None
        if self._ended or self._shell is not None:
            return  # its death is reported yet
        if live := self.tree.live():
            if self._closing_vigil.keep(set(live)):
                return
            self.loop.soon(self._close_down)
            return
        self._closing_vigil.close()
        job, self.job = self.job, None
        if job is not None:
            job.abandon()
        self.outputs.close()
        if self.open_terminal is not None:
            self.open_terminal.close()
        self.folder.destroy()
        assert self._closed is not None
        self._ended = True
        self._closed()

    def _on_orphan(self) -> None:
        if self.job is not None:
            self.job.advance()

    # --- a shell comes up

    def _go(self) -> None:
        """Start what is pending, if that can be."""
        if self._pending is None or self.job is not None or self._closed is not None:
            return
        if self._shell is None:
            if self._learner.busy:
                return  # the new shell is to have what is being learned
            self._start()
        if self._shell is None:
            return
        if self._phase != "ready" or self._awaited is not None:
            self._shell.hurry()
            return
        pending = self._take_pending()
        if pending is None:
            return
        self.saved_at_exit = False
        try:
            self.job = Job(self, self._shell, pending.command, pending.run)
        except OSError as error:
            pending.answer(error)
            return
        pending.answer(None)

    def _take_pending(self) -> _Pending | None:
        pending, self._pending = self._pending, None
        return pending

    def _start(self) -> None:
        """A new shell, with the state of the last one. Failing is answered to whoever waits for it."""
        try:
            self._exe = find_shell(self.common.shells)
            kind = self._kind = dialect(self._exe)
            waiting, self._waiting = self._waiting, None
            if waiting is not None and waiting.alive:
                self._shell = waiting
            else:
                self._shell = Shell(self.loop, self._exe, kind, self.folder, self.common.links, self.tree)
            self._shell.on_report, self._shell.on_death = self._on_report, self._on_death
            self._awaited = None
            if self.state is not None and self.state.kind != kind.kind:
                self._change_kind(self.state)
            self._begin(self._shell, kind)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if self._shell is not None:
            self._shell.kill()
        pending = self._take_pending()
        if pending is not None:
            pending.answer(error)
        else:
            self.note(f"no shell can be started: {error.strerror or error}")

    def _change_kind(self, state: State) -> None:
        """The VM has another shell now: directory and environment go over."""
        self.note("the VM has another shell than before: its variables and functions were left behind")
        self._env, self._cwd = self.environment(), self.directory()
        self.state = None
        self._functions.clear()

    def _begin(self, shell: Shell, kind: Dialect) -> None:
        state, base, early = self.state, self.common.bases.get(self._exe), kind.begin(os.uname().nodename)
        if state is None:
            cwd = self._cwd if os.path.isdir(self._cwd) else b"/"
            if cwd != self._cwd:
                self.note(f"there is no directory {os.fsdecode(self._cwd)!r}")
            shell.feed(early + self._sourcing.write(kind, kind.initial(self._env, cwd)) + kind.set_exit_trap(self._d))
        elif base is None:
            self._phase = "base"
            self._feed_and_wait(shell, early)
        else:
            self._restore(shell, early, state, base)

    def _restore(self, shell: Shell, early: bytes, state: State, base: State) -> None:
        kind = shell.kind
        self._phase = "restoring"
        self._functions.ask(kind)
        feed = early + self._sourcing.write(kind, kind.restore(state, base, self.note))
        if b" EXIT\n" not in state.sections[b"traps"]:
            feed += kind.set_exit_trap(self._d)
        self._feed_and_wait(shell, feed)

    def _feed_and_wait(self, shell: Shell, feed: bytes) -> None:
        self._awaited = shell.expect()
        shell.feed(feed + shell.kind.report(self._d))
        self._watch_over(START_SECONDS)

    def note(self, text: str) -> None:
        """Something of a restoration did not go well: told with the next state."""
        self.notes = [*self.notes[1 - _MOST_NOTES :], text[:200]]

    def _watch_over(self, seconds: float) -> None:
        """A shell that does not report in time is replaced."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        shell = self._shell
        if shell is not None:
            self._watchdog = self.loop.at(time.monotonic() + seconds, shell.kill)

    def _watch_dump(self, count: int, asked: bool = False) -> None:
        """A shell that has come back without its state (see Job._check), or is too long about it, is replaced."""
        shell = self._shell
        if shell is None or self._awaited is None:
            return
        if (asked and shell.came_back) or count > DUMP_SECONDS / _NUDGE_SECONDS:
            self.leave()
            shell.kill()
            return
        if count and not asked and shell.has_read:
            shell.feed(b"\n")
            asked = True
        again = time.monotonic() + _NUDGE_SECONDS
        self._watchdog = self.loop.at(again, lambda: self._watch_dump(count + 1, asked))

    # --- what the shell tells

    @property
    def _d(self) -> bytes:
        return self.folder.path

    def _on_report(self, report: Report) -> None:
        if report.complete:
            self._on_saved(report)
        elif report.garbled:
            self.leave()
        if self.job is not None and report is self.job.report:
            self.job.on_report()
        elif report.complete:
            self._rest()

    def _on_saved(self, report: Report) -> None:
        shell = self._shell
        assert shell is not None
        if report is self._awaited:
            self._awaited = None
            if self._watchdog is not None:
                self._watchdog.cancel()
        if report.too_large:
            self.note(f"the state of the shell is larger than {STATE_LIMIT >> 20} MiB and was not saved")
            self._come_to_rest()
            return
        sections, arguments = report.sections()
        state = State(shell.kind.kind, shell.kind.arm(sections, self._d), arguments, code=self._code)
        if self._phase == "base":
            self.common.bases[self._exe] = state
            assert self.state is not None
            try:
                self._restore(shell, b"", self.state, state)
            except OSError as error:
                self._fail(error)
            return
        self._come_to_rest()
        self.saved_at_exit = report.at_exit
        self._functions.answered(shell.kind, sections, state)
        self.state = state
        for line in self._sourcing.complaints():
            self.note(line)

    def _come_to_rest(self) -> None:
        if self._phase != "leaving":  # a shell that has been killed may have had something left to say
            self._phase = "ready"

    def leave(self) -> None:
        """The shell has been killed: nothing more is started in it."""
        if self._shell is not None:
            self._phase = "leaving"

    def _on_death(self, code: int) -> None:
        self._shell = None
        if self._watchdog is not None:
            self._watchdog.cancel()
        phase, self._phase, self._awaited = self._phase, "ready", None
        self._poisoned = False
        self._functions.shell_died()
        if self._closed is not None:
            self._close_down()
            return
        if phase == "base":
            self._fail(OSError(errno.ENOEXEC, f"the shell {os.fsdecode(self._exe)} ended at once with {code}"))
        elif phase == "restoring":
            self.note("the shell died while its state was restored: it begins anew")
            self._env, self._cwd, self.state = self.environment(), self.directory(), None
            self._functions.clear()
        if self.job is not None:
            self.job.on_death(code)
        else:
            self._rest()

    # --- runs

    def last_code_text(self) -> bytes:
        """What gives the next command the `$?` that it is to see."""
        if not self._code or self._shell is None:
            return b""
        name = b"q%d" % self._code
        if not self.folder.has(name):
            self.folder.write(name, b"return %d\n" % self._code)
        return self._shell.kind.via + b". %s\n" % (self.folder / name)

    def job_done(self, code: int, text: bytes, poisoned: bool) -> None:
        """The job is over; `text` is what the state has learned from it, if it has. `poisoned`: once it is saved the
        shell is to be replaced."""
        job, self.job = self.job, None
        assert job is not None
        self._code = code
        if self.state is not None:
            self.state.code = code
        if self._closed is not None:
            return
        self.outputs.let_go()
        self._poisoned = poisoned
        if self._shell is not None and not job.report.complete:
            self._awaited = job.report
            self._watch_dump(0)
        if text:
            self._learner.learn(self._exe, self._kind, text)
        self._rest()

    def _learned(self, found: dict[bytes, bytes]) -> None:
        self._functions.learn(found, self.state)
        if self._shell is not None and found:
            try:
                self._functions.ask(self._shell.kind)
            except OSError:
                self._poisoned = True  # it has lost its files: the next one will have them
        self._rest()

    def _rest(self) -> None:
        """Something is finished: tell what has changed, then go on."""
        if self._closed is not None:
            return
        if self.job is None and self._settled and self.state is not None:
            mark = KINDS[self.state.kind].fingerprint(self.state)
            if mark != self._told:
                self._told = mark
                self.on_state()
            if self._poisoned and self._shell is not None and not self.tree.live():
                self._poisoned = False
                self.leave()
                self._shell.kill()
        if self._settled:
            self._do_afterwards()
        self._go()
        if self.quiet:
            self.on_quiet()

    def tell_again(self) -> None:
        """There is a new link: the state that was told is told again."""
        if self._told is not None:
            self.on_state()
