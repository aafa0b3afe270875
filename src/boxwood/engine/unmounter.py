"""Takes down the mounts of boxes that are gone, in a process of its own.

The last one who lets go of a mount namespace tears its file systems down, and for an overlay that means to evict
every inode that was looked at: 70 ms for 20,000 files. If that were the box's last process, whoever waits for the end
of the box (a fork does) would wait for it. So the zygote takes a hold of the namespace before it kills a box, and hands
it over here when the box is dead: no process is left then that could write through those mounts.

A disk in a file is written out meanwhile, 0.5 ms for each MiB, and the root of a durable VM has the whole file system
of the layers written out: such namespaces get a process each, so that nobody waits for what another VM has written.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket

from boxwood.engine import kernel as k
from boxwood.engine.descriptors import close_all_but

_QUICK, _SLOW = b"q", b"s"
_NICE = 15  # nobody waits for it


class Unmounter:
    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._pid = os.fork()
        if self._pid == 0:
            _let_go_of_what_comes(theirs)
        theirs.close()

    def hold(self, pid: int) -> int | None:
        """The mount namespace of a process, before it is killed: a descriptor."""
        try:
            return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # it has died by itself, and has taken its mounts with it

    def take(self, held: int | None, *, slow: bool) -> None:
        """The box is dead: let go of its namespace, in the other process if that has room for it. `slow`: there is
        something to be written out."""
        if held is None:
            return
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held]))]
            self._sock.sendmsg([_SLOW if slow else _QUICK], rights, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # then it happens here
        os.close(held)

    def close(self) -> None:
        """Returns when all is down."""
        self._sock.close()
        os.waitpid(self._pid, 0)


def _let_go_of_what_comes(sock: socket.socket) -> None:
    try:
        k.set_death_signal(signal.SIGKILL)
        k.set_name("unmounter")
        os.nice(_NICE)
        close_all_but(sock.fileno())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody reaps them
        while True:
            data, ancillary, *_ = sock.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            for *_, rights in ancillary:
                for fd in array.array("i", rights):
                    if data == _SLOW and not _forked():
                        os._exit(0)  # which lets go of it
                    os.close(fd)
        with contextlib.suppress(ChildProcessError):
            os.wait()  # until the last of them has ended
    finally:
        os._exit(0)


def _forked() -> int:
    """As os.fork; where no process can be had: as in the parent."""
    try:
        return os.fork()
    except OSError:
        return -1
