"""The helper that packs a directory: a tar archive, written as the tree is walked."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from boxwood.engine.agent import tarhead
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.helpers import Out
from boxwood.engine.agent.place import PATH_BYTES, absolute, directory, explained, shown
from boxwood.engine.agent.walk import Entry, Walk
from boxwood.engine.tarform import padding

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 18
_WHOLE = 1 << 18  # a file up to this size is read before its head is written: it may change meanwhile
_MOST_LINKED = 100_000  # files with several names that are remembered: further ones are packed once for each name


class Packer:
    """`linked`: the first name in the archive of a file that has several."""

    def __init__(self, out: Out, path: bytes) -> None:
        self._out = out
        self._path = path
        self._linked: dict[tuple[int, int], bytes] = {}
        self._gathered = bytearray()

    def pack(self, top: int) -> None:
        self._head(tarhead.Member(b"./", tarhead.DIRECTORY), os.fstat(top))
        for entry in Walk(top, room=PATH_BYTES - len(self._path) - 1):
            try:
                self._member(entry)
            except FileNotFoundError:
                pass  # it has gone
        self._put(tarhead.end())
        self._flush()

    def _member(self, entry: Entry) -> None:
        kind = stat.S_IFMT(entry.status.st_mode)
        if kind == stat.S_IFDIR:
            self._head(tarhead.Member(entry.path + b"/", tarhead.DIRECTORY), entry.status)
        elif kind == stat.S_IFLNK:
            target = os.readlink(entry.name, dir_fd=entry.directory)
            self._head(tarhead.Member(entry.path, tarhead.SYMLINK, target=target), entry.status)
        elif kind == stat.S_IFREG:
            try:
                fd = os.open(entry.name, _READ, dir_fd=entry.directory)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENXIO):
                    return  # it is something else now
                raise
            try:
                self._file(entry.path, fd)
            finally:
                os.close(fd)

    def _file(self, path: bytes, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        if status.st_nlink > 1:
            ident = status.st_dev, status.st_ino
            if (first := self._linked.get(ident)) is not None:
                self._head(tarhead.Member(path, tarhead.LINK, target=first), status)
                return
            if len(self._linked) < _MOST_LINKED:
                self._linked[ident] = path
        if status.st_size <= _WHOLE:
            content = _read(fd, status.st_size)
            self._head(tarhead.Member(path, tarhead.FILE, size=len(content)), status)
            self._put(content + bytes(padding(len(content))))
        else:
            self._head(tarhead.Member(path, tarhead.FILE, size=status.st_size), status)
            self._content(path, fd, status.st_size)

    def _content(self, path: bytes, fd: int, size: int) -> None:
        left = size
        while left:
            piece = os.read(fd, min(left, _PIECE))
            if not piece:
                raise Refusal(errno.ESTALE, f"became shorter while it was packed: {shown(self._path + b'/' + path)}")
            left -= len(piece)
            self._put(piece)
        self._put(bytes(padding(size)))

    def _head(self, member: tarhead.Member, status: os.stat_result) -> None:
        member.mode, member.uid, member.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        member.modified = status.st_mtime_ns
        self._put(tarhead.head(member))

    def _put(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._out.data(memoryview(gathered))


def _read(fd: int, most: int) -> bytes:
    """As much as there is, up to `most`."""
    pieces, left = [], most
    while left and (piece := os.read(fd, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def pack(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path}`: regular files, directories, links of both kinds; what else there is, and what lies on other file
    systems, is left out."""
    path = absolute(header["path"])
    out.limit(0)  # it goes as fast as whoever reads
    with explained(path):
        top = directory(path)
    Packer(out, path).pack(top)
    return {}
