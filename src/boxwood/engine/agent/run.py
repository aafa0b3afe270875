"""A run as the server knows it: its output, kept until it is acknowledged, and its end.

Output is addressed by offset, so a server that comes back takes it up again where its own records stop.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from boxwood.engine.agent.intake import Intake
from boxwood.engine.agent.loop import IN, Loop
from boxwood.engine.agent.terminal import unread

WINDOW = 1 << 20  # bytes of a stream that are kept unacknowledged; then its pipe is not read any more
FRAME = 1 << 16
MARKER_BYTES = 256
_PIPE_SIZE = 1 << 20


class Send(Protocol):
    def __call__(self, header: dict[str, Any], payload: bytes = b"") -> None: ...


class Command(NamedTuple):
    """What a run is to do. `timeout` in seconds, None: never; `stdin` None: the terminal. `argv`: a program and its
    arguments, instead of the text. `leaves`: it ends with that program, and what else it has started goes on. `open`:
    `stdin` is the beginning of what it reads, the run's `intake` gets the rest. `marker`: output that ends so is its
    end, as a prompt is."""

    text: bytes
    timeout: float | None = None
    stdin: bytes | None = None
    prompt: bool = True  # may a prompt that waits for input be its end?
    argv: tuple[bytes, ...] | None = None
    leaves: bool = False
    open: bool = False
    marker: bytes = b""


class Output:
    """One stream: the bytes from offset `base` on."""

    __slots__ = ("base", "kept", "on_room", "sent")

    def __init__(self) -> None:
        self.base = 0
        self.kept = bytearray()
        self.sent = 0
        self.on_room: Callable[[], None] | None = None

    @property
    def end(self) -> int:
        return self.base + len(self.kept)

    @property
    def full(self) -> bool:
        return len(self.kept) >= WINDOW

    def ack(self, offset: int) -> None:
        """The bytes before `offset` are safe with the server."""
        count = min(offset, self.end) - self.base
        if count > 0:
            del self.kept[:count]
            self.base += count
            if self.on_room is not None and not self.full:
                self.on_room()


class Run:
    """`end` is None while it goes on, then the fields of its `end` frame. `reports`: it has a third stream, of what a
    Python context says of it."""

    def __init__(self, rid: str, sid: str, send: Send, *, reports: bool = False) -> None:
        self.rid = rid
        self.sid = sid
        self.end: dict[str, Any] | None = None
        self.outputs = tuple(Output() for _ in range(3 if reports else 2))
        self.tails = [b"", b""]  # the last bytes of each stream
        self.on_end: Callable[[], None] = lambda: None
        self.intake: Intake | None = None  # of one whose standard input is open
        self._send = send
        self._attached = True

    def put(self, stream: int, data: bytes) -> None:
        """New output of stream 1 or 2, or 3."""
        if data and self.end is None:
            output = self.outputs[stream - 1]
            output.kept += data
            if stream < 3:
                self.tails[stream - 1] = (self.tails[stream - 1] + data[-MARKER_BYTES:])[-MARKER_BYTES:]
            self._pump(stream)

    @property
    def size(self) -> int:
        return self.outputs[0].end + self.outputs[1].end

    def _pump(self, stream: int) -> None:
        output = self.outputs[stream - 1]
        while self._attached and output.sent < output.end:
            start = output.sent - output.base
            data = bytes(output.kept[start : start + FRAME])
            at, output.sent = output.sent, output.sent + len(data)
            self._send({"ev": "out", "rid": self.rid, "stream": stream, "at": at}, data)

    def finish(self, code: int | None, reason: str, *, started: bool = True, lost: bool = False) -> None:
        """All output has been put. `lost`: the Python context that it ran in has died."""
        if self.end is None:
            if self.intake is not None:
                self.intake.close()
            self.end = {"code": code, "reason": reason, "out": self.outputs[0].end, "err": self.outputs[1].end}
            if not started:
                self.end["started"] = False
            if len(self.outputs) > 2:
                self.end |= {"rep": self.outputs[2].end, "lost": lost}
            self._tell_end()
            self.on_end()

    def _tell_end(self) -> None:
        if self.end is not None:
            self._send({"ev": "end", "rid": self.rid, **self.end})

    # --- the server comes and goes

    def detach(self) -> None:
        """There is a new link, on which nobody has asked for this run yet."""
        self._attached = False

    def check(self, *offsets: int) -> None:
        """ValueError: these offsets, of one stream after the other, are not there yet."""
        for output, offset in zip(self.outputs, offsets, strict=False):
            if not 0 <= offset <= output.end:
                raise ValueError(f"offset {offset} is not within 0 to {output.end}")

    def attach(self, *offsets: int) -> None:
        """Send again from these offsets on; what has been acknowledged is not kept any more, and is left out."""
        self.check(*offsets)
        self._attached = True
        for number, (output, offset) in enumerate(zip(self.outputs, offsets, strict=False)):
            output.sent = max(offset, output.base)
            self._pump(number + 1)
        self._tell_end()

    def ack(self, *offsets: int) -> None:
        for output, offset in zip(self.outputs, offsets, strict=False):
            output.ack(min(offset, output.sent))

    def header(self) -> dict[str, Any]:
        """What `hello` says of it."""
        out, err, *_ = self.outputs
        return {"rid": self.rid, "sid": self.sid, "out": out.end, "err": err.end, "end": self.end}


class Source:
    """The reading end of a pipe whose bytes become a run's stream, no faster than they are acknowledged. What is there
    of those that come `after`, it lets go first, and waits while one of them has no room."""

    def __init__(self, loop: Loop, fd: int, stream: int, after: Sequence[Source] = ()) -> None:
        self._loop = loop
        self.fd = fd
        self._stream = stream
        self._after = after
        self._run: Run | None = None
        self._sieve: Callable[[bytes], bytes] | None = None
        self._reading = False
        self.ended = False
        self._before: list[Source] = []  # those that wait for this one
        self._waits_for: list[tuple[Source, int]] = []  # up to which offsets, once it has something to let go
        for source in after:
            source._before.append(self)
        try:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        except OSError:
            pass  # the user's share of pipe memory is used up: a small one does as well

    def flow(self, run: Run, sieve: Callable[[bytes], bytes] | None = None) -> None:
        """Let it flow into this run, from now on, through the sieve if there is one."""
        self._run, self._sieve = run, sieve
        run.outputs[self._stream - 1].on_room = self._resume
        self._resume()

    def _resume(self) -> None:
        run = self._run
        if run is not None and not self._reading and not self.ended and not run.outputs[self._stream - 1].full:
            self._reading = True
            self._loop.watch(self.fd, IN, self._ready)
        for source in self._before:
            source._resume()

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.unwatch(self.fd)

    def stop(self) -> None:
        """Nothing flows any more. What comes waits in the pipe."""
        self.pause()
        if self._run is not None:
            self._run.outputs[self._stream - 1].on_room = None
            self._run = None

    def _ready(self, events: int) -> None:
        if self._after and not self._waits_for:
            self._waits_for = [(source, source._end) for source in self._after]
        if not all(source._let_go(end) for source, end in self._waits_for):
            self.pause()
            return
        self._waits_for = []
        self._take(FRAME)
        if self._full:
            self.pause()

    @property
    def _full(self) -> bool:
        return self._run is not None and self._run.outputs[self._stream - 1].full

    @property
    def _end(self) -> int:
        """Of the stream, as far as it is there at this moment, read or not."""
        if self._run is None or self.ended:
            return 0
        return self._run.outputs[self._stream - 1].end + unread(self.fd)

    def _let_go(self, end: int) -> bool:
        """Take what there is, if there is room for it: is the stream read up to there?"""
        while (run := self._run) is not None and not self.ended:
            missing = end - run.outputs[self._stream - 1].end
            if missing <= 0 or self._full:
                return missing <= 0
            if not self._take(min(missing, FRAME)):
                break
        return True

    def _take(self, most: int) -> int:
        try:
            data = os.read(self.fd, most)
        except BlockingIOError:
            return 0
        if not data:
            self.ended = True
            self.pause()
        elif self._run is not None:
            self._run.put(self._stream, data if self._sieve is None else self._sieve(data))
        return len(data)

    def catch_up(self) -> None:
        """Take what there is at this moment, be the window full or not: it is no more than a pipe holds."""
        left = unread(self.fd)
        while left > 0 and (taken := self._take(min(left, FRAME))):
            left -= taken

    def held(self) -> bool:
        """Does anybody still hold the writing end? (What he has written meanwhile is lost.)"""
        try:
            while os.read(self.fd, FRAME):
                pass
        except BlockingIOError:
            return True
        return False
