"""Several sealed layers as one that shows the same, over whatever lies below them.

The topmost layer that has a name decides. Directories are united down to the first that is opaque, or that stands over
something else than a directory: the result is then opaque itself. A whiteout stays, for it may hide something further
down; but not where the result is closed to what is below, since an overlay would list it there as a device.

Sealed layers never change, so files, symlinks and whiteouts are hard links to theirs. Layers are made with
`redirect_dir=off,metacopy=off`: marks of either mean that the layer is not ours, and are refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.layers import inodes

OPAQUE = "user.overlay.opaque"  # "y": nothing below shows; "x": regular files in it may be whiteouts
WHITEOUT = "user.overlay.whiteout"
_REFUSED = ("overlay.redirect", "overlay.metacopy")


class Unmergeable(Exception):
    """A layer was made with features that Boxwood's overlays do not use."""


@dataclass(slots=True)
class Count:
    """What the merged layer holds: inodes made (bytes of them copied) and names linked to the old layers' inodes."""

    inodes: int = 0
    bytes: int = 0
    links: int = 0


@dataclass(slots=True)
class _Source:
    """One layer's directory at some place of the tree."""

    fd: int
    names: frozenset[str]
    opaque: bool
    holds_marked: bool  # whiteouts that are regular files with an attribute

    @classmethod
    def open(cls, name: str, at: int) -> _Source:
        fd = os.open(name, inodes.READ_DIRECTORY, dir_fd=at)
        try:
            refuse_marks(os.listxattr(fd), name)
            mark = _value(fd, OPAQUE)
            return cls(fd, frozenset(os.listdir(fd)), mark == b"y", mark == b"x")
        except BaseException:
            os.close(fd)
            raise


@dataclass(slots=True)
class _Level:
    """A directory being merged. `closed`: nothing that lies below the merged layers shows through here."""

    sources: list[_Source]
    target: int
    names: Iterator[str]
    opaque: bool
    closed: bool

    def close(self) -> None:
        for fd in (*(source.fd for source in self.sources), self.target):
            os.close(fd)


def merge(layers: Sequence[int], target: int, links: int) -> Count:
    """Unite `layers` (directories, topmost first) in the empty directory `target`; `links`: another empty one, ours."""
    work = _Merge(links)
    work.run(layers, target)
    if work.count.bytes and k.libc.syncfs(target) < 0:  # the old layers may be removed next
        raise OSError(errno.EIO, "the merged layer could not be flushed")
    return work.count


class _Merge:
    def __init__(self, links: int) -> None:
        self._links = links
        self.count = Count()

    def run(self, layers: Sequence[int], target: int) -> None:
        roots = [_Source.open(".", fd) for fd in layers]
        # An overlay's root shows every layer, whatever it is marked with.
        levels = [_level(roots, os.dup(target), opaque=False, closed=False)]
        try:
            while levels:
                level = levels[-1]
                name = next(level.names, None)
                if name is None:
                    _leave(level)
                    levels.pop().close()
                elif below := self._resolve(level, name):
                    levels.append(below)
        finally:
            for level in levels:
                level.close()

    def _resolve(self, level: _Level, name: str) -> _Level | None:
        """Make what `name` shows; a directory comes back as the next level."""
        directories: list[_Source] = []
        opaque = False
        for source in level.sources:
            if name not in source.names:
                continue
            found = os.stat(name, dir_fd=source.fd, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                if not directories:
                    self._place(level, source, name, found)
                    return None
                opaque = True  # hides what is below it from the directory above it
                break
            directories.append(_Source.open(name, source.fd))
            if directories[-1].opaque:
                opaque = True
                break
        return self._unite(level, name, directories, opaque)

    def _unite(self, level: _Level, name: str, directories: list[_Source], opaque: bool) -> _Level:
        os.mkdir(name, 0o700, dir_fd=level.target)
        self.count.inodes += 1
        target = os.open(name, inodes.READ_DIRECTORY, dir_fd=level.target)
        return _level(directories, target, opaque=opaque, closed=level.closed or opaque)

    def _place(self, level: _Level, source: _Source, name: str, found: os.stat_result) -> None:
        """Anything but a directory: the topmost one, as it is."""
        marks: list[str] = []
        if stat.S_ISREG(found.st_mode):
            os.fchdir(source.fd)
            marks = os.listxattr(name, follow_symlinks=False)
            refuse_marks(marks, name)
        marked = source.holds_marked and not found.st_size and WHITEOUT in marks
        if marked or inodes.is_whiteout(found):
            if level.closed:
                return
            if marked:  # the old form, which needs no mark on the directory and on the root
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=level.target)
                self.count.inodes += 1
                return
        try:
            os.link(name, name, src_dir_fd=source.fd, dst_dir_fd=level.target, follow_symlinks=False)
            self.count.links += 1
        except OSError as error:
            if error.errno not in inodes.NO_LINK:
                raise
            self._copy(level, source, name, found)

    def _copy(self, level: _Level, source: _Source, name: str, found: os.stat_result) -> None:
        """From another file system, or of an inode that cannot have one more name."""
        first = f"{found.st_dev}-{found.st_ino}"
        if found.st_nlink > 1:
            try:
                os.link(first, name, src_dir_fd=self._links, dst_dir_fd=level.target, follow_symlinks=False)
                return
            except FileNotFoundError:
                pass
        if stat.S_ISREG(found.st_mode):
            inodes.copy_file(source.fd, level.target, name)
            self.count.bytes += found.st_size
        else:
            inodes.copy_special(source.fd, level.target, name, found)
        self.count.inodes += 1
        if found.st_nlink > 1:
            os.link(name, first, src_dir_fd=level.target, dst_dir_fd=self._links, follow_symlinks=False)


def _level(sources: list[_Source], target: int, *, opaque: bool, closed: bool) -> _Level:
    names = dict.fromkeys(name for source in sources for name in source.names)
    return _Level(sources, target, iter(names), opaque, closed)


def _leave(level: _Level) -> None:
    """A directory looks like the topmost one, but for the mark."""
    top = level.sources[0].fd
    inodes.copy_attributes(top, level.target, os.fstat(top))
    if level.opaque:
        os.setxattr(level.target, OPAQUE, b"y")
    elif _value(level.target, OPAQUE) is not None:
        os.removexattr(level.target, OPAQUE)


def refuse_marks(xattrs: Sequence[str], name: str) -> None:
    """Unmergeable."""
    for key in xattrs:
        if key.partition(".")[2] in _REFUSED:
            raise Unmergeable(f"{name!r} carries {key}: made by an overlay with redirect_dir or metacopy")


def _value(fd: int, key: str) -> bytes | None:
    try:
        return os.getxattr(fd, key)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None
