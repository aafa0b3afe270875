"""Programs that the agent starts without a shell, each looked after by a *minder*: a child subreaper that starts the
program, reaps what comes back to it, and tells how the program ended.

A fork of the agent, and all the pages that such a child touches, take three times as long as a short program. A minder
is forked once; it starts one program after the other as posix_spawn does, which copies nothing. It is as safe from
what it has started as a shell is: who kills it has hidden how his own run ends.
"""

from __future__ import annotations

import array
import errno
import gc
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from boxwood.engine.agent.loop import IN, Loop, Timer
from boxwood.engine.agent.procs import Account, Streams, in_memory, reset_signals, set_groups
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.kernel import set_dumpable, set_subreaper

_MOST_IDLE = 4
_IDLE_SECONDS = 30.0
_PATH = b"/bin:/usr/bin"  # of execvp, where the environment has none
_NOT_FOUND, _NOT_EXECUTED = 127, 126
_SHORT = 32 << 10  # bytes of an order that needs no file


class Verdict(NamedTuple):
    """How it went: a wait status, or why nothing was started (an errno) and the exit code that stands for it."""

    status: int
    refusal: int = 0
    code: int = 0


def _written(argv: Sequence[bytes], env: Mapping[bytes, bytes], account: Account | None) -> bytes:
    """An order as bytes. Nothing in it contains NUL."""
    ids = (account.uid, account.gid, *account.groups) if account is not None else ()
    fields = [b"%d" % len(argv), b" ".join(b"%d" % ident for ident in ids), *argv]
    for pair in env.items():
        fields += pair
    return b"\0".join(fields)


def _read(order: bytes) -> tuple[list[bytes], dict[bytes, bytes], Account | None]:
    count, ids, *fields = order.split(b"\0")
    argv, env = fields[: int(count)], fields[int(count) :]
    uid, gid, *groups = map(int, ids.split() or (b"0", b"0"))
    return argv, dict(zip(env[::2], env[1::2], strict=True)), Account(uid, gid, tuple(groups)) if ids else None


