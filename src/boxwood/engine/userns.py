"""A user namespace that somebody else is in: made by a child, since whoever makes one is in it, and mapped by us."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence

from boxwood.engine import kernel as k


def made(maps: Sequence[tuple[str, str]], before: Callable[[], None], after: Callable[[], None], failed: str) -> int:
    """A descriptor of it. `maps`: files of /proc/PID and what is written into them, in order. The child calls `before`,
    makes the namespace, and once it is mapped calls `after`. OSError, with `failed` if it could not make it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                before()
                k.unshare(k.NEWUSER)
                theirs.send(b"x")
                theirs.recv(1)
                after()
            finally:
                os._exit(0)
        theirs.close()
        try:
            if not ours.recv(1):
                raise OSError(failed)
            for name, text in maps:
                with open(f"/proc/{pid}/{name}", "w") as f:
                    f.write(text)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            ours.close()
            os.waitpid(pid, 0)
