"""VMs on the wire."""

from __future__ import annotations

import math
import platform as machine
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from boxwood.core import model
from boxwood.engine.api import CopyReport
from boxwood.server.schema.common import UNSET, Answer, Page, Request, Seconds, Text1024, UnsetType
from boxwood.server.schema.network import Asked, Changed, Egress, Network, SshKeys, network
from boxwood.server.schema.policy import PolicyUpdate, VmPolicies
from boxwood.server.schema.session import Session, session

REGION = "local"
PROVIDER = "boxwood"  # of GET /v1/regions only: a VM that names both sends old clients elsewhere (wire 5.1)
PLATFORM = {"x86_64": "linux-x86", "aarch64": "linux-arm"}.get(machine.machine(), f"linux-{machine.machine()}")

VMState = Literal["idle", "running"]
Layer = Literal["disk", "memory"]
Vcpu = Annotated[int, Meta(ge=1, le=255)]
Mib = Annotated[int, Meta(ge=0, le=1 << 40, description="In MiB.")]
RETIRED_SIZES = frozenset({"max_memory_mib", "memory_backend"})
GPU = {"gpu_sms": None, "gpu_vram_mib": None, "gpu_count": None}


class ResourcesBody(Request, frozen=True, kw_only=True):
    vcpu: Vcpu | None = None
    memory_mib: Mib | None = None
    disk_mib: Mib | None = None
    pids: Annotated[int, Meta(ge=1, description="Processes and threads at once.")] | None = None
    nofile: Annotated[int, Meta(ge=1, description="Open files of each process.")] | None = None
    vgpu: Any = None
    gpu_sms: Any = None
    gpu_vram_mib: Any = None
    gpu_count: Any = None
    max_memory_mib: Any = None
    memory_backend: Any = None

    later: ClassVar = {"vgpu": None, **GPU}
    retired: ClassVar = RETIRED_SIZES


class ForkBody(Request, frozen=True, kw_only=True):
    """Exactly one source: `source_vm_id`, or `source_vm_name` with or without the organisation it belongs to."""

    source_vm_id: str | None = None
    source_vm_name: str | None = None
    source_org_id: str | None = None
    source_org_name: str | None = None
    name: str | None = None
    description: Text1024 | None = None
    public: bool | None = None
    resources: ResourcesBody | None = None
    command: Annotated[str, Meta(min_length=1)] | None = None
    queueing_timeout: Seconds | None = None
    disk: bool | None = None
    durable: (
        Annotated[bool, Meta(description="What it acknowledges survives a loss of power; not inherited.")] | None
    ) = None
    layers: Annotated[list[Layer], Meta(min_length=1)] | None = None
    image: Any = None
    dockerfile: Any = None
    nestedvirt: Any = None
    ssh_public_keys: SshKeys = None
    platforms: Any = None
    policies: PolicyUpdate = None
    registry_auth: Any = None
    pool_id: Any = None
    pool_name: Any = None
    vcpu_count: Vcpu | None = None
    memory_mib: Mib | None = None
    disk_mib: Mib | None = None
    network: Asked = None
    egress: Egress = None
    ttl: Annotated[Seconds, Meta(description="Seconds until it is deleted by itself.")] | None = None
    tunnel: Any = None
    max_memory_mib: Any = None
    memory_backend: Any = None
    gpu_sms: Any = None
    gpu_vram_mib: Any = None
    gpu_count: Any = None

    later: ClassVar = {
        "image": None,
        "nestedvirt": "nested_virtualization",
        "platforms": "platform",
        "registry_auth": None,
        "pool_id": None,
        "pool_name": None,
        **GPU,
    }
    retired: ClassVar = RETIRED_SIZES | {"tunnel"}


class PatchVMBody(Request, frozen=True, kw_only=True):
    name: str | UnsetType | None = UNSET
    description: Text1024 | UnsetType | None = UNSET
    resources: ResourcesBody | None = None
    immutable: bool | None = None
    ssh_public_keys: SshKeys = None
    policies: PolicyUpdate = None
    pool_id: Any = None
    pool_name: Any = None
    ttl: (
        Annotated[Seconds, Meta(description="Seconds until it is deleted by itself; null: never.")] | UnsetType | None
    ) = UNSET
    network: Changed = None

    later: ClassVar = {
        "pool_id": None,
        "pool_name": None,
    }


