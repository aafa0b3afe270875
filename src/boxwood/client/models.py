"""What the SDK hands out, and how it lies on the wire. Plain data; members that a newer server adds are ignored."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import msgspec

from boxwood.client.errors import ServerError
from boxwood.client.python import PythonContext, PythonError, PythonResult

__all__ = [
    "ApiKey",
    "CopyReport",
    "Denial",
    "Health",
    "Identity",
    "Image",
    "Manifest",
    "ManifestEntry",
    "NetworkUsage",
    "PoolRecord",
    "Preparing",
    "Resources",
    "RunRecord",
    "SessionRecord",
    "VMNetwork",
    "VMRecord",
]

ENDED = frozenset({"completed", "failed", "cancelled"})


class Resources(msgspec.Struct, frozen=True):
    """vcpu in cores, memory and disk in MiB, pids processes at once, nofile open files of each; None where the server
    does not say."""

    vcpu: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    pids: int | None = None
    nofile: int | None = None


class SessionRecord(msgspec.Struct, frozen=True):
    """A session as the server last told it. `state`: idle, pending or running. `cwd` is empty before the first run."""

    session_id: str
    state: str = "idle"
    cwd: str = ""
    session_idx: int = 0
    env: dict[str, str] | None = None
    started_at: datetime | None = None
    kind: str = "shell"


class CopyReport(msgspec.Struct, frozen=True):
    """What the fork of a VM with running processes cost: inodes and bytes copied, and how long the processes stood."""

    inodes: int = 0
    bytes: int = 0
    frozen_ms: float = 0.0
    total_ms: float = 0.0


class VMNetwork(msgspec.Struct, frozen=True):
    """What a VM has of the network. `mode`: internet or none. `address`: of the box that it has now, if any."""

    mode: str | None = None
    address: str | None = None


class VMRecord(msgspec.Struct, frozen=True):
    """A VM as the server last told it. `state`: idle or running."""

    vm_id: str
    owner_org_id: str | None = None
    created_at: datetime | None = None
    description: str | None = None
    public: bool = False
    state: str = "idle"
    name: str | None = None
    immutable: bool = False
    resources: Resources | None = None
    root_source_vm_id: str | None = None
    root_source_vm_name: str | None = None
    region: str | None = None
    platform: str | None = None
    last_active_at: datetime | None = None
    sessions: list[SessionRecord] = []
    copied: CopyReport | None = None
    network: VMNetwork | None = None
    expires_at: datetime | None = None
    durable: bool = False
    hostname: str | None = None


class Denial(msgspec.Struct, frozen=True):
    """What a VM tried on the network and was refused. `address` and `port`: where to; empty and 0 where a `name` was
    asked for. `reason`: private (not an address of the internet), name (one with such an address, or none that is
    resolved), policy (the VM's own rules; where `protocol` is http, the rule's name) or flood (too much at once). The
    texts are the VM's own choice."""

    at: datetime
    protocol: str = ""
    address: str = ""
    port: int = 0
    name: str = ""
    reason: str = ""


class NetworkUsage(msgspec.Struct, frozen=True):
    """What a VM has of the network, and what it moved over it in all its boxes so far. `denials`: the latest of the
    attempts that were refused, the newest last; `denied` counts them all."""

    mode: str
    address: str | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    connections: int = 0
    denied: int = 0
    denials: list[Denial] = []


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the server last told it; `stdout` is None where the answer carried no output."""

    run_id: str | None = None
    session_id: str | None = None
    state: str | None = None
    exit_code: int | None = None
    stdout: str | None = None
    stdout_encoding: str = "utf-8"
    stderr: str | None = None
    stderr_encoding: str = "utf-8"
    command: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    fail_reason: str | None = None
    duration_ms: float | None = None
    truncated: int = 0
    retry_count: int = 0
    results: list[PythonResult] = []
    exception: PythonError | None = None
    context: PythonContext | None = None
    results_lost: int = 0


class ManifestEntry(msgspec.Struct, frozen=True):
    """A regular file: `path` relative to the manifest's root, `size` in bytes, `hash` its SHA-256 in hex."""

    path: str
    size: int
    mode: int
    hash: str


