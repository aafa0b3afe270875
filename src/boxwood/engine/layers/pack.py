"""Layers on their way out: what a stack shows, or what it changes of what is below it, as the entries of an archive.

What is changed of what is below is told as layers have it: what is deleted is a device node 0:0, a directory that hides
what is below it is marked opaque. Sockets are left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from boxwood.engine.layers import inodes, tar, view
from boxwood.engine.layers.merge import OPAQUE, WHITEOUT
from boxwood.engine.layers.view import Directory, Leaf, Part
from boxwood.engine.tarform import padding

TOP = b"tree"  # what all names begin with
KEPT = (b"user.", b"system.posix_acl_", b"security.capability")
_PIECE = 1 << 18
_KINDS = {stat.S_IFREG: tar.FILE, stat.S_IFLNK: tar.SYMLINK, stat.S_IFIFO: tar.FIFO}


@dataclass(slots=True)
class _Level:
    name: bytes
    directory: Directory
    names: Iterator[str]
    closed: bool  # nothing that is below the stack shows through here


class Pack:
    """`whole`: there is nothing below the stack."""

    def __init__(self, out: int, *, whole: bool) -> None:
        self._out = out
        self._whole = whole
        self._names: dict[tuple[int, int], bytes] = {}  # of files that have several
        self.entries = 0

    def run(self, top: Directory) -> None:
        """Takes the directory."""
        self._put(self._directory(TOP, top, opaque=False))
        levels = [_level(TOP, top, self._whole)]
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                levels.pop().directory.close()
            elif below := self._visit(level, name):
                levels.append(below)

    def _visit(self, level: _Level, name: str) -> _Level | None:
        path = level.name + b"/" + os.fsencode(name)
        directories: list[Part] = []
        opaque = False
        for part in level.directory.parts:
            try:
                found = os.stat(name, dir_fd=part.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(found.st_mode):
                if not directories:
                    self._leaf(level, path, part, Leaf(part.fd, name, found))
                    return None
                opaque = True
                break
            directories.append(Part.open(part.layer, name, part.fd))
            if directories[-1].opaque:
                opaque = True
                break
        directory = Directory(tuple(directories), os.fstat(directories[0].fd))
        self._put(self._directory(path, directory, opaque=opaque and not level.closed))
        return _level(path, directory, level.closed or opaque)

    def _directory(self, path: bytes, directory: Directory, *, opaque: bool) -> tar.Entry:
        extra = _attributes(view.attributes(directory))
        if opaque:
            extra[OPAQUE.encode()] = b"y"
        s = directory.status
        return tar.Entry(
            tar.DIRECTORY, path, s.st_mode & 0o7777, s.st_uid, s.st_gid, mtime=s.st_mtime_ns, attributes=extra
        )

    def _leaf(self, level: _Level, path: bytes, part: Part, leaf: Leaf) -> None:
        s = leaf.status
        marked = part.marked and not s.st_size and stat.S_ISREG(s.st_mode)
        if inodes.is_whiteout(s) or (marked and WHITEOUT in inodes.xattrs(part.fd, leaf.name)):
            if not level.closed:
                self._put(tar.Entry(tar.DEVICE, path))
            return
        kind = _KINDS.get(stat.S_IFMT(s.st_mode))
        if kind is None:
            return
        if s.st_nlink > 1:
            first = self._names.setdefault((s.st_dev, s.st_ino), path)
            if first != path:
                self._put(tar.Entry(tar.LINK, path, target=first))
                return
        mode = s.st_mode & 0o7777
        if kind == tar.FILE:
            self._file(path, leaf)
            return
        target = os.fsencode(os.readlink(leaf.name, dir_fd=leaf.at)) if kind == tar.SYMLINK else b""
        self._put(tar.Entry(kind, path, mode, s.st_uid, s.st_gid, mtime=s.st_mtime_ns, target=target))

    def _file(self, path: bytes, leaf: Leaf) -> None:
        fd = os.open(leaf.name, inodes.READ_FILE, dir_fd=leaf.at)
        try:
            s = os.fstat(fd)
            extra = _attributes({key: view.value(fd, key) or b"" for key in os.listxattr(fd)})
            parts, table, real = [(0, s.st_size)], b"", None
            if s.st_blocks * 512 < s.st_size:
                parts = list(_data(fd, s.st_size))
                lines = [len(parts), *(number for part in parts for number in part)]
                table = b"".join(b"%d\n" % number for number in lines)
                table += bytes(padding(len(table)))
                real = s.st_size
            size = len(table) + sum(length for _, length in parts)
            self._put(tar.Entry(
                tar.FILE, path, s.st_mode & 0o7777, s.st_uid, s.st_gid, size, s.st_mtime_ns, b"", real, extra
            ))  # fmt: skip
            self._write(table)
            for at, length in parts:
                self._copy(fd, at, length)
            self._write(bytes(padding(size)))
        finally:
            os.close(fd)

    def _copy(self, fd: int, at: int, length: int) -> None:
        while length:
            piece = os.pread(fd, min(length, _PIECE), at)
            if not piece:
                raise OSError(errno.EIO, "a file of a sealed layer has become shorter")
            self._write(piece)
            at, length = at + len(piece), length - len(piece)

    def _put(self, entry: tar.Entry) -> None:
        self.entries += 1
        self._write(tar.encode(entry))

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._out, rest) :]


def _level(name: bytes, directory: Directory, closed: bool) -> _Level:
    return _Level(name, directory, iter(sorted(view.names(directory.parts))), closed)


def _attributes(found: dict[str, bytes]) -> dict[bytes, bytes]:
    encoded = ((os.fsencode(key), value) for key, value in found.items() if not view.is_overlays(key))
    return {key: value for key, value in encoded if key.startswith(KEPT) and b"=" not in key}


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where there is any: offset and length of each part."""
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = min(os.lseek(fd, at, os.SEEK_HOLE), size)
        yield at, end - at
        at = end
