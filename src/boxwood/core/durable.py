"""Durable VMs: what is about to be told of one survives a loss of power."""

from __future__ import annotations

from boxwood.store.database import Database
from boxwood.store.vms import VMRow


async def secure(database: Database, vm: VMRow) -> None:
    """All that has been committed is on the disk, if the VM is durable. Internal."""
    if vm.durable:
        await database.secure()
