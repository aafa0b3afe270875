"""What the core asks of an engine, and the values that go back and forth.

`core` knows nothing but this module and what `fileapi`, `ptyapi` and `networkapi` add to it, of files, terminals and
networks: an engine may live in another process or on another machine. All names of VMs, layers, sessions and
runs are ULIDs that the core minted; an engine never joins anything else to a path.

Errors::

    EngineError                 something about the host failed; the text says what and how to put it right
    ├── EngineUnavailable       this host cannot run boxes (no root, no kernel feature); nothing was started
    ├── NotHere                 this host has nothing to do that with; the text says what it takes
    ├── BoxGone                 the box died, or was put down because its agent broke the protocol or a deadline
    └── GuestError              the box is fine and said no: errno and text (FileNotFound, IsADirectory, …)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from boxwood.engine.feeds import ArchiveFeed, FileFeed
from boxwood.engine.networkapi import BoxNetworks

if TYPE_CHECKING:  # the zygote imports this module, and must stay small
    import asyncio

    from boxwood.engine.fileapi import BoxFiles
    from boxwood.engine.handleapi import BoxHandles
    from boxwood.engine.ptyapi import BoxPtys
    from boxwood.engine.states import States
    from boxwood.engine.volumes.api import Volumes


MOST_DENIALS = 50  # that are kept of a VM


class EngineError(Exception):
    """The host could not do what was asked."""


class EngineUnavailable(EngineError):
    """This host cannot run boxes at all; the text names what is missing and how to get it."""


class NotHere(EngineError):
    """This host has nothing to do it with; the text says what it takes."""


class Asleep(EngineError):
    """The box is suspended: it has to be woken first, and then it can be asked again."""


class BoxGone(EngineError):
    """The box died while, or before, it was asked."""


class GuestError(EngineError):
    """The box refused: `errno` as the kernel has it, `message` safe to show to the VM's owner."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno
        self.message = message


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one box. `vcpu` in cores (0 = no bound), `memory_mib` in MiB (0 = no bound), `pids` as a count,
    `nofile` open files of each process (0 = what the host gives), `disk` in bytes of its top (0 = no bound; of a box
    that can write nothing: 0)."""

    vcpu: float = 0
    memory_mib: int = 0
    pids: int = 4096
    nofile: int = 0
    disk: int = 0

    def fields(self) -> dict[str, float]:
        """As the zygote is told them; one of an older version need not know what was not asked for."""
        told = {"vcpu": self.vcpu, "memory_mib": self.memory_mib, "pids": self.pids}
        asked = {"disk": self.disk, "nofile": self.nofile}
        return told | {name: value for name, value in asked.items() if value}


@dataclass(frozen=True, slots=True)
class Stack:
    """The file system of a VM: sealed layers, the topmost first, and the writable top.

    A layer id of an image has its directory under the engine's image directory, any other under its data
    directory; `images` holds the ids of the former.
    """

    layers: tuple[str, ...]
    top: str
    images: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """`network`: a wire to the internet, where the host can give one; without it the box has its loopback alone.
    `ahead`: nobody waits for it. `read_only`: nothing of its disk can be written, and what is put into /tmp (at most
    64 MiB, which count as memory; nothing there can be executed) is gone with the box. `durable`: what its processes,
    or `Box.write_file`, flush to the disk is on the disk."""

    vm_id: str
    stack: Stack
    hostname: str = "boxwood"
    limits: Limits = Limits()
    network: bool = True
    ahead: bool = False
    read_only: bool = False
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Denial:
    """What a VM tried on the network and was refused. `at`: seconds since 1970. `protocol`: tcp, udp, icmp, dns, http
    (a request, or what should have been one) or a number. `address` and `port`: where to (empty and 0 for a name).
    `name`: what was asked for, or what this address had been given out for. `reason`: private (not an address of the
    internet), name (a name with such an address, or none that is resolved), policy (the VM's own rules), flood (too
    much at once); of http: the rule's name."""

    at: float
    protocol: str
    address: str = ""
    port: int = 0
    name: str = ""
    reason: str = "private"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a VM has moved over its wire: bytes, connections opened, attempts refused, and the latest of these."""

    sent: int = 0
    received: int = 0
    connections: int = 0
    denied: int = 0
    denials: tuple[Denial, ...] = ()  # the oldest first, at most MOST_DENIALS

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.sent + other.sent,
            self.received + other.received,
            self.connections + other.connections,
            self.denied + other.denied,
            (*self.denials, *other.denials)[-MOST_DENIALS:],
        )


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """A session to be opened in a box. `state` is what a `SessionState` event of an earlier box carried. `kind`: shell,
    or python: an interpreter, and the runs' commands are its source."""

    session_id: str
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""  # empty: /root, or / where there is none
    state: bytes | None = None
    kind: str = "shell"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One command for one session.

    With `env`, `cwd` or `user` the command runs beside the session's shell, in the session's directory and exported
    environment with these changes, and changes nothing in the session. `stdin`: bytes to read, then end of file;
    None: the session's terminal, on which a reader that shows no prompt is given end of file.
    `stdin_open`: `stdin` is only the beginning, see `Box.write_stdin`.
    `timeout`: seconds until everything that the run started is killed; None or 0: never.
    `argv`: a program, looked for along the environment's PATH, and its arguments, started by the agent itself, beside
    the session; then `command` is empty. `leaves`: it ends with that program; what else it has started goes on.
    """

    run_id: str
    session_id: str
    command: bytes
    timeout: float | None = None
    stdin: bytes | None = None
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    user: str | None = None
    prompt: str = "auto"  # "auto" or "none": is a prompt that waits for input the end of the run?
    argv: tuple[bytes, ...] | None = None
    leaves: bool = False
    stdin_open: bool = False
    reports: bool = False  # it is a run in a Python context, which says things of it
    marker: str = ""  # output that ends so is the end of the run, as a prompt is; at most 256 bytes


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. `exit_code` as a shell has it (128 + n for a signal); None where none is known. `not_started`:
    the program of its `argv` could not be started, its stderr says why. `lost`: with it has ended the interpreter that
    it ran in."""

    exit_code: int | None
    reason: str = (
        "exit"  # exit | timeout | killed | prompt | broken (the shell was left unable to report) | died (`lost`)
    )
    out_bytes: int = 0  # length of the whole stdout, stderr
    err_bytes: int = 0
    not_started: bool = False
    report_bytes: int = 0  # … of what a Python context has reported of it
    lost: bool = False


