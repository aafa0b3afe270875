"""A VM's `/`. What it looks like (mode, owner, attributes) an overlay takes from its top alone: so a new top is given
what the layer below it has, or a fork would lose it.

`work`, which nobody in a box sees, is given the same. From then on a top whose two directories differ has had its `/`
changed, even if nothing was ever put into it.
"""

from __future__ import annotations

import errno
import os
import stat

from boxwood.engine.layers.inodes import ORIGIN

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT = ("user.", "system.posix_acl_")
_OVERLAYS = ORIGIN.rpartition(".")[0] + "."


def inherit(below: int, upper: int, work: int) -> None:
    """Descriptors (of places, too) of the topmost layer's root and of the directories of a top; of one that an overlay
    has had before it does nothing. OSError."""
    try:
        os.stat("work", dir_fd=work, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        return  # that overlay has made it
    a = os.open(".", _DIRECTORY, dir_fd=below)
    try:
        wanted, attributes = os.fstat(a), _attributes(a)
        for at in (upper, work):
            b = os.open(".", _DIRECTORY, dir_fd=at)
            try:
                _give(b, wanted, attributes)
            finally:
                os.close(b)
    finally:
        os.close(a)


def _give(fd: int, wanted: os.stat_result, attributes: dict[str, bytes]) -> None:
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (wanted.st_uid, wanted.st_gid):
        os.fchown(fd, wanted.st_uid, wanted.st_gid)
    if found.st_mode != wanted.st_mode:
        os.fchmod(fd, stat.S_IMODE(wanted.st_mode))
    for name, value in attributes.items():
        os.setxattr(fd, name, value)


def _attributes(fd: int) -> dict[str, bytes]:
    """Those that are the VM's, and not the overlay's."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}
    return {name: os.getxattr(fd, name) for name in names if name.startswith(_KEPT) and not name.startswith(_OVERLAYS)}


def is_as_made(top: int) -> bool:
    """Of the directory (a descriptor) that a top's `upper` and `work` are in: has nobody changed what `/` looks like?
    FileNotFoundError: there is no `upper`. PermissionError: we may not look, so somebody has."""
    upper = os.open("upper", _DIRECTORY, dir_fd=top)
    try:
        try:
            work = os.open("work", _DIRECTORY, dir_fd=top)
        except FileNotFoundError:
            return True  # sealed, and so no top
        try:
            return _looks(upper) == _looks(work)
        finally:
            os.close(work)
    finally:
        os.close(upper)


def _looks(fd: int) -> tuple[int, int, int, dict[str, bytes]]:
    found = os.fstat(fd)
    return found.st_mode, found.st_uid, found.st_gid, _attributes(fd)
