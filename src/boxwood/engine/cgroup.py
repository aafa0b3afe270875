"""The limits of boxes: one cgroup per box, `boxwood-<instance>/<box>`, in version 2 or in each hierarchy of version 1.

Version 2 is taken where it has the controllers for memory, cpu and pids, else version 1 (also on hybrid hosts, where
version 2 is mounted without them). The groups lie below the root of the hierarchy, so that the next zygote finds what
one that was killed left behind. A limit that this host cannot hold is refused, not forgotten.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from boxwood.engine.api import EngineUnavailable, Limits
from boxwood.engine.ulid import checked, is_ulid

CPU_PERIOD_US = 100_000  # the kernel's default
MIN_CPU_QUOTA_US = 1_000  # the kernel's minimum
MOUNTS = Path("/proc/self/mounts")
CONTROLLERS = frozenset({"memory", "cpu", "pids"})
IO_WEIGHT = 100  # the kernel's default, and so what everything else on the host has
_WEIGHT_FILES = ("io.weight", "io.bfq.weight", "blkio.bfq.weight", "blkio.weight")


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

    @staticmethod
    def find(instance: str, mounts: Path = MOUNTS, io_weight: int = 0) -> Cgroups:
        """What this host has, and the group of the instance (a ULID) in it. `io_weight` 0: the disk's time is not
        shared out. EngineUnavailable if nothing."""
        checked(instance)
        unified, separate = hierarchies(mounts)
        usable = separate.keys() - {"blkio"}
        if unified is not None and (not usable or _words(f"{unified}/cgroup.controllers") >= CONTROLLERS):
            return Unified(instance, unified, io_weight)
        if usable:
            return Separate(instance, separate, io_weight)
        raise EngineUnavailable(
            "no cgroup hierarchy is mounted: mount version 2 (`mount -t cgroup2 none /sys/fs/cgroup`)"
        )

    def make(self, box: str, limits: Limits) -> list[str]:
        """The directories that the box's first process joins, limits set. LimitUnavailable, OSError."""
        self._check(limits)
        made: list[str] = []
        try:
            for parent in self._parents():
                os.mkdir(f"{parent}/{checked(box)}", 0o755)
                made.append(f"{parent}/{box}")
            for directory in made if self.io_weight is not None else ():
                _weigh(directory, self.io_weight or IO_WEIGHT)
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

    def thaw(self, box: str) -> None:
        self._set_frozen(box, False)

    def processes(self, box: str) -> set[int]:
        """The pids, as this process sees them, of all that are in the box now."""
        top = f"{next(iter(self._parents()))}/{checked(box)}"
        pids = {int(pid) for directory in _tree(top) for pid in _words(f"{directory}/cgroup.procs")}
        return pids - {0}  # 0: not of our pid namespace

    def remove(self, box: str) -> bool:
        """Remove the groups of a box that died. False: processes of it are still there; try again later."""
        busy = [parent for parent in self._parents() if not _remove_tree(f"{parent}/{checked(box)}")]
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

    @abstractmethod
    def close(self) -> None:
        """Remove the instance's own group, if it is empty."""

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
    def _kill(self, box: str) -> None: ...


