"""What the operator is told of the server's storage, as it lies on the wire."""

from __future__ import annotations

import msgspec

__all__ = ["StorageGarbage", "StorageProblem", "StorageReport", "StorageUsage", "VMStorage"]


class VMStorage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one VM. `own_bytes`: of what no other VM stands on; `layers`: sealed ones above its image; `measured`:
    all of it is known, else ask again."""

    vm_id: str
    name: str | None = None
    layers: int = 0
    own_bytes: int = 0
    shared_bytes: int = 0
    measured: bool = True


class StorageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`free_bytes`: of the disk that layers lie on."""

    free_bytes: int
    vms: list[VMStorage]


class StorageProblem(msgspec.Struct, frozen=True, kw_only=True):
    """`vm_ids`: the VMs that stand on the layer."""

    layer_id: str
    vm_ids: list[str]
    problem: str


class StorageReport(msgspec.Struct, frozen=True, kw_only=True):
    """`layers`: so many were looked through."""

    layers: int
    problems: list[StorageProblem]


class StorageGarbage(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that nothing refers to, and the bytes in them. `dry_run`: they are there still."""

    dry_run: bool
    layer_ids: list[str]
    bytes: int
