"""What the core speaks in: records that it hands out, requests that it takes. Plain data, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from boxwood.core.sshkeys import SshKey
from boxwood.engine.api import CopyReport, Usage

T = TypeVar("T")

PUBLIC_ORG = "ArkerHQ"  # whose names are the public ones; published clients have it built in


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds a valid key: one organisation's member."""

    org_id: str
    org_name: str
    key_id: str
    role: str = "admin"
    ttl_default: float | None = None  # seconds that VMs live which are made with the key and not told otherwise
    ttl_most: float | None = None  # … at most
    expires_at: int | None = None  # of the key itself: microseconds since 1970


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Resources:
    """vcpu in cores, memory and disk in MiB, pids processes and threads at once, nofile open files of each of them;
    None: the default of the configuration or of the source."""

    vcpu: float | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    pids: int | None = None
    nofile: int | None = None


@dataclass(frozen=True, slots=True)
class Session:
    session_id: str
    vm_id: str
    index: int
    state: str  # idle | pending | running
    cwd: str
    env: Mapping[str, str] | None
    started_at: datetime | None
    kind: str = "shell"  # shell | python


@dataclass(frozen=True, slots=True)
class VM:
    vm_id: str
    org_id: str
    name: str | None
    description: str | None
    public: bool
    immutable: bool
    state: str  # idle | running
    live: bool  # has a box
    resources: Resources
    network: str  # internet | none
    address: str | None  # on the network, while it has a box that is
    root_source_id: str | None
    root_source_name: str | None
    created_at: datetime
    last_active_at: datetime | None
    depth: int  # sealed layers under the top
    sessions: tuple[Session, ...] = ()
    copied: CopyReport | None = None  # of a fork just made from a VM with running processes
    expires_at: datetime | None = None  # when it is deleted by itself
    stopped: bool = False  # nothing boots it until it is started
    labels: Mapping[str, str] = field(default_factory=dict)
    pool_id: str | None = None  # that it was claimed from
    read_only: bool = False  # nothing but /tmp can be written in its boxes, and that is gone with each
    durable: bool = False  # what it has acknowledged survives a loss of power: see docs/durability.md
    hostname: str | None = None  # at which its ports are shown
    ssh_keys: Mapping[str, SshKey] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """Exactly one source. `name_org`: an organisation's id or name, None = the caller's first, then the public one."""

    source_id: str | None = None
    source_name: str | None = None
    name_org: str | None = None
    name: str | None = None
    description: str | None = None
    public: bool = False
    resources: Resources = Resources()
    network: str | None = None  # internet | none; None: as the source
    command: str | None = None  # started as a background run in the default session
    ttl: float | None = None  # seconds until it is deleted by itself; None: never
    ttl_most: float | None = None  # … at most, whatever is done later on behalf of who made it
    labels: Mapping[str, str] | None = None
    read_only: bool | None = None  # None: as the source
    durable: bool = False  # whatever the source is
    policies: Any = None  # what is changed of the source's rules, as JSON in the keyed form
    hidden: bool = False  # in no list: whoever has its id has it
    record: str | None = None  # id of the record that it belongs to from the moment on in which it is there
    ssh_keys: Any = None  # who may log in over SSH, as sshkeys.updated takes them; nothing is inherited


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """Exactly one source, as of a fork. `about`: JSON that is told again with the pool."""

    name: str
    namespace: str = "default"
    source_id: str | None = None
    source_name: str | None = None
    replicas: int = 1
    resources: Resources = Resources()
    network: str | None = None  # internet | none; None: as the source
    labels: Mapping[str, str] | None = None
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """VMs that are booted ahead of demand: `replicas` are wanted, `ready` can be claimed now, `starting` are being
    made; `allocated` were claimed and are still there. `problem`: why none can be made."""

    pool_id: str
    org_id: str
    namespace: str
    name: str
    source_name: str | None
    replicas: int
    ready: int
    starting: int
    allocated: int
    problem: str | None
    resources: Resources
    network: str
    labels: Mapping[str, str]
    about: Mapping[str, Any]
    created_at: datetime
    revision: int

    @property
    def state(self) -> str:
        """running | stopped"""
        return "running" if self.replicas else "stopped"


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a VM that is claimed becomes. `record` (its id): the record that it belongs to from the same
    moment on."""

    name: str | None = None
    description: str | None = None
    ttl: float | None = None  # seconds until it is deleted by itself
    labels: Mapping[str, str] | None = None
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A document of a dialect's own. `revision`: of its last change; they grow over all records and pools."""

    record_id: str
    org_id: str
    kind: str
    namespace: str
    name: str
    body: Mapping[str, Any]
    vm_id: str | None  # with which it goes
    revision: int
    created_at: datetime
    expires_at: datetime | None
    size: int = 0  # of the body, as characters of JSON


