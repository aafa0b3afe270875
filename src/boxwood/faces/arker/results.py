"""What this face hands out: plain data, named as Arker names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Literal

from boxwood.client import volumes


@dataclass(frozen=True)
class RunResult:
    """A command that has ended.

    `stdout`, `stderr`: exactly the bytes it wrote. `exit_code`: as a shell has it, 128 + n for signal n, 124 after its
    timeout; 0 where a prompt waits for input. `duration_ms`: milliseconds, as the server measured them. `session_id`:
    where it ran; a further run may name it.
    """

    stdout: bytes
    stderr: bytes
    exit_code: int
    duration_ms: float
    session_id: str
    run_id: str | None = None
    state: str = "completed"
    type: Literal["completed"] = "completed"
    _where: Callable[[], str] = field(default=str, repr=False, compare=False)

    @cached_property
    def cwd(self) -> str:
        """The session's directory, asked for at the first use; empty if the session has gone."""
        return self._where()


@dataclass(frozen=True)
class BackgroundRun:
    """A command that was started and is not waited for."""

    run_id: str
    session_id: str | None
    state: str
    type: Literal["background"] = "background"


@dataclass(frozen=True)
class VmSummary:
    """A VM in a list. `base_image`: the name of the golden that it comes from. `created_at`: ISO 8601."""

    vm_id: str
    name: str | None
    base_image: str
    region: str
    created_at: str


@dataclass(frozen=True)
class VmList:
    """A page of VMs: iterable, with a length. `total`: how many there are on all pages."""

    items: list[VmSummary]
    total: int

    def __iter__(self) -> Iterator[VmSummary]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Filesystem:
    """A volume that outlives computers. `created_at`: ISO 8601; `size_bytes`: as far as the server knows."""

    filesystem_id: str
    name: str
    owner_org_id: str
    created_at: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class FilesystemList:
    """Iterable, with a length."""

    filesystems: list[Filesystem]
    next_cursor: None = None

    def __iter__(self) -> Iterator[Filesystem]:
        return iter(self.filesystems)

    def __len__(self) -> int:
        return len(self.filesystems)


@dataclass(frozen=True)
class SyncBinding:
    """A filesystem at a path of a computer."""

    sync_id: str
    vm_id: str
    filesystem_id: str
    path: str


@dataclass(frozen=True)
class SyncBindingList:
    """Iterable, with a length."""

    syncs: list[SyncBinding]
    next_cursor: None = None

    def __iter__(self) -> Iterator[SyncBinding]:
        return iter(self.syncs)

    def __len__(self) -> int:
        return len(self.syncs)


def filesystem(of: volumes.Filesystem) -> Filesystem:
    return Filesystem(of.filesystem_id, of.name, of.owner_org_id or "", iso(of.created_at), of.size_bytes)


def binding(of: volumes.Mount) -> SyncBinding:
    return SyncBinding(of.mount_id, of.vm_id, of.filesystem_id, of.path)


def iso(moment: datetime | None) -> str:
    """ISO 8601, UTC as Z."""
    return "" if moment is None else moment.isoformat().replace("+00:00", "Z")
