"""What a lower layer holds is copied as a whole before anything of it is changed, be it its mode or its name. With a
large file all else would have to wait for that, so a child does what is asked of one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.place import absolute, because, look, place
from boxwood.engine.agent.requests import Reply

AT_ONCE = 64 << 20  # bytes: so much may be copied while all else waits
Deed = Callable[[dict[str, Any]], dict[str, Any]]
_FOLLOW: dict[str, Callable[[dict[str, Any]], bool]] = {  # what changes a file that is there, and whether by its links
    "file.chmod": lambda header: True,
    "file.change": lambda header: header.get("follow") is True,
    "file.move": lambda header: False,
    "file.link": lambda header: False,
}


def do(op: str, deed: Deed, header: dict[str, Any], flushes: Flushes, reply: Reply) -> None:
    """Refusal, OSError, and what else the deed raises."""
    if op not in _FOLLOW or not is_large(path := absolute(header["path"]), follow=_FOLLOW[op](header)):
        reply(deed(header))
        return
    flushes.run((), partial(_done, deed, header), partial(answer, reply, path))


def _done(deed: Deed, header: dict[str, Any]) -> None:
    try:
        deed(header)
    except (ValueError, TypeError, KeyError):
        raise OSError(errno.EINVAL, "") from None


def is_large(path: bytes, *, follow: bool) -> bool:
    """A regular file that may be long in being copied."""
    try:
        with place(path, follow=follow) as found:
            status = look(found, path)
    except (Refusal, OSError):
        return False  # whatever it is, it is told when something is done with it
    return stat.S_ISREG(status.st_mode) and status.st_size > AT_ONCE


def answer(reply: Reply, path: bytes, number: int) -> None:
    """How it has ended in a child: 0, or an errno."""
    if number:
        reply.error(number, because(OSError(number, os.strerror(number)), path).text)
    else:
        reply()
