"""What the core asks of a box's terminals, and the values that go back and forth: see api."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

PTY_WINDOW = 128 << 10  # bytes of output on the way, of input that nobody has read


@dataclass(frozen=True, slots=True)
class PtySpec:
    """A terminal to be opened for a session, in its directory and with its environment. `argv`: a program, looked for
    along PATH, and its arguments; None: a login shell. `term`: what kind of terminal looks at it; None: as the
    session's environment says. `persist`: it outlives whoever looks. `idle_seconds`: so long without input or output,
    and it is killed; 0: never."""

    pty_id: str
    session_id: str
    columns: int = 80
    rows: int = 24
    argv: tuple[bytes, ...] | None = None
    term: str | None = None
    persist: bool = True
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PtyEnd:
    """The end of a terminal's program: its exit code as a shell has it, and whether it was `killed` or `idle` for too
    long, or ended by itself (`exit`)."""

    exit_code: int
    reason: str = "exit"


class PtySink(Protocol):
    """Who hears of a terminal. All calls come on the event loop, in order, and must not block."""

    def output(self, data: bytes) -> None:
        """At most PTY_WINDOW bytes come without an `ack`."""

    def taken(self, size: int) -> None:
        """So many more bytes of input have been read; some may be told later."""

    def ended(self, end: PtyEnd) -> None:
        """It is gone. Not called if the box dies: see `Box.gone`."""


class BoxPtys(Protocol):
    """The terminals of a live box. Every call may raise `BoxGone`, what is awaited `GuestError`."""

    @property
    def known(self) -> Mapping[str, str]:
        """Of those that live: the session's id by their own."""

    async def open(self, spec: PtySpec, sink: PtySink) -> str:
        """Look at the session's terminal, made if there is none; its id. One that was there shows its scrollback."""

    def watch(self, pty_id: str, sink: PtySink) -> None:
        """Hear of the end of one that is `known` already."""

    def write(self, pty_id: str, data: bytes) -> None:
        """Input. No more than PTY_WINDOW bytes may wait to be `taken`."""

    def ack(self, pty_id: str, size: int) -> None:
        """So many more bytes of output have reached whoever looks."""

    async def resize(self, pty_id: str, columns: int, rows: int) -> None: ...

    async def signal(self, pty_id: str, signum: int) -> None:
        """To what is in its foreground."""

    async def detach(self, pty_id: str) -> None:
        """Nobody looks any more."""

    async def kill(self, pty_id: str) -> None:
        """Kill all that was started on it; its end is reported then."""
