"""Writing a layer's tree from what a stranger says is in it: bounded, and never through a symlink.

Every path is walked name by name from the root's descriptor, so nothing that an earlier entry planted can lead a later
one astray; a tree that was packed from a real one has no entry below a symlink, so such an entry is refused.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from boxwood.images.farm import HIGHEST_ID
from boxwood.images.shelf import ImageError

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LATEST = 1 << 33  # seconds: no file is younger
_LOOK = 64 << 20  # bytes written between two looks at what the disk has left


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may hold, and what must stay free of the disk it goes to."""

    bytes: int = 64 << 30
    inodes: int = 4_000_000
    depth: int = 200
    name: int = 255
    path: int = 4000
    free: int = 512 << 20


@dataclass(frozen=True, slots=True)
class Status:
    """`mtime` in seconds."""

    mode: int
    uid: int
    gid: int
    mtime: float


class Refused(ImageError):
    """What was to be imported is broken, hostile, or no root file system."""


def shown(name: str) -> str:
    """A stranger's name for a text: no control characters, not too long."""
    return ascii(name if len(name) <= 120 else name[:117] + "…")


class Tree:
    """`root`: descriptor of an empty directory, the caller's to close. Paths are relative to it, "" the root itself."""

    def __init__(self, root: int, limits: Limits) -> None:
        self._root = root
        self._limits = limits
        self._times: dict[tuple[str, ...], float] = {}
        self._last: tuple[tuple[str, ...], int] | None = None
        self._looked = 0
        self.inodes = 0
        self.bytes = 0

    def directory(self, path: str, status: Status) -> None:
        """What is in a directory that is there already stays."""
        parts = self._parts(path)
        self._check(path, status)
        if parts:
            parent = self._open(parts[:-1], path)
            if not self._is_directory(parent, parts[-1]):
                self._clear(parent, parts[-1])
                self._count(path)
                os.mkdir(parts[-1], 0o700, dir_fd=parent)
            fd = os.open(parts[-1], _DIRECTORY, dir_fd=parent)
        else:
            fd = os.dup(self._root)
        try:
            self._put(fd, status)
        finally:
            os.close(fd)
        self._times[parts] = status.mtime

    def file(self, path: str, status: Status, size: int, content: Iterable[bytes]) -> None:
        """`size` as announced: counted before a byte is written."""
        parent, name = self._place(path, status)
        self._reserve(path, size)
        fd = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            written = 0
            for block in content:
                written += len(block)
                if block.strip(b"\0"):
                    _write(fd, block)
                else:
                    os.lseek(fd, len(block), os.SEEK_CUR)  # a hole
                if written > size:
                    raise Refused(f"{shown(path)} is longer than announced")
            if written != size:
                raise Refused(f"{shown(path)} ends after {written} of {size} bytes")
            os.ftruncate(fd, size)
            self._put(fd, status)
            _set_time(fd, status.mtime)
        finally:
            os.close(fd)

    def symlink(self, path: str, target: str, status: Status) -> None:
        if "\0" in target or not 0 < len(os.fsencode(target)) <= self._limits.path:
            raise Refused(f"the symlink {shown(path)} points to nothing that can be")
        parent, name = self._place(path, status)
        os.symlink(target, name, dir_fd=parent)
        if os.geteuid() == 0:
            os.chown(name, status.uid, status.gid, dir_fd=parent, follow_symlinks=False)

    def hard_link(self, path: str, target: str) -> None:
        """Another name for a file or symlink that is in the tree already."""
        source = self._parts(target)
        if not source:
            raise Refused(f"the hard link {shown(path)} points to the root")
        if source == self._parts(path):
            return
        parent, name = self._place(path, Status(0, 0, 0, 0))
        to_fd = os.dup(parent)
        try:
            from_fd = self._open(source[:-1], target, make=False)
            if self._is_directory(from_fd, source[-1]):
                raise Refused(f"the hard link {shown(path)} points to a directory")
            os.link(source[-1], name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        except FileNotFoundError:
            raise Refused(f"the hard link {shown(path)} points to {shown(target)}, which is not there") from None
        finally:
            os.close(to_fd)

    def fifo(self, path: str, status: Status) -> None:
        parent, name = self._place(path, status)
        os.mkfifo(name, 0o600, dir_fd=parent)
        if os.geteuid() == 0:
            os.chown(name, status.uid, status.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, status.mode & 0o7777, dir_fd=parent)  # a FIFO that was just made: no link to follow

    def close(self) -> None:
        """Set the times of the directories, now that nothing more goes into them."""
        for parts, mtime in self._times.items():
            try:
                fd = self._open(parts, "", make=False)
            except (Refused, FileNotFoundError):
                continue  # a later entry took its place
            _set_time(fd, mtime)
        self._forget()

    def _place(self, path: str, status: Status) -> tuple[int, str]:
        """An open parent and the free name in it for a new thing that is no directory; the last entry wins."""
        self._check(path, status)
        parts = self._parts(path)
        if not parts:
            raise Refused("the root itself is no directory")
        parent = self._open(parts[:-1], path)
        self._clear(parent, parts[-1])
        self._count(path)
        return parent, parts[-1]

    def _parts(self, path: str) -> tuple[str, ...]:
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        limits = self._limits
        if "\0" in path or ".." in parts:
            raise Refused(f"{shown(path)} is no path below the root")
        if len(os.fsencode(path)) > limits.path or any(len(os.fsencode(part)) > limits.name for part in parts):
            raise Refused(f"the name {shown(path)} is too long")
        if len(parts) > limits.depth:
            raise Refused(f"{shown(path)} is more than {limits.depth} directories deep")
        if any(part.startswith(".wh.") for part in parts):
            raise Refused(
                f"{shown(path)} deletes something below it: this is a layer of an image, not a root file system"
            )
        return parts

    def _check(self, path: str, status: Status) -> None:
        if not (0 <= status.uid <= HIGHEST_ID and 0 <= status.gid <= HIGHEST_ID):
            owner = f"{status.uid}:{status.gid}"
            raise Refused(f"{shown(path)} belongs to {owner}; a VM has users and groups up to {HIGHEST_ID}")

    def _count(self, path: str) -> None:
        self.inodes += 1
        if self.inodes > self._limits.inodes:
            raise Refused(f"more than {self._limits.inodes} files (at {shown(path)})")

    def _reserve(self, path: str, size: int) -> None:
        self.bytes += max(size, 0)
        if size < 0 or self.bytes > self._limits.bytes:
            raise Refused(f"more than {self._limits.bytes >> 20} MiB (at {shown(path)})")
        if self.bytes - self._looked >= _LOOK or size >= _LOOK or not self._looked:
            self._looked = self.bytes
            disk = os.fstatvfs(self._root)
            if disk.f_bavail * disk.f_frsize < size + self._limits.free:
                raise Refused(f"the disk has too little space left for it (at {shown(path)})")

    def _open(self, parts: tuple[str, ...], path: str, *, make: bool = True) -> int:
        """A directory's descriptor, good until the next call. Missing ones are made, for root, mode 0755."""
        if self._last is not None:
            if self._last[0] == parts:
                return self._last[1]
            self._forget()
        fd = os.dup(self._root)
        for part in parts:
            try:
                try:
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    self._count(path)
                    os.mkdir(part, 0o755, dir_fd=fd)
                    inner = os.open(part, _DIRECTORY, dir_fd=fd)
            except NotADirectoryError:
                raise Refused(f"{shown(path)} lies below {shown(part)}, which is no directory") from None
            finally:
                os.close(fd)
            fd = inner
        self._last = (parts, fd)
        return fd

    def _forget(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def _is_directory(self, parent: int, name: str) -> bool:
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def _clear(self, parent: int, name: str) -> None:
        if self._is_directory(parent, name):
            shutil.rmtree(name, dir_fd=parent)
        else:
            try:
                os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass

    def _put(self, fd: int, status: Status) -> None:
        if os.geteuid() == 0:
            os.fchown(fd, status.uid, status.gid)
        os.fchmod(fd, status.mode & 0o7777)


def _write(fd: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _set_time(fd: int, mtime: float) -> None:
    mtime = mtime if 0 <= mtime <= _LATEST else 0.0  # and 0 for what is no number
    os.utime(fd, (mtime, mtime))
