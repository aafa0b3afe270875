"""Making one inode like another: data, owner, mode, extended attributes, times.

Directories are descriptors and names are single components, never followed: whatever a box does to its tree while it
is read, nothing outside of it is met. Extended attributes of what cannot be opened (symlinks, FIFOs) are reached by
name from the working directory, so this needs a process of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

FICLONE = 0x40049409
CLONE_FROM = 1 << 20  # bytes: a clone first writes out what is dirty, a copy of a small file does not
_READ_AT_ONCE = 1 << 18

READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ORIGIN = "user.overlay.origin"  # empty: of something that is not known
NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM}
NO_ATTRIBUTE = {errno.ENODATA, errno.EOPNOTSUPP}
_NO_CLONES = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY}


class Swapped(Exception):
    """A name stands for something else than a moment ago."""


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def make_whiteout(name: str | bytes, at: int) -> None:
    """In an open directory, which is marked as one that may hold some: else an overlay that finds nothing else there
    would list it as a device."""
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=at)
    try:
        os.setxattr(at, ORIGIN, b"", os.XATTR_CREATE)
    except FileExistsError:
        pass


def copy_file(source: int, target: int, name: str) -> os.stat_result:
    """A regular file. Returns what the source was before its data were read."""
    a = os.open(name, READ_FILE, dir_fd=source)
    try:
        found = os.fstat(a)
        if not stat.S_ISREG(found.st_mode):
            raise Swapped(name)
        b = os.open(name, _CREATE, 0o600, dir_fd=target)
        try:
            copy_data(a, b, found)
            copy_attributes(a, b, found)
        finally:
            os.close(b)
    finally:
        os.close(a)
    return found


def copy_data(a: int, b: int, found: os.stat_result) -> None:
    """The first `found.st_size` bytes of `a`, holes kept, into the empty file `b`."""
    size = found.st_size
    if size >= CLONE_FROM and _clone(a, b):
        return
    if size <= _READ_AT_ONCE and found.st_blocks * 512 >= size:
        _copy_small(a, b, size)
    else:
        _copy_extents(a, b, size)
    if os.fstat(b).st_size != size:
        os.ftruncate(b, size)  # a hole at the end; or it shrank meanwhile


def _clone(a: int, b: int) -> bool:
    try:
        fcntl.ioctl(b, FICLONE, a)
    except OSError as error:
        if error.errno not in _NO_CLONES:
            raise
        return False
    return True


def _copy_small(a: int, b: int, size: int) -> None:
    data = memoryview(os.read(a, size))
    while data:
        data = data[os.write(b, data) :]


def _copy_extents(a: int, b: int, size: int) -> None:
    at = 0
    while at < size:
        try:
            at = os.lseek(a, at, os.SEEK_DATA)
            end = min(os.lseek(a, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # no data from here on
        os.lseek(b, at, os.SEEK_SET)
        while at < end:
            sent = os.sendfile(b, a, at, end - at)
            if not sent:
                return  # it shrank
            at += sent


def copy_attributes(a: int, b: int, found: os.stat_result) -> None:
    """Of an open file or directory. Owner before mode and attributes: a change of it drops setuid and capabilities."""
    os.fchown(b, found.st_uid, found.st_gid)
    os.fchmod(b, stat.S_IMODE(found.st_mode))
    copy_xattrs(a, b)
    os.utime(b, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_xattrs(a: int, b: int) -> None:
    names = os.listxattr(a)
    for extra in set(os.listxattr(b)).difference(names):  # inherited from a directory's default, or gone since
        os.removexattr(b, extra)
    for name in names:
        try:
            os.setxattr(b, name, os.getxattr(a, name))
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed meanwhile
                raise


def copy_special(source: int, target: int, name: str, found: os.stat_result) -> None:
    """A symlink, FIFO, socket or whiteout."""
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=target)
    _copy_special_xattrs(source, target, name)
    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_special_xattrs(source: int, target: int, name: str) -> None:
    wanted = xattrs(source, name)
    os.fchdir(target)
    for extra in set(os.listxattr(name, follow_symlinks=False)).difference(wanted):
        os.removexattr(name, extra, follow_symlinks=False)
    for key, value in wanted.items():
        os.setxattr(name, key, value, follow_symlinks=False)


def xattrs(directory: int, name: str) -> dict[str, bytes]:
    """Of a name in a directory, not followed. Changes the working directory."""
    os.fchdir(directory)
    found = {}
    for key in os.listxattr(name, follow_symlinks=False):
        try:
            found[key] = os.getxattr(name, key, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
    return found
