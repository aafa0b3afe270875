"""Processes prepared for boxes to come: with everything that a box needs but its VM.

Made when nobody has asked for anything for a moment, since whoever waits for a box comes first.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from boxwood.engine import birth, box
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroup import Cgroups
from boxwood.engine.network.uplink import Uplink
from boxwood.engine.network.wire import Wire
from boxwood.engine.overlay import Places
from boxwood.engine.ranges import BoxRange, RangeMaker
from boxwood.engine.ulid import new_ulid

_AHEAD = 4
_QUIET = 0.002  # seconds without a request after which they are made
_PAUSE = 1.0  # seconds until one is prepared again, after it failed


@dataclass(slots=True)
class Live:
    """A process that is a box, or prepared to become one (then `box` is empty): what the zygote holds of it."""

    pid: int
    pidfd: int
    hook: socket.socket
    range: BoxRange
    group: str  # the name of its cgroups
    box: str = ""
    vm: str = ""  # empty also of a box that was booted ahead of its VM
    top: str = ""
    read_only: bool = False
    hostname: str = ""
    wire: Wire | None = None  # it has, or is to have
    address: str = ""  # that has been its own at any time: not free before the network has forgotten it
    limits: Limits = Limits()  # what its cgroups have: these too when it was prepared
    loop: int = -1  # the number of the loop device of its top, if that lies in a file
    project: int = 0  # of its top, where the file system has quotas
    mounts: int | None = None  # its mount namespace, held while it dies


class Spares:
    """`on_made`: is told of each; `discard_cgroup`: of one that was not. `may_return`: to the process namespace and
    the scheduling that we come from, which takes root."""

    def __init__(
        self,
        stage: str,
        places: Places | None,
        ranges: RangeMaker,
        uplink: Uplink,
        on_made: Callable[[Live], None],
        discard_cgroup: Callable[[str], None],
        *,
        may_return: bool,
    ) -> None:
        self._stage = stage
        self._places = places
        self._ranges = ranges
        self._uplink = uplink
        self._on_made = on_made
        self._discard_cgroup = discard_cgroup
        self._may_return = may_return
        self._bound = Limits().pids  # of processes, where no cgroup holds it: those who ask all want the same
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._all: list[Live] = []
        self._pause_until = 0.0
        self._seccomp = b""
        self._cgroups: Cgroups | None = None
        self.wired = True  # did who asked for a box last want the network?

    def configure(self, seccomp: bytes, cgroups: Cgroups, *, wired: bool) -> None:
        self._seccomp, self._cgroups, self.wired = seccomp, cgroups, wired

    def __iter__(self) -> Iterator[Live]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def wanted(self) -> bool:
        ready = bool(self._seccomp) and not self._uplink.starting  # a wire that is there already is no work later
        return ready and len(self._all) < _AHEAD

    @property
    def patience(self) -> float:
        """Seconds without a request until the next is to be made."""
        return max(_QUIET, self._pause_until - time.monotonic())

    def make_ahead(self) -> None:
        """One more, if it is time."""
        if time.monotonic() >= self._pause_until:
            try:
                self._prepare(idle=True)
            except (OSError, RuntimeError):  # the host is short of something: no reason to die, and all boxes with us
                traceback.print_exc()
                self._pause_until = time.monotonic() + _PAUSE

    def next(self, pids: int) -> Live:
        """The one that has had most time; it stays one of these until it is taken out. `pids`: the bound of its
        processes. OSError, RuntimeError."""
        assert self._cgroups is not None
        if self._cgroups.pids_elsewhere and pids != self._bound:
            self._bound = pids
            for live in self._all:
                live.hook.close()  # it is never needed, and ends
        fit = (live for live in self._all if not self._cgroups.pids_elsewhere or live.limits.pids == pids)
        return next(fit, None) or self._prepare()

    def remove(self, live: Live) -> None:
        self._all.remove(live)

    def _prepare(self, *, idle: bool = False) -> Live:
        """A process with everything a box needs but its VM. `idle`: made when nobody else wants the processor."""
        assert self._cgroups is not None
        range_, group = self._ranges.take(), new_ulid()
        limits = Limits(pids=self._bound)
        wire = self._uplink.wire(range_) if self.wired else None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.shutdown(socket.SHUT_RD)
        try:
            cgroups = [f"{directory}/{self._cgroups.door}" for directory in self._cgroups.make(group, limits)]
            processes = limits.pids if self._cgroups.pids_elsewhere else 0
            ground = box.Ground(range_, tuple(cgroups), self._stage, self._seccomp, self._places, wire, processes)
            if self._may_return:
                pid = self._fork_in_new_namespace(ground, theirs, idle)
            else:
                pid = _fork_through_another(ground, theirs)
            pidfd = pidfd_of(pid)
        except BaseException:
            ours.close()
            if wire is not None:  # it may have been made
                self._uplink.ended(range_, wire.address)
            else:
                self._ranges.give_back(range_)
            self._discard_cgroup(group)
            raise
        finally:
            theirs.close()
        address = wire.address if wire else ""
        live = Live(pid, pidfd, ours, range_, group, wire=wire, address=address, limits=limits)
        self._all.append(live)
        self._on_made(live)
        return live

    def _fork_in_new_namespace(self, ground: box.Ground, hook: socket.socket, idle: bool) -> int:
        k.unshare(k.NEWPID)  # for the children of this process, which stays where it is
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    if idle:
                        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                    birth.live_as_box(ground, hook)
                finally:
                    os._exit(72)  # whatever happens, a child does not go on as a second zygote
        finally:
            k.setns(self._pid_namespace, k.NEWPID)
        return pid


def _fork_through_another(ground: box.Ground, hook: socket.socket) -> int:
    """A process in a new process namespace by way of one that is left in it; it becomes our child when that has ended,
    and begins only then, since the end of its first parent is no reason for it to die."""
    told, tell = os.pipe()
    waiting, go = os.pipe()
    k.set_subreaper(True)
    try:
        between = os.fork()
        if between == 0:
            try:
                k.unshare(k.NEWPID)
                if pid := os.fork():
                    os.write(tell, b"%d" % pid)
                else:
                    os.close(go)
                    if os.read(waiting, 1):
                        birth.live_as_box(ground, hook)
            finally:
                os._exit(72)
        os.close(tell)
        tell = -1
        said = os.read(told, 16)
        os.waitpid(between, 0)
        if not said:
            raise OSError(errno.EAGAIN, "a process namespace could not be made")
        os.write(go, b"x")
        return int(said)
    finally:
        k.set_subreaper(False)
        for fd in (told, tell, waiting, go):
            if fd >= 0:
                os.close(fd)


def pidfd_of(pid: int) -> int:
    """Of a child. Without one its end would not be heard of, so then there is no child either."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