class Unified(Cgroups):
    """Version 2."""

    def __init__(self, instance: str, root: str, io_weight: int = 0) -> None:
        self._root = self.unified = root
        self._parent = f"{root}/boxwood-{instance}"
        offered = _words(f"{root}/cgroup.controllers") & (CONTROLLERS | ({"io"} if io_weight else frozenset()))
        self.io_weight = io_weight if "io" in offered else None
        _delegate(root, offered)
        _make_directory(self._parent)
        _delegate(self._parent, offered)
        self.controllers = frozenset((offered - {"io"}) | {"freezer"})

    def close(self) -> None:
        _remove_tree(self._parent)

    def usage(self, box: str) -> Usage:
        at = f"{self._parent}/{checked(box)}"
        microseconds = _key(f"{at}/cpu.stat", "usage_usec")
        return Usage(
            memory_bytes=_number(f"{at}/memory.current"),
            pids=_number(f"{at}/pids.current"),
            cpu_seconds=None if microseconds is None else microseconds / 1e6,
            oom_kills=_key(f"{at}/memory.events", "oom_kill"),
        )

    def _has_room(self, box: str, size: int) -> bool:
        at = f"{self._parent}/{box}"
        used = _number(f"{at}/memory.current") or 0
        cached = sum(_key(f"{at}/memory.stat", name) or 0 for name in ("inactive_file", "active_file"))
        return used - cached <= size

    def _parents(self) -> Iterable[str]:
        return (self._parent,)

    def _limit(self, box: str, limits: Limits) -> None:
        at = f"{self._parent}/{box}"
        if limits.memory_mib:
            _write(f"{at}/memory.max", str(limits.memory_mib << 20))
            _write_if_there(f"{at}/memory.swap.max", "0")
        if limits.vcpu:
            _write(f"{at}/cpu.max", f"{_quota(limits.vcpu)} {CPU_PERIOD_US}")
        if limits.pids and not self.pids_elsewhere:
            _write(f"{at}/pids.max", str(limits.pids))

    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        at = f"{self._parent}/{box}"
        if before.memory_mib and not limits.memory_mib:
            _write(f"{at}/memory.max", "max")
            _write_if_there(f"{at}/memory.swap.max", "max")
        if before.vcpu and not limits.vcpu:
            _write(f"{at}/cpu.max", f"max {CPU_PERIOD_US}")
        if before.pids and not limits.pids and not self.pids_elsewhere:
            _write(f"{at}/pids.max", "max")

    def _set_frozen(self, box: str, frozen: bool) -> None:
        _write(f"{self._parent}/{checked(box)}/cgroup.freeze", "1" if frozen else "0")

    def _is_frozen(self, box: str) -> bool:
        return _key(f"{self._parent}/{box}/cgroup.events", "frozen") == 1

    def _kill(self, box: str) -> None:
        try:
            _write(f"{self._parent}/{box}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14, or gone
            _kill_all(f"{self._parent}/{box}")


class Separate(Cgroups):
    """Version 1: a hierarchy for each controller, or for a few together."""

    # A single thread that moves itself through `tasks` needs no lock that all forks of the host wait for; through
    # cgroup.procs each of the four joins would hold them up for a grace period of RCU, 5 to 20 ms.
    door = "tasks"

    def __init__(self, instance: str, mounted: dict[str, str], io_weight: int = 0) -> None:
        self.controllers = frozenset(mounted) & (CONTROLLERS | {"freezer"})
        self._at = {name: f"{root}/boxwood-{instance}" for name, root in mounted.items() if name in self.controllers}
        parents = dict.fromkeys(self._at.values())  # controllers may share one
        if "blkio" in mounted:
            parents |= self._shared_out(f"{mounted['blkio']}/boxwood-{instance}", io_weight)
        self._hierarchies = tuple(parents)
        for parent in self._hierarchies:
            _make_directory(parent)
        self._counts_cpu = mounted.get("cpu") if mounted.get("cpuacct") == mounted.get("cpu") else None
        self._swap = os.path.exists(f"{self._at.get('memory')}/memory.memsw.limit_in_bytes")

    def _shared_out(self, parent: str, io_weight: int) -> dict[str, None]:
        """The hierarchy of disks, if its groups have weights (the root of it never has) and they are wanted. What an
        earlier zygote had there, which wanted them, goes."""
        _make_directory(parent)
        if io_weight and any(os.path.exists(f"{parent}/{name}") for name in _WEIGHT_FILES):
            self.io_weight = io_weight
            return {parent: None}
        if parent not in self._at.values():
            _remove_tree(parent)
        return {}

    def close(self) -> None:
        for parent in self._hierarchies:
            _remove_tree(parent)

    def usage(self, box: str) -> Usage:
        at = {name: f"{parent}/{checked(box)}" for name, parent in self._at.items()}
        nanoseconds = _number(f"{at['cpu']}/cpuacct.usage") if self._counts_cpu else None
        return Usage(
            memory_bytes=_number(f"{at['memory']}/memory.usage_in_bytes") if "memory" in at else None,
            pids=_number(f"{at['pids']}/pids.current") if "pids" in at else None,
            cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
            oom_kills=_key(f"{at['memory']}/memory.oom_control", "oom_kill") if "memory" in at else None,
        )

    def _parents(self) -> Iterable[str]:
        return self._hierarchies

    def _limit(self, box: str, limits: Limits) -> None:
        if limits.memory_mib:
            at, size = f"{self._at['memory']}/{box}", str(limits.memory_mib << 20)
            _write(f"{at}/memory.limit_in_bytes", size)
            if self._swap:
                _write(f"{at}/memory.memsw.limit_in_bytes", size)
        if limits.vcpu:
            _write(f"{self._at['cpu']}/{box}/cpu.cfs_quota_us", str(_quota(limits.vcpu)))
        if limits.pids and not self.pids_elsewhere:
            _write(f"{self._at['pids']}/{box}/pids.max", str(limits.pids))

    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        if before.memory_mib and not 0 < limits.memory_mib <= before.memory_mib:
            at = f"{self._at['memory']}/{box}"
            if self._swap:  # never below the other
                _write(f"{at}/memory.memsw.limit_in_bytes", "-1")
            _write(f"{at}/memory.limit_in_bytes", "-1")
        if before.vcpu and not limits.vcpu:
            _write(f"{self._at['cpu']}/{box}/cpu.cfs_quota_us", "-1")
        if before.pids and not limits.pids and not self.pids_elsewhere:
            _write(f"{self._at['pids']}/{box}/pids.max", "max")

    def _set_frozen(self, box: str, frozen: bool) -> None:
        _write(f"{self._freezer(box)}/freezer.state", "FROZEN" if frozen else "THAWED")

    def _is_frozen(self, box: str) -> bool:
        path = f"{self._freezer(box)}/freezer.state"
        if _read(path).strip() == "FROZEN":
            return True
        _write(path, "FROZEN")  # else a process that was forked meanwhile can keep it from getting there
        return False

    def _freezer(self, box: str) -> str:
        if "freezer" not in self._at:
            raise LimitUnavailable(f"this host cannot freeze boxes: its cgroups have no freezer controller{self.how}")
        return f"{self._at['freezer']}/{checked(box)}"

    def _kill(self, box: str) -> None:
        for parent in self._hierarchies:
            _kill_all(f"{parent}/{box}")
        if "freezer" in self._at:
            _write_if_there(f"{self._freezer(box)}/freezer.state", "THAWED")  # a frozen process does not die


def hierarchies(mounts: Path) -> tuple[str | None, dict[str, str]]:
    """Where version 2 is mounted, and where each controller of version 1 is."""
    unified: str | None = None
    separate: dict[str, str] = {}
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split(" ")
        place = place.encode().decode("unicode_escape")
        if kind == "cgroup2" and unified is None:
            unified = place
        elif kind == "cgroup":
            for name in options.split(","):
                if name in CONTROLLERS | {"freezer", "cpuacct", "blkio"}:
                    separate.setdefault(name, place)
    return unified, separate


def _delegate(directory: str, controllers: Iterable[str]) -> None:
    """Let the children of a group have controllers."""
    path = f"{directory}/cgroup.subtree_control"
    missing = sorted(set(controllers) - _words(path))
    if not missing:
        return
    text = " ".join(f"+{name}" for name in missing)
    try:
        _write(path, text)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _make_room(directory)
        _write(path, text)


def _make_room(directory: str) -> None:
    """A group that has processes cannot hand on controllers, save the host's root: in a container, move them aside."""
    leaf = f"{directory}/boxwood-aside"
    _make_directory(leaf)
    for _ in range(10):  # processes fork meanwhile
        pids = _words(f"{directory}/cgroup.procs")
        if not pids:
            return
        for pid in pids:
            try:
                _write(f"{leaf}/cgroup.procs", pid)
            except ProcessLookupError:
                pass


def _weigh(directory: str, weight: int) -> None:
    for name in _WEIGHT_FILES:  # a kernel has what its schedulers look at
        _write_if_there(f"{directory}/{name}", str(weight))


def _quota(vcpu: float) -> int:
    return max(MIN_CPU_QUOTA_US, round(vcpu * CPU_PERIOD_US))


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass


def _tree(top: str) -> Iterator[str]:
    """A group and all groups below it, the deepest first."""
    try:
        names = os.listdir(top)
    except FileNotFoundError:
        return
    for name in names:
        if os.path.isdir(f"{top}/{name}"):
            yield from _tree(f"{top}/{name}")
    yield top


def _remove_tree(top: str) -> bool:
    try:
        os.rmdir(top)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    done = True
    for directory in _tree(top):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            done = False
    return done


def _kill_all(top: str) -> None:
    for directory in _tree(top):
        for pid in _words(f"{directory}/cgroup.procs") - {
            "0"
        }:  # 0: not of our pid namespace; kill(0) would be ourselves
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _write_if_there(path: str, text: str) -> None:
    try:
        _write(path, text)
    except FileNotFoundError:
        pass


def _read(path: str) -> str:
    with open(path) as f:
        return f.read()


def _words(path: str) -> set[str]:
    try:
        return set(_read(path).split())
    except FileNotFoundError:
        return set()


def _number(path: str) -> int | None:
    try:
        return int(_read(path))
    except FileNotFoundError:
        return None


def _key(path: str, key: str) -> int | None:
    """A value of a file of lines `key value`."""
    try:
        found = dict(line.split(" ", 1) for line in _read(path).splitlines())
    except FileNotFoundError:
        return None
    return int(found[key]) if key in found else None
