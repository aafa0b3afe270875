"""The terminals of a live box as the server has them: `BoxPtys` of engine/api.py over the link to the box's agent.

The agent is held to its word: output comes in order and within the window, and never of more than was asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from boxwood.engine.frames import FrameError
from boxwood.engine.link import Answer, Checking, integer, text
from boxwood.engine.ptyapi import PTY_WINDOW, PtyEnd, PtySink, PtySpec

MOST = 1000
_ID = 26
_REASONS = frozenset({"exit", "killed", "idle"})


class Say(Protocol):
    def __call__(self, fields: dict[str, Any], payload: bytes = b"") -> None: ...


@dataclass(slots=True)
class _Looked:
    """One that somebody hears of. `view`: the number of the latest look at it, which its output carries; 0: none.
    `at`: where that has come to, -1 before its first byte; `acked`: of that, what has been acknowledged."""

    sink: PtySink
    view: int = 0
    at: int = -1
    acked: int = 0
    typed: int = 0  # bytes that have not been taken
    over: bool = False

    def taken(self, size: int) -> None:
        """FrameError: nobody has typed that much."""
        if size > self.typed:
            raise FrameError(f"{size} bytes taken of a terminal's input, of {self.typed}")
        self.typed -= size
        self.sink.taken(size)


class HostPtys:
    """`ask` sends a request and waits for its answer; `say` sends what has none. `on_look`: somebody looks from now
    on. `checking`: what makes no sense meanwhile costs the box."""

    def __init__(
        self, ask: Callable[..., Awaitable[Answer]], say: Say, on_look: Callable[[], None], checking: Checking
    ) -> None:
        self._ask = ask
        self._checking = checking
        self._say = say
        self._on_look = on_look
        self.known: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._views: dict[int, _Looked] = {}  # output may come before the answer to `open` has been heard
        self._looked: dict[str, _Looked] = {}

    async def open(self, spec: PtySpec, sink: PtySink) -> str:
        looked = _Looked(sink, next(self._numbers))
        fields = {
            "sid": spec.session_id, "pty": spec.pty_id, "columns": spec.columns, "rows": spec.rows, "term": spec.term,
            "persist": spec.persist, "idle": spec.idle_seconds, "view": looked.view,
        }  # fmt: skip
        argv = b"".join(argument + b"\0" for argument in spec.argv or ())
        self._views[looked.view] = looked
        try:
            header, *_ = await self._ask("pty.open", fields, argv)
            with self._checking("answer to pty.open"):
                ident = text(header, "pty", _ID)
        except BaseException:
            self._views.pop(looked.view, None)
            raise
        if not looked.over:
            if (before := self._looked.get(ident)) is not None:
                self._views.pop(before.view, None)
            self.known[ident] = spec.session_id
            self._looked[ident] = looked
            self._on_look()
        return ident

    @property
    def looked_at(self) -> bool:
        """Somebody looks at one of them."""
        return bool(self._views)

    def watch(self, pty_id: str, sink: PtySink) -> None:
        self._looked[pty_id] = _Looked(sink)

    def write(self, pty_id: str, data: bytes) -> None:
        if (looked := self._looked.get(pty_id)) is not None:
            looked.typed += len(data)
            self._say({"op": "pty.in", "pty": pty_id}, data)

    def ack(self, pty_id: str, size: int) -> None:
        if (looked := self._looked.get(pty_id)) is not None and looked.view in self._views:
            looked.acked = min(looked.acked + size, looked.at)
            self._say({"op": "pty.ack", "pty": pty_id, "view": looked.view, "at": looked.acked})

    async def resize(self, pty_id: str, columns: int, rows: int) -> None:
        await self._ask("pty.size", {"pty": pty_id, "columns": columns, "rows": rows})

    async def signal(self, pty_id: str, signum: int) -> None:
        await self._ask("pty.signal", {"pty": pty_id, "signal": signum})

    async def detach(self, pty_id: str) -> None:
        if (looked := self._looked.get(pty_id)) is not None:
            self._views.pop(looked.view, None)
        await self._ask("pty.detach", {"pty": pty_id})

    async def kill(self, pty_id: str) -> None:
        await self._ask("pty.kill", {"pty": pty_id})

    # --- what the agent says

    def on_hello(self, ptys: object) -> None:
        """FrameError."""
        if not isinstance(ptys, list) or len(ptys) > MOST:
            raise FrameError("ptys must be a list")
        for one in ptys:
            if not isinstance(one, dict):
                raise FrameError("a pty must be an object")
            self.known[text(one, "pty", _ID)] = text(one, "sid", _ID)

    def on_event(self, kind: str, header: dict[str, Any], payload: bytes) -> None:
        """FrameError."""
        if kind == "pty.out":
            self._on_output(self._views.get(integer(header, "view")), integer(header, "at"), payload)
            return
        ident = text(header, "pty", _ID)
        looked = self._looked.get(ident)
        if kind == "pty.taken":
            if looked is not None:
                looked.taken(integer(header, "size"))
            return
        end = _end(header)
        looked = looked or self._views.get(integer(header, "view"))
        self.known.pop(ident, None)
        self._looked.pop(ident, None)
        if looked is not None:
            self._views.pop(looked.view, None)
            looked.over = True
            looked.sink.ended(end)

    def _on_output(self, looked: _Looked | None, at: int, payload: bytes) -> None:
        if looked is None:
            return  # it was on its way when somebody stopped looking
        if looked.at < 0:
            looked.at = looked.acked = at
        if at != looked.at:
            raise FrameError(f"a terminal's output at {at}, expected at {looked.at}")
        looked.at += len(payload)
        if looked.at - looked.acked > PTY_WINDOW:
            raise FrameError("a terminal's output does not keep to its window")
        looked.sink.output(payload)


def _end(header: dict[str, Any]) -> PtyEnd:
    code, reason = integer(header, "code"), text(header, "reason", 16)
    if code > 255 or reason not in _REASONS:
        raise FrameError(f"a terminal that ended with {code}, {reason}")
    return PtyEnd(code, reason)
