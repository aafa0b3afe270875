"""What is another in one stack of layers than in another.

Of a directory that both have only the names are looked at that a layer which they do not share has: what it costs grows
with what has changed, not with what there is. Times do not count.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from boxwood.engine.layers import inodes, view
from boxwood.engine.layers.view import Directory, Entry, Leaf, Part

_BLOCK = 1 << 18  # bytes that are compared at once


@dataclass(frozen=True, slots=True)
class Changed:
    """`path` begins with `/`. `old` and `new` are open until the next one is asked for. `what`, of what is on both
    sides: kind, mode, owner, content, target, attributes."""

    path: str
    old: Entry | None
    new: Entry | None
    what: tuple[str, ...]

    @property
    def replaced(self) -> bool:
        """Whatever was below it is gone, or begins anew."""
        return self.old is None or self.new is None or "kind" in self.what


@dataclass(slots=True)
class _Level:
    path: str
    old: Directory | None
    new: Directory
    names: Iterator[str]

    def close(self) -> None:
        self.new.close()
        if self.old is not None:
            self.old.close()


def walk(old: Directory | None, new: Directory, path: str = "") -> Iterator[Changed]:
    """All changes below two directories of the same path, what is above before what is below. Takes both."""
    levels = [_level(path, old, new)]
    try:
        if old is not None and (what := compare(old, new)):
            yield Changed(path or "/", old, new, what)
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                levels.pop().close()
                continue
            yield from _visit(level, name, levels)
    finally:
        for level in levels:
            level.close()


def _visit(level: _Level, name: str, levels: list[_Level]) -> Iterator[Changed]:
    before = None if level.old is None else view.look(level.old, name)
    after = None
    descends = False
    try:
        after = view.look(level.new, name)
        path = f"{level.path}/{name}"
        what: tuple[str, ...] = ()
        if before is not None and after is not None:
            what = compare(before, after)
        if (before is None) != (after is None) or what:
            yield Changed(path, before, after, what)
        if isinstance(after, Directory):
            descends = True
            below = before if isinstance(before, Directory) else None
            levels.append(_level(path, below, after))
    finally:
        if isinstance(before, Directory) and not (descends and levels[-1].old is before):
            before.close()
        if isinstance(after, Directory) and not descends:
            after.close()


def _level(path: str, old: Directory | None, new: Directory) -> _Level:
    if old is None:
        return _Level(path, None, new, iter(sorted(view.names(new.parts))))
    shared = _shared(old.parts, new.parts)
    own = (*old.parts[: len(old.parts) - shared], *new.parts[: len(new.parts) - shared])
    return _Level(path, old, new, iter(sorted(view.names(own))))


def _shared(a: tuple[Part, ...], b: tuple[Part, ...]) -> int:
    """How many parts at their ends are the same."""
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one.layer != other.layer:
            break
        count += 1
    return count


def compare(old: Entry, new: Entry) -> tuple[str, ...]:
    """In what two entries of the same path differ."""
    a, b = old.status, new.status
    if isinstance(old, Leaf) and isinstance(new, Leaf) and (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino):
        return ()
    if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
        return ("kind",)
    what = []
    if a.st_mode != b.st_mode:
        what.append("mode")
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
        what.append("owner")
    if isinstance(old, Leaf) and isinstance(new, Leaf) and (named := _content(old, new)):
        what.append(named)
    if view.attributes(old) != view.attributes(new):
        what.append("attributes")
    return tuple(what)


def _content(old: Leaf, new: Leaf) -> str:
    """What in them is another; empty: nothing."""
    if stat.S_ISREG(old.status.st_mode):
        return "" if old.status.st_size == new.status.st_size and _same_data(old, new) else "content"
    if stat.S_ISLNK(old.status.st_mode):
        same = os.readlink(old.name, dir_fd=old.at) == os.readlink(new.name, dir_fd=new.at)
        return "" if same else "target"
    return "" if old.status.st_rdev == new.status.st_rdev else "content"


def _same_data(old: Leaf, new: Leaf) -> bool:
    """Of files of the same size. Holes that both have cost nothing."""
    size = old.status.st_size
    a = os.open(old.name, inodes.READ_FILE, dir_fd=old.at)
    try:
        b = os.open(new.name, inodes.READ_FILE, dir_fd=new.at)
        try:
            at = 0
            while at < size:
                at = min(_data_from(a, at, size), _data_from(b, at, size))
                one, other = os.pread(a, _BLOCK, at), os.pread(b, _BLOCK, at)
                if one != other:
                    return False
                at += max(len(one), 1)
            return True
        finally:
            os.close(b)
    finally:
        os.close(a)


def _data_from(fd: int, at: int, size: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno == errno.EINVAL:
            return at  # a file system that does not know holes
        raise