class Manifest(msgspec.Struct, frozen=True):
    """The regular files below a directory of a VM. `truncated`: there were more than the server lists."""

    root: str
    entries: list[ManifestEntry]
    truncated: bool = False


class PoolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A warm pool as the server last told it. `replicas` VMs are to wait; `ready` can be claimed now, `starting` are
    being made, `allocated` were claimed and are still there. `problem`: why none can be made. `state`: running, or
    stopped where none is to wait."""

    name: str
    namespace: str = "default"
    pool_id: str | None = None
    state: str = "running"
    source_vm_name: str | None = None
    replicas: int = 0
    ready: int = 0
    starting: int = 0
    allocated: int = 0
    problem: str | None = None
    resources: Resources | None = None
    network: str | None = None
    labels: dict[str, str] = {}
    created_at: datetime | None = None


class Identity(msgspec.Struct, frozen=True):
    """Whose key this is."""

    org_id: str
    org_name: str


class ApiKey(msgspec.Struct, frozen=True):
    """An API key. `ttl_default`, `ttl_most`: seconds that VMs made with it live, unless they are told otherwise and at
    most. `key` is the secret itself, present only in the answer to its creation."""

    api_key_id: str
    name: str | None = None
    prefix: str | None = None
    role: str = "admin"
    created_at: datetime | None = None
    ttl_default: float | None = None
    ttl_most: float | None = None
    expires_at: datetime | None = None
    key: str | None = None

    def __repr__(self) -> str:
        return f"ApiKey(api_key_id={self.api_key_id!r}, name={self.name!r}, role={self.role!r})"


class Image(msgspec.Struct, frozen=True):
    """A golden that was just made: fork it by `name`."""

    vm_id: str
    name: str | None = None


class Preparing(msgspec.Struct, frozen=True):
    """What a server that starts is busy with, and how much of it is done, from 0 to 1."""

    step: str
    fraction: float = 0.0


class IsolationLayer(msgspec.Struct, frozen=True):
    """One thing that keeps VMs apart. `why`: what it is good for, or why it is missing; `fix`: how to get it then;
    `required`: no VM runs without it; `level`: the first level that needs it."""

    name: str
    active: bool
    required: bool = True
    why: str = ""
    fix: str | None = None
    level: str | None = None


class Health(msgspec.Struct, frozen=True):
    """How a server is. `status`: ok or unavailable. `isolation`: for each layer, is it active? `layers`: the same with
    reasons. `level`: the highest that is met (none, basic, limits, full). `problem`: why it is not ok. `preparing`:
    what it has to finish before it is."""

    status: str
    version: str | None = None
    isolation: dict[str, bool] = {}
    level: str | None = None
    layers: list[IsolationLayer] = []
    preparing: Preparing | None = None
    problem: str | None = None


class ReadAnswer(msgspec.Struct, frozen=True):
    size: int = 0
    content: str | None = None
    encoding: str = "utf8"
    presigned_url: str | None = None


class WriteResult(msgspec.Struct, frozen=True):
    complete: bool = False
    written: bool = False
    error: dict[str, Any] | None = None


class WriteAnswer(msgspec.Struct, frozen=True):
    results: list[WriteResult]


class VMPage(msgspec.Struct, frozen=True):
    vms: list[VMRecord] = []
    next_cursor: str | None = None


class RunPage(msgspec.Struct, frozen=True):
    runs: list[RunRecord] = []
    next_cursor: str | None = None


class SessionPage(msgspec.Struct, frozen=True):
    sessions: list[SessionRecord] = []
    next_cursor: str | None = None


class PoolList(msgspec.Struct, frozen=True):
    pools: list[PoolRecord] = []


class KeyList(msgspec.Struct, frozen=True):
    api_keys: list[ApiKey] = []


class StdinGiven(msgspec.Struct, frozen=True):
    offset: int
    closed: bool = False


class Cancelled(msgspec.Struct, frozen=True):
    cancelled: bool = False


class Anything(msgspec.Struct, frozen=True):
    """An answer of which nothing is needed."""


def decode_bytes(text: str | None, encoding: str) -> bytes:
    """Output or content as it lies on the wire, to bytes. Only the label base64 is special (wire 5.21)."""
    if not text:
        return b""
    if encoding != "base64":
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text)
    except ValueError as error:
        raise ServerError("bad_answer", f"not base64: {error}") from None
