"""Version 1."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from boxwood.engine.api import Limits
from boxwood.engine.cgroups import files
from boxwood.engine.cgroups.cgroups import Cgroups, LimitUnavailable, Usage, quota
from boxwood.engine.ulid import checked


class Separate(Cgroups):
    """Version 1: a hierarchy for each controller, or for a few together."""

    # A single thread that moves itself through `tasks` needs no lock that all forks of the host wait for; through
    # cgroup.procs each of the four joins would hold them up for a grace period of RCU, 5 to 20 ms.
    door = "tasks"

    def __init__(self, instance: str, mounted: dict[str, str], io_weight: int = 0) -> None:
        super().__init__()
        self.controllers = frozenset(mounted) & (files.CONTROLLERS | {"freezer"})
        group = f"{files.PREFIX}{instance}"
        self._at = {name: f"{root}/{group}" for name, root in mounted.items() if name in self.controllers}
        parents = dict.fromkeys(self._at.values())  # controllers may share one
        if "blkio" in mounted:
            parents |= self._shared_out(f"{mounted['blkio']}/{group}", io_weight)
        self._hierarchies = tuple(parents)
        self._held += [files.hold(parent) for parent in self._hierarchies]
        self._counts_cpu = mounted.get("cpu") if mounted.get("cpuacct") == mounted.get("cpu") else None
        self._swap = os.path.exists(f"{self._at.get('memory')}/memory.memsw.limit_in_bytes")

    def _shared_out(self, parent: str, io_weight: int) -> dict[str, None]:
        """The hierarchy of disks, if its groups have weights (the root of it never has) and they are wanted. What an
        earlier zygote had there, which wanted them, goes."""
        files.make_directory(parent)
        if io_weight and any(os.path.exists(f"{parent}/{name}") for name in files.WEIGHT_FILES):
            self.io_weight = io_weight
            return {parent: None}
        if parent not in self._at.values():
            files.remove_tree(parent)
        return {}

    def usage(self, box: str) -> Usage:
        at = {name: f"{parent}/{checked(box)}" for name, parent in self._at.items()}
        nanoseconds = files.number(f"{at['cpu']}/cpuacct.usage") if self._counts_cpu else None
        return Usage(
            memory_bytes=files.number(f"{at['memory']}/memory.usage_in_bytes") if "memory" in at else None,
            pids=files.number(f"{at['pids']}/pids.current") if "pids" in at else None,
            cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
            oom_kills=files.value(f"{at['memory']}/memory.oom_control", "oom_kill") if "memory" in at else None,
        )

    def _parents(self) -> Iterable[str]:
        return self._hierarchies

    def _limit(self, box: str, limits: Limits) -> None:
        if limits.memory_mib:
            at, size = f"{self._at['memory']}/{box}", str(limits.memory_mib << 20)
            files.write(f"{at}/memory.limit_in_bytes", size)
            if self._swap:
                files.write(f"{at}/memory.memsw.limit_in_bytes", size)
        if limits.vcpu:
            files.write(f"{self._at['cpu']}/{box}/cpu.cfs_quota_us", str(quota(limits.vcpu)))
        if limits.pids and not self.pids_elsewhere:
            files.write(f"{self._at['pids']}/{box}/pids.max", str(limits.pids))

    def _lift(self, box: str, limits: Limits, before: Limits) -> None:
        if before.memory_mib and not 0 < limits.memory_mib <= before.memory_mib:
            at = f"{self._at['memory']}/{box}"
            if self._swap:  # never below the other
                files.write(f"{at}/memory.memsw.limit_in_bytes", "-1")
            files.write(f"{at}/memory.limit_in_bytes", "-1")
        if before.vcpu and not limits.vcpu:
            files.write(f"{self._at['cpu']}/{box}/cpu.cfs_quota_us", "-1")
        if before.pids and not limits.pids and not self.pids_elsewhere:
            files.write(f"{self._at['pids']}/{box}/pids.max", "max")

    def _set_frozen(self, box: str, frozen: bool) -> None:
        files.write(f"{self._freezer(box)}/freezer.state", "FROZEN" if frozen else "THAWED")

    def _is_frozen(self, box: str) -> bool:
        path = f"{self._freezer(box)}/freezer.state"
        if files.read(path).strip() == "FROZEN":
            return True
        files.write(path, "FROZEN")  # else a process that was forked meanwhile can keep it from getting there
        return False

    def _freezer(self, box: str) -> str:
        if "freezer" not in self._at:
            raise LimitUnavailable(f"this host cannot freeze boxes: its cgroups have no freezer controller{self.how}")
        return f"{self._at['freezer']}/{checked(box)}"

    def _stop(self, box: str) -> None:
        """Not by the freezer: what stands in that does not even die with its first process, should the zygote be killed
        that would thaw it. The second time for what was forked meanwhile."""
        for _ in range(2):
            files.kill_all(self._freezer(box), signal.SIGSTOP)

    def _kill(self, box: str) -> None:
        for parent in self._hierarchies:
            files.kill_all(f"{parent}/{box}")
        if "freezer" in self._at:
            files.write_if_there(f"{self._freezer(box)}/freezer.state", "THAWED")  # a frozen process does not die
