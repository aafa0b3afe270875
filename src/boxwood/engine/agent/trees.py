"""Trees of processes: who descends from whom, and how all of a tree is killed.

A root is a child subreaper (see procs.py); when it dies, its children come to PID 1, the agent, and the `Orphanage`
hands them to the tree they belong to.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping

from boxwood.engine.agent.loop import IN, Loop, Timer
from boxwood.engine.agent.procs import children, stat

_EAGER_ROUNDS = 100
_WATCHED = 4
_READINGS = 20
_SECONDS_BETWEEN = 0.05


class Orphanage:
    """Knows to which tree an orphan that came to us belongs."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._roots: dict[int, ProcessTree] = {}  # pids of roots, dead ones too: ids of groups below them
        self._suspect: ProcessTree | None = None
        loop.on_stranger = lambda status: self.collect(self._suspect)  # it may have left orphans in its turn

    def register(self, pid: int, tree: ProcessTree) -> None:
        self._roots[pid] = tree

    def forget(self, tree: ProcessTree) -> None:
        self._roots = {pid: t for pid, t in self._roots.items() if t is not tree}

    def collect(self, suspect: ProcessTree | None) -> None:
        """Hand out the orphans among our children. One comes only when a root or a known orphan has died, so one
        without a telling group belongs to the tree of whoever did: `suspect`."""
        self._suspect = suspect
        listed: list[int] = []
        while listed != (listed := children(os.getpid(), threads=False)):  # it is not read in one instant
            for pid in listed:
                found = None if self.loop.owns(pid) else stat(pid)
                if found is not None:
                    tree = self._roots.get(found.sid) or self._roots.get(found.pgid) or suspect
                    if tree is not None:
                        tree.adopt(pid, found.start)


class ProcessTree:
    """A root process (a shell, a command), all that descends from it, and the orphans of roots that died."""

    def __init__(self, orphanage: Orphanage) -> None:
        self._orphanage = orphanage
        self.root: int | None = None
        self.orphans: dict[int, int] = {}  # pid -> start time
        self._zombies: set[int] = set()  # below the root
        self.on_change: Callable[[], None] = lambda: None  # an orphan has ended
        self.group: Callable[[], int | None] = lambda: self.root  # the process group that most of it is in

    def grow(self, pid: int) -> None:
        """There is a root now: a child of ours."""
        self.root = pid
        self._orphanage.register(pid, self)

    def root_died(self) -> None:
        self.root = None
        self._zombies.clear()
        self._orphanage.collect(self)
        self._tidy()

    def let_go(self) -> None:
        """The root lives on, with nothing below it, and is to be the root of something else."""
        self.root = None
        self._zombies.clear()
        self._tidy()

    def adopt(self, pid: int, start: int) -> None:
        self.orphans[pid] = start
        self._orphanage.loop.child(pid, lambda status: self._orphan_died(pid))

    def _orphan_died(self, pid: int) -> None:
        self.orphans.pop(pid, None)
        self._orphanage.collect(self)  # it may have left orphans in its turn
        self._tidy()
        self.on_change()

    def _tidy(self) -> None:
        if self.root is None and not self.orphans:
            self._orphanage.forget(self)

    def live(self) -> dict[int, int]:
        """The live processes directly below the root, and the orphans: pid -> start time. None: all is dead.

        A root that is dead but not yet reaped counts: what was below it is on its way to us."""
        live = self._below(self.root) if self.root is not None else {}
        if self.root is not None and not live and _is_dead(self.root):
            return {self.root: 0}
        while dead := [pid for pid in self.orphans if _is_dead(pid)]:
            for pid in dead:
                os.waitpid(pid, os.WNOHANG)
                self._orphanage.loop.disown(pid)
                del self.orphans[pid]
            self._orphanage.collect(self)
        return {**live, **self.orphans}

    def _below(self, root: int) -> dict[int, int]:
        """The direct children of the root that are not dead.

        If there are none, then nothing at all is alive below a subreaper: a child that dies hands its own children up
        in the same instant. But the list is not read in one instant: an entry that goes away meanwhile may hide the
        next one, and one found dead may just have handed up its children. So "none" is only believed of a list that is
        the same when read again, and whose entries all are zombies. A list without any entry is believed at once: its
        beginning is its end. Zombies are remembered: a shell that waits for input leaves them lying about by the
        thousand.
        """
        listed = children(root, threads=False)
        if not listed:
            self._zombies.clear()
            return {}
        for _ in range(_READINGS):
            self._zombies.intersection_update(listed)
            found = {pid: stat(pid) for pid in listed if pid not in self._zombies}
            self._zombies.update(pid for pid, s in found.items() if s is not None and s.state in "ZX")
            live = {pid: s.start for pid, s in found.items() if s is not None and s.state not in "ZX"}
            if live:
                return live
            before, listed = listed, children(root, threads=False)
            if listed == before and None not in found.values():
                return {}
        return dict.fromkeys(listed[-1:], 0)  # they come and go: look again, later

    def members(self, but: Mapping[int, int], most: int = 1 << 20) -> list[int]:
        """All below the root, parents first, without `but` and what is below these."""
        found = [pid for pid, start in self.live().items() if but.get(pid) != start]
        seen = set(found)
        for pid in found:
            if len(found) >= most:
                break
            below = [child for child in children(pid) if child not in seen]
            seen.update(below)
            found += below
        return found

    def strike(self, but: Mapping[int, int]) -> list[int]:
        """Kill all below the root without `but` and what is below these: who was hit. The youngest go first: a chain of
        forks must not be faster than we."""
        below = children(self.root, threads=False) if self.root is not None else []
        hit = []
        for pid in (*reversed(below), *list(self.orphans)):
            if pid in self._zombies:
                continue
            found = stat(pid)
            if found is not None and found.state in "ZX":
                self._zombies.add(pid)
            elif found is not None and but.get(pid) != found.start:
                self.signal([pid], signal.SIGKILL)
                hit.append(pid)
        seen = set(hit)
        for pid in hit:
            for child in children(pid):
                if child not in seen:
                    seen.add(child)
                    hit.append(child)
                    self.signal([child], signal.SIGKILL)
        return hit

    def in_group(self, pgid: int) -> list[int]:
        return [pid for pid in self.members({}) if (found := stat(pid)) is not None and found.pgid == pgid]

    def signal(self, pids: list[int], signum: int) -> bool:
        """True: at least one was there to hear it."""
        heard = False
        for pid in pids:
            try:
                os.kill(pid, signum)
                heard = True
            except (ProcessLookupError, PermissionError):
                pass
        return heard


