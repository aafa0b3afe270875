"""What VMs may be given of the host: the operator's ceilings, what the host can hold, and what a VM has that was not
told otherwise."""

from __future__ import annotations

from typing import TypeVar

from boxwood.core import words
from boxwood.core.config import NOFILE_LEAST, PIDS_LEAST, Config
from boxwood.core.disks import Disks
from boxwood.core.errors import BadRequest, InsufficientResources
from boxwood.core.held import Held
from boxwood.core.model import Resources
from boxwood.engine.api import Limits
from boxwood.store.vms import VMRow

MEMORY_MIB = 64  # the least that a box is of use with
MIB = 1 << 20
T = TypeVar("T", int, float)
_LARGEST = {"vcpu": 255, "memory_mib": 1 << 40, "disk_mib": 8 << 20, "pids": 1 << 22, "nofile": 1 << 20}


class Ceilings:
    def __init__(self, config: Config, held: Held, disks: Disks) -> None:
        self._config = config
        self._held = held
        self._disks = disks

    def check(self, wanted: Resources) -> None:
        """BadRequest (more than there may be: it names the ceiling), InsufficientResources (less than is of use),
        Unsupported (the host cannot hold a VM to it)."""
        for name, largest in _LARGEST.items():
            value = getattr(wanted, name)
            if value is None:
                continue
            if not value >= 0:  # NaN is no number of anything
                raise BadRequest(f"{name}: out of range", [(name, "out of range")])
            most = getattr(self._config, f"{name}_most", 0)
            if most and value > most:
                raise words.refuse(name, f"at most {most} on this server ({name}_most)")
            if value > largest:
                raise words.refuse(name, f"at most {largest}")
        if wanted.vcpu == 0:
            raise InsufficientResources("a VM needs at least one vcpu", "cpu", 1)
        if wanted.memory_mib is not None and wanted.memory_mib < MEMORY_MIB:
            told = f"a VM needs at least {MEMORY_MIB} MiB of memory"
            raise InsufficientResources(told, "memory", MEMORY_MIB * MIB)
        for name, value, least in (("pids", wanted.pids, PIDS_LEAST), ("nofile", wanted.nofile, NOFILE_LEAST)):
            if value is not None and value < least:
                raise words.refuse(name, f"at least {least}")
        self._held.check(wanted)
        self._disks.check(wanted)

    def limits(self, row: VMRow, disk: int) -> Limits:
        """What the box of a VM has: the VM's own or the default, and never more than the ceiling as it is now. `disk`:
        bytes of its top."""
        config = self._config
        limits = Limits(
            vcpu=_within(config.vcpu if row.vcpu is None else row.vcpu, config.vcpu_most),
            memory_mib=_within(config.memory_mib if row.memory_mib is None else row.memory_mib, config.memory_mib_most),
            pids=_within(config.pids if row.pids is None else row.pids, config.pids_most),
            disk=disk,
            nofile=_within(config.nofile if row.nofile is None else row.nofile, config.nofile_most),
        )
        return self._held.of(row, limits)


def _within(value: T, most: int) -> T | int:
    """0 is no bound, of either."""
    return min(value or most, most) if most else value
