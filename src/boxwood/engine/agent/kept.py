"""What a session keeps, whatever becomes of its shell: the state that was dumped last, and before the first dump what
the session was opened with; how a new shell gets that; and what is told of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from boxwood.engine.agent.dialects import KINDS, Dialect
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.functions import Functions
from boxwood.engine.agent.sourcing import Sourcing
from boxwood.engine.agent.state import Report, State

_MOST_NOTES = 20
_DEFAULTS = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"HOME": b"/root", b"USER": b"root", b"LOGNAME": b"root", b"LANG": b"C.UTF-8", b"TERM": b"dumb",
}  # fmt: skip


def opened_with(env: Mapping[bytes, bytes], cwd: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """Environment and directory of a session for which these are asked."""
    return {**_DEFAULTS, **env}, cwd or (b"/root" if os.path.isdir(b"/root") else b"/")


class Kept:
    """`state`: None before the first dump. `code`: of the last run. `notes`: what did not go well, told with the next
    state."""

    def __init__(self, folder: Folder, env: Mapping[bytes, bytes], cwd: bytes, state: State | None) -> None:
        self.state = state
        self.code = state.code if state is not None else 0
        self.notes: list[str] = []
        self._folder = folder
        self._env, self._cwd = opened_with(env, cwd)
        self._sourcing = Sourcing(folder)
        self._functions = Functions(folder, state.functions if state is not None else {})
        self._told: int | None = None  # fingerprint of the state that was told last

    def environment(self) -> dict[bytes, bytes]:
        """What the session exports, as of the last saved state."""
        if self.state is None:
            return dict(self._env)
        return KINDS[self.state.kind].exported(self.state.sections)

    def directory(self) -> bytes:
        return (self.state.sections[b"cwd"] if self.state is not None else self._cwd) or b"/"

    def note(self, text: str) -> None:
        self.notes = [*self.notes[1 - _MOST_NOTES :], text[:200]]

    # --- what a new shell is fed (OSError)

    def initial(self, kind: Dialect) -> bytes:
        """Where there is no state to go on from: environment and directory."""
        cwd = self._cwd if os.path.isdir(self._cwd) else b"/"
        if cwd != self._cwd:
            self.note(f"there is no directory {os.fsdecode(self._cwd)!r}")
        return self._sourcing.write(kind, kind.initial(self._env, cwd)) + kind.set_exit_trap(self._folder.path)

    def restoration(self, kind: Dialect, state: State, base: State) -> bytes:
        """What makes a bare shell (`base`) one of this state."""
        self._functions.ask(kind)
        feed = self._sourcing.write(kind, kind.restore(state, base, self.note))
        return feed if b" EXIT\n" in state.sections[b"traps"] else feed + kind.set_exit_trap(self._folder.path)

    def last_code(self, kind: Dialect) -> bytes:
        """What gives the next command the `$?` that it is to see."""
        if not self.code:
            return b""
        name = b"q%d" % self.code
        if not self._folder.has(name):
            self._folder.write(name, b"return %d\n" % self.code)
        return kind.via + b". %s\n" % (self._folder / name)

    # --- what becomes of it

    def reported(self, kind: Dialect, report: Report) -> State:
        """What a shell has said of itself, complete and not too large."""
        sections, arguments = report.sections()
        return State(kind.kind, kind.arm(sections, self._folder.path), arguments, code=self.code)

    def save(self, kind: Dialect, state: State) -> None:
        self._functions.answered(kind, state)
        self.state = state
        for line in self._sourcing.complaints():
            self.note(line)

    def ended_with(self, code: int) -> None:
        """The last run has."""
        self.code = code
        if self.state is not None:
            self.state.code = code

    def learn(self, found: Mapping[bytes, bytes]) -> None:
        """Functions that a run has defined."""
        self._functions.learn(found, self.state)

    def ask(self, kind: Dialect) -> None:
        """Have the shell's dumps tell which of the learned functions there still are. OSError."""
        self._functions.ask(kind)

    def shell_died(self) -> None:
        self._functions.shell_died()

    def begin_anew(self, why: str) -> None:
        """The state is no good any more: environment and directory are what is left of it."""
        self.note(why)
        self._env, self._cwd = self.environment(), self.directory()
        self.state = None
        self._functions.clear()

    # --- what is told of it

    def is_news(self) -> bool:
        """Is there a state that differs from the one of which this was last asked?"""
        if self.state is None:
            return False
        before, self._told = self._told, KINDS[self.state.kind].fingerprint(self.state)
        return self._told != before

    @property
    def was_told(self) -> bool:
        return self._told is not None
