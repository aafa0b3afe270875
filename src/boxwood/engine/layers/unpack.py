"""Layers on their way in, from a stranger: as strict as what `pack` writes is regular.

Entries come directory by directory, each in one that is still open and that they have made themselves, under a name
that is not there yet: nothing is ever followed or replaced. Owners, attributes, sizes and room are checked before
anything is written. What is wrong is Refused; the layer is then thrown away.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from boxwood.engine.layers import inodes, tar
from boxwood.engine.layers.merge import OPAQUE
from boxwood.engine.layers.pack import KEPT, TOP
from boxwood.engine.layers.tar import Entry, Refused
from boxwood.engine.tarform import BLOCK, padding

MOST_INODES = 4_000_000
MOST_DEPTH = 2000
HIGHEST_ID = 65535
_PIECE = 1 << 18
_FREE = 512 << 20  # bytes that are left of the disk
_LOOK = 64 << 20  # bytes between looks at it
_MAP = 1 << 20  # bytes of the map of a sparse file
_LARGEST = 1 << 43  # bytes of a file
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpack:
    """`whole`: there is nothing below; nothing can be deleted or hidden. `most`: bytes."""

    def __init__(self, source: int, target: int, *, whole: bool, most: int) -> None:
        self._source = open(source, "rb", buffering=1 << 20, closefd=False)  # noqa: SIM115 (until this process ends)
        self._target = target
        self._whole = whole
        self._most = most
        self._levels: list[tuple[Entry, int]] = []
        self._looked = 0
        self.inodes = self.bytes = 0

    def run(self) -> None:
        while (entry := tar.decode(self._read)) is not None:
            self._check(entry)
            self._put(entry)
        if not self._levels:
            raise Refused("the archive holds no tree")
        while self._levels:
            self._leave()

    def _read(self, size: int) -> bytes:
        data = self._source.read(size)
        if data and len(data) < size:
            raise Refused("the archive is cut short")
        return data

    # Checks

    def _check(self, entry: Entry) -> None:
        self.inodes += 1
        if self.inodes > MOST_INODES:
            raise Refused(f"more than {MOST_INODES} files")
        if entry.mode > 0o7777 or entry.uid > HIGHEST_ID or entry.gid > HIGHEST_ID:
            raise Refused(f"{_shown(entry)} has a mode or an owner that no VM has")
        for key, value in entry.attributes.items():
            if not self._may_have(entry, key, value):
                raise Refused(f"{_shown(entry)} has an attribute that is not allowed ({key[:60]!r})")
        if entry.kind == tar.DEVICE and self._whole:
            raise Refused(f"{_shown(entry)} deletes something, where nothing is below")
        self.bytes += entry.size
        if self.bytes > self._most or (entry.real_size or 0) > _LARGEST:
            raise Refused(f"more than the {self._most >> 20} MiB that there may be")
        if self.bytes - self._looked > _LOOK or not self._looked:
            self._looked = self.bytes
            disk = os.fstatvfs(self._target)
            if disk.f_bavail * disk.f_frsize < _FREE + _LOOK or disk.f_favail < 1000:
                raise Refused("the server's disk has too little space left")

    def _may_have(self, entry: Entry, key: bytes, value: bytes) -> bool:
        if entry.kind not in (tar.FILE, tar.DIRECTORY) or len(key) > 255 or len(value) > 1 << 16 or b"\0" in key:
            return False
        if key == OPAQUE.encode():
            return entry.kind == tar.DIRECTORY and value == b"y" and not self._whole and entry.name != TOP
        if key.startswith(b"user.overlay.") or not key.startswith(KEPT):
            return False
        return key != b"security.capability" or (entry.kind == tar.FILE and len(value) <= 24)

    def _parts(self, name: bytes) -> list[bytes]:
        parts = name.split(b"/")
        if parts[0] != TOP or any(part in (b"", b".", b"..") or b"\0" in part or len(part) > 255 for part in parts):
            raise Refused(f"{name[:120]!r} is no name in the tree")
        if len(parts) > MOST_DEPTH:
            raise Refused(f"more than {MOST_DEPTH} directories deep")
        return parts

    # Making

    def _put(self, entry: Entry) -> None:
        if not self._levels:
            if entry.kind != tar.DIRECTORY or entry.name != TOP:
                raise Refused("the archive does not begin with the tree's root")
            self._levels.append((entry, os.dup(self._target)))
            return
        parts = self._parts(entry.name)
        if len(parts) < 2:
            raise Refused("the tree's root is there twice")
        above, name = b"/".join(parts[:-1]), parts[-1]
        while self._levels and self._levels[-1][0].name != above:
            self._leave()
        if not self._levels:
            raise Refused(f"{_shown(entry)} is not in the directory that comes before it")
        try:
            self._make(entry, name, self._levels[-1][1])
        except FileExistsError:
            raise Refused(f"{_shown(entry)} is there twice") from None

    def _make(self, entry: Entry, name: bytes, at: int) -> None:
        if entry.kind == tar.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=at)
            self._levels.append((entry, os.open(name, inodes.READ_DIRECTORY, dir_fd=at)))
        elif entry.kind == tar.FILE:
            self._file(entry, name, at)
        elif entry.kind == tar.LINK:
            self._link(entry, name, at)
        elif entry.kind == tar.DEVICE:
            inodes.make_whiteout(name, at)
        else:
            if entry.kind == tar.FIFO:
                os.mkfifo(name, 0o600, dir_fd=at)
            elif not entry.target or b"\0" in entry.target or len(entry.target) > 4095:
                raise Refused(f"{_shown(entry)} points to nothing that can be")
            else:
                os.symlink(entry.target, name, dir_fd=at)
            os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
            if entry.kind == tar.FIFO:
                os.chmod(name, entry.mode, dir_fd=at)
            os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _link(self, entry: Entry, name: bytes, at: int) -> None:
        *above, last = self._parts(entry.target)
        source = os.dup(self._target)
        try:
            for part in above[1:]:
                below = os.open(part, inodes.READ_DIRECTORY, dir_fd=source)
                os.close(source)
                source = below
            os.link(last, name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EPERM, errno.EISDIR, errno.EMLINK):
                raise
            raise Refused(f"{_shown(entry)} is another name for what is not there") from None
        finally:
            os.close(source)

    def _file(self, entry: Entry, name: bytes, at: int) -> None:
        fd = os.open(name, _NEW, 0o600, dir_fd=at)
        try:
            if entry.real_size is None:
                self._content(fd, entry.size)
            else:
                self._sparse(entry, fd)
            if self._read(padding(entry.size)).strip(b"\0"):
                raise Refused(f"there is something behind {_shown(entry)}")
            _finish(fd, entry)
        finally:
            os.close(fd)

    def _content(self, fd: int, size: int) -> None:
        while size:
            piece = memoryview(self._source.read(min(size, _PIECE)))
            if not piece:
                raise Refused("the archive is cut short")
            size -= len(piece)
            while piece:
                piece = piece[os.write(fd, piece) :]

    def _sparse(self, entry: Entry, fd: int) -> None:
        assert entry.real_size is not None
        numbers, used = self._map(entry)
        count = next(numbers)
        left, end = entry.size, 0
        parts = [(next(numbers), next(numbers)) for _ in range(count)]
        left -= used()
        for offset, length in parts:
            if offset < end or offset + length > entry.real_size or length > left:
                raise Refused(f"{_shown(entry)} has holes that cannot be")
            os.lseek(fd, offset, os.SEEK_SET)
            self._content(fd, length)
            end, left = offset + length, left - length
        if left:
            raise Refused(f"{_shown(entry)} has more in it than its map says")
        os.ftruncate(fd, entry.real_size)

    def _map(self, entry: Entry) -> tuple[Iterator[int], Callable[[], int]]:
        """The numbers of a sparse file's map, and how much of the file they take, to whole blocks."""
        taken = 0
        rest = b""

        def numbers() -> Iterator[int]:
            nonlocal taken, rest
            while True:
                while b"\n" not in rest:
                    if taken >= min(entry.size, _MAP) or len(rest) > 20:
                        raise Refused(f"{_shown(entry)} has a map that does not end")
                    rest += self._read(BLOCK)
                    taken += BLOCK
                text, _, rest = rest.partition(b"\n")
                if not text.isdigit() or len(text) > 18:
                    raise Refused(f"{_shown(entry)} has a map that is none")
                yield int(text)

        return numbers(), lambda: taken

    def _leave(self) -> None:
        entry, fd = self._levels.pop()
        try:
            _finish(fd, entry)
        finally:
            os.close(fd)


def _finish(fd: int, entry: Entry) -> None:
    """Owner before mode and attributes: a change of it drops setuid and capabilities."""
    os.fchown(fd, entry.uid, entry.gid)
    os.fchmod(fd, entry.mode)
    for key, value in entry.attributes.items():
        try:
            os.setxattr(fd, key, value)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                raise
            raise Refused(f"{_shown(entry)} has an attribute that cannot be set ({key[:60]!r})") from None
    os.utime(fd, ns=(entry.mtime, entry.mtime))


def hide(target: int, below: int) -> None:
    """Let nothing of the directory `below` show through `target`, which is to be put upon it."""
    there = set(os.listdir(target))
    for name in there:
        try:
            fd = os.open(name, inodes.READ_DIRECTORY, dir_fd=target)
        except NotADirectoryError:
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            continue
        try:
            os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)
    for name in set(os.listdir(below)) - there:
        inodes.make_whiteout(name, target)


def _shown(entry: Entry) -> str:
    return ascii(os.fsdecode(entry.name[:120]))