def _is_dead(child: int) -> bool:
    """Has a child of ours ended? It stays to be reaped."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Killing:
    """Kill all members of a tree but some, in rounds, and with `and_root` the root. Calls `done` when all is dead, with
    whether the root was killed too.

    The root is stopped first and killed last: as long as it exists, orphans come to it and are found in the next
    round. Who still replaces himself faster than he is killed loses the root too, and then his whole group at once;
    who merely takes his time to die does not.
    """

    def __init__(
        self, loop: Loop, tree: ProcessTree, but: Mapping[int, int], and_root: bool, done: Callable[[bool], None]
    ) -> None:
        self._loop = loop
        self._tree = tree
        self._but = but
        self._and_root = and_root
        self._root = tree.root
        self._done = done
        self._rounds = 0  # in which there was somebody new
        self._waits = 0
        self._hit: set[int] = set()
        self._took_root = False
        if and_root:
            self._signal_root(signal.SIGSTOP)
        self._round()

    def _round(self) -> None:
        hit = self._tree.strike(self._but) or self._tree.members(self._but)
        if hit:
            if self._hit.issuperset(hit):
                self._waits += 1
                pause = min(0.0005 * self._waits, 0.05)
            else:
                self._hit.update(hit)
                self._rounds += 1
                pause = 0.0 if self._rounds < 2 * _EAGER_ROUNDS else min(0.001 * self._rounds, 0.25)
                if self._rounds >= _EAGER_ROUNDS:
                    self._strike_group()
            self._loop.at(time.monotonic() + pause, self._round)
            return
        if self._and_root:
            self._signal_root(signal.SIGKILL)
        self._done(self._took_root)

    def _signal_root(self, signum: int) -> None:
        if self._root is not None and self._root == self._tree.root:
            self._tree.signal([self._root], signum)
            self._took_root = self._took_root or signum == signal.SIGKILL

    def _strike_group(self) -> None:
        """The kernel lets nobody escape from a group by a fork. But what is to live must not be in it."""
        self._signal_root(signal.SIGKILL)
        spared = {found.pgid for pid in self._but if (found := stat(pid))}
        for group in {self._root, self._tree.group()} - spared:
            if group is not None:
                self._tree.signal([-group], signal.SIGKILL)


class Vigil:
    """Calls back when one of some processes has ended, so that it is time to look who still lives."""

    def __init__(self, loop: Loop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._pidfds: dict[int, int] = {}
        self._again: Timer | None = None

    def keep(self, pids: set[int]) -> bool:
        """Watch a few of these (all must end anyway). False: one has ended meanwhile; look again."""
        for pid in set(self._pidfds) - pids:
            self._drop(pid)
        for pid in pids - set(self._pidfds):
            if len(self._pidfds) >= _WATCHED:
                break
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                return False
            except OSError:  # no descriptors or memory left: then by looking again
                self._again = self._again or self._loop.at(time.monotonic() + _SECONDS_BETWEEN, self._look_again)
                return True
            self._pidfds[pid] = fd
            self._loop.watch(fd, IN, lambda events, pid=pid: self._ended(pid))  # type: ignore[misc]
        return True

    def _look_again(self) -> None:
        self._again = None
        self._callback()

    def _ended(self, pid: int) -> None:
        self._drop(pid)
        self._callback()

    def _drop(self, pid: int) -> None:
        fd = self._pidfds.pop(pid)
        self._loop.unwatch(fd)
        os.close(fd)

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        for pid in list(self._pidfds):
            self._drop(pid)
