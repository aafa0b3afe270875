"""The steward: a process beside the zygote that looks after boxes' memory. What an idle agent need not have for
itself, it has it give back (template.py).

A process of its own, because it waits for agents to stand still, and nobody is to wait for it. It takes no more than a
part of a processor's time. What it cannot do costs memory and nothing else.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from boxwood.engine import kernel as k
from boxwood.engine import tracing
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.nursery import Nursery
from boxwood.engine.template import Template

_LOOK = 1.0  # seconds between looks whether a box has done anything
_SELDOM = 16.0  # … of one that has done nothing for long
_AGAIN = 30.0  # seconds until a box that has given back does so again: one that works is to have what it works with
_WORTH = 64  # pages
_TRIES, _PAUSE = 200, 0.005  # seconds between them
_AT_MOST = 2.0  # seconds that one agent may take to give back
_GIVEN, _NOT_NOW, _NEVER = range(3)
_SHARE = 3  # for each second of work so many of rest


class Steward:
    """The zygote's side. Boxes that are forked before it `is_settled` keep what they have."""

    def __init__(self, nursery: Nursery) -> None:
        self.is_settled = False
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._pid = os.fork()
        if self._pid == 0:
            _serve(theirs, nursery)
        theirs.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    def settle(self) -> None:
        """It has said so, or has ended; it says nothing else."""
        self.is_settled = True
        with suppress(OSError):
            self._sock.recv(1)

    def watch(self, pid: int, pidfd: int) -> None:
        """An agent's; the descriptor stays the caller's. If there is no room for it, it keeps what it has."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
        with suppress(OSError):
            self._sock.sendmsg([b"%d" % pid], rights, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        self._sock.close()
        os.waitpid(self._pid, 0)


@dataclass(slots=True)
class _Watched:
    pid: int
    pidfd: int
    looks: int = -1  # how often it had gone to sleep at the last look
    next: float = 0.0
    wait: float = _LOOK
    changed: bool = True  # since it has given back
    given_at: float = -_AGAIN


def _serve(sock: socket.socket, nursery: Nursery) -> NoReturn:
    try:
        k.set_death_signal(signal.SIGKILL)
        k.set_name("steward")
        file, number = nursery.begin()
        close_all_but(sock.fileno(), file)
        template = _made(nursery.pid, file, number)
        sock.send(b"s")
        if template is not None:
            _Round(sock, template).go()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _made(nursery: int, file: int, number: int) -> Template | None:
    for _ in range(_TRIES):
        try:
            return Template(nursery, file, number)
        except tracing.Busy:
            time.sleep(_PAUSE)  # it is about to wait for orders
        except OSError as error:
            os.write(2, f"idle boxes keep all their memory: {error}\n".encode())
            return None
    return None


class _Round:
    def __init__(self, sock: socket.socket, template: Template) -> None:
        self._sock = sock
        self._template = template
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._boxes: dict[int, _Watched] = {}

    def go(self) -> NoReturn:
        """Until the zygote is gone."""
        while True:
            self._rest(_LOOK if self._boxes else None)
            for box in [*self._boxes.values()]:
                if self._boxes.get(box.pidfd) is box:
                    self._look_at(box)

    def _rest(self, seconds: float | None) -> None:
        """Hear meanwhile who comes and who has ended."""
        end = None if seconds is None else time.monotonic() + seconds
        while end is None or time.monotonic() < end:
            for fd, _ in self._poll.poll(None if end is None else max(1.0, (end - time.monotonic()) * 1000)):
                if fd == self._sock.fileno():
                    self._take()
                else:
                    self._forget(fd)
            if end is None and self._boxes:
                return

    def _take(self) -> None:
        said, ancillary, *_ = self._sock.recvmsg(16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for *_, rights in ancillary:
            (pidfd,) = array.array("i", rights)
            self._boxes[pidfd] = _Watched(int(said), pidfd)
            self._poll.register(pidfd, select.POLLIN)
        if not said:
            os._exit(0)

    def _forget(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        del self._boxes[pidfd]

    def _look_at(self, box: _Watched) -> None:
        now = time.monotonic()
        if now < box.next:
            return
        looks = _sleeps(box.pid)
        if looks < 0:
            pass
        elif looks != box.looks:
            box.looks, box.wait, box.changed = looks, _LOOK, True
        elif not box.changed:
            box.wait = min(2 * box.wait, _SELDOM)
        elif now - box.given_at >= _AGAIN:
            self._have_give_back(box)
            box.looks = _sleeps(box.pid)
        box.next = now + box.wait - _LOOK / 2

    def _have_give_back(self, box: _Watched) -> None:
        began = time.monotonic()
        done = self._tried(box)
        if done is None:
            self._forget(box.pidfd)
        else:
            box.changed, box.given_at = not done, time.monotonic()
        self._rest(_SHARE * (time.monotonic() - began))

    def _tried(self, box: _Watched) -> bool | None:
        """False: not just now; None: its agent is hostile, or lies in the kernel for long, and may keep what it has. By
        a child, since who waits for such an agent, or believes what it says of itself, may be lost."""
        pid = os.fork()
        if pid == 0:
            try:
                k.set_death_signal(signal.SIGKILL)
                self._template.give_back(box.pid, box.pidfd, _WORTH)
                os._exit(_GIVEN)
            except (OSError, tracing.Busy):
                os._exit(_NOT_NOW)
            finally:
                os._exit(_NEVER)
        with _held(pid) as child:
            poll = select.poll()
            poll.register(child, select.POLLIN)
            if not poll.poll(_AT_MOST * 1000):
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        return {_GIVEN: True, _NOT_NOW: False}.get(os.waitstatus_to_exitcode(status))


@contextmanager
def _held(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _sleeps(pid: int) -> int:
    """How often a process has waited for something so far; -1: it does not wait now, or stands still, or has ended."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as f:
        for line in f:
            if line.startswith(b"State:") and b"S (sleeping)" not in line:
                break  # one that a cgroup has frozen would stop for us only when it is thawed
            if line.startswith(b"voluntary_ctxt_switches:"):
                return int(line.split()[1])
    return -1
