"""Signals to the foreground of a shell; and to somebody who has missed one since he was just starting.

Between bash's fork and the new program there is a moment in which the child still has the shell's own way of hearing a
signal, and what it hears then is lost: the shell goes by what becomes of its child, so all goes on as if nothing had
been sent. Or the shell hears it, forks all the same since that is how far it was, and is to end when its child has,
which has heard nothing. Whoever lives after a signal though it would have ended him has missed it, and gets it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Sequence

from boxwood.engine.agent.loop import Loop
from boxwood.engine.agent.procs import children, read_proc, stat
from boxwood.engine.agent.shell import Shell
from boxwood.engine.agent.trees import ProcessTree

_LOOKS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.3)  # seconds after the one before
_YOUNG = 0.5  # seconds: who is older has long become what he is
_MOST = 64  # children that are looked at
_KEYS = {signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGSTOP, signal.SIGCONT}
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE}
_TICKS = os.sysconf("SC_CLK_TCK")
_MASKS = re.compile(rb"(?m)^(?:SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\s+([0-9a-f]+)$")


def is_key(signum: int) -> bool:
    """Is it one that a terminal's key sends, or its opposite?"""
    return signum in _KEYS


def press(loop: Loop, tree: ProcessTree, shell: Shell, signum: int, plain: Callable[[], bool]) -> bool:
    """As a key: to the shell's group and, under `set -m`, its newest job's. `plain`: the shell still has the run that
    is meant, and nothing that would keep an interrupt from ending it. False: nobody is there."""
    found = [s for pid in children(shell.pid) if (s := stat(pid)) and s.state not in "ZX"]
    jobs = sorted((s for s in found if s.pgid != shell.pid), key=lambda s: s.start)
    groups = [-s.pgid for s in jobs[-1:] if s.pgid > 1]
    if signum != signal.SIGINT:
        return tree.signal([*groups, -shell.pid], signum)
    alone, meant = not found, _beginners(children(shell.pid, threads=False))
    delivered = tree.signal([*groups, -shell.pid], signum)

    def others() -> list[int]:
        return tree.in_group(shell.pid) if not shell.alive or (alone and plain()) else []

    _Echo(loop, signum, meant, others)
    return delivered


def to_started(
    loop: Loop, tree: ProcessTree, shell: Shell, signum: int, members: Callable[[], list[int] | None]
) -> bool:
    """To `members()`, those whom the run has started (None: it has ended). One that has started nobody yet is given
    time for it, since the shell itself ignores most; then the shell gets it. False: nobody is there."""
    looks = iter(_LOOKS)

    def again() -> None:
        send()

    def send() -> bool:
        found = members()
        if found:
            meant = _beginners(found) if signum in _ENDING else []
            delivered = tree.signal(found, signum)
            _Echo(loop, signum, meant, list)
            return delivered
        pause = next(looks, None)
        if found is not None and pause is not None:
            loop.at(time.monotonic() + pause, again)
        elif found is not None:
            return tree.signal([shell.pid], signum)
        return True

    return send()


def _beginners(pids: list[int]) -> list[tuple[int, int]]:
    """Those who may not be yet what they are to be: pids and start times. Asked before a signal is sent: who comes
    later is not meant by it."""
    since = (time.clock_gettime(time.CLOCK_BOOTTIME) - _YOUNG) * _TICKS
    found = ((pid, known.start) for pid in pids[-_MOST:] if (known := stat(pid)))
    return [(pid, start) for pid, start in found if start >= since]


class _Echo:
    """Sends a signal again to those of `meant` who have missed it, as soon as that can be told; and to `others()`, whom
    a shell that is to end of it has started all the same."""

    def __init__(
        self, loop: Loop, signum: int, meant: Sequence[tuple[int, int]], others: Callable[[], Iterable[int]]
    ) -> None:
        self._loop = loop
        self._signum = signum
        self._meant = list(meant)
        self._others = others
        self._looks = iter(_LOOKS)
        self._later()

    def _later(self) -> None:
        pause = next(self._looks, None)
        if pause is not None:
            self._loop.at(time.monotonic() + pause, self._look)

    def _look(self) -> None:
        for pid, start in list(self._meant):
            known = stat(pid)
            if known is None or known.start != start or known.state in "ZX":
                self._meant.remove((pid, start))
            elif self._has_missed(pid):
                self._meant.remove((pid, start))
                self._send(pid)
        for pid in self._others():
            if self._has_missed(pid):
                self._send(pid)
        self._later()

    def _send(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, self._signum)

    def _has_missed(self, pid: int) -> bool:
        """Would the signal end this process, and none waits for it? (Its masks: none of them has it.)"""
        masks = _MASKS.findall(read_proc(f"/proc/{pid}/status"))
        return len(masks) == 5 and not any(int(mask, 16) >> (self._signum - 1) & 1 for mask in masks)
