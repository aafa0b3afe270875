"""A terminal that somebody looks at: a pseudo-terminal with a login shell, or another program, in control of it.

What its programs put out is kept as scrollback, the last `KEPT` bytes of it, for whoever comes back. While somebody
looks, no more than `WINDOW` bytes are on the way to him: then the terminal is not read any more, and who writes to it
waits, as on any slow line. While nobody looks it is read all the same, and only the scrollback stays.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from boxwood.engine.agent.loop import IN, OUT, Loop, Timer
from boxwood.engine.agent.procs import Streams, spawn
from boxwood.engine.agent.run import FRAME, Send
from boxwood.engine.agent.trees import Killing, Orphanage, ProcessTree, Vigil

WINDOW = 128 << 10  # bytes on the way to whoever looks
KEPT = 256 << 10  # bytes of scrollback
UNREAD = 128 << 10  # bytes of input that its programs have not read yet: more is refused
_TAKEN = 16 << 10  # bytes of input after which the server is told that they have been taken
_LAST_READS = 4  # a terminal holds 64 KiB
_LINE = 4096  # of scrollback: how much is left out to begin with a whole line
_UNLOCK, _PEER = 0x40045431, 0x5441


class Order(NamedTuple):
    """What is to be started. `argv[0]` may differ from `exe`, as a login shell's does. `idle`: seconds without input
    or output after which all of it is killed, 0: never. Without `persist` it is killed when nobody looks any more."""

    exe: bytes
    argv: Sequence[bytes]
    env: Mapping[bytes, bytes]
    cwd: bytes
    columns: int
    rows: int
    persist: bool
    idle: float


class Pty:
    """`ended`: its program has. `told`: so has been said. `over`: nothing that it has started lives any more.
    `on_change` is called with each of the latter two."""

    def __init__(self, loop: Loop, orphanage: Orphanage, pty_id: str, sid: str, order: Order, send: Send) -> None:
        self.pty_id = pty_id
        self.sid = sid
        self.persist = order.persist
        self.ended = self.told = self.over = False
        self.on_change: Callable[[], None] = lambda: None
        self._loop = loop
        self._send = send
        self._idle = order.idle
        self._reason = "exit"
        self._status: int | None = None
        self._killing = False
        self._watched = False
        self._view = 0
        self._kept = bytearray()  # from offset _base on
        self._base = self._sent = self._acked = 0
        self._feeding = bytearray()
        self._taken = 0
        self._active_at = time.monotonic()
        self._timer: Timer | None = None
        self.tree = ProcessTree(orphanage)
        self.tree.on_change = self._advance
        self._vigil = Vigil(loop, self._advance)
        self._master, self._slave = _open()
        try:
            self.resize(order.columns, order.rows)
            child = self._start(order)
        except OSError:
            os.close(self._master)
            os.close(self._slave)
            raise
        self.tree.grow(child)
        loop.child(child, self._on_exit)
        loop.watch(self._master, IN, self._ready)
        if order.idle:
            self._timer = loop.at(self._active_at + order.idle, self._look_for_life)

    def _start(self, order: Order) -> int:
        try:
            place = os.open(order.cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            place = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            streams = Streams(self._slave, self._slave, self._slave)
            return spawn(order.exe, order.argv, order.env, streams, place, leads=True)
        finally:
            os.close(place)

    @property
    def dying(self) -> bool:
        return self._reason != "exit" and not self.ended

    # --- who looks

    def attach(self, view: int) -> None:
        """From now on its output is sent, the scrollback first, marked with the number of this look at it."""
        self._sent = self._acked = self._beginning()
        self._view, self._watched = view, True
        self._pump()
        if not self.ended:
            self._listen()

    def _beginning(self) -> int:
        """Where a line begins, if something was left out before."""
        if not self._base:
            return 0
        end = self._kept.find(b"\n", 0, _LINE)
        return self._base + end + 1

    def detach(self) -> None:
        """Nobody looks any more."""
        self._watched = False
        if self.ended:
            self._tell_end()
            return
        self._trim()
        self._listen()
        if not self.persist:
            self.kill("killed")

    def nudge(self) -> None:
        """Let a full-screen program draw everything anew: whoever came back sees only what it had changed last."""
        self.signal(signal.SIGWINCH)

    def signal(self, signum: int) -> None:
        """To what is in the foreground."""
        if self.ended:
            return
        try:
            group = struct.unpack("i", fcntl.ioctl(self._master, termios.TIOCGPGRP, bytes(4)))[0]
            if group > 1:
                os.killpg(group, signum)
        except OSError:
            pass

    def resize(self, columns: int, rows: int) -> None:
        if not self.ended:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    # --- output

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if events & ~OUT and not self.ended:
            self._read()

    def _full(self) -> bool:
        return self._watched and self._end_at - self._acked >= WINDOW

    @property
    def _end_at(self) -> int:
        return self._base + len(self._kept)

    def _read(self) -> None:
        if self._take():
            self._active_at = time.monotonic()
            self._pump()
            self._trim()
        if self._full():
            self._listen()

    def _take(self) -> int:
        """Read what there is, about a frame's worth at most: how much it was."""
        before = len(self._kept)
        try:
            while len(self._kept) - before < FRAME and (data := os.read(self._master, FRAME)):
                self._kept += data
        except OSError:
            pass
        return len(self._kept) - before

    def _trim(self) -> None:
        """What is too old, and on its way."""
        extra = len(self._kept) - KEPT
        if self._watched:
            extra = min(extra, self._sent - self._base)
        if extra > 0:
            del self._kept[:extra]
            self._base += extra

    def _pump(self) -> None:
        while self._watched and self._sent < self._end_at and self._sent - self._acked < WINDOW:
            start = self._sent - self._base
            data = bytes(self._kept[start : start + min(FRAME, WINDOW - (self._sent - self._acked))])
            at, self._sent = self._sent, self._sent + len(data)
            self._send({"ev": "pty.out", "pty": self.pty_id, "view": self._view, "at": at}, data)

    def ack(self, view: int, offset: int) -> None:
        """What comes before `offset` has reached whoever looks."""
        if self._watched and view == self._view and self._acked < offset <= self._sent:
            self._acked = offset
            self._pump()
            self._trim()
            self._listen()
            self._tell_end()

    def _listen(self) -> None:
        if not self.ended:
            events = (0 if self._full() else IN) | (OUT if self._feeding else 0)
            if events:
                self._loop.watch(self._master, events, self._ready)
            else:
                self._loop.unwatch(self._master)

    # --- input

    def feed(self, data: bytes) -> None:
        """As if it had been typed. ValueError: more than the server may send before it is taken."""
        if self.ended:
            return
        if len(self._feeding) + len(data) > UNREAD:
            raise ValueError("more input than there is room for")
        self._active_at = time.monotonic()
        self._feeding += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._feeding:
                sent = os.write(self._master, self._feeding[:_LINE])
                del self._feeding[:sent]
                self._taken += sent
        except OSError:
            pass
        if self._taken >= _TAKEN:
            self._send({"ev": "pty.taken", "pty": self.pty_id, "size": self._taken})
            self._taken = 0
        self._listen()

    # --- the end

    def _look_for_life(self) -> None:
        at = self._active_at + self._idle
        if time.monotonic() >= at:
            self.kill("idle")
        else:
            self._timer = self._loop.at(at, self._look_for_life)

    def kill(self, reason: str) -> None:
        """Everything that was started on it."""
        if self.over:
            return
        if self._status is None or self._reason == "exit":
            self._reason = reason
        if not self._killing:
            self._killing = True
            Killing(self._loop, self.tree, {}, True, self._on_killed)

    def _on_killed(self, root_too: bool) -> None:
        self._killing = False
        self._advance()

    def _on_exit(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self.tree.root_died()
        self._end()
        self._advance()

    def _end(self) -> None:
        """What its programs have put out is taken from the terminal; then it is hung up."""
        for _ in range(_LAST_READS):  # who has been left behind may write on and on
            if not self._take():
                break
        if self._timer is not None:
            self._timer.cancel()
        self.ended = True
        self._loop.unwatch(self._master)
        os.close(self._master)
        os.close(self._slave)
        self._pump()
        self._tell_end()

    def _tell_end(self) -> None:
        """When all has been sent to whoever looks."""
        if self.ended and not self.told and not (self._watched and self._sent < self._end_at):
            self.told, self._watched = True, False
            self._kept.clear()
            status = self._status or 0
            code = status if status >= 0 else 128 - status
            said = {"ev": "pty.end", "pty": self.pty_id, "view": self._view, "code": code, "reason": self._reason}
            self._send(said)
            self.on_change()

    def _advance(self) -> None:
        """What the program has left behind lives on, as behind any terminal, unless it was killed."""
        if self.over or self._killing or not self.ended:
            return
        while live := self.tree.live():
            if self._reason != "exit":
                self._killing = True
                Killing(self._loop, self.tree, {}, False, self._on_killed)
                return
            if self._vigil.keep(set(live)):
                return
        self.over = True
        self._vigil.close()
        self.on_change()


def _open() -> tuple[int, int]:
    """Both ends of a new pseudo-terminal. OSError."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(master, _UNLOCK, struct.pack("i", 0))
        return master, fcntl.ioctl(master, _PEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        raise
