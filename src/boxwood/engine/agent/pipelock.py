"""Nobody in a box may lock the pipes that its agent reads.

sendfile(2) and splice(2) into a pipe hold the pipe's lock while they wait for their input; whoever reads that pipe then
waits uninterruptibly, even with O_NONBLOCK. `cat` of busybox, waiting for a terminal, stopped the agent that way, which
alone could have given it end of file. So both calls are refused for standard output and error; every program that uses
them there goes on with read and write. (Who does it on purpose, with another descriptor, ruins his own agent: the
server replaces it.)
"""

from __future__ import annotations

import errno
import platform
import struct

from boxwood.engine.kernel import load_seccomp

# Audit architecture, sendfile, splice.
_NUMBERS = {"x86_64": (0xC000003E, 40, 275), "aarch64": (0xC00000B7, 71, 76)}
_LOAD, _JUMP_GREATER, _JUMP_EQUAL, _RETURN = 0x20, 0x25, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENT_0, _AT_ARGUMENT_2 = 0, 4, 16, 32


def _program(architecture: int, sendfile: int, splice: int) -> bytes:
    lines = (
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_JUMP_EQUAL, 0, 7, architecture),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_EQUAL, 1, 0, sendfile),
        (_JUMP_EQUAL, 2, 4, splice),
        (_LOAD, 0, 0, _AT_ARGUMENT_0),
        (_JUMP_GREATER, 2, 3, 2),
        (_LOAD, 0, 0, _AT_ARGUMENT_2),
        (_JUMP_GREATER, 0, 1, 2),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EINVAL),
    )
    return b"".join(struct.pack("HBBI", code, if_true, if_false, value) for code, if_true, if_false, value in lines)


def refuse() -> None:
    """For this process and all that it will start, for good. OSError: not allowed, without no_new_privs."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is not None:
        load_seccomp(_program(*numbers))
