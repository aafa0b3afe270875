"""A shell that outlives its runs, and a state that outlives the shell.

The shell comes up with the first run: a fresh one is fed its environment and the run in one go; one with a saved state
is first compared with a bare shell (`base`) and given the differences. After every run the state is dumped, after the
answer; whatever ends the shell, the next one goes on from the last dump (kept.py).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from boxwood.engine.agent.berth import Berth
from boxwood.engine.agent.common import Common
from boxwood.engine.agent.dialects import KINDS, Dialect, dialect
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.foreground import is_key, press, to_started
from boxwood.engine.agent.job import Job
from boxwood.engine.agent.kept import Kept
from boxwood.engine.agent.learner import Learner
from boxwood.engine.agent.outputs import Outputs
from boxwood.engine.agent.run import Command, Run
from boxwood.engine.agent.shell import Shell, find_shell
from boxwood.engine.agent.state import STATE_LIMIT, Report, State
from boxwood.engine.agent.terminal import Terminal
from boxwood.engine.agent.trees import Killing, ProcessTree, Vigil
from boxwood.engine.agent.watchdog import Watchdog


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
        self._kept = Kept(self.folder, env, cwd, state)
        self.tree = place.tree if isinstance(place, Berth) else ProcessTree(common.orphanage)
        self.tree.on_change = self._on_orphan
        self.job: Job | None = None
        self.on_state: Callable[[], None] = lambda: None
        self.on_quiet: Callable[[], None] = lambda: None
        self.saved_at_exit = False
        self._shell: Shell | None = None
        self._exe = b""
        self._kind: Dialect = KINDS[b"sh"]
        self._phase = "ready"  # or "base", "restoring": what the next report is; "leaving": it is being killed
        self._awaited: Report | None = None
        self._watchdog = Watchdog(common.loop, self.leave)
        self._pending: _Pending | None = None
        self._poisoned = False
        self.outputs = Outputs(common.loop, self.folder, place.outputs if isinstance(place, Berth) else None)
        self._terminal: Terminal | None = None
        self._waiting: Shell | None = None  # one that was started ahead
        if isinstance(place, Berth):
            self._waiting, self._terminal = place.shell, place.terminal
            place.terminal.on_output, place.terminal.is_full = self._on_terminal, self._is_full
        self._learner = Learner(common.loop, self._learned)
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

    @property
    def state(self) -> State | None:
        return self._kept.state

    @property
    def notes(self) -> list[str]:
        return self._kept.notes

    def note(self, text: str) -> None:
        self._kept.note(text)

    def environment(self) -> dict[bytes, bytes]:
        return self._kept.environment()

    def directory(self) -> bytes:
        return self._kept.directory()

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
        job = self.job
        if is_key(signum):
            plain = job is not None and not self._may_trap(job)
            return press(self.loop, self.tree, shell, signum, lambda: plain and self.job is job)
        if job is None:
            return self.tree.signal(self.tree.members({}) or [shell.pid], signum)
        return to_started(
            self.loop, self.tree, shell, signum, lambda: self.tree.members(job.before) if self.job is job else None
        )

    def _may_trap(self, job: Job) -> bool:
        """The run, or one before, has set a trap for interrupts, as far as can be seen."""
        traps = self.state.sections[b"traps"] if self.state is not None else b""
        return b"trap" in job.text or b"INT" in traps

    def kill_run(self, run: Run) -> None:
        """Kill all that this run has started; it then ends as killed."""
        if self.job is not None and self.job.run is run:
            self.job.kill("killed")
        elif self._pending is not None and self._pending.run is run:
            pending = self._take_pending()
            assert pending is not None
            pending.answer(OSError(errno.ECANCELED, "the run was killed before it began"))

    def close(self, done: Callable[[], None]) -> None:
        """Kill the shell and all that the session has left running; its run ends as killed."""
        if self._closed is not None:
            raise OSError(errno.EALREADY, "the session is being closed")
        self._closed = done
        if self.job is not None:
            self.job.doom()
        self._do_afterwards()
        self._learner.close()
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
                self._kept.begin_anew(
                    "the VM has another shell than before: its variables and functions were left behind"
                )
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

    def _begin(self, shell: Shell, kind: Dialect) -> None:
        state, base, early = self.state, self.common.bases.get(self._exe), kind.begin(os.uname().nodename)
        if state is None:
            shell.feed(early + self._kept.initial(kind))
        elif base is None:
            self._phase = "base"
            self._feed_and_wait(shell, early)
        else:
            self._restore(shell, early, state, base)

    def _restore(self, shell: Shell, early: bytes, state: State, base: State) -> None:
        self._phase = "restoring"
        self._feed_and_wait(shell, early + self._kept.restoration(shell.kind, state, base))

    def _feed_and_wait(self, shell: Shell, feed: bytes) -> None:
        self._awaited = shell.expect()
        shell.feed(feed + shell.kind.report(self.folder.path))
        self._watchdog.until_it_is_up(shell)

    # --- what the shell tells

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
            self._watchdog.cancel()
        if report.too_large:
            self.note(f"the state of the shell is larger than {STATE_LIMIT >> 20} MiB and was not saved")
            self._come_to_rest()
            return
        state = self._kept.reported(shell.kind, report)
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
        self._kept.save(shell.kind, state)

    def _come_to_rest(self) -> None:
        if self._phase != "leaving":  # a shell that has been killed may have had something left to say
            self._phase = "ready"

    def leave(self) -> None:
        """The shell has been killed: nothing more is started in it."""
        if self._shell is not None:
            self._phase = "leaving"

    def _on_death(self, code: int) -> None:
        self._shell = None
        self._watchdog.cancel()
        phase, self._phase, self._awaited = self._phase, "ready", None
        self._poisoned = False
        self._kept.shell_died()
        if self._closed is not None:
            self._close_down()
            return
        if phase == "base":
            self._fail(OSError(errno.ENOEXEC, f"the shell {os.fsdecode(self._exe)} ended at once with {code}"))
        elif phase == "restoring":
            self._kept.begin_anew("the shell died while its state was restored: it begins anew")
        if self.job is not None:
            self.job.on_death(code)
        else:
            self._rest()

    # --- runs

    def last_code(self, kind: Dialect) -> bytes:
        """What gives the next command the `$?` that it is to see. OSError."""
        return self._kept.last_code(kind)

    def job_done(self, code: int, text: bytes, poisoned: bool) -> None:
        """The job is over; `text` is what the state has learned from it, if it has. `poisoned`: once it is saved the
        shell is to be replaced."""
        job, self.job = self.job, None
        assert job is not None
        self._kept.ended_with(code)
        if self._closed is not None:
            return
        self.outputs.let_go()
        self._poisoned = poisoned
        if self._shell is not None and not job.report.complete:
            self._awaited = job.report
            self._watchdog.until_it_has_dumped(self._shell)
        if text:
            self._learner.learn(self._exe, self._kind, text)
        self._rest()

    def _learned(self, found: dict[bytes, bytes]) -> None:
        self._kept.learn(found)
        if self._shell is not None and found:
            try:
                self._kept.ask(self._shell.kind)
            except OSError:
                self._poisoned = True  # it has lost its files: the next one will have them
        self._rest()

    def _rest(self) -> None:
        """Something is finished: tell what has changed, then go on."""
        if self._closed is not None:
            return
        if self.job is None and self._settled and self.state is not None:
            if self._kept.is_news():
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
        if self._kept.was_told:
            self.on_state()
