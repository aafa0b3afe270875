"""Processes: what the kernel tells of them, and how the agent starts them.

A shell is started as a *child subreaper*: every orphan below it, however daemonised, becomes its child. So "nothing
that this command spawned is alive" is one read of /proc/PID/task/PID/children (trees.py).
"""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from boxwood.engine.kernel import set_subreaper

_DEFAULTED = tuple(
    getattr(signal, name) for name in ("SIGCHLD", "SIGHUP", "SIGINT", "SIGPIPE", "SIGQUIT", "SIGTERM", "SIGXFSZ")
)


class Stat(NamedTuple):
    state: str
    ppid: int
    pgid: int
    sid: int
    start: int


def stat(pid: int) -> Stat | None:
    """What there is to know about a process; None if there is none."""
    data = read_proc(f"/proc/{pid}/stat")
    words = data.rpartition(b")")[2].split()
    if len(words) < 20:
        return None
    return Stat(words[0].decode("latin-1"), int(words[1]), int(words[2]), int(words[3]), int(words[19]))


def read_proc(path: str, most: int = 1 << 16) -> bytes:
    """A small file of /proc; nothing if it is not there (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def children(pid: int, threads: bool = True) -> list[int]:
    """The direct children of a process, zombies too. `threads` false: it is known to have but one."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task") if threads else (pid,):
            fd = os.open(f"/proc/{pid}/task/{task}/children", os.O_RDONLY | os.O_CLOEXEC)
            try:
                while data := os.read(fd, 1 << 16):
                    found.extend(map(int, data.split()))
                    if len(data) < 2048:
                        break
            finally:
                os.close(fd)
    except (OSError, ValueError):
        if not _lists_children():  # CONFIG_PROC_CHILDREN is off: ask everybody for his parent
            everybody = map(int, filter(str.isdigit, os.listdir("/proc")))
            return [p for p in everybody if (s := stat(p)) and s.ppid == pid]
    return found


# --- starting


class Account(NamedTuple):
    """Whom a process runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]


class Streams(NamedTuple):
    """What becomes descriptors 0, 1 and 2, and perhaps 3."""

    stdin: int
    stdout: int
    stderr: int
    script: int | None = None


class Gate(NamedTuple):
    """Where a child that is forked ahead waits: until the path of its program comes over the pipe. Then it calls
    `enter`, which makes it one of the box's processes. It ends if the other end is closed."""

    reading: int
    writing: int
    enter: Callable[[], None]


def spawn(
    exe: bytes,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    streams: Streams,
    place: int,
    account: Account | None = None,
    gate: Gate | None = None,
    leads: bool = False,
) -> int:
    """Start a program as a subreaper in a process group of its own, in the directory open at `place`. Returns its pid.

    If it cannot be executed the reason is written to its stderr and it ends with 126 or 127, as in a shell.
    `leads`: its group is a session too, whose terminal is its stdin.
    """
    pid = os.fork()
    if pid == 0:
        if gate is not None:
            exe = _waited(gate)
        _become(exe, argv, env, streams, place, account, leads)
    return pid


def _waited(gate: Gate) -> bytes:
    try:
        os.close(gate.writing)  # its own copy would keep the pipe open
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # forked in spare time, needed without delay
        if exe := os.read(gate.reading, 4096):
            gate.enter()
            return exe
    except BaseException:
        os._exit(126)
    os._exit(0)  # not needed after all


def _become(
    exe: bytes,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    streams: Streams,
    place: int,
    account: Account | None,
    leads: bool,
) -> NoReturn:
    code = 127
    try:
        reset_signals()
        if leads:
            os.setsid()
        else:
            os.setpgid(0, 0)
        set_subreaper()
        os.fchdir(place)
        given = [fd for fd in streams if fd is not None]
        aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in given]  # not in one another's way
        for number, fd in enumerate(aside):
            os.dup2(fd, number)
        os.closerange(len(given), 1 << 20)
        if leads:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if account is not None:
            set_groups(account)
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
        os.execve(exe, list(argv), env)
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        os.write(2, b"boxwood: %s: %s\n" % (exe, os.strerror(error.errno or 0).encode()))
    finally:
        os._exit(code)


def set_groups(account: Account) -> None:
    """Where a box has but one user and one group, nobody may set any; root has what it has then. OSError."""
    try:
        os.setgroups(account.groups)
    except PermissionError:
        if account.uid or account.gid:
            raise


def in_memory(data: bytes) -> int:
    """Bytes as a file to read from."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def reset_signals() -> None:
    """In a fork of the agent: what it ignores or handles must not be inherited."""
    signal.set_wakeup_fd(-1)
    for signum in _DEFAULTED:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
