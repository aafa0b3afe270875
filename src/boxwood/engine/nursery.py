"""The nursery: the process that boxes are forked from.

It does nothing else. A fork shares its parent's memory until one of both writes to it; so what the parent writes
between two forks, each of its children comes to have a copy of. The zygote, which talks, makes networks, and takes
volumes in and out, would cost each box a megabyte.

It holds no descriptors but its own, and knows nothing of a box but its process; a box hears what it is to be from the
zygote itself. It dies with the zygote, and boxes with it.
"""

from __future__ import annotations

import array
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from boxwood.engine import kernel as k
from boxwood.engine import template
from boxwood.engine.agent.main import import_no_more
from boxwood.engine.children import fork_through_another, pidfd_of
from boxwood.engine.descriptors import close_all_but

_HURRY, _IDLE = b"h", b"i"
_HELLO = struct.Struct("=i")  # a descriptor
_BORN = struct.Struct("=iiI")  # errno (then nothing else counts), pid, number
_ENDED = struct.Struct("=Ii")  # number, wait status


class Born(NamedTuple):
    """A process as its zygote has it. `number`: no other of this nursery has had it."""

    pid: int
    pidfd: int
    number: int


class Nursery:
    """The zygote's side. `rehearse`: what it does before it is asked for anything; `live`: what a child does, over its
    end of the hook; it does not return. `may_return`: to the process namespace and the scheduling that it comes from,
    which takes root."""

    def __init__(
        self, rehearse: Callable[[], None], live: Callable[[socket.socket], NoReturn], *, may_return: bool
    ) -> None:
        self._orders, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready, ready = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends, ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.pid = os.fork()
        if self.pid == 0:
            _Mother(orders, ready, ends, rehearse, live, may_return=may_return).serve()
        orders.close()
        ready.close()
        os.close(ends)

    def begin(self) -> tuple[int, int]:
        """Wait until it is about to take orders; earlier ones wait too. Once, and by one process. A file in memory,
        which is the caller's, and its number over there: for what is there now and stays (template.py). EOFError: it
        has ended."""
        said, ancillary, *_ = self._ready.recvmsg(_HELLO.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not said:
            raise EOFError("the process that boxes are forked from has ended")
        return array.array("i", ancillary[0][2])[0], _HELLO.unpack(said)[0]

    def fileno(self) -> int:
        """Readable when `ended` has something to say."""
        return self._ends

    def fork(self, hook: socket.socket, *, idle: bool) -> Born:
        """A process that is PID 1 of a namespace. `idle`: made when nobody else wants the processor. OSError."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [hook.fileno()]))]
        self._orders.sendmsg([_IDLE if idle else _HURRY], rights, socket.MSG_NOSIGNAL)
        answer, ancillary, *_ = self._orders.recvmsg(_BORN.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not answer:
            raise BrokenPipeError(errno.EPIPE, "the process that boxes are forked from is gone")
        number, pid, birth = _BORN.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        if not ancillary:  # it hears nothing more over its hook, and ends
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Born(pid, array.array("i", ancillary[0][2])[0], birth)

    def ended(self) -> Iterator[tuple[int, int]]:
        """Of each that has ended since: its number, and how (a wait status). EOFError: the nursery has, and all with
        it."""
        try:
            while said := os.read(self._ends, 512 * _ENDED.size):
                yield from _ENDED.iter_unpack(said)
        except BlockingIOError:
            return
        raise EOFError("the process that boxes are forked from has ended")

    def close(self) -> None:
        """When all have ended."""
        self._orders.close()
        self._ready.close()
        os.close(self._ends)
        os.waitpid(self.pid, 0)


class _Mother:
    """The nursery's own side."""

    def __init__(
        self, orders: socket.socket, ready: socket.socket, ends: int, rehearse: Callable[[], None],
        live: Callable[[socket.socket], NoReturn],
        *, may_return: bool,
    ) -> None:  # fmt: skip
        self._orders = orders
        self._ready = ready
        self._ends = ends
        self._rehearse = rehearse
        self._live = live
        self._may_return = may_return
        self._alive: dict[int, tuple[int, int]] = {}  # by pidfd: pid, number
        self._born = 0
        self._untold: list[bytes] = []
        self._is_full = False

    def serve(self) -> NoReturn:
        try:
            k.set_death_signal(signal.SIGKILL)
            k.set_name("nursery")
            close_all_but(self._orders.fileno(), self._ready.fileno(), self._ends)
            forget_names()
            self._rehearse()
            import_no_more()
            k.capabilities(), k.last_capability()  # looked up once for all
            settle_memory()
            self._home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            self._epoll = select.epoll()
            self._epoll.register(self._orders.fileno(), select.EPOLLIN)
            self._say_hello()
            while True:
                for fd, _ in self._epoll.poll():
                    if fd == self._orders.fileno():
                        self._obey()
                    elif fd != self._ends:
                        self._bury(fd)
                self._tell()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)

    def _say_hello(self) -> None:
        file = os.memfd_create(template.FILE, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
        self._ready.sendmsg([_HELLO.pack(file)], rights, socket.MSG_NOSIGNAL)
        self._ready.close()

    def _obey(self) -> None:
        order, ancillary, *_ = self._orders.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not order:
            os._exit(0)
        if not ancillary:
            self._refuse(errno.EMFILE)
            return
        with socket.socket(fileno=array.array("i", ancillary[0][2])[0]) as hook:
            try:
                pid, pidfd = self._fork(hook, idle=order == _IDLE)
            except OSError as error:
                self._refuse(error.errno or errno.EAGAIN)
                return
        try:
            self._epoll.register(pidfd, select.EPOLLIN)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
            self._orders.sendmsg([_BORN.pack(0, pid, self._born + 1)], rights, socket.MSG_NOSIGNAL)
        except OSError as error:  # bounds of descriptors that are under way are a user's, and boxes may be the same
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)  # which the epoll forgets then
            self._refuse(error.errno or errno.EAGAIN)
            return
        self._born += 1
        self._alive[pidfd] = pid, self._born

    def _refuse(self, number: int) -> None:
        self._orders.sendmsg([_BORN.pack(number, 0, 0)], [], socket.MSG_NOSIGNAL)

    def _fork(self, hook: socket.socket, *, idle: bool) -> tuple[int, int]:
        if not self._may_return:
            pid = fork_through_another(lambda: self._live(hook))
            return pid, pidfd_of(pid)
        k.unshare(k.NEWPID)  # for the children of this process, which stays where it is
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    if idle:
                        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                    self._live(hook)
                finally:
                    os._exit(72)  # whatever happens, a child does not go on as a second nursery
        finally:
            k.setns(self._home, k.NEWPID)
        return pid, pidfd_of(pid)

    def _bury(self, pidfd: int) -> None:
        pid, number = self._alive.pop(pidfd)
        _, status = os.waitpid(pid, 0)  # PID 1 ends when the last process of its namespace is gone
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        self._untold.append(_ENDED.pack(number, status))

    def _tell(self) -> None:
        """What the pipe has room for, which is some thousand; the rest when it has."""
        try:
            while self._untold:
                os.write(self._ends, self._untold[0])
                del self._untold[0]
        except BlockingIOError:
            pass
        if bool(self._untold) != self._is_full:
            self._is_full = bool(self._untold)
            if self._is_full:
                self._epoll.register(self._ends, select.EPOLLOUT)
            else:
                self._epoll.unregister(self._ends)


def forget_names() -> None:
    """What Python has looked up in classes so far: names that stand in its cache are counted down, and so copied, in
    each box that looks up others."""
    gc.collect()
    sys._clear_type_cache()


def settle_memory() -> None:
    """What is there now, children are to have in common: nothing touches it for tidiness' sake any more."""
    gc.collect()
    gc.disable()
    gc.freeze()
