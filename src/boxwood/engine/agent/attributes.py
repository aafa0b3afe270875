"""What is changed of a file beside its bytes: size, mode, owner, times; and what room its file system has."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, NamedTuple

from boxwood.engine.agent.files import Refusal, check_on_disk
from boxwood.engine.agent.place import Place, absolute, explained, look, place, shown

_PERMISSIONS, _IDS, _SECONDS, _SIZE = 0o7777, (1 << 32) - 2, (1 << 33) - 1, (1 << 63) - 1
_WRITE = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


class Wanted(NamedTuple):
    """None: as it is."""

    size: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    accessed: int | None
    modified: int | None

    @property
    def owner(self) -> tuple[int, int] | None:
        """-1: as it is."""
        if self.uid is None and self.gid is None:
            return None
        return -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid

    def times(self, now: os.stat_result) -> tuple[int, int] | None:
        """Nanoseconds since 1970, last access and last change."""
        if self.accessed is None and self.modified is None:
            return None
        return (
            now.st_atime_ns if self.accessed is None else self.accessed * 1_000_000_000,
            now.st_mtime_ns if self.modified is None else self.modified * 1_000_000_000,
        )


def wanted(header: dict[str, Any]) -> Wanted:
    """ValueError."""

    def number(name: str, most: int) -> int | None:
        value = header.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= most):
            raise ValueError(f"{name} must be a number from 0 to {most}")
        return value

    return Wanted(
        number("size", _SIZE), number("mode", _PERMISSIONS), number("uid", _IDS), number("gid", _IDS),
        number("accessed", _SECONDS), number("modified", _SECONDS),
    )  # fmt: skip


def change_open(fd: int, want: Wanted) -> None:
    """Of a regular file. The owner comes first: whoever changes it takes the bits of setuid away. OSError."""
    if want.size is not None:
        os.ftruncate(fd, want.size)
    if want.owner is not None:
        os.fchown(fd, *want.owner)
    if want.mode is not None:
        os.fchmod(fd, want.mode)
    if (times := want.times(os.fstat(fd))) is not None:
        os.utime(fd, ns=times)


def change(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, follow, size, mode, uid, gid, accessed, modified}`: what is None stays."""
    path, want, follow = absolute(header["path"]), wanted(header), header.get("follow") is True
    with explained(path), place(path, follow=follow) as found:
        status = look(found, path)
        if stat.S_ISLNK(status.st_mode) and (follow or want.size is not None or want.mode is not None):
            raise OSError(errno.ELOOP if follow else errno.EOPNOTSUPP, "")  # put there since it was followed, or itself
        if want.size is not None:
            _resize(found, status, want.size, path)
        if want.owner is not None:
            os.chown(found.name, *want.owner, dir_fd=found.directory, follow_symlinks=False)
        if want.mode is not None:
            _change_mode(found, want.mode)
        if (times := want.times(status)) is not None:
            os.utime(found.name, ns=times, dir_fd=found.directory, follow_symlinks=False)
    return {}


def _resize(found: Place, status: os.stat_result, size: int, path: bytes) -> None:
    check_regular(status, path)
    fd = os.open(found.name, _WRITE, dir_fd=found.directory)
    try:
        check_regular(os.fstat(fd), path)
        check_on_disk(fd, shown(path))
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _change_mode(found: Place, mode: int) -> None:
    fd = os.open(found.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.directory)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, "")
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def check_regular(status: os.stat_result, path: bytes) -> None:
    """Refusal."""
    if stat.S_ISDIR(status.st_mode):
        raise Refusal(errno.EISDIR, f"is a directory: {shown(path)}")
    if not stat.S_ISREG(status.st_mode):
        raise Refusal(errno.EINVAL, f"not a regular file: {shown(path)}")


def space(header: dict[str, Any]) -> dict[str, Any]:
    """`{path}`: of the file system that it lies on."""
    path = absolute(header["path"])
    with explained(path), place(path, follow=True) as found:
        look(found, path)
        room = os.statvfs(found.directory)
    unit, most = room.f_frsize, (1 << 53) - 1
    return {
        "block": unit, "total": min(room.f_blocks * unit, most), "free": min(room.f_bavail * unit, most),
        "files": min(room.f_files, most), "files_free": min(room.f_favail, most),
    }  # fmt: skip
