"""Processes prepared for boxes to come: with everything that a box needs but its VM.

Made when nobody has asked for anything for a moment, since whoever waits for a box comes first.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from boxwood.engine import birth, box
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.disk import image
from boxwood.engine.network.uplink import Uplink
from boxwood.engine.network.wire import Wire
from boxwood.engine.nursery import Nursery
from boxwood.engine.overlay import Places
from boxwood.engine.peer import Refused
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
    number: int  # of the nursery
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
    durable: bool = False  # its end flushes the file system that its top lies in
    mounts: int | None = None  # its mount namespace, held while it dies
    network: int | None = None  # its network namespace, where we may not look at it
    door: socket.socket | None = None  # from which these come, where we may not look at it: without root

    def entry(self) -> int:
        """What its mount namespace is entered by: a descriptor, which stays ours."""
        self._open_door()
        return self.pidfd if self.mounts is None else self.mounts

    def network_entry(self) -> int:
        """… and its network namespace."""
        self._open_door()
        return self.pidfd if self.network is None else self.network

    def _open_door(self) -> None:
        if self.door is not None and self.mounts is None:
            _, ancillary, *_ = self.door.recvmsg(1, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
            if ancillary:
                self.mounts, self.network = struct.unpack("2i", ancillary[0][2])

    def take_link(self, link: int) -> None:
        """Hand its agent another link to the server. Refused, OSError."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [link]))]
        try:
            self.hook.sendmsg([b"L"], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Refused("the agent does not take its new link") from None

    def rename(self, hostname: str, ours: int) -> None:
        """Another hostname, at once. `ours`: a descriptor of the namespace of names that we come back to. OSError."""
        k.setns(self.pidfd, k.NEWUTS)
        try:
            k.sethostname(hostname)
        finally:
            k.setns(ours, k.NEWUTS)
        self.hostname = hostname

    def become(self, plan: bytes, link: int, disks: Sequence[image.Attached]) -> None:
        """Tell a prepared process what it is to become, with what only we can open. Refused, OSError."""
        fds = [link, *(fd for disk in disks for fd in (disk.file, disk.device))]
        if len(fds) >= birth.DESCRIPTORS:
            raise Refused(f"{len(disks)} of its layers lie in files of their own, which are being moved out: try again")
        sysfs = os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if disks else -1
        try:
            rights = array.array("i", [*fds, sysfs] if disks else fds)
            self.hook.sendmsg([plan], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
        finally:
            if sysfs >= 0:
                os.close(sysfs)


class Spares:
    """`on_made`: is told of each; `discard_cgroup`: of one that was not. `may_look`: into a box's namespaces by its
    process, which takes root."""

    def __init__(
        self,
        nursery: Nursery,
        stage: str,
        places: Places | None,
        ranges: RangeMaker,
        uplink: Uplink,
        on_made: Callable[[Live], None],
        discard_cgroup: Callable[[str], None],
        *,
        may_look: bool,
    ) -> None:
        self._nursery = nursery
        self._stage = stage
        self._places = places
        self._ranges = ranges
        self._uplink = uplink
        self._on_made = on_made
        self._discard_cgroup = discard_cgroup
        self._may_look = may_look
        self._bound = Limits().pids  # of processes, where no cgroup holds it: those who ask all want the same
        self._all: list[Live] = []
        self._pause_until = 0.0
        self._told = ""  # what was in the way last
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
        if time.monotonic() < self._pause_until:
            return
        try:
            self._prepare(idle=True)
            self._told = ""
        except (OSError, RuntimeError) as error:  # the host is short of something: no reason to die with all boxes
            if (what := str(error)) != self._told:  # which may last for days
                self._told = what
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
        fit = (
            live
            for live in self._all
            if (not self._cgroups.pids_elsewhere or live.limits.pids == pids) and not _is_dying(live)
        )
        return next(fit, None) or self._prepare()

    def remove(self, live: Live) -> None:
        self._all.remove(live)

    def _prepare(self, *, idle: bool = False) -> Live:
        """A process with everything a box needs but its VM. `idle`: made when nobody else wants the processor."""
        assert self._cgroups is not None
        range_, group = self._ranges.take(), new_ulid()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._ranges.give_back(range_)
            raise
        ours.shutdown(socket.SHUT_RD)
        limits = Limits(pids=self._bound)
        wire = self._uplink.wire(range_) if self.wired else None
        try:
            cgroups = [f"{directory}/{self._cgroups.door}" for directory in self._cgroups.make(group, limits)]
            processes = limits.pids if self._cgroups.pids_elsewhere else 0
            door = shown = None
            if not self._may_look:
                door, shown = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with shown or nullcontext():
                ground = box.Ground(range_, tuple(cgroups), self._stage, self._seccomp, self._places, wire, processes)
                birth.send_ground(ours, ground, shown)
            born = self._nursery.fork(theirs, idle=idle)
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
        live = Live(*born, ours, range_, group, wire=wire, address=address, limits=limits, door=door)
        self._all.append(live)
        self._on_made(live)
        return live


def _is_dying(live: Live) -> bool:
    """Somebody has killed it: it holds its end of the hook no more, though its end may not have been reported yet."""
    if live.hook.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(live.hook, 0)  # what is always told: POLLHUP, POLLERR
    return bool(poll.poll(0))
