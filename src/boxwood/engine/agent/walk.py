"""A tree of files, one after the other in the order of their names: links are not followed, other file systems not
entered, and neither depth nor long paths cost descriptors. For helpers: it may take long."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from boxwood.engine.agent.place import PATH_BYTES

MOST_OPEN = 64  # directories at once
_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry:
    """What was met. `path`: below the top; `directory`: where it lies, open until the next one; `leaving`: it is a
    directory, and all that is below it has been told. Whoever sets `enter` to False is told nothing of what is
    below."""

    __slots__ = ("depth", "directory", "enter", "leaving", "name", "path", "status")

    def __init__(
        self, path: bytes, directory: int, name: bytes, status: os.stat_result, depth: int, leaving: bool = False
    ) -> None:
        self.path = path
        self.directory = directory
        self.name = name
        self.status = status
        self.depth = depth
        self.leaving = leaving
        self.enter = True

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


class _Level:
    __slots__ = ("fd", "name", "names", "prefix", "status")

    def __init__(self, fd: int, name: bytes, prefix: bytes, status: os.stat_result) -> None:
        self.fd = fd
        self.name = name
        self.prefix = prefix
        self.status = status
        self.names: Iterator[bytes] = iter(sorted(map(os.fsencode, os.listdir(fd))))


class Walk:
    """`top`: an open directory, which stays the caller's. `room`: bytes that a path below it may have; what is longer
    could not be asked for, and is left out unless `deep`."""

    def __init__(self, top: int, *, room: int = PATH_BYTES, deep: bool = False, leaving: bool = False) -> None:
        self._device = os.fstat(top).st_dev
        self._room = room
        self._deep = deep
        self._leaving = leaving
        self._levels = [_Level(top, b"", b"", os.fstat(top))]

    def __iter__(self) -> Iterator[Entry]:
        try:
            while self._levels:
                level = self._levels[-1]
                name = next(level.names, None)
                if name is None:
                    yield from self._leave()
                elif self._reopen():
                    yield from self._meet(level, name)
        finally:
            for level in self._levels[1:]:
                if level.fd >= 0:
                    os.close(level.fd)

    def _meet(self, level: _Level, name: bytes) -> Iterator[Entry]:
        path = level.prefix + name
        if not self._deep and len(path) > self._room:
            return
        try:
            status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        entry = Entry(path, level.fd, name, status, len(self._levels))
        yield entry
        if entry.is_directory and entry.enter and status.st_dev == self._device:
            self._enter(level, entry)

    def _enter(self, level: _Level, entry: Entry) -> None:
        try:
            fd = os.open(entry.name, _ENTER, dir_fd=level.fd)
        except (FileNotFoundError, NotADirectoryError):
            return  # it has gone, or changed its kind
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return  # a link now
        if os.fstat(fd).st_dev != self._device:
            os.close(fd)
            return
        try:
            self._levels.append(_Level(fd, entry.name, entry.path + b"/", entry.status))
        except BaseException:
            os.close(fd)
            raise
        far = len(self._levels) - 1 - MOST_OPEN
        if far >= 1 and self._levels[far].fd >= 0:
            os.close(self._levels[far].fd)
            self._levels[far].fd = -1

    def _leave(self) -> Iterator[Entry]:
        level = self._levels.pop()
        if not self._levels:
            return
        if level.fd >= 0:
            os.close(level.fd)
        if self._leaving and self._reopen():
            above = self._levels[-1]
            yield Entry(above.prefix + level.name, above.fd, level.name, level.status, len(self._levels), leaving=True)

    def _reopen(self) -> bool:
        """Have the last level's directory open again, from the nearest that is, with as many above it as there may be.
        False: it is not there any more, and is left."""
        levels = self._levels
        if levels[-1].fd >= 0:
            return True
        known = max(number for number, level in enumerate(levels) if level.fd >= 0)
        first = len(levels) - MOST_OPEN
        at, passing = levels[known].fd, False
        try:
            for number in range(known + 1, len(levels)):
                fd = os.open(levels[number].name, _ENTER, dir_fd=at)
                if passing:
                    os.close(at)
                at, passing = fd, number < first
                if not passing:
                    levels[number].fd = fd
        except OSError:
            if passing:
                os.close(at)
            self._drop()
            return False
        if os.fstat(at).st_dev != self._device:
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        level = self._levels.pop()
        if level.fd >= 0:
            os.close(level.fd)
