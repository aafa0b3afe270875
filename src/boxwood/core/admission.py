"""Whether there is room for one more VM, one more box: the host's memory and disk, and how many the operator wants.

What is refused was not started, and can be tried again later.
"""

from __future__ import annotations

from boxwood.core.config import Config
from boxwood.core.errors import CapacityUnavailable
from boxwood.engine.api import Engine
from boxwood.store import vms as vm_rows
from boxwood.store.database import Database
from boxwood.store.vms import VMRow

MIB = 1 << 20
RETRY_SECONDS = 5


class Admission:
    def __init__(self, database: Database, engine: Engine, config: Config) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self._vms = 0

    def start(self) -> None:
        made = ["v.origin IS NULL"]  # goldens are nobody's
        self._vms = vm_rows.count(self._database.near, made, {})

    def made(self) -> None:
        """There is a VM more."""
        self._vms += 1

    def gone(self, row: VMRow) -> None:
        self._vms -= 1

    def check_vm(self) -> None:
        """CapacityUnavailable: no more VMs now."""
        most = self._config.vms_most
        if self._vms >= most:
            raise CapacityUnavailable(
                f"this server has {self._vms} VMs and may have {most} (vms_most): delete some", RETRY_SECONDS
            )
        self.check_disk()

    def check_disk(self) -> None:
        """CapacityUnavailable: what is to stay free of the disk is all that is left."""
        spare, free = self._config.disk_spare_mib, self._engine.free_disk() // MIB
        if free < spare:
            raise CapacityUnavailable(
                f"the server's disk has {free} MiB left, and {spare} are to stay free (disk_spare_mib)", RETRY_SECONDS
            )

    def box_refused(self, boxes: int) -> str | None:
        """Why there can be no box more than these; None: there can."""
        most = self._config.boxes_most
        if boxes >= most:
            return f"{boxes} VMs are running, and {most} may (boxes_most)"
        spare, free = self._config.memory_spare_mib, self._engine.free_memory() // MIB
        if free < spare:
            return f"the host has {free} MiB of memory left, and {spare} are to stay free (memory_spare_mib)"
        return None
