"""Processes of ours: how they are made where that is not one call, and held and killed without mistaking another."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from boxwood.engine import kernel as k


def fork_through_another(live: Callable[[], NoReturn]) -> int:
    """A process in a new process namespace by way of one that is left in it; it becomes our child when that has ended,
    and begins only then, since the end of its first parent is no reason for it to die."""
    told, tell, waiting, go = _two_pipes()
    k.set_subreaper(True)
    try:
        between = os.fork()
        if between == 0:
            try:
                k.unshare(k.NEWPID)
                if pid := os.fork():
                    os.write(tell, b"%d" % pid)
                else:
                    for fd in (told, tell, go):  # so that it is seen if who is between ends here
                        os.close(fd)
                    if os.read(waiting, 1):
                        live()
            finally:
                os._exit(72)
        os.close(tell)
        tell = -1
        said = os.read(told, 16)
        os.waitpid(between, 0)
        if not said:
            raise OSError(errno.EAGAIN, "a process namespace could not be made")
        os.write(go, b"x")
        return int(said)
    finally:
        k.set_subreaper(False)
        for fd in (told, tell, waiting, go):
            if fd >= 0:
                os.close(fd)


def _two_pipes() -> tuple[int, int, int, int]:
    first = os.pipe()
    try:
        return *first, *os.pipe()
    except OSError:
        for fd in first:
            os.close(fd)
        raise


def pidfd_of(pid: int) -> int:
    """Of a child. Without one its end would not be heard of, so then there is no child either."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # its death is about to be read
