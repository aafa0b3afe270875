"""The agent's event loop: descriptors, times, and the ends of children, in one thread.

PID 1 reaps always: whoever started a child and wants its status says so with `child()`, in the same turn; the status
of everybody else (orphans, children of children that died) is thrown away.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import time
from collections.abc import Callable

_LATE = 1.0  # seconds: so late nothing is unless all has stood still, or had no processor
IN, OUT, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP


class Timer:
    """A call that will be made at `when` (seconds of time.monotonic) unless it is cancelled."""

    __slots__ = ("callback", "made", "order", "when")

    def __init__(self, when: float, order: int, callback: Callable[[], None]) -> None:
        self.when = when
        self.made = time.monotonic()
        self.order = order
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.order) < (other.when, other.order)

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Callbacks run one after the other and must not block. What one of them raises ends `step`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._crowded = 64
        self._order = 0
        self._children: dict[int, Callable[[int], None]] = {}
        self.on_stranger: Callable[[int], None] = lambda status: None  # the end of a child that nobody knows
        self._wakeup, self._signals = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._previous = signal.signal(signal.SIGCHLD, _heard)
        self._previous_fd = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        self.watch(self._wakeup, IN, self._on_signal)

    # --- descriptors

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events (as of select.epoll) whenever there are any. Replaces an earlier watch of `fd`."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Before `fd` is closed. Events of this very turn are not delivered any more."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # --- times

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call once, not before the next turn. `when`: seconds of time.monotonic; in the past: in the next turn."""
        self._order += 1
        timer = Timer(when, self._order, callback)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > self._crowded:  # hours-long timeouts of runs that ended at once
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._crowded = max(64, 2 * len(self._timers))
        return timer

    def soon(self, callback: Callable[[], None]) -> Timer:
        return self.at(0.0, callback)

    def slept(self, since: float, until: float) -> None:
        """All has stood still from then to then: what was to come later comes so much later. Calls that are made as
        soon as can be stay that."""
        for timer in self._timers:
            if timer.when > 0 and timer.made < until:
                timer.when += max(0.0, until - since)
        heapq.heapify(self._timers)

    # --- children

    def child(self, pid: int, callback: Callable[[int], None]) -> None:
        """Hand over the wait status (as of os.waitpid) of a child, or of an orphan that came to us, when it ends."""
        self._children[pid] = callback

    def disown(self, pid: int) -> None:
        """Its status interests nobody any more."""
        self._children.pop(pid, None)

    def owns(self, pid: int) -> bool:
        return pid in self._children

    def reap(self) -> None:
        """Take all statuses that there are now, without waiting."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._children.pop(pid, self.on_stranger)(status)

    def _on_signal(self, events: int) -> None:
        try:
            while os.read(self._wakeup, 512):
                pass
        except BlockingIOError:
            pass
        self.reap()

    # --- turning

    def step(self, timeout: float | None = None) -> None:
        """One turn: wait for events, at most `timeout` seconds (None: as long as it takes), and call back."""
        now = time.monotonic()
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if self._timers:
            left = max(0.0, self._timers[0].when - now)
            timeout = left if timeout is None else min(timeout, left)
        self._hear(-1 if timeout is None else timeout)
        self._fire()

    def _hear(self, timeout: float) -> None:
        for fd, events in self._epoll.poll(timeout):
            callback = self._watched.get(fd)
            if callback is not None:
                callback(events)

    def _fire(self) -> None:
        now, newest = time.monotonic(), self._order
        postponed, has_heard = [], False
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            if 0 < timer.when < now - _LATE and not has_heard:
                heapq.heappush(self._timers, timer)
                self._hear(0)  # why it is so late may be what has come meanwhile
                has_heard = True
            elif timer.order > newest:
                postponed.append(timer)
            elif timer.callback is not None:
                callback, timer.callback = timer.callback, None
                callback()
        for timer in postponed:
            heapq.heappush(self._timers, timer)

    def run(self) -> None:
        while True:
            self.step()

    def close(self) -> None:
        """Give back what the loop took of the process; for loops that end before their process does."""
        signal.set_wakeup_fd(self._previous_fd)
        signal.signal(signal.SIGCHLD, self._previous)
        self._epoll.close()
        os.close(self._wakeup)
        os.close(self._signals)


def _heard(signum: int, frame: object) -> None:
    """SIGCHLD must have a handler for the wakeup descriptor to be written to."""
