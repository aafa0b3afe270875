"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path


def describe(data: Path) -> dict[str, str]:
    """Kernel, processor, memory, file system of `data`, Python."""
    return {
        "kernel": platform.release(),
        "cpu": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{memory_kib('MemTotal') / 2**20:.1f} GiB",
        "filesystem": _output("stat", "-f", "-c", "%T", str(data)),
        "cgroups": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "python": platform.python_version(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
    }


def memory_kib(name: str) -> int:
    """A line of /proc/meminfo, in KiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def available_kib() -> int:
    """Memory that can be had, as the kernel estimates it, and what stands free in processors' own lists, which it does
    not count (a gigabyte and more since Linux 6.7)."""
    lists = re.findall(r"^ +count: +(\d+)$", Path("/proc/zoneinfo").read_text(), re.MULTILINE)
    return memory_kib("MemAvailable") + sum(map(int, lists)) * os.sysconf("SC_PAGESIZE") // 1024


def forget_deleted() -> None:
    """ext4 without a journal goes through all inodes that were deleted in the last minutes whenever it makes a file, as
    far as it remembers them: each section begins without those of the one before."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def time_taken() -> tuple[int, int]:
    """Ticks that processors have had something to do so far; of these the ones that a host above us gave to others."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return user + nice + system + irq + softirq + steal, steal


def quiet() -> str | None:
    """Why numbers taken now would not be comparable; None: the machine is quiet."""
    load = os.getloadavg()[0]
    return f"load average {load:.1f}" if load > 0.5 * (os.cpu_count() or 1) else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
