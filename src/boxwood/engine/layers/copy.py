"""A copy of an overlay's upper directory as the overlay sees it, taken while a box goes on writing to it.

Two passes over the same tree. The first runs while the box lives; the second, `catch_up`, while its processes stand
still, and brings the copy to exactly what is there. Between them a `Record` says which inode was copied to which, and
at what ctime. An inode is copied again if its ctime is another one, or so young at the first pass that a change in the
same tick of the kernel's coarse clock would not show. Clocks that were set back do no harm.

Writes through a shared mapping touch the ctime only at the first fault after the page was clean: hence syncfs, after
`since` was taken and before anything is read.

Every inode with several names gets one more in a directory of ours, `links`, under the number of the source's inode:
what its other names are made from, at any depth and in both passes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.layers import inodes

MARGIN_NS = 50_000_000  # how far the kernel's coarse clock may lag, several times over
TMPFS_MAGIC = 0x01021994

# inode of the source -> inode of its copy, and the source's ctime before it was read
Record = dict[int, tuple[int, int]]

# What an operation on a name says when the name came to stand for something else.
_SWAPPED = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.EACCES, errno.ESTALE}


@dataclass(slots=True)
class Count:
    """What was copied."""

    inodes: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Level:
    """A directory that is being copied. `present`: what the copy holds under which inode; None: the source's names."""

    source: int
    target: int
    found: os.stat_result
    names: Iterator[str]
    present: dict[str, int] | None
    new: bool
    touched: bool = False

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


def start(source: int) -> int:
    """Make the first pass possible: the `since` (ns, real time) for `catch_up`."""
    since = time.time_ns()
    if k.libc.syncfs(source) < 0:
        raise OSError(errno.EIO, "the file system of the layers could not be flushed")
    return since


def copy_top(source: int, target: int, links: int) -> tuple[Record, Count]:
    """Copy directory `source`, which may change meanwhile, into the empty directory `target` (descriptors)."""
    work = _Pass(links, {}, 0, live=True)
    work.run(source, target)
    return work.record, work.count


def catch_up(source: int, target: int, links: int, record: Record, since: int) -> Count:
    """Make `target` exactly what `source` is, which nobody changes now."""
    if k.filesystem_type(source) == TMPFS_MAGIC:
        since = 0  # its pages are never clean, so its ctimes say nothing: copy all of it
    work = _Pass(links, record, since, live=False)
    work.run(source, target)
    return work.count