class Minder:
    """One of these processes. `on_verdict` is called once for each `start`, `on_death` when it has died: its program,
    if it had one, then has no other verdict."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._program = mmap.mmap(-1, mmap.PAGESIZE)  # shared: its pid, written by the child
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.alive = True
        self.idle_since = 0.0
        self.on_verdict: Callable[[Verdict], None] = lambda verdict: None
        self.on_death: Callable[[], None] = lambda: None
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _mind(theirs, self._program)
        except BaseException:
            self._sock.close()
            self._program.close()
            raise
        finally:
            theirs.close()
        self._sock.setblocking(False)
        loop.child(self.pid, self._on_exit)
        loop.watch(self._sock.fileno(), IN, self._on_word)

    def start(
        self,
        argv: Sequence[bytes],
        env: Mapping[bytes, bytes],
        streams: Streams,
        place: int,
        account: Account | None,
    ) -> None:
        """Start a program in a process group of its own, in the directory open at `place`. OSError: the minder is
        gone."""
        order, fds = _written(argv, env, account), [place, streams.stdin, streams.stdout, streams.stderr]
        self._program[:4] = bytes(4)
        if len(order) <= _SHORT:
            self._send(order, fds)
            return
        file = in_memory(order)
        try:
            self._send(b"!", [*fds, file])
        finally:
            os.close(file)

    def _send(self, order: bytes, fds: Sequence[int]) -> None:
        rights = array.array("i", fds)
        self._sock.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)

    @property
    def program(self) -> int | None:
        """The pid of the latest program, which is also that of its process group; None if it is not there yet."""
        return int.from_bytes(self._program[:4], "little") or None if self.alive else None

    def close(self) -> None:
        """It has nothing to do any more, and ends."""
        self.alive = False
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._program.close()

    def _on_word(self, events: int = 0) -> None:
        try:
            word = self._sock.recv(64)
        except BlockingIOError:
            return
        except OSError:
            word = b""
        if word:
            self.on_verdict(Verdict(*map(int, word.split())))
        else:
            self._loop.unwatch(self._sock.fileno())  # its end is told in another way

    def _on_exit(self, status: int) -> None:
        if self.alive:
            self._on_word()
            self.close()
            self.on_death()


class Minders:
    """Those of a box: they wait for some time whether they are needed again."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._idle: list[Minder] = []
        self._timer: Timer | None = None

    def start(
        self,
        argv: Sequence[bytes],
        env: Mapping[bytes, bytes],
        streams: Streams,
        place: int,
        account: Account | None,
    ) -> Minder:
        """The minder that has been told to start this. OSError: there can be no other process."""
        while True:
            known = bool(self._idle)
            minder = self._idle.pop() if known else Minder(self._loop)
            if not minder.alive:
                continue
            try:
                minder.start(argv, env, streams, place, account)
                return minder
            except OSError:
                minder.close()
                if not known:
                    raise  # else it has been killed

    def give_back(self, minder: Minder) -> None:
        """Nothing that it has started lives any more."""
        minder.on_verdict, minder.on_death = lambda verdict: None, lambda: None
        if len(self._idle) >= _MOST_IDLE:
            minder.close()
            return
        minder.idle_since = time.monotonic()
        self._idle.append(minder)
        if self._timer is None:
            self._timer = self._loop.at(minder.idle_since + _IDLE_SECONDS, self._tidy)

    def _tidy(self) -> None:
        self._timer = None
        old = time.monotonic() - _IDLE_SECONDS
        for minder in [minder for minder in self._idle if minder.idle_since <= old or not minder.alive]:
            self._idle.remove(minder)
            if minder.alive:
                minder.close()
        if self._idle:
            self._timer = self._loop.at(self._idle[0].idle_since + _IDLE_SECONDS, self._tidy)

    def close(self) -> None:
        """Let those go that have nothing to do."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle, self._idle = self._idle, []
        for minder in idle:
            if minder.alive:
                minder.close()


# --- the minder's side


def _mind(sock: socket.socket, program: mmap.mmap) -> NoReturn:
    try:
        gc.disable()  # a collection would touch, and so copy, what it shares with the agent
        reset_signals()
        os.setpgid(0, 0)
        set_subreaper()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        close_all_but(sock.fileno())
        while (received := _received(sock)) is not None:
            verdict = _attend(*received, program)
            sock.send(b"%d %d %d" % verdict)
            _reap(None)  # who is left; there is no other order before all are dead
    finally:
        os._exit(0)


def _received(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """An order, and descriptors: of a directory and three streams, and of the order's file, if it lies in one. None: no
    more is to be done."""
    order, ancillary, *_ = sock.recvmsg(_SHORT, socket.CMSG_SPACE(5 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = [fd for *_, rights in ancillary for fd in array.array("i", rights)]
    return (order, fds) if fds else None


def _attend(order: bytes, fds: list[int], program: mmap.mmap) -> Verdict:
    """Start a program and wait for its end."""
    place, streams, file = fds[0], fds[1:4], fds[4:]
    try:
        if file:
            order = os.pread(file[0], os.fstat(file[0]).st_size, 0)
        argv, env, account = _read(order)
        os.fchdir(place)
        with _as(account):
            started = _start(argv, env, streams)
    except OSError as error:
        started = Verdict(0, error.errno or errno.EIO, _NOT_EXECUTED)
    finally:
        for fd in fds:
            os.close(fd)
        os.chdir("/")
    if isinstance(started, Verdict):
        return started
    program[:4] = started.to_bytes(4, "little")
    return Verdict(_reap(started))


def _reap(until: int | None) -> int:
    """Take the ends of children, also of those that came to us: until it is this one, or there are no more."""
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 0
        if pid == until:
            return status


def _start(argv: Sequence[bytes], env: Mapping[bytes, bytes], streams: Sequence[int]) -> int | Verdict:
    """As execvp does, but for a script without an interpreter, which is no program."""
    given = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    refusal, code = errno.ENOENT, _NOT_FOUND
    for path in _candidates(argv[0], env):
        there = False
        try:
            os.stat(path)
            there = True
            return os.posix_spawn(path, tuple(argv), env, file_actions=given, setpgroup=0)
        except OSError as error:
            number = error.errno or errno.EIO
            if number in (errno.ENOENT, errno.ENOTDIR) and not there and path != argv[0]:
                continue  # not in this directory
            if code == _NOT_FOUND:
                refusal = number
                code = _NOT_EXECUTED if there or number != errno.ENOENT else _NOT_FOUND
            if number not in (errno.EACCES, errno.ENOENT):
                return Verdict(0, number, code)
    return Verdict(0, refusal, code)


def _candidates(program: bytes, env: Mapping[bytes, bytes]) -> list[bytes]:
    if b"/" in program or not program:
        return [program]
    return [os.path.join(directory, program) for directory in env.get(b"PATH", _PATH).split(b":")]


@contextmanager
def _as(account: Account | None) -> Iterator[None]:
    """Whom the program is to run as, for the moment in which it is started. The saved ids stay ours, to come back; an
    exec replaces them. OSError."""
    if account is None:
        yield
        return
    groups, uid, gid = os.getgroups(), os.geteuid(), os.getegid()
    try:
        set_groups(account)
        os.setresgid(account.gid, account.gid, gid)
        os.setresuid(account.uid, account.uid, uid)
        set_dumpable(0)  # every change of credentials resets it
        yield
    finally:
        _come_back(uid, gid, groups)


def _come_back(uid: int, gid: int, groups: Sequence[int]) -> None:
    try:
        os.setresuid(uid, uid, uid)
        os.setresgid(gid, gid, gid)
        if os.getgroups() != groups:
            os.setgroups(groups)
        set_dumpable(0)
    except OSError:
        os._exit(1)  # nothing is started as somebody else
