"""The server's storage on the wire: for its operator."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from boxwood.core import upkeep
from boxwood.server.schema.common import Answer, Request


class VMStorage(Answer, frozen=True, kw_only=True):
    vm_id: str
    name: str | None
    layers: Annotated[int, Meta(description="Sealed layers above its image.")]
    own_bytes: Annotated[int, Meta(description="What no other VM stands on.")]
    shared_bytes: int
    measured: Annotated[bool, Meta(description="All of it is known; else ask again.")]


class StorageAnswer(Answer, frozen=True, kw_only=True):
    free_bytes: int
    vms: list[VMStorage]


class StorageProblem(Answer, frozen=True, kw_only=True):
    layer_id: str
    vm_ids: Annotated[list[str], Meta(description="The VMs that stand on it.")]
    problem: str


class VerifyStorageAnswer(Answer, frozen=True, kw_only=True):
    layers: Annotated[int, Meta(description="So many were looked through.")]
    problems: list[StorageProblem]


class CollectStorageBody(Request, frozen=True, kw_only=True):
    dry_run: Annotated[bool, Meta(description="Only say what would go.")] | None = None


class CollectStorageAnswer(Answer, frozen=True, kw_only=True):
    dry_run: bool
    layer_ids: list[str]
    bytes: int


def usage(of: upkeep.Usage) -> StorageAnswer:
    vms = [
        VMStorage(
            vm_id=vm.vm_id, name=vm.name, layers=vm.layers, own_bytes=vm.own, shared_bytes=vm.shared,
            measured=vm.measured,
        )
        for vm in of.vms
    ]  # fmt: skip
    return StorageAnswer(free_bytes=of.free, vms=vms)