class _Pass:
    def __init__(self, links: int, before: Record, since: int, *, live: bool) -> None:
        self._links = links
        self._before = before
        self._young = since - MARGIN_NS
        self._live = live
        self._discarded = 0
        self.record: Record = {}
        self.count = Count()

    def run(self, source: int, target: int) -> None:
        levels = [self._level(os.dup(source), os.dup(target), new=not self._before)]
        try:
            while levels:
                name = next(levels[-1].names, None)
                if name is None:
                    self._leave(levels[-1])
                    levels.pop().close()
                elif below := self._visit(levels[-1], name):
                    levels.append(below)
        finally:
            for level in levels:
                level.close()

    def _level(self, source: int, target: int, *, new: bool) -> _Level:
        """Takes the descriptors."""
        found = os.fstat(source)
        names = dict.fromkeys(os.listdir(source))
        level = _Level(source, target, found, iter(names), {}, new)
        if not new:
            if self._is_current(found):
                level.present = None
            else:
                with os.scandir(target) as entries:
                    level.present = {entry.name: entry.inode() for entry in entries}
                for gone in level.present.keys() - names.keys():
                    self._discard(level, gone)
        return level

    def _is_current(self, found: os.stat_result) -> bool:
        _, ctime = self._before.get(found.st_ino, (0, -1))
        return ctime == found.st_ctime_ns < self._young

    def _visit(self, level: _Level, name: str) -> _Level | None:
        """Bring one name up to date; a directory comes back as the next level."""
        try:
            found = os.stat(name, dir_fd=level.source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return self._enter(level, name)
            self._update(level, name, found)
        except inodes.Swapped:
            if not self._live:
                raise
        except OSError as error:
            # The name changed under us, so the directory's ctime did: the second pass looks again.
            if not self._live or error.errno not in _SWAPPED:
                raise
        return None

    def _enter(self, level: _Level, name: str) -> _Level:
        source = os.open(name, inodes.READ_DIRECTORY, dir_fd=level.source)
        try:
            ino = os.fstat(source).st_ino
            there = self._there(level, name, ino)
            same = (
                there is not None and self._before.get(ino, (None,))[0] == there and _is_directory(level.target, name)
            )
            if not same:
                if there is not None:
                    self._discard(level, name)
                os.mkdir(name, 0o700, dir_fd=level.target)
                level.touched = True
                self.count.inodes += 1
            target = os.open(name, inodes.READ_DIRECTORY, dir_fd=level.target)
        except BaseException:
            os.close(source)
            raise
        return self._level(source, target, new=not same)

    def _update(self, level: _Level, name: str, found: os.stat_result) -> None:
        copy = self._copy_of(found)
        there = self._there(level, name, found.st_ino)
        if copy is None or copy != there:
            if there is not None:
                self._discard(level, name)
            level.touched = True
            if copy is None or found.st_nlink == 1 or not self._link(level, name, found.st_ino):
                self._make(level, name, found)

    def _copy_of(self, found: os.stat_result) -> int | None:
        """The inode of a copy that is up to date."""
        if made := self.record.get(found.st_ino):
            return made[0]
        if self._is_current(found):
            self.record[found.st_ino] = self._before[found.st_ino]
            return self._before[found.st_ino][0]
        return None

    def _there(self, level: _Level, name: str, ino: int) -> int | None:
        """The inode that the copy has under a name."""
        if level.present is not None:
            return level.present.get(name)
        if known := self._before.get(ino):  # in a directory whose names are those of the first pass
            return known[0]
        try:
            return os.stat(name, dir_fd=level.target, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None

    def _make(self, level: _Level, name: str, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):
            found = inodes.copy_file(level.source, level.target, name)
            self.count.bytes += found.st_size
        else:
            inodes.copy_special(level.source, level.target, name, found)
        self.count.inodes += 1
        made = os.stat(name, dir_fd=level.target, follow_symlinks=False).st_ino
        self.record[found.st_ino] = made, found.st_ctime_ns
        if level.present is not None:
            level.present[name] = made
        if found.st_nlink > 1:
            link = str(found.st_ino)
            try:
                os.unlink(link, dir_fd=self._links)
            except FileNotFoundError:
                pass
            os.link(name, link, src_dir_fd=level.target, dst_dir_fd=self._links, follow_symlinks=False)

    def _link(self, level: _Level, name: str, ino: int) -> bool:
        """Another name for what was copied already. False: it cannot have one more."""
        directories = {"src_dir_fd": self._links, "dst_dir_fd": level.target}
        try:
            os.link(str(ino), name, follow_symlinks=False, **directories)
        except FileNotFoundError:
            return False  # it had one name when it was copied: its directory was moved
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            os.rename(str(ino), name, **directories)  # the last one: ours was one too many
        return True

    def _discard(self, level: _Level, name: str) -> None:
        """Out of the copy; what it was is deleted with `links`, later."""
        level.touched = True
        self._discarded += 1
        scrap = f"{'live' if self._live else 'still'}-{self._discarded}"
        os.rename(name, scrap, src_dir_fd=level.target, dst_dir_fd=self._links)

    def _leave(self, level: _Level) -> None:
        found = level.found
        if level.new or not self._is_current(found):
            inodes.copy_attributes(level.source, level.target, found)
        elif level.touched:
            os.utime(level.target, ns=(found.st_atime_ns, found.st_mtime_ns))
        self.record[found.st_ino] = os.fstat(level.target).st_ino, found.st_ctime_ns


def _is_directory(at: int, name: str) -> bool:
    """Of the copy: a new directory may have the inode number of a file that was copied and deleted."""
    return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
