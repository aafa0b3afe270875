"""Loop devices that go away by themselves, with the last descriptor or mount that has them. Source: loop(4)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from boxwood.engine.disk import BLOCK

_CONFIGURE, _GET_FREE, _GET_STATUS = 0x4C0A, 0x4C82, 0x4C05
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO, _FLAGS_AT, _RESERVED = 232, 52, 64  # bytes of struct loop_info64, and where its flags are
_TRIES = 200  # somebody else may take the number that was free a moment ago


def attach(image: int, *, read_only: bool) -> tuple[int, int]:
    """A loop device over an open file: its descriptor and its number. The device holds the file open (and so whatever
    lock is on that descriptor) until nothing is left of it."""
    info = bytearray(_INFO)
    struct.pack_into("=I", info, _FLAGS_AT, _AUTOCLEAR | (_READ_ONLY if read_only else 0))
    wanted = struct.pack("=II", image, BLOCK) + bytes(info) + bytes(_RESERVED)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _GET_FREE)
            device = os.open(path(number), (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, wanted)
                return device, number
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free: others take them faster than we do")


def file_of(device: int) -> tuple[int, bool]:
    """The inode number of the file that a loop device is over, and whether it can only be read. OSError: over none."""
    info = bytearray(_INFO)
    fcntl.ioctl(device, _GET_STATUS, info)
    (inode,), (flags,) = struct.unpack_from("=Q", info, 8), struct.unpack_from("=I", info, _FLAGS_AT)
    return inode, bool(flags & _READ_ONLY)


def path(number: int) -> str:
    return f"/dev/loop{number}"