class RunSink(Protocol):
    """What the core hands in to hear of a run. All calls come on the event loop, in order, and must not block."""

    def output(self, stream: int, offset: int, data: bytes) -> None:
        """`data` at byte `offset` of stdout (`stream` 1), stderr (2) or a Python context's reports (3). Kept by the
        box until `Box.ack`."""

    def finished(self, end: RunEnd) -> None:
        """All output has been handed in. Not called if the box dies: see `Box.gone`."""


class SessionSink(Protocol):
    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        """A session's shell was saved: its directory, its exported environment, and all of it, opaque (≤ 8 MiB)."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What lives in a box beside idle shells."""

    runs: int
    processes: int  # anything that is neither the agent nor an idle shell
    files: bool = False  # there are some in the /tmp of a read-only box, which would be gone with it

    @property
    def idle(self) -> bool:
        return not self.runs and not self.processes and not self.files


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file on the VM's disk, opened in the box and checked with fstat: whoever has it closes `fd`."""

    fd: int
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    path: str
    size: int
    mode: int
    hash: str


@dataclass(frozen=True, slots=True)
class Manifest:
    root: str
    entries: tuple[ManifestEntry, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What a layer or a top holds: nothing at all, and how many bytes of the disk it takes."""

    empty: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What the fork of a busy VM cost: inodes and bytes copied, and how long its processes stood still."""

    inodes: int
    bytes: int
    frozen_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Feature:
    """A layer of isolation. `why`: what it is good for, or what is in its way; `fix`: how to get it, where it is
    missing; `required`: no box runs without it; `level`: the first level that needs it (engine/levels.py), or empty."""

    name: str
    active: bool
    why: str
    fix: str = ""
    required: bool = True
    level: str = ""


class Box(Protocol):
    """A live box. Every call may raise `BoxGone`."""

    vm_id: str
    address: str  # on the network; empty of a box that has its loopback alone
    gone: asyncio.Future[str]  # done, with a reason, when no process of the box is left
    mounts: set[str]  # ids of what is mounted in it: see engine/volumes/api.py

    @property
    def ptys(self) -> BoxPtys: ...

    @property
    def files(self) -> BoxFiles: ...

    @property
    def handles(self) -> BoxHandles: ...

    @property
    def known_runs(self) -> Mapping[str, RunEnd | None]:
        """Of an adopted box: its runs, and how those that ended did."""

    def listen(self, sink: SessionSink) -> None: ...

    async def open_session(self, spec: SessionSpec) -> None:
        """Make the session known to the box; its shell starts with its first run. Opening it twice does nothing. What
        goes wrong is told by the first `start_run`."""

    async def close_session(self, session_id: str) -> None:
        """Kill the shell and everything the session started; runs in it end as killed."""

    async def start_run(self, spec: RunSpec, sink: RunSink) -> None:
        """Returns when the command has been handed to the shell. One run at a time per session."""

    async def resume_run(
        self, run_id: str, sink: RunSink, out_offset: int, err_offset: int, report_offset: int | None = None
    ) -> None:
        """Attach to a run of `known_runs`: output from these offsets on is handed in again. `report_offset`: of one
        with `reports`."""

    def ack(self, run_id: str, out_offset: int, err_offset: int, report_offset: int = 0) -> None:
        """The output up to these offsets is safe: the box may forget it. It keeps 1 MiB per stream, then waits."""

    def forget(self, run_id: str) -> None:
        """The end of the run is recorded: the box may forget all about it."""

    async def signal_run(self, run_id: str, signum: int) -> bool:
        """Send a signal to the session's foreground group. False: the run is over."""

    async def write_stdin(self, run_id: str, at: int | None, data: bytes, eof: bool) -> int:
        """More for the open standard input of a run: bytes that begin at `at` of all that it has been given (None:
        behind them); what is before that is not taken twice. Answers how many it has taken in all, at most 5 s after
        there was no room. `eof`: if all of this was taken, it is the end.
        GuestError: EPIPE (nobody reads it any more, or it is not open), EINVAL (something between is missing)."""

    async def kill_run(self, run_id: str) -> None:
        """Kill everything the run started; its end is then reported with reason `killed`."""

    async def settle(self) -> Activity:
        """Wait until every idle shell has been saved (all `state` events are in) and say what else lives."""

    async def read_file(self, path: str) -> OpenFile:
        """Open a regular file for reading; nothing is left open for somebody who stops waiting. GuestError with ENOENT,
        EISDIR, EACCES (a place with no files), …"""

    async def write_file(
        self, path: str, data: bytes | int, mode: int | None = None, *, durable: bool = False, in_run: bool = False
    ) -> int:
        """Replace a file atomically, parents made; `data`: bytes, or a descriptor of the host read from its start.
        `mode`: permission bits; None keeps those of the file replaced, else 0644. Returns the size written; `durable`,
        of a box that was booted so: once the file and its name are on the disk. `in_run`: into
        /run/boxwood-policies, where only the server puts things, and from where they go with the box. Bytes up to 1 MiB
        that are not durable are written before the box does anything that it is asked later, also if whoever asked
        stops waiting."""

    async def receive_file(self, path: str, mode: int | None = None, *, durable: bool = False) -> FileFeed:
        """As `write_file`, of bytes that come one after the other: nothing is seen of them until all are there."""

    async def receive_archive(self, path: str, packed: bool, limit: int, *, durable: bool = False) -> ArchiveFeed:
        """Unpack a tar stream, `packed` with gzip or not, into a directory that is made if it is not there. Names lead
        nowhere else, links are not followed; more than `limit` bytes are refused. What was unpacked before something
        went wrong stays: each file whole."""

    async def manifest(self, path: str, limit: int = 50_000) -> Manifest:
        """Regular files below a directory with their SHA-256. A missing directory has none."""

    async def kill(self) -> None:
        """Put the box down; returns when no process of it is left, and so nothing that could write."""

    async def dismiss(self) -> None:
        """Nothing runs in the box from now on, and its files are of no use to anybody; it is put down when there is
        time, within a second or so, which `gone` tells."""


class Engine(BoxNetworks, Protocol):
    """One host."""

    @property
    def states(self) -> States: ...

    async def start(self) -> Sequence[Box]:
        """Find or start what runs boxes; the boxes that live already are handed over. EngineUnavailable."""

    async def close(self) -> None:
        """Let go of everything; boxes live on."""

    async def shutdown(self) -> None:
        """Put down every box and end what runs them."""

    async def boot(self, spec: BoxSpec) -> Box:
        """A box for a VM that has none. Makes the directories of its top if they are not there."""

    async def change(self, box: Box, hostname: str, limits: Limits) -> None:
        """Another name, other limits for a live box, at once. EngineError: the limits cannot be had, say because its
        processes use more memory already; nothing was changed."""

    def suspend_problem(self) -> str:
        """Why this host cannot suspend boxes, and how to change that; empty: it can."""

    async def suspend(self, box: Box) -> None:
        """Let all processes of a live box stand still, its agent among them, once that has answered what it has been
        asked: until `wake` it can only be killed, and whoever asks it for something gets Asleep. They go on when the
        server lets go of the box. EngineError: they go on. NotHere, BoxGone."""

    async def wake(self, box: Box) -> None:
        """Let them go on. EngineError."""

    async def memory_kills(self, box: Box) -> int | None:
        """How many of a live box's processes were killed because it had used up its memory; None: nobody counts."""

    async def is_empty(self, layer_id: str) -> bool:
        """Has nothing ever been written to this top? Only for a top with no live box."""

    async def contents(self, layer_id: str) -> Contents:
        """What a layer, or a top whether it has a live box or not, holds. One without a limit is looked through; one
        with a limit is asked, which takes the same time however much there is. One without a directory is empty."""

    async def disk_capacity(self, top: str) -> int | None:
        """How many bytes the limit of this top can be raised to. 0: to nothing, it was made without a limit; None: it
        has not been made yet, so to anything."""

    def disk_problem(self) -> str:
        """Why this host cannot limit disks, and how to change that; empty: it can."""

    def durable_problem(self) -> str:
        """Why this host cannot make a VM durable whose disk is limited; empty: it can."""

    async def secure(self, layers: Sequence[str]) -> None:
        """Have all that is in these sealed layers of the data directory on the disk. NotHere: one of them lies in a
        file of its own."""

    async def in_files(self) -> set[str]:
        """The ids of all layers and tops that lie in a file each: sealed ones are worth merging, alone or with others,
        since each costs every box that stands on it a mount."""

    async def copy_top(self, box: Box, source: str, target: str) -> CopyReport:
        """Make layer `target` a copy of the top of a live box whose processes go on."""

    async def merge(self, layers: Sequence[str], target: str) -> None:
        """Make sealed layer `target` what `layers` (topmost first) show together, over whatever lies below."""

    async def remove(self, layers: Sequence[str]) -> None:
        """Remove the directories of these layers; those that are not there are no error."""

    async def stored(self) -> set[str]:
        """The ids of all layers and tops that have a directory in the data directory, but for those of boxes that are
        kept ready for VMs to come."""

    async def check_layer(self, layer_id: str) -> str:
        """What is wrong with a sealed layer's directory, looked through once; empty: nothing. EngineUnavailable."""

    def free_memory(self) -> int:
        """Bytes that the host has left, to be had without swapping."""

    def free_disk(self) -> int:
        """Bytes that are left where layers are written."""

    @property
    def volumes(self) -> Volumes: ...

    def features(self) -> AsyncIterator[Feature]:
        """The layers of isolation of this host, as they are now."""
