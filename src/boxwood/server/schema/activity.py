"""The log of what an organisation has asked for, on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from boxwood.server.schema.common import UNSET, Answer, Query, UnsetType
from boxwood.server.schema.run import RunState

Seconds = Annotated[int, Meta(ge=0, le=1 << 40, description="Seconds since 1970.")]
Names = Annotated[str, Meta(max_length=8192, description="Several, with commas between.")]
Status = Annotated[int, Meta(ge=0, le=999)]
Flag = Annotated[str, Meta(pattern="(?i)^(true|false|1|0)$")]


class ListOrgRunsQuery(Query, frozen=True, kw_only=True):
    since: Seconds | None = None
    until: Seconds | None = None
    vm: Annotated[str, Meta(max_length=64)] | None = None
    vms: Names | None = None
    search: Annotated[str, Meta(max_length=1024)] | None = None
    limit: Annotated[int, Meta(ge=1, le=20_000, description="At most 200, or 20,000 with lite.")] = 100
    offset: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    lite: Flag = "false"
    runtime: Annotated[str, Meta(max_length=64, description="shell or program.")] | None = None
    endpoint: Literal["run", "fork", "sync"] | None = None
    actions: Names | None = None
    status: Names | None = None
    status_min: Status | None = None
    status_max: Status | None = None
    sort: Literal["when", "status", "path", "total", "queue", "your_code", "runtime"] = "when"
    dir: Literal["asc", "desc"] = "desc"


class OrgRun(Answer, frozen=True, kw_only=True):
    """Times in ms. What is not known is 0 or empty; bodies are never kept."""

    t_ms: int
    request_id: str
    run_id: str
    vm_id: str
    session_id: str
    region: str
    provider: str
    status: int
    total_ms: float
    queue_ms: float
    executor_duration_ms: int
    executor_kind: str
    executor_cpu_ms: int = 0
    executor_mem_mb: int = 0
    vm_vcpus: int
    vm_memory_mib: int
    path: str
    method: str
    command: str
    source_vm_id: str
    exit_code: int | None
    endpoint: str
    api_key_prefix: str
    body_bytes_in: int
    body_bytes_out: int
    body_in: str = ""
    body_out: str = ""
    source: str = "boxwood"
    state: RunState | UnsetType = UNSET
    lambda_call_ms: Annotated[float, Meta(description="Of old clients; always 0.")] | UnsetType = UNSET
    lambda_duration_ms: float | UnsetType = UNSET
    lambda_cpu_ms: float | UnsetType = UNSET
    lambda_mem_mb: float | UnsetType = UNSET


class ListOrgRunsAnswer(Answer, frozen=True, kw_only=True):
    since: int
    until: int
    limit: int
    offset: int
    lite: bool
    rows: list[OrgRun]
