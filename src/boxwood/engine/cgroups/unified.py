"""Version 2."""

from __future__ import annotations

from collections.abc import Iterable

from boxwood.engine.api import Limits
from boxwood.engine.cgroups import files
from boxwood.engine.cgroups.cgroups import CPU_PERIOD_US, Cgroups, Usage, quota
from boxwood.engine.ulid import checked


class Unified(Cgroups):
    """Version 2."""

    def __init__(self, instance: str, root: str, io_weight: int = 0) -> None:
        super().__init__()
        self._root = self.unified = root
        self._parent = f"{root}/{files.PREFIX}{instance}"
        wanted = files.CONTROLLERS | ({"io"} if io_weight else frozenset())
        offered = files.words(f"{root}/cgroup.controllers") & wanted
        self.io_weight = io_weight if "io" in offered else None
        files.delegate(root, offered)
        self._held.append(files.hold(self._parent))
        files.delegate(self._parent, offered)
        self.controllers = frozenset((offered - {"io"}) | {"freezer"})

    def usage(self, box: str) -> Usage:
        at = f"{self._parent}/{checked(box)}"
        microseconds = files.value(f"{at}/cpu.stat", "usage_usec")
        return Usage(
            memory_bytes=files.number(f"{at}/memory.current"),
            pids=files.number(f"{at}/pids.current"),
            cpu_seconds=None if microseconds is None else microseconds / 1e6,
            oom_kills=files.value(f"{at}/memory.events", "oom_kill"),
        )

    def _has_room(self, box: str, size: int) -> bool:
        at = f"{self._parent}/{box}"
        used = files.number(f"{at}/memory.current") or 0
        cached = sum(files.value(f"{at}/memory.stat", name) or 0 for name in ("inactive_file", "active_file"))
        return used - cached <= size

    def _parents(self) -> Iterable[str]:
        return (self._parent,)

    def _limit(self, box: str, limits: Limits) -> None:
        at = f"{self._parent}/{box}"
        if limits.memory_mib:
            files.write(f"{at}/memory.max", str(limits.memory_mib << 20))
            files.write_if_there(f"{at}/memory.swap.max", "0")
        if limits.vcpu:
            files.write(f"{at}/cpu.max", f"{quota(limits.vcpu)} {CPU_PERIOD_US}")
        if limits.pids and not self.pids_elsewhere:
            files.write(f"{at}/pids.max", str(limits.pids))

    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        at = f"{self._parent}/{box}"
        if before.memory_mib and not limits.memory_mib:
            files.write(f"{at}/memory.max", "max")
            files.write_if_there(f"{at}/memory.swap.max", "max")
        if before.vcpu and not limits.vcpu:
            files.write(f"{at}/cpu.max", f"max {CPU_PERIOD_US}")
        if before.pids and not limits.pids and not self.pids_elsewhere:
            files.write(f"{at}/pids.max", "max")

    def _set_frozen(self, box: str, frozen: bool) -> None:
        files.write(f"{self._parent}/{checked(box)}/cgroup.freeze", "1" if frozen else "0")

    def _is_frozen(self, box: str) -> bool:
        return files.value(f"{self._parent}/{box}/cgroup.events", "frozen") == 1

    def _stop(self, box: str) -> None:
        self._set_frozen(box, True)  # SIGKILL reaches what stands in this version's freezer

    def _kill(self, box: str) -> None:
        try:
            files.write(f"{self._parent}/{box}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14, or gone
            files.kill_all(f"{self._parent}/{box}")
