"""Starts the proxy when it is first wanted, and again when it has died: a child of the router's from before that let go
of root's power, which the proxy needs to become a user of its own.

It reads nothing that anybody sends. The sockets are its own, so that whoever comes while no proxy lives waits for the
next one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import traceback
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.uidrange import FIRST

_PAUSE_MS = 300  # until a proxy that has died is replaced


@dataclass(frozen=True, slots=True)
class Places:
    """`guests`: where boxes' connections come in; `server`: where the server does; `namespace`: that of the network
    in which the proxy lives, as a descriptor."""

    guests: socket.socket
    server: socket.socket
    namespace: int


def start(router: int, places: Places) -> socket.socket:
    """A keeper of its own process, which ends when this socket is closed; over it comes a socket to each new proxy."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            close_all_but(theirs.fileno(), places.guests.fileno(), places.server.fileno(), places.namespace)
            _keep(user_of(router), places, theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    theirs.close()
    return ours


def user_of(router: int) -> int:
    """The proxy's id: below those of boxes, above what hosts give out."""
    return FIRST - 1 - router


def _keep(user: int, places: Places, router: socket.socket) -> None:
    k.set_death_signal(signal.SIGKILL)
    k.set_name("boxwood-keeper")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wanted = select.poll()
    for sock in (router, places.guests, places.server):
        wanted.register(sock, select.POLLIN)
    while True:
        if any(fd == router.fileno() for fd, _ in wanted.poll()):
            return  # the router has gone: it says nothing
        pid, sock = _spawn(user, places)
        with sock, contextlib.suppress(OSError):
            socket.send_fds(router, [b"proxy"], [sock.fileno()])
        if not _outlived(pid, router) or _waited(router):
            return


def _outlived(pid: int, router: socket.socket) -> bool:
    """Wait for the proxy's end. False: the router's came first."""
    descriptor = os.pidfd_open(pid)
    either = select.poll()
    either.register(descriptor, select.POLLIN)
    either.register(router, select.POLLIN)
    over = any(fd == descriptor for fd, _ in either.poll())
    if not over:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(descriptor)
    return over


def _waited(router: socket.socket) -> bool:
    """A while. True: the router has gone meanwhile."""
    poll = select.poll()
    poll.register(router, select.POLLIN)
    return bool(poll.poll(_PAUSE_MS))


def _spawn(user: int, places: Places) -> tuple[int, socket.socket]:
    """A proxy, and the router's end of the socket between them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        theirs.close()
        return pid, ours
    try:
        k.set_death_signal(signal.SIGKILL)
        k.setns(places.namespace, k.NEWNET)
        close_all_but(theirs.fileno(), places.guests.fileno(), places.server.fileno())
        k.set_name("boxwood-proxy")
        from boxwood.engine.proxy import main  # its libraries are large: not before somebody needs them

        main.run(user, places.guests, places.server, theirs)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
