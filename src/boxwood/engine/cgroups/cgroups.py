"""The limits of boxes, whatever version of cgroups holds them."""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from boxwood.engine.api import Limits
from boxwood.engine.cgroups import files, orphans
from boxwood.engine.ulid import checked, is_ulid

CPU_PERIOD_US = 100_000  # the kernel's default
MIN_CPU_QUOTA_US = 1_000  # the kernel's minimum
IO_WEIGHT = 100  # the kernel's default, and so what everything else on the host has


class LimitUnavailable(RuntimeError):
    """The host has no controller for a limit that was asked for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a box uses now; None where this host does not count it."""

    memory_bytes: int | None
    pids: int | None
    cpu_seconds: float | None
    oom_kills: int | None


class Cgroups(ABC):
    """The cgroups of one instance. `controllers`: which of memory, cpu, pids and freezer this host has.

    `door`: the file of a group to which a process writes "0" to join. `io_weight`: the share of the disk's time that
    each box has, beside 100 of everything else; None: this host's cgroups share out none. `unified`: where version 2
    is mounted, if it is what is used. `pids_elsewhere`: whoever makes a box sees to the bound of its processes, once.
    `how`: how the host gives more than this.
    """

    controllers: frozenset[str]
    door = "cgroup.procs"
    io_weight: int | None = None
    unified: str | None = None
    pids_elsewhere = False
    how = ""

    def __init__(self) -> None:
        self._held: list[int] = []  # of the group of the instance in each hierarchy

    def make(self, box: str, limits: Limits) -> list[str]:
        """The directories that the box's first process joins, limits set. LimitUnavailable, OSError."""
        self._check(limits)
        made: list[str] = []
        try:
            for parent in self._parents():
                os.mkdir(f"{parent}/{checked(box)}", 0o755)
                made.append(f"{parent}/{box}")
            for directory in made if self.io_weight is not None else ():
                files.weigh(directory, self.io_weight or IO_WEIGHT)
            self._limit(box, limits)
        except BaseException:
            for directory in made:  # not those of a box that has this id already
                os.rmdir(directory)
            raise
        return made

    def limit(self, box: str, limits: Limits, before: Limits) -> None:
        """Set the limits of a group that has had others, or none. LimitUnavailable, OSError."""
        self._check(limits)
        self._lift(checked(box), limits, before)
        self._limit(box, limits)

    def change(self, box: str, limits: Limits, before: Limits) -> None:
        """Other limits for a box that lives: all of them or none. LimitUnavailable (also: it uses more memory already,
        which is not taken from it), OSError."""
        if self.pids_elsewhere and limits.pids != before.pids:
            raise LimitUnavailable(f"the bound of processes of a box that lives cannot be changed{self.how}")
        if limits.memory_mib and not self._has_room(checked(box), limits.memory_mib << 20):
            raise LimitUnavailable(f"its processes use more than {limits.memory_mib} MiB of memory")
        try:
            self.limit(box, limits, before)
        except OSError as error:
            with suppress(OSError):
                self.limit(box, before, limits)
            if error.errno == errno.EBUSY:
                raise LimitUnavailable(f"its processes use more than {limits.memory_mib} MiB of memory") from None
            raise

    def _has_room(self, box: str, size: int) -> bool:
        """Would a bound of so many bytes kill nothing? Where the kernel refuses one that would: yes."""
        return True

    def _check(self, limits: Limits) -> None:
        for controller, wanted in (("memory", limits.memory_mib), ("cpu", limits.vcpu), ("pids", limits.pids)):
            if wanted and controller not in self.controllers and not (controller == "pids" and self.pids_elsewhere):
                raise LimitUnavailable(
                    f"this host cannot limit {controller}: its cgroups have no {controller} controller{self.how}"
                )

    def freeze(self, box: str, timeout: float = 0.5) -> None:
        """Stop all processes of the box; returns when they stand. TimeoutError, after which they run again."""
        deadline, wait = time.monotonic() + timeout, 0.0001
        self._set_frozen(box, True)
        while not self._is_frozen(box):
            if time.monotonic() > deadline:
                self.thaw(box)
                raise TimeoutError(
                    errno.ETIMEDOUT, f"the processes of box {box} did not stand still within {timeout} s"
                )
            time.sleep(wait)  # version 1 has no event for it
            wait = min(2 * wait, 0.005)

    def stop(self, box: str) -> None:
        """Let all processes of the box that are there now stand still, as soon as they leave the kernel. They die as
        ever, with the box's first process or by SIGKILL. OSError."""
        self._stop(checked(box))

    def thaw(self, box: str) -> None:
        self._set_frozen(box, False)

    def processes(self, box: str) -> set[int]:
        """The pids, as this process sees them, of all that are in the box now."""
        top = f"{next(iter(self._parents()))}/{checked(box)}"
        pids = {int(pid) for directory in files.tree(top) for pid in files.words(f"{directory}/cgroup.procs")}
        return pids - {0}  # 0: not of our pid namespace

    def remove(self, box: str) -> bool:
        """Remove the groups of a box that died. False: processes of it are still there; try again later."""
        busy = [parent for parent in self._parents() if not files.remove_tree(f"{parent}/{checked(box)}")]
        return not busy

    def kill(self, box: str) -> None:
        """Send SIGKILL to every process of the box that is there now."""
        self._kill(checked(box))

    def sweep(self, timeout: float = 2.0) -> set[str]:
        """Kill and remove all boxes of this instance, which no zygote has any more. Returns those still busy."""
        deadline, wait = time.monotonic() + timeout, 0.001
        while (left := {box for box in self._leftovers() if not self._clear(box)}) and time.monotonic() < deadline:
            time.sleep(wait)
            wait = min(2 * wait, 0.05)
        return left

    def _clear(self, box: str) -> bool:
        if self.remove(box):
            return True
        self._kill(box)
        return False

    def _leftovers(self) -> set[str]:
        return {name for parent in self._parents() for name in os.listdir(parent) if is_ulid(name)}

    def close(self) -> None:
        """Remove the instance's own group, if it is empty."""
        for parent in self._parents():
            files.remove_tree(parent)
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def clear_orphans(self) -> None:
        """Remove the groups that instances of old have left for good."""
        orphans.clear(self._parents())

    @abstractmethod
    def usage(self, box: str) -> Usage: ...

    @abstractmethod
    def _parents(self) -> Iterable[str]: ...

    @abstractmethod
    def _limit(self, box: str, limits: Limits) -> None: ...

    @abstractmethod
    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        """Take back the bounds that were there before and are to be no more."""

    @abstractmethod
    def _set_frozen(self, box: str, frozen: bool) -> None: ...

    @abstractmethod
    def _is_frozen(self, box: str) -> bool: ...

    @abstractmethod
    def _stop(self, box: str) -> None: ...

    @abstractmethod
    def _kill(self, box: str) -> None: ...


def quota(vcpu: float) -> int:
    return max(MIN_CPU_QUOTA_US, round(vcpu * CPU_PERIOD_US))