@dataclass(frozen=True, slots=True)
class Network:
    """What a VM has of the network, and what all its boxes have moved over it."""

    mode: str  # internet | none
    address: str | None  # while it has a box that is on the network
    usage: Usage


@dataclass(frozen=True, slots=True)
class VMFilter:
    org_id: str | None = None
    public: bool | None = None
    state: str | None = None
    name_contains: str | None = None  # first generation's `q`
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunRequest:
    """`wait`: seconds to wait for the end inline; None = as long as the core allows.

    `beside`: in no session of the caller's, in a shell of its own, never behind another run. `argv`: a program, looked
    for along the PATH of the run's environment, and its arguments, without a shell; only `beside`, with `command`
    empty. `leaves`, of such a program: the run ends with it, and what else it has started goes on. `tag`: told again
    with the run.
    """

    command: str
    session_id: str | None = None
    session_index: int | None = None
    timeout: float | None = None
    wait: float | None = None
    prompt: str = "auto"
    marker: str = ""  # output that ends so ends the run, as a prompt does
    queueing_timeout: float | None = None
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    user: str | None = None
    stdin: bytes | None = None
    stdin_open: bool = False  # `stdin` is only the beginning: see `Runs.write_stdin`
    beside: bool = False
    tag: str | None = None
    argv: tuple[str, ...] | None = None
    leaves: bool = False
    attached: bool = False  # whoever starts it ends it when he goes


@dataclass(frozen=True, slots=True)
class Run:
    """stdout and stderr are the bytes so far; in lists they are empty. `truncated`: bytes that were not kept.

    `argv`: of a run that was started with one; `command` is then the same, quoted as for a shell. `not_started`: its
    program could not be; stderr is `PROGRAM: REASON` and the exit code 127 (there is none) or 126.
    `reports`: of a run in a Python context, what this has said of it so far, one JSON object a line (the last line may
    not be whole yet); from inside the VM, so nothing is certain of it. None of other runs.
    """

    run_id: str
    vm_id: str
    vm_name: str | None
    session_id: str
    command: str
    state: str  # pending | running | completed | failed | cancelled
    exit_code: int | None
    started_at: datetime
    completed_at: datetime | None
    fail_reason: str | None
    duration_ms: float | None
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: int = 0
    tag: str | None = None
    argv: tuple[str, ...] | None = None
    not_started: bool = False
    retries: int = 0  # how often it was begun again, its host having stopped; output is that of the last time
    reports: bytes | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Output:
    """What a run has put out since the offsets that were asked for, and these offsets now. `ended`: this is all."""

    stdout: bytes
    stderr: bytes
    out_at: int
    err_at: int
    ended: bool
    state: str = "running"  # as of a `Run`
    reports: bytes = b""
    report_at: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """What a run's standard input has had: bytes in all, of them `taken` now. `closed`: there will be no more."""

    offset: int
    taken: int
    closed: bool


@dataclass(frozen=True, slots=True)
class RunFilter:
    state: str | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None
    completed_after: datetime | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class ActivityFilter:
    """`since` and `until`: seconds since 1970, the end not included. Empty: all. `statuses`: 404, or 4xx. `sort`: of
    store.activity.ORDERS."""

    since: int
    until: int
    vms: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    status_min: int | None = None
    status_max: int | None = None
    runtime: str | None = None
    search: str | None = None
    sort: str = "when"
    descending: bool = True
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file of a VM, opened: `fd` is the caller's to close; None: `data` holds all of it."""

    path: str
    size: int
    fd: int | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `start`…`start+len(data)` of a file of `size` bytes, under an upload id of the client's own."""

    path: str
    size: int
    upload_id: str
    start: int
    data: bytes
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    path: str
    size: int
    received: int
    ranges: tuple[tuple[int, int], ...]
    complete: bool
    written: bool


@dataclass(frozen=True, slots=True)
class ApiKey:
    key_id: str
    name: str | None
    role: str
    created_at: datetime
    prefix: str
    ttl_default: float | None = None  # seconds, as of a Caller
    ttl_most: float | None = None
    expires_at: datetime | None = None
    key: str | None = field(default=None, repr=False)  # only in the answer that made it
