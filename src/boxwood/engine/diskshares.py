"""Shares of a disk's time: whether the kernel honours them for the disk that a directory lies on.

A weight in a cgroup does nothing by itself. It is the disk's scheduler (bfq), or with version 2 the cost model
(io.cost), that looks at it; and a directory may lie on something that is no disk at all.
"""

from __future__ import annotations

import os
from pathlib import Path

SYS = Path("/sys")


def obstacle(place: Path, unified: str | None, sys: Path = SYS) -> tuple[str, str]:
    """Why weights do not count for the disk of a directory, and how to have them count; empty: they do. `unified`:
    where cgroups of version 2 are mounted, if it is these that have weights. OSError."""
    number = os.stat(place).st_dev
    major, minor = os.major(number), os.minor(number)
    device = sys / "dev/block" / f"{major}:{minor}"
    if not device.exists():
        return f"{place} is on no disk of this host that could be shared out", ""
    disk = device.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    whole = (disk / "dev").read_text().strip()
    if unified is not None and _has_cost_model(Path(unified), whole):
        return "", ""
    try:
        scheduler = (disk / "queue/scheduler").read_text()
    except FileNotFoundError:
        scheduler = "[none]"
    if "[bfq]" in scheduler:
        return "", ""
    used = scheduler.partition("[")[2].partition("]")[0]
    fix = f"echo bfq > /sys/block/{disk.name}/queue/scheduler"
    if "bfq" not in scheduler.split():
        fix = f"load the scheduler bfq (modprobe bfq), then {fix}"
    return f"the scheduler of {disk.name} is {used}, which knows no shares", fix


def _has_cost_model(unified: Path, number: str) -> bool:
    try:
        lines = (unified / "io.cost.qos").read_text().splitlines()
    except FileNotFoundError:
        return False
    return any(line.startswith(f"{number} ") and "enable=1" in line.split() for line in lines)
