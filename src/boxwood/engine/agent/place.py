"""Where a path leads: a directory on the VM's disk, open, and a name in it.

Paths are bytes here, as the kernel has them; on the link a byte that is no UTF-8 is a lone surrogate, so that every
name can be said. What is found is worked on through the open directory: whoever swaps directories for links meanwhile
has, at worst, another file of the same VM worked on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from boxwood.engine.agent.files import Refusal, cannot_be_written, check_on_disk

PATH_BYTES = 4095  # the kernel's PATH_MAX without the end
_MOST_LINKS = 40  # followed one after the other, as the kernel does
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character", stat.S_IFBLK: "block",
}  # fmt: skip
ITSELF = b"."
_LARGEST = (1 << 53) - 1  # bytes that can be told of a file: a sparse one may seem to have more


class Place(NamedTuple):
    """A name in an open directory; `.` is that directory itself."""

    directory: int
    name: bytes


def raw(text: object) -> bytes:
    """A name as the link carries it. ValueError."""
    if not isinstance(text, str):
        raise ValueError("a name must be a text")
    return text.encode("utf-8", "surrogateescape")


def told(name: bytes) -> str:
    """The same the other way round."""
    return name.decode("utf-8", "surrogateescape")


def shown(path: bytes) -> str:
    """For people, in messages."""
    return path.decode("utf-8", "backslashreplace")


def absolute(text: object) -> bytes:
    """A path that the server has sent. Refusal, ValueError."""
    path = raw(text)
    if not path.startswith(b"/") or b"\0" in path:
        raise Refusal(errno.EINVAL, "a path must be absolute, without NUL")
    if len(path) > PATH_BYTES:
        raise Refusal(errno.ENAMETOOLONG, f"a path has at most {PATH_BYTES} bytes")
    return path


@contextmanager
def explained(path: bytes) -> Iterator[None]:
    """What the kernel refuses is told with the path that was asked for."""
    try:
        yield
    except OSError as error:
        raise because(error, path) from None


def because(error: OSError, path: bytes) -> Refusal:
    number = error.errno or errno.EIO
    if number == errno.EROFS:
        return cannot_be_written(shown(path))
    return Refusal(number, f"{_CLEARER.get(number) or os.strerror(number)}: {shown(path)}")


_CLEARER = {  # than the kernel's words, to whoever knows nothing of what lies below
    errno.EXDEV: "nothing is moved between the VM's disk and a volume, or from one volume to another: copy it",
    errno.EBUSY: "in use by the VM itself, as where a volume is mounted",
}


@contextmanager
def place(path: bytes, *, follow: bool) -> Iterator[Place]:
    """The directory that holds what `path` names, and its name there; with `follow` what a final link leads to.
    Refusal: the directory is not on the VM's disk. OSError."""
    opened: list[int] = []
    try:
        at: int | None = None
        for _ in range(_MOST_LINKS):
            head, _slash, name = path.rstrip(b"/").rpartition(b"/")
            if name in (b"", b".", b".."):
                head, name = path, ITSELF
            elif not head:
                head = b"/" if path.startswith(b"/") else b"."
            at = os.open(head, _OPEN, dir_fd=at)
            opened.append(at)
            check_on_disk(at, shown(head))
            link = _link(at, name) if follow and name != ITSELF else None
            if link is None:
                yield Place(at, name)
                return
            path = link
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    finally:
        for fd in opened:
            os.close(fd)


def _link(directory: int, name: bytes) -> bytes | None:
    """Where a link leads; None: it is none, or there is nothing."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return None


def named(found: Place, path: bytes) -> Place:
    """To be made, moved or deleted: it must have a name. Refusal."""
    if found.name == ITSELF:
        raise Refusal(errno.EBUSY, f"has no name of its own, so it cannot be made, moved or deleted: {shown(path)}")
    return found


def look(found: Place, path: bytes) -> os.stat_result:
    """Its status; a link's is its own. Refusal: a directory of another file system is mounted there. OSError."""
    status = os.stat(found.name, dir_fd=found.directory, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        fd = os.open(found.name, _OPEN | os.O_NOFOLLOW, dir_fd=found.directory)
        try:
            check_on_disk(fd, shown(path))
        finally:
            os.close(fd)
    return status


def directory(path: bytes) -> int:
    """A directory of the disk, open to be read, links followed. Refusal, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check_on_disk(fd, shown(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def status_of(status: os.stat_result, target: bytes | None = None) -> dict[str, Any]:
    """What is told of a file. `target`: where a link leads."""
    fields: dict[str, Any] = {
        "kind": _KINDS.get(stat.S_IFMT(status.st_mode), "file"),
        "size": min(status.st_size, _LARGEST),
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "links": status.st_nlink,
        "modified": status.st_mtime_ns,
    }
    if target is not None:
        fields["target"] = told(target)
    return fields


def describe(found: Place, status: os.stat_result) -> dict[str, Any]:
    """`status_of` what lies there, links with their targets."""
    return status_of(status, _link(*found) if stat.S_ISLNK(status.st_mode) else None)