class ListVMsQuery(Page, frozen=True, kw_only=True):
    region: str | None = None
    provider: str | None = None
    org_id: str | None = None
    source_org_id: Annotated[str, Meta(description="What old clients call `org_id`.")] | None = None
    public: bool | None = None
    state: VMState | None = None
    platform: str | None = None
    created_after: Annotated[datetime, Meta(tz=True)] | None = None
    created_before: Annotated[datetime, Meta(tz=True)] | None = None
    pool_id: str | None = None


class Resources(Answer, frozen=True, kw_only=True):
    vcpu: int | None
    memory_mib: int | None
    disk_mib: int | None
    pids: int | UnsetType = UNSET  # these two only where they have been set
    nofile: int | UnsetType = UNSET


class VM(Answer, frozen=True, kw_only=True):
    vm_id: str
    owner_org_id: str
    created_at: datetime
    name: str | None
    hostname: str | UnsetType | None = UNSET
    description: str | None
    public: bool
    immutable: bool
    state: VMState
    sessions: list[Session]
    resources: Resources
    network: Network
    root_source_vm_id: str | None
    root_source_vm_name: str | None
    last_active_at: datetime | None
    region: str
    provider: None
    platform: str
    vcpu_count: int | UnsetType | None = UNSET  # flat sizes: for the clients of 0.5 and 0.6
    memory_mib: int | UnsetType | None = UNSET
    disk_mib: int | UnsetType | None = UNSET
    expires_at: Annotated[datetime, Meta(description="When it is deleted by itself.")] | UnsetType = UNSET
    durable: Annotated[bool, Meta(description="Of durable ones alone.")] | UnsetType = UNSET
    policies: VmPolicies | UnsetType = UNSET  # of one's own, where one VM is answered
    copied: Annotated[CopyReport, Meta(description="What it took to fork a VM whose processes ran.")] | UnsetType = (
        UNSET
    )


class ListVMsAnswer(Answer, frozen=True, kw_only=True):
    vms: list[VM]
    next_cursor: str | None


class DeleteVMAnswer(Answer, frozen=True, kw_only=True):
    deleted: bool


def resources(of: model.Resources) -> Resources:
    """The contract's cores are whole: a part of one is shown as one."""
    cores = None if of.vcpu is None else math.ceil(of.vcpu)
    return Resources(
        vcpu=cores,
        memory_mib=of.memory_mib,
        disk_mib=of.disk_mib,
        pids=UNSET if of.pids is None else of.pids,
        nofile=UNSET if of.nofile is None else of.nofile,
    )


def vm(of: model.VM, *, flat_sizes: bool = False, policies: VmPolicies | UnsetType = UNSET) -> VM:
    sizes = of.resources
    return VM(
        vm_id=of.vm_id,
        owner_org_id=of.org_id,
        created_at=of.created_at,
        name=of.name,
        hostname=of.hostname,
        description=of.description,
        public=of.public,
        immutable=of.immutable,
        state=of.state,  # type: ignore[arg-type]  # the core's states are the contract's
        sessions=[session(one) for one in of.sessions],
        resources=resources(sizes),
        network=network(of),
        root_source_vm_id=of.root_source_id,
        root_source_vm_name=of.root_source_name,
        last_active_at=of.last_active_at,
        region=REGION,
        provider=None,
        platform=PLATFORM,
        vcpu_count=resources(sizes).vcpu if flat_sizes else UNSET,
        memory_mib=sizes.memory_mib if flat_sizes else UNSET,
        disk_mib=sizes.disk_mib if flat_sizes else UNSET,
        expires_at=UNSET if of.expires_at is None else of.expires_at,
        durable=of.durable or UNSET,
        policies=policies,
        copied=of.copied if of.copied is not None else UNSET,
    )
