"""The terminals of a box in memory, for the engine in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.ptyapi import PTY_WINDOW, PtyEnd, PtySink, PtySpec

PIECE = 64 << 10


@dataclass
class FakePty:
    """A terminal that shows what is typed. Lines: `exit N` · `flood BYTES` · `size`. Input that has no end of line
    waits, and `deaf` waits for ever."""

    spec: PtySpec
    kept: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)
    sink: PtySink | None = None
    watched: bool = False
    sent: int = 0
    acked: int = 0
    size: tuple[int, int] = (80, 24)

    def show(self, data: bytes) -> None:
        self.kept += data
        self.pump()

    def pump(self) -> None:
        while self.watched and self.sink is not None and self.sent < len(self.kept):
            piece = bytes(self.kept[self.sent : min(len(self.kept), self.acked + PTY_WINDOW)][:PIECE])
            if not piece:
                return
            self.sent += len(piece)
            self.sink.output(piece)


class FakePtys:
    def __init__(self, living: Any) -> None:
        self._living = living

    @property
    def known(self) -> Mapping[str, str]:
        return {ident: pty.spec.session_id for ident, pty in self._living.ptys.items()}

    def _alive(self, what: str, argument: object = None) -> dict[str, FakePty]:
        if self._living.dead is not None:
            raise BoxGone(self._living.dead)
        self._living.machine.note(what, argument)
        return self._living.ptys

    async def open(self, spec: PtySpec, sink: PtySink) -> str:
        ptys = self._alive("open_pty", spec)
        assert spec.session_id in self._living.shells, "the session was not opened"
        if spec.argv == (b"missing",):
            raise GuestError(errno.ENOENT, "there is no program missing")
        known = next((one for one in ptys.values() if one.spec.session_id == spec.session_id), None)
        pty = known or ptys.setdefault(spec.pty_id, FakePty(spec))
        pty.sink, pty.watched, pty.size = sink, True, (spec.columns, spec.rows)
        pty.sent = pty.acked = 0
        if known is None:
            pty.show(b"$ ")
        else:
            pty.pump()
        return pty.spec.pty_id

    def watch(self, pty_id: str, sink: PtySink) -> None:
        self._living.ptys[pty_id].sink = sink

    def write(self, pty_id: str, data: bytes) -> None:
        if (pty := self._alive("type").get(pty_id)) is None or pty.sink is None:
            return
        if pty.spec.argv == (b"deaf",):
            return
        pty.sink.taken(len(data))
        pty.show(data)
        pty.line += data
        while b"\r" in pty.line:
            line, _, rest = bytes(pty.line).partition(b"\r")
            pty.line[:] = rest
            match line.decode().split():
                case ["exit", code]:
                    self.end(pty, int(code))
                case ["flood", count]:
                    pty.show(b"x" * int(count))
                case ["size"]:
                    pty.show(b"%d %d" % pty.size)

    def end(self, pty: FakePty, code: int, reason: str = "exit") -> None:
        self._living.ptys.pop(pty.spec.pty_id, None)
        if pty.sink is not None:
            pty.sink.ended(PtyEnd(code, reason))

    def ack(self, pty_id: str, size: int) -> None:
        if (pty := self._living.ptys.get(pty_id)) is not None:
            pty.acked += size
            assert pty.acked <= pty.sent
            asyncio.get_running_loop().call_soon(pty.pump)

    async def resize(self, pty_id: str, columns: int, rows: int) -> None:
        if (pty := self._alive("resize_pty", (columns, rows)).get(pty_id)) is not None:
            pty.size = (columns, rows)

    async def signal(self, pty_id: str, signum: int) -> None:
        if (pty := self._alive("signal_pty", signum).get(pty_id)) is not None:
            pty.show(f"signal {signum}".encode())

    async def detach(self, pty_id: str) -> None:
        if (pty := self._alive("detach_pty", pty_id).get(pty_id)) is not None:
            pty.watched = False
            if not pty.spec.persist:
                self.end(pty, 137, "killed")

    async def kill(self, pty_id: str) -> None:
        if (pty := self._alive("kill_pty", pty_id).get(pty_id)) is not None:
            self.end(pty, 137, "killed")
