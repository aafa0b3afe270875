"""Warm pools on the wire. Not in the contract: they are ours."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from boxwood.core import model
from boxwood.server.schema.common import Answer, Query, Request, Seconds, Text1024
from boxwood.server.schema.network import Mode
from boxwood.server.schema.vm import Resources, ResourcesBody, resources

Replicas = Annotated[int, Meta(ge=0, le=100_000, description="VMs that are kept ready.")]
Namespace = Annotated[str, Meta(max_length=63, description="In which the pool's name is unique.")]
Labels = dict[str, str]


class WarmPool(Answer, frozen=True, kw_only=True):
    pool_id: str
    name: str
    namespace: str
    state: Literal["running", "stopped"]
    source_vm_name: Annotated[str | None, Meta(description="Of what it was made.")]
    replicas: Replicas
    ready: Annotated[int, Meta(description="VMs that can be claimed now.")]
    starting: Annotated[int, Meta(description="VMs that are being made.")]
    allocated: Annotated[int, Meta(description="VMs that were claimed and are still there.")]
    problem: Annotated[str | None, Meta(description="Why no VM can be made ahead of demand.")]
    resources: Resources
    network: Mode
    labels: Labels
    created_at: datetime


class WarmPoolsAnswer(Answer, frozen=True, kw_only=True):
    pools: list[WarmPool]


class NamespaceQuery(Query, frozen=True, kw_only=True):
    namespace: Namespace = "default"


class ListWarmPoolsQuery(Query, frozen=True, kw_only=True):
    namespace: Annotated[Namespace, Meta(description="Only those in it.")] | None = None


class DeleteWarmPoolQuery(NamespaceQuery, frozen=True, kw_only=True):
    vms: Annotated[bool, Meta(description="Delete the VMs that were claimed from it too.")] = False


class CreateWarmPoolBody(Request, frozen=True, kw_only=True):
    """Exactly one source."""

    name: str
    namespace: Namespace | None = None
    source_vm_id: str | None = None
    source_vm_name: str | None = None
    replicas: Replicas | None = None
    resources: ResourcesBody | None = None
    network: Any = None
    labels: Labels | None = None


class PatchWarmPoolBody(Request, frozen=True, kw_only=True):
    replicas: Replicas | None = None
    labels: Labels | None = None


class ClaimBody(Request, frozen=True, kw_only=True):
    name: str | None = None
    description: Text1024 | None = None
    labels: Labels | None = None
    ttl: Annotated[Seconds, Meta(description="Seconds until the VM is deleted by itself.")] | None = None


def pool(of: model.Pool) -> WarmPool:
    return WarmPool(
        pool_id=of.pool_id,
        name=of.name,
        namespace=of.namespace,
        state=of.state,  # type: ignore[arg-type]
        source_vm_name=of.source_name,
        replicas=of.replicas,
        ready=of.ready,
        starting=of.starting,
        allocated=of.allocated,
        problem=of.problem,
        resources=resources(of.resources),
        network=of.network,  # type: ignore[arg-type]
        labels=dict(of.labels),
        created_at=of.created_at,
    )
