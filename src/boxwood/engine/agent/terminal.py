"""The terminal that is a session's standard input, and who waits for input on it.

A PTY without echo. It is nobody's controlling terminal (the shells are not session leaders, so opening it does not
make it theirs): the end of a shell hangs nothing up, and a program that wants a password falls back from /dev/tty to
its standard input and error, where its prompt can be seen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from boxwood.engine.agent.loop import IN, OUT, Loop
from boxwood.engine.agent.procs import read_proc

_TIOCGPTN, _TIOCSPTLCK, _TIOCGPTPEER = 0x80045430, 0x40045431, 0x5441
_VEOF = b"\x04"
_ROWS_COLUMNS = struct.pack("HHHH", 24, 80, 0, 0)
_PIECE = 4000  # a line that is longer than the kernel's 4096 is handed over in pieces
_FULL_SECONDS = 0.05  # between looks whether there is room for output again
_MOST_THREADS = 64
_MOST_POLLED = 64

_CALLS = {
    "x86_64": {
        0: "read", 19: "read", 17: "read", 295: "read", 275: "splice", 40: "sendfile",
        7: "poll", 271: "poll", 23: "select", 270: "select", 232: "epoll", 281: "epoll", 441: "epoll",
    },
    "aarch64": {
        63: "read", 65: "read", 67: "read", 69: "read", 76: "splice", 71: "sendfile",
        73: "poll", 72: "select", 22: "epoll", 441: "epoll",
    },
}.get(platform.machine(), {})  # fmt: skip


# Of those that poll: which argument is the longest time, and whether it is a number or the address of one.
_TIMEOUTS = {
    "x86_64": {
        7: (3, True), 271: (3, False), 23: (5, False), 270: (5, False), 232: (4, True), 281: (4, True), 441: (4, False),
    },
    "aarch64": {73: (3, False), 72: (5, False), 22: (4, True), 441: (4, False)},
}.get(platform.machine(), {})  # fmt: skip


def unread(fd: int) -> int:
    """How many bytes lie unread in a pipe or a terminal."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


class Waiter(NamedTuple):
    """A thread that waits for input, and how often it has gone to sleep so far: a new wait is a new value."""

    pid: int
    thread: int
    sleeps: int
    call: str
    endless: bool  # nothing else, as far as the call says, will wake it

    @property
    def reads(self) -> bool:
        """Is it certain that it wants input, now? (Who polls may wait for other things too.)"""
        return self.call in ("read", "splice", "sendfile")

    @property
    def locks(self) -> bool:
        """May it hold the lock of its standard output? Until it gets input, whoever touches that pipe waits with it."""
        return self.call in ("splice", "sendfile")


