"""One command in a session's shell, from its feeding until all that it spawned has ended.

Its output belongs to the run that is attached. That may end before the job does, when a program shows a prompt and
waits: the job then rests until the next run brings its input.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from boxwood.engine.agent.procs import stat
from boxwood.engine.agent.run import Command, Run
from boxwood.engine.agent.shell import Shell
from boxwood.engine.agent.terminal import Waiter
from boxwood.engine.agent.trees import Killing, Vigil

if TYPE_CHECKING:
    from boxwood.engine.agent.loop import Timer
    from boxwood.engine.agent.session import Session

_LOOKS = (0.02, 0.03, 0.05, 0.1, 0.2)  # seconds between looks at who waits for what; then the slowest
_SLOWEST = 0.25
_MOST_LOOKED_AT = 256
_BROKEN = b"boxwood: the command left the shell unable to go on; a new one takes its place, as it was before\n"


class Sieve:
    """Keeps back from stderr the lines of ours that the shell may have let through at its end, and looks out for what
    says that the shell has been harmed."""

    def __init__(self, leak: re.Pattern[bytes] | None, poison: bytes) -> None:
        self._leak = leak
        self._poison = poison
        self._edge = b""
        self.held = b""
        self.poisoned = False

    def __call__(self, data: bytes) -> bytes:
        if self._poison:
            self.poisoned = self.poisoned or self._poison in self._edge + data
            self._edge = data[-len(self._poison) :]
        if self._leak is None:
            return data
        data = self.held + data
        match = self._leak.search(data, max(0, len(data) - 4096))
        self.held = data[match.start() :] if match else b""
        return data[: match.start()] if match else data


class Job:
    def __init__(self, session: Session, shell: Shell, command: Command, run: Run) -> None:
        self._session = session
        self._loop = session.loop
        self._shell: Shell | None = shell
        self._command = command
        self._died: int | None = None
        self._broken = False
        self._killing = False
        self._reason = "exit"
        self._shot = False
        self._healed = self._asked = False
        self.before = session.tree.live()  # of earlier runs: neither waited for nor killed
        self._vigil = Vigil(self._loop, self.advance)
        self.run: Run | None = None
        self._timeout: Timer | None = None
        self._tick: Timer | None = None
        self._looks = 0
        self._seen: object = None
        self._told: set[Waiter] = set()  # who has been given end of file, or has shown the prompt that a run fed
        self._fed = False
        self._sieve = Sieve(None, b"")
        self._writers: list[int] = []
        self._over = False
        try:
            self._feed(shell, command, run)
        except OSError:
            self._let_go()
            raise
        self._attach(run, command)

    def _feed(self, shell: Shell, command: Command, run: Run) -> None:
        session, kind, d = self._session, shell.kind, self._session.folder.path
        session.folder.write(b"r", command.text + b"\n")
        if command.stdin is None:
            session.terminal.reset()
            stdin = session.terminal.path
        elif run.intake is not None:
            run.intake.attach(self._open_input(), has_reader=False)
            stdin = session.folder / b"i"
        else:
            session.folder.write(b"i", command.stdin)
            stdin = session.folder / b"i"
        self._sources = session.outputs.open()
        # Writers of our own, there until the status is: before that there is no end of file.
        for name in (b"o", b"e"):
            self._writers.append(session.folder.open_fifo(name, os.O_WRONLY))
        sections = session.state.sections if session.state is not None else {}
        flags = kind.flags(sections) if sections else set()
        self._traced = b"xtrace" in flags or b"verbose" in flags
        self._sieve = Sieve(None if self._traced else kind.leak, kind.poison)
        arm = kind.set_exit_trap(d) if sections and not sections[b"armed"] else b""
        before = session.last_code(kind) if b"errexit" not in flags else b""
        self.report = shell.expect()
        shell.feed(arm + kind.run(d, stdin, before, self._traced) + kind.report(d))

    def _open_input(self) -> int:
        """The writing end of a pipe that the shell will open. (A reader has to be there for that: ourselves.)"""
        folder = self._session.folder
        folder.fifo(b"i")
        both = folder.open_fifo(b"i", os.O_RDWR)
        try:
            return folder.open_fifo(b"i", os.O_WRONLY)
        finally:
            os.close(both)

    # --- runs come and go

    def _attach(self, run: Run, command: Command) -> None:
        self.run = run
        self._prompts, self._marker, self._marked = command.prompt, command.marker, -1
        if command.timeout:
            self._timeout = self._loop.at(time.monotonic() + command.timeout, lambda: self.kill("timeout"))
        out, err = self._sources
        out.flow(run)
        err.flow(run, self._sieve)
        self._looks = 0
        self._schedule()

    def take_input(self, run: Run, command: Command) -> None:
        """A run whose text is what the waiting program is to read."""
        self._seen, self._fed = None, True
        self._attach(run, command)
        self._session.terminal.feed(command.text + b"\n")

    def _detach(self, code: int | None, reason: str) -> None:
        run, self.run = self.run, None
        for timer in (self._timeout, self._tick):
            if timer is not None:
                timer.cancel()
        for source in self._sources:
            source.stop()
        if run is not None:
            run.finish(code, reason)

    # --- time

    def _schedule(self) -> None:
        pause = _LOOKS[self._looks] if self._looks < len(_LOOKS) else _SLOWEST
        self._looks += 1
        self._tick = self._loop.at(time.monotonic() + pause, self._on_tick)

    def _on_tick(self) -> None:
        if self.report.code is None and self._shell is not None and not self._killing:
            self._check(self._shell)
        if self.run is not None and self._marker and self.report.code is None and not self._killing:
            self._look_for_marker(self.run)
        if self.run is not None and self._command.stdin is None and not self._killing:
            self._look(self.run)
        if self.run is not None:
            self._schedule()

    def _check(self, shell: Shell) -> None:
        """Has the shell come back for more without a report? A blank line tells: fed when all before it has been read,
        it is read itself only when all has been executed. Then the shell is given a chance to heal itself, and after
        that it is replaced."""
        if not self._asked:
            if shell.has_read:
                shell.feed(b"\n")
                self._asked = True
        elif shell.came_back:
            if self._healed:
                self._broken = True
                shell.kill()
            else:
                shell.feed(shell.kind.heal(self._session.folder.path))
                self._healed, self._asked = True, False

    def _look_for_marker(self, run: Run) -> None:
        """Output that ends with the marker, and goes on ending so, is the end of the run."""
        marked = run.size if self._is_marked(run) else -1
        if marked >= 0 and marked == self._marked:
            self._detach(None, "prompt")
        elif marked >= 0:
            self._looks = min(self._looks, 1)
        self._marked = marked

    def _is_marked(self, run: Run) -> bool:
        return bool(self._marker) and any(tail.endswith(self._marker) for tail in run.tails)

    def _look(self, run: Run) -> None:
        """Who waits for input that nobody will type is given end of file; with a prompt shown, the run ends."""
        shell = [self._shell.pid] if self._shell is not None and self.report.code is None else []
        terminal = self._session.open_terminal
        if terminal is None:
            return
        members = self._session.tree.members(self.before, _MOST_LOOKED_AT)
        waiters = terminal.waiters(shell + members[:_MOST_LOOKED_AT])
        waiters = [waiter for waiter in waiters if waiter not in self._told]
        if not waiters or not terminal.taken or any(output.full for output in run.outputs):
            self._seen = None
            return
        if not any(waiter.locks for waiter in waiters):
            for source in self._sources:  # it wrote before it waited
                source.catch_up()
        seen = (waiters, run.size)
        steady, self._seen = seen == self._seen, seen
        reads, endless = any(waiter.reads for waiter in waiters), all(waiter.endless for waiter in waiters)
        alone = not reads and _is_all(waiters, members)
        if not steady:
            self._looks = min(self._looks, 1)
        if self._is_marked(run):
            return  # it shows what it was to show: no end of file
        if self._prompts and any(tail[-1:] not in (b"", b"\n") for tail in run.tails):
            if steady:
                self._told = set(waiters)
                self._detach(None, "prompt")
        elif (steady or (not self._fed and reads)) and (reads or alone or (endless and terminal.has_lines)):
            self._told = set(waiters)
            terminal.end_of_file()

    # --- ends

    def kill(self, reason: str) -> None:
        """Kill all that it spawned and, unless it has already reported, the shell."""
        if self._killing:
            return
        self._killing, self._reason = True, reason
        self._shot = self._shell is not None and self.report.code is None
        Killing(self._loop, self._session.tree, self.before, self._shot, self._on_killed)

    @property
    def text(self) -> bytes:
        return self._command.text

    def doom(self) -> None:
        """All that it has is about to be killed: whichever end it comes to, that is why."""
        self._reason = "killed"

    def _on_killed(self, shell_too: bool) -> None:
        self._killing = False
        if shell_too:
            self._session.leave()
        elif self._shell is not None:
            # bash says "Killed" before its next command: let that be this one
            self._shell.feed(self._shell.kind.via + b":\n")
        self.advance()

    def on_report(self) -> None:
        """The shell has said something. If that made no sense it is being killed."""
        if self.report.garbled and self.report.code is None:
            self._broken = True
        self.advance()

    def on_death(self, code: int) -> None:
        self._shell, self._died = None, code
        self.advance()

    def advance(self) -> None:
        """Is it over?"""
        if self._over or self._killing or (self.report.code is None and self._died is None):
            return
        self._let_go()
        while True:
            live = self._session.tree.live()
            ours = {pid for pid, start in live.items() if self.before.get(pid) != start}
            if not ours:
                self._finish()
                return
            if self._vigil.keep(ours):
                return

    def _let_go(self) -> None:
        for fd in self._writers:
            os.close(fd)
        self._writers = []

    def _finish(self) -> None:
        self._over = True
        self._vigil.close()
        for source in self._sources:
            source.catch_up()
        if self._session.open_terminal is not None and not self._session.open_terminal.is_full():
            self._session.open_terminal.catch_up()
        if self.run is not None:
            self._put_rest(self.run)
        code = self._code()
        reason = "broken" if self._broken and self._reason == "exit" else self._reason
        self._detach(124 if reason == "timeout" else code, reason)
        self._session.job_done(code, self._command.text if self._kept else b"", self._sieve.poisoned)

    def _put_rest(self, run: Run) -> None:
        if self._sieve.held:
            tracing = self.report.code is not None and set(b"xv") & set(self.report.flags)
            if not tracing:
                run.put(2, self._sieve.held)
        if self._broken:
            run.put(2, _BROKEN)

    def _code(self) -> int:
        if self.report.code is not None:
            return self.report.code
        if self._broken or self._died is None:
            return 2
        if self._shot and self._reason == "timeout":
            return 124
        return self._died if self._died >= 0 else 128 - self._died

    @property
    def _kept(self) -> bool:
        """Does the session's state include what this job did?"""
        return self.report.code is not None or self._session.saved_at_exit

    def abandon(self) -> None:
        """The session is being closed and all is dead."""
        self._over = True
        self._vigil.close()
        self._let_go()
        self._detach(137, "killed")


def _is_all(waiters: list[Waiter], members: list[int]) -> bool:
    """Is there nobody else in the job but those who wait for these? Who polls may look at the terminal while a child
    of his works, and have set it up for the child: apt does, for dpkg."""
    those = {waiter.pid for waiter in waiters}
    for pid in list(those):
        while (found := stat(pid)) is not None and found.ppid in members and found.ppid not in those:
            pid = found.ppid
            those.add(pid)
    return those.issuperset(members)
