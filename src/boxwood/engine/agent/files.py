"""File work of the agent: inside the box's own mount namespace, so that no path can lead out of it.

Only the VM's disk (the overlay) holds files, the volumes that are mounted in it, and in a read-only box its /tmp, a
file system of its own: /proc, /sys, /dev and /run are refused. What a process of the box does
to a path meanwhile can make an answer wrong, but only about its own VM; the server checks what it is given.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from boxwood.engine.frames import MANIFEST_LIMIT
from boxwood.engine.kernel import filesystem_type
from boxwood.engine.volumes.kinds import DISKS

_SLICE = 4 << 20  # bytes copied between two looks at the loop
_NEW = ".boxwood-new-"
_IN_MEMORY = "/tmp"  # noqa: S108  # of a read-only box
_LONGEST = 4096  # bytes of a path, the end included: the kernel's PATH_MAX
_OWN = "/run/boxwood-policies"  # of the server, gone with the box
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)  # this disk has no files without a name
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refusal(Exception):
    """What is answered: an errno and a text."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.errno = number
        self.text = text


def open_for_reading(path: str) -> tuple[int, os.stat_result]:
    """A regular file of the disk: its descriptor and status."""
    fd = os.open(_checked(path), _READ)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise Refusal(errno.EISDIR, f"is a directory: {path}")
        if not stat.S_ISREG(found.st_mode):
            raise Refusal(errno.EINVAL, f"not a regular file: {path}")
        if found.st_dev != os.stat("/").st_dev:  # overlays may show files of their layers as those of other devices
            _on_disk(os.path.dirname(os.path.realpath(path)))
    except BaseException:
        os.close(fd)
        raise
    return fd, found


class Writing:
    """A file being replaced: bytes go to a new file beside it, which takes its place when all are there. `slowly`: they
    may be long in coming; the new file has no name until then where the disk can do that, and whatever ends us ends it.
    `in_run`: the server's own, in the one directory of its own there.
    """

    def __init__(self, path: str, mode: int | None, *, slowly: bool = False, in_run: bool = False) -> None:
        target = os.path.realpath(_checked(path))
        directory = os.path.dirname(target)
        if path.endswith("/") or target == "/":
            raise Refusal(errno.EISDIR, f"is a directory: {path}")
        if in_run and directory != _OWN:
            raise Refusal(errno.EACCES, f"not in {_OWN}: {path}")
        self._directory = _open_or_make(directory, path)
        self._name = os.path.basename(target)
        self._new = _NEW + os.urandom(8).hex()
        self._fd = -1
        self._named = True
        try:
            if not in_run:
                check_on_disk(self._directory, directory)
            old = self._present(path)
            kept = mode if mode is not None else stat.S_IMODE(old.st_mode) if old else 0o644
            kept &= 0o1777  # as when a program writes: whatever comes now is nobody's to run as root
            self._open(slowly, kept)
            made = os.fstat(self._fd)
            if old is not None and (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(self._fd, old.st_uid, old.st_gid)
            if stat.S_IMODE(made.st_mode) != kept:
                os.fchmod(self._fd, kept)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):  # the new file's name says nothing to anybody
                if error.errno == errno.EROFS:
                    raise cannot_be_written(path) from None
                raise OSError(error.errno, error.strerror, path) from None
            raise

    @property
    def fd(self) -> int:
        """Of the new file, for writing."""
        return self._fd

    def _open(self, slowly: bool, mode: int) -> None:
        if slowly:
            try:
                self._fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=self._directory)
                self._named = False
                return
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._new, flags, mode, dir_fd=self._directory)

    def _present(self, path: str) -> os.stat_result | None:
        try:
            old = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(old.st_mode):
            raise Refusal(errno.EISDIR, f"is a directory: {path}")
        if not stat.S_ISREG(old.st_mode):
            raise Refusal(errno.EINVAL, f"not a regular file: {path}")
        return old

    def bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def copy(self, source: int, size: int) -> Iterator[int]:
        """Copy from a descriptor, in slices: yields how much is there."""
        at = 0
        while at < size:
            sent = os.sendfile(self._fd, source, at, min(_SLICE, size - at))
            if not sent:
                raise Refusal(errno.EIO, "the upload is shorter than it said")
            at += sent
            yield at

    def place(self) -> None:
        if not self._named:
            os.link(f"/proc/self/fd/{self._fd}", self._new, dst_dir_fd=self._directory)
            self._named = True
        os.rename(self._new, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    # In a child, of a durable VM: see `flushes`.

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._fd, self._directory

    def flush(self) -> None:
        """Its bytes, and what is told of it."""
        os.fsync(self._fd)

    def flush_names(self) -> None:
        flush_names(self._directory)

    def abandon(self) -> None:
        try:
            os.unlink(self._new, dir_fd=self._directory)  # though it had no name: a child may have given it one
        except OSError:
            pass  # it was never made, or the box has taken it away
        self.close()

    def close(self) -> None:
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1


def flush_names(directory: int) -> None:
    """Those in an open directory, and those of the directories above it, which may be new: up to the root."""
    at = os.dup(directory)
    while True:
        os.fsync(at)
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        same = os.path.samestat(os.fstat(at), os.fstat(above))
        os.close(at)
        at = above
        if same:
            os.close(at)
            return


def manifest(root: str, limit: int, emit: Callable[[bytes], object]) -> tuple[str, bool]:
    """Walk a directory, hand out one JSON line per regular file, sorted by path. Runs in a child: it may take long.

    Returns the normalised root and whether there were more than `limit`, or than the server takes in lines. Names that
    are not UTF-8 are left out: the answer could not name them.
    """
    root = os.path.normpath(_checked(root))
    count = size = 0
    try:
        top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return root, False
    try:
        _on_disk(root)
        for relative, fd, found in _regular_files(top, root):
            if count == limit:
                return root, True
            entry = {"path": relative, "size": found.st_size, "mode": found.st_mode, "hash": _digest(fd)}
            line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
            size += len(line)
            if size > MANIFEST_LIMIT:
                return root, True
            emit(line)
            count += 1
    finally:
        os.close(top)
    return root, False


def _regular_files(top: int, root: str) -> Iterator[tuple[str, int, os.stat_result]]:
    """(path, descriptor, status) of every regular file below; symbolic links are not followed, mounts not entered.

    What lies so deep that its path from / has no place in a system call is left out: it could not be asked for.
    """
    device = os.fstat(top).st_dev
    room = _LONGEST - len(os.fsencode(root))
    levels = [(top, "", iter(sorted(os.listdir(top))))]
    try:
        while levels:
            directory, prefix, names = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
                if levels:
                    os.close(directory)
            elif len(os.fsencode(prefix + name)) < room and (fd := _enter(directory, name, device)) is not None:
                found = os.fstat(fd)
                if stat.S_ISDIR(found.st_mode):
                    levels.append((fd, f"{prefix}{name}/", iter(sorted(os.listdir(fd)))))
                    continue
                try:
                    yield prefix + name, fd, found
                finally:
                    os.close(fd)
    finally:
        for directory, *_ in levels[1:]:
            os.close(directory)


def _enter(directory: int, name: str, device: int) -> int | None:
    """A regular file, or a directory on the same device, opened; None for all else, and for what is gone."""
    try:
        name.encode()
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
            return None
        fd = os.open(name, _READ | os.O_NOFOLLOW, dir_fd=directory)
    except (FileNotFoundError, UnicodeEncodeError):
        return None  # it went away under our eyes, or cannot be named
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # it changed its kind
            raise
        return None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_dev == device):
        return fd
    os.close(fd)
    return None