class Terminal:
    """`on_output` gets what was written to the terminal; while `is_full` nothing is taken from it."""

    def __init__(
        self, loop: Loop, on_output: Callable[[bytes], None], is_full: Callable[[], bool] = lambda: False
    ) -> None:
        self._loop = loop
        self.on_output = on_output
        self.is_full = is_full
        self._master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(self._master, _TIOCSPTLCK, struct.pack("i", 0))
            number = struct.unpack("i", fcntl.ioctl(self._master, _TIOCGPTN, bytes(4)))[0]
            self._slave = fcntl.ioctl(self._master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            os.close(self._master)
            raise
        self.path = b"/dev/pts/%d" % number
        self._device = os.fstat(self._slave).st_rdev
        self._sane = _sane(termios.tcgetattr(self._slave))
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, _ROWS_COLUMNS)
        self._feeding: list[bytes] = []
        self.closed = False
        loop.watch(self._master, IN, self._ready)

    def reset(self) -> None:
        """Sane settings again, and nothing to read."""
        self._feeding.clear()
        self._loop.watch(self._master, IN, self._ready)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._sane)
        termios.tcflush(self._slave, termios.TCIFLUSH)
        termios.tcflush(self._master, termios.TCIFLUSH)

    # --- input

    def feed(self, data: bytes) -> None:
        """Let these bytes be read, as lines."""
        for line in data.splitlines(keepends=True):
            pieces = [line[at : at + _PIECE] for at in range(0, len(line), _PIECE)]
            # In the middle of a line, "end of file" hands over what there is so far.
            self._feeding += [piece + _VEOF for piece in pieces[:-1]] + pieces[-1:]
        self._flush()

    def end_of_file(self) -> None:
        """Whoever reads gets end of file. Where a program has taken the terminal out of its line mode there is no such
        thing: then the terminal is closed."""
        attributes = termios.tcgetattr(self._slave)
        if not attributes[3] & termios.ICANON or attributes[6][termios.VEOF] != _VEOF:
            self.close()
            return
        self._feeding.append(_VEOF)
        self._flush()

    @property
    def has_lines(self) -> bool:
        """Is it as it was, rather than in a mode that a program has chosen?"""
        return bool(termios.tcgetattr(self._slave)[3] & termios.ICANON)

    @property
    def taken(self) -> bool:
        """Has everything that was fed been read?"""
        return not self._feeding and unread(self._slave) == 0

    def _flush(self) -> None:
        if self.closed:
            return
        while self._feeding:
            data = self._feeding[0]
            try:
                sent = os.write(self._master, data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._feeding[0] = data[sent:]
                self._loop.watch(self._master, IN | OUT, self._ready)
                return
            self._feeding.pop(0)
        self._loop.watch(self._master, IN, self._ready)

    def catch_up(self) -> None:
        """Hand over what has been written to it. (It takes the kernel a moment to get it here.)"""
        try:
            self.on_output(os.read(self._master, 1 << 16))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise

    def _ready(self, events: int) -> None:
        if events & IN and self.is_full():
            self._loop.unwatch(self._master)
            self._loop.at(time.monotonic() + _FULL_SECONDS, self._flush)
            return
        if events & IN:
            self.catch_up()
        if events & OUT:
            self._flush()

    def close(self) -> None:
        self.closed = True
        self._loop.unwatch(self._master)
        os.close(self._master)
        os.close(self._slave)

    # --- who waits

    def waiters(self, pids: Iterable[int]) -> list[Waiter]:
        """Those of these processes that wait for input on this terminal."""
        return [waiter for pid in pids if (waiter := self._waiter(pid)) is not None]

    def _waiter(self, pid: int) -> Waiter | None:
        waiter = self._waiting_thread(pid, pid)
        if waiter is None:
            try:
                threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
            except OSError:
                return None
            for thread in threads[:_MOST_THREADS]:
                if thread != pid and (waiter := self._waiting_thread(pid, thread)) is not None:
                    break
        return waiter

    def _waiting_thread(self, pid: int, thread: int) -> Waiter | None:
        """/proc/PID/syscall: the number of the call and its arguments in hex; "running" if it is in none."""
        words = read_proc(f"/proc/{pid}/task/{thread}/syscall").split()
        if len(words) < 7 or not words[0].isdigit():
            return None
        call = _CALLS.get(int(words[0]))
        if call is None:
            return None
        sleeps = _sleeps(pid, thread)
        first, second = int(words[1], 16), int(words[2], 16)
        if call in ("read", "splice"):
            there = self._is_ours(pid, first)
        elif call == "sendfile":
            there = self._is_ours(pid, second)
        elif call == "epoll":
            there = self._in_epoll(pid, first)
        elif call == "poll":
            there = self._in_poll(pid, first, second)
        else:
            there = self._in_select(pid, first, second)
        return Waiter(pid, thread, sleeps, call, _is_endless(words)) if there else None

    def _is_ours(self, pid: int, fd: int) -> bool:
        try:
            return os.stat(f"/proc/{pid}/fd/{fd & 0xFFFFFFFF}").st_rdev == self._device
        except OSError:
            return False

    def _in_poll(self, pid: int, address: int, count: int) -> bool:
        """struct pollfd: int fd, short events, short revents."""
        memory = _peek(pid, address, 8 * min(count, _MOST_POLLED))
        wanted = (fd for fd, events, _ in struct.iter_unpack("ihh", memory[: len(memory) // 8 * 8]) if events & 1)
        return any(fd >= 0 and self._is_ours(pid, fd) for fd in wanted)

    def _in_select(self, pid: int, count: int, address: int) -> bool:
        memory = _peek(pid, address, (min(count, 1024) + 7) // 8)
        bits = int.from_bytes(memory, sys.byteorder)
        return any(bits >> fd & 1 and self._is_ours(pid, fd) for fd in range(min(count, 1024)))

    def _in_epoll(self, pid: int, fd: int) -> bool:
        """fdinfo of an epoll descriptor has a line "tfd: 0 events: 19 …" for each that it watches."""
        lines = read_proc(f"/proc/{pid}/fdinfo/{fd & 0xFFFFFFFF}", 1 << 14).splitlines()
        words = [words for line in lines if (words := line.split())[:1] == [b"tfd:"] and len(words) > 3]
        return any(int(w[3], 16) & IN and self._is_ours(pid, int(w[1])) for w in words[:_MOST_POLLED])


def _is_endless(words: Sequence[bytes]) -> bool:
    place, number = _TIMEOUTS.get(int(words[0]), (0, False))
    if not place:
        return True
    value = int(words[place], 16)
    return bool(value & 0x80000000) if number else not value


def _sane(attributes: list[Any]) -> list[Any]:
    """Lines, no echo, and no byte means anything but end of file (4): what is fed is what is read."""
    none: list[bytes | int] = [b"\0"] * len(attributes[6])
    none[termios.VEOF] = _VEOF
    none[termios.VMIN], none[termios.VTIME] = 1, 0
    return [0, 0, attributes[2], termios.ICANON, attributes[4], attributes[5], none]


def _sleeps(pid: int, thread: int) -> int:
    data = read_proc(f"/proc/{pid}/task/{thread}/status")
    _, _, rest = data.partition(b"\nvoluntary_ctxt_switches:")
    digits = rest.split(None, 1)[:1]
    return int(digits[0]) if digits and digits[0].isdigit() else 0


def _peek(pid: int, address: int, size: int) -> bytes:
    """A little of a process's memory; nothing where it may not be read."""
    if not 0 < size <= 1024 or not address:
        return b""
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, size, address)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(fd)
