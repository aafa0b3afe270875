"""How a zygote without root gets a network that it is root of: it leaves the host's, and a porter stays behind."""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from boxwood.engine import kernel as k
from boxwood.engine.children import fork_through_another
from boxwood.engine.network.behind import PATH

_TUN = "/dev/net/tun"
_HANDED = 3


def missing() -> str:
    """What the host lacks for pasta; empty: nothing that can be seen without a try."""
    if not any(os.access(f"{directory}/pasta", os.X_OK) for directory in PATH.split(":")):
        return "pasta is not installed (the package passt)"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"this user may not open {_TUN}, which pasta needs"
    return ""


def leave(stage: str) -> tuple[socket.socket, int]:
    """From now on this process is in a network namespace of its own. The porter that stayed behind: a socket, and its
    pid, a child's. `stage`: an empty directory. For a process that is root in a user namespace of its own. OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        pid = fork_through_another(lambda: _become_porter(theirs.fileno(), stage))
    try:
        k.unshare(k.NEWNET)
    except OSError:
        ours.close()  # which ends it
        os.waitpid(pid, 0)
        raise
    return ours, pid


def _become_porter(zygote: int, stage: str) -> NoReturn:
    """In a process namespace of its own, whose first process it is: what it starts ends with it."""
    k.set_death_signal(9)
    os.dup2(zygote, _HANDED)
    os.closerange(_HANDED + 1, 1 << 16)
    k.no_new_privileges()
    command = [sys.executable, "-I", "-m", "boxwood.engine.network.porter", "--zygote", str(_HANDED)]
    os.execve(sys.executable, [*command, "--stage", stage], {})
