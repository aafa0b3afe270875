"""Which cgroups a host gives to root. Version 2 is taken where it has the controllers for memory, cpu and pids, else
version 1 (also on hybrid hosts, where version 2 is mounted without them)."""

from __future__ import annotations

from pathlib import Path

from boxwood.engine.api import EngineUnavailable
from boxwood.engine.cgroups import files
from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.cgroups.separate import Separate
from boxwood.engine.cgroups.unified import Unified
from boxwood.engine.ulid import checked


def find(instance: str, mounts: Path = files.MOUNTS, io_weight: int = 0) -> Cgroups:
    """What this host has, and the group of the instance (a ULID) in it. `io_weight` 0: the disk's time is not
    shared out. EngineUnavailable if nothing."""
    checked(instance)
    unified, separate = files.hierarchies(mounts)
    usable = separate.keys() - {"blkio"}
    if unified is not None and (not usable or files.words(f"{unified}/cgroup.controllers") >= files.CONTROLLERS):
        return Unified(instance, unified, io_weight)
    if usable:
        return Separate(instance, separate, io_weight)
    raise EngineUnavailable("no cgroup hierarchy is mounted: mount version 2 (`mount -t cgroup2 none /sys/fs/cgroup`)")
