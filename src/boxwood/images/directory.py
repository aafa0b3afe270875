"""Reading a directory of the host into a `Tree`: no link is followed, no mount entered, only descriptors are walked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from boxwood.images.tree import Refused, Status, Tree, shown

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 20


class Source:
    """`root`: descriptor of the directory; `told` is called with the number of entries read so far."""

    def __init__(self, root: int, tree: Tree, told: Callable[[int], None]) -> None:
        self._root = root
        self._tree = tree
        self._told = told
        self._device = os.fstat(root).st_dev
        self._names: dict[tuple[int, int], str] = {}  # of files that have several
        self._read = 0
        self.skipped = 0

    def copy(self) -> None:
        """:raises Refused: it holds what an image cannot."""
        self._directory(self._root, "")

    def _directory(self, fd: int, path: str) -> None:
        self._tree.directory(path, _status(os.fstat(fd)))
        with os.scandir(fd) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            self._read += 1
            self._told(self._read)
            self._entry(fd, name, f"{path}/{name}" if path else name)

    def _entry(self, fd: int, name: str, path: str) -> None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        first = self._names.setdefault((status.st_dev, status.st_ino), path) if status.st_nlink > 1 else path
        if kind == stat.S_IFDIR:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
            try:
                if os.fstat(inner).st_dev == self._device:
                    self._directory(inner, path)
                else:  # a place to mount at, and what is mounted there is not part of the tree
                    self._tree.directory(path, Status(0o755, 0, 0, 0))
            finally:
                os.close(inner)
        elif kind == stat.S_IFLNK:
            self._tree.symlink(path, os.readlink(name, dir_fd=fd), _status(status))
        elif kind == stat.S_IFREG and first != path:
            self._tree.hard_link(path, first)
        elif kind == stat.S_IFREG:
            self._file(fd, name, path)
        elif kind == stat.S_IFIFO:
            self._tree.fifo(path, _status(status))
        else:  # devices and sockets
            self.skipped += 1

    def _file(self, fd: int, name: str, path: str) -> None:
        source = os.open(name, _FILE, dir_fd=fd)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{shown(path)} changed while it was read")
            self._tree.file(path, _status(status), status.st_size, _content(source))
        finally:
            os.close(source)


def _status(status: os.stat_result) -> Status:
    return Status(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime)


def _content(fd: int) -> Iterator[bytes]:
    while block := os.read(fd, _BLOCK):
        yield block
