"""What this face hands out: plain data, named as Arker names it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Literal


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


def iso(moment: datetime | None) -> str:
    """ISO 8601, UTC as Z."""
    return "" if moment is None else moment.isoformat().replace("+00:00", "Z")
