"""Letting go of descriptors that came out of a box, without ever waiting for what they stand for.

Who closes the last descriptor of a socket that lingers waits for its peer; and when a Unix socket is closed, so is
whatever lies in its queue, sockets in sockets included. A box that has taken over its agent could so hold up the whole
server. A process that ends waits for none of it: so what is strange is handed to one, which is then killed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence

_HOLDER = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")


def let_go(link: socket.socket, fds: Sequence[int]) -> None:
    """Close a link to a box, with what may still lie in it, and descriptors that came over it."""
    try:
        link.shutdown(socket.SHUT_RDWR)  # from now on nothing more is put into it
    except OSError:
        pass  # the other end is gone already
    strange = []
    for fd in fds:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
        else:
            strange.append(fd)
    if fcntl.ioctl(link, termios.FIONREAD, bytes(4)) == bytes(4) and not strange:
        link.close()  # a descriptor never comes without a byte
    else:
        threading.Thread(target=_bury, args=([link.detach(), *strange],), name="strays", daemon=True).start()


def _bury(fds: Sequence[int]) -> None:
    try:
        holder = subprocess.Popen(_HOLDER, pass_fds=fds, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError:  # no process can be had: then it is this thread that waits, with nobody waiting for it
        for fd in fds:
            os.close(fd)
        return
    with holder:
        for fd in fds:
            os.close(fd)  # not the last ones, so nothing happens
        holder.kill()
