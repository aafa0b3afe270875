"""The functions of a shell that cannot list its own (dash, busybox): learned from the texts of runs (learner.py), and
forgotten when a dump of the shell's state says that they are none any more."""

from __future__ import annotations

from collections.abc import Mapping

from boxwood.engine.agent.dialects import Dialect, Posix
from boxwood.engine.agent.folder import Folder
from boxwood.engine.agent.state import State


class Functions:
    def __init__(self, folder: Folder, known: Mapping[bytes, bytes]) -> None:
        self._folder = folder
        self._texts = dict(known)
        self._asked: frozenset[bytes] = frozenset()  # those that D/n asks for
        self._question = 0  # its number

    def learn(self, found: Mapping[bytes, bytes], state: State | None) -> None:
        self._texts.update(found)
        if state is not None:
            state.functions = self._texts

    def clear(self) -> None:
        self._texts.clear()

    def ask(self, kind: Dialect) -> None:
        """Have the shell's dumps tell which of those we know there still are. OSError."""
        if isinstance(kind, Posix) and self._texts.keys() != self._asked:
            self._asked = frozenset(self._texts)
            self._question += 1
            self._folder.write(b"n", kind.ask(self._texts, self._folder.path, self._question))

    def answered(self, kind: Dialect, state: State) -> None:
        """A dump has come: take the answer out of its sections, and what it says into the functions."""
        if not isinstance(kind, Posix):
            return
        mark, _, told = state.sections[b"known"].partition(b"\n")
        known = {line.split(b" ", 1)[0] for line in told.split(b"\n") if b"function" in line}
        if mark == b"#%d" % self._question:  # else the shell was asked before the newest ones were known
            for name in self._asked - known:
                self._texts.pop(name, None)
        state.sections[b"known"] = told
        state.functions = self._texts

    def shell_died(self) -> None:
        self._asked = frozenset()