def _digest(fd: int) -> str:
    digest = hashlib.sha256()
    while block := os.read(fd, 1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _open_or_make(directory: str, path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(directory, flags)
    except FileNotFoundError:
        pass
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(path) if error.errno == errno.EROFS else error from None
    return os.open(directory, flags)


def _checked(path: Any) -> str:
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > 4096:
        raise Refusal(errno.EINVAL, "a path must be absolute, without NUL, and at most 4096 characters long")
    return path


def cannot_be_written(path: str) -> Refusal:
    why = "the VM is read-only, but for /tmp" if is_read_only() else "what is mounted there is read-only"
    return Refusal(errno.EROFS, f"{why}: {path} cannot be written")


def is_read_only() -> bool:
    return bool(os.statvfs("/").f_flag & os.ST_RDONLY)


def has_files_in_memory() -> bool:
    """Is there anything in the /tmp of a read-only box, which ends with the box?"""
    try:
        if len(_devices()) < 2:
            return False
        with os.scandir(_IN_MEMORY) as entries:
            return next(entries, None) is not None
    except OSError:
        return True  # there may be


def _devices() -> set[int]:
    """Where files may be: the disk, and the /tmp of a read-only box, if it has one."""
    devices = {os.stat("/").st_dev}
    if is_read_only():
        try:
            found = os.lstat(_IN_MEMORY)
        except OSError:
            return devices
        # What else a VM has made of its /tmp has a device of its own where image and data lie on two file systems.
        if stat.S_ISDIR(found.st_mode):
            devices.add(found.st_dev)
    return devices


def _on_disk(directory: str) -> None:
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        check_on_disk(fd, directory)
    finally:
        os.close(fd)


def check_on_disk(directory: int, shown: str) -> None:
    """Of a directory that is open: it is on the VM's disk, or on a volume, since nothing else in a box lies on such a
    file system. Refusal."""
    device = os.fstat(directory).st_dev
    if device != os.stat("/").st_dev and device not in _devices() and filesystem_type(directory) not in DISKS:
        raise Refusal(errno.EACCES, f"{shown} is not on the VM's disk: /proc, /sys, /dev and /run hold no files")
