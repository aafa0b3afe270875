"""What has changed between two stacks, made once more over a third one: as a layer to be put upon it.

`base` is what both sides once were, `ours` what is to be folded back, `theirs` what it is folded into. A path that both
have changed, and not to the same, is a collision; so is whatever one side has put below a directory that the other has
removed or replaced. If there are any, nothing is made.

Files are hard links to those of `ours` where that can be, as in a merge. Directories that were emptied and begun anew
are not made opaque: what was in them is deleted by name, so that what `theirs` has put there meanwhile stays.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine.layers import diff, inodes, view
from boxwood.engine.layers.diff import Changed
from boxwood.engine.layers.merge import OPAQUE
from boxwood.engine.layers.view import Directory, Entry, Leaf

_GONE, _LEAF, _GOES_ON = "gone", "leaf", "directory"

Stack = Sequence[tuple[int, int]]  # (number, descriptor) of each layer, the topmost first


@dataclass(slots=True)
class Found:
    """Names that were made, bytes that were copied."""

    inodes: int = 0
    bytes: int = 0


class Commit:
    def __init__(self, base: Stack, theirs: Stack, ours: Stack) -> None:
        self._base, self._theirs, self._ours = base, theirs, ours

    def _changes(self, new: Stack) -> Iterator[Changed]:
        return diff.walk(view.root(self._base), view.root(new))

    # Collisions

    def collisions(self, most: int) -> list[str]:
        """At most so many, by path."""
        mine = {change.path: _what(change) for change in self._changes(self._ours)}
        if not mine:
            return []
        found: set[str] = set()
        yours: dict[str, str] = {}
        for change in self._changes(self._theirs):
            yours[change.path] = _what(change)
            touched = change.path in mine or any(mine.get(above, _GOES_ON) != _GOES_ON for above in _above(change.path))
            if touched and not self._same(change):
                found.add(change.path)
        for path, what in mine.items():
            if what != _GONE and any(yours.get(above, _GOES_ON) != _GOES_ON for above in _above(path)):
                found.add(path)
        return sorted(found)[:most]

    def _same(self, change: Changed) -> bool:
        """Is what they have made of this path what we have?"""
        ours = self._entry(self._ours, change.path)
        try:
            if ours is None or change.new is None:
                return ours is None and change.new is None
            return not diff.compare(ours.entry, change.new)
        finally:
            if ours is not None:
                ours.close()

    def _entry(self, stack: Stack, path: str) -> view.Place | None:
        return view.place(view.root(stack), [name for name in path.split("/") if name])

    # The layer

    def make(self, target: int, links: int) -> Found:
        """Make what we have changed in the empty directory `target`; `links`: another one, ours."""
        found = Found()
        root = view.root(self._theirs)
        _like(root, target)
        root.close()
        for change in self._changes(self._ours):
            names = [name for name in change.path.split("/") if name]
            if not names:
                _like(change.new, target)
                found.inodes += 1
                continue
            parent = self._parent(target, names[:-1])
            try:
                self._put(parent, names, change, links, found)
            finally:
                os.close(parent)
        if found.bytes and k.libc.syncfs(target) < 0:
            raise OSError(errno.EIO, "the layer could not be flushed")
        return found

    def _parent(self, target: int, names: Sequence[str]) -> int:
        """The directory of the new layer, as they have it, made where it is not there yet."""
        at = os.dup(target)
        for depth, name in enumerate(names, 1):
            try:
                below = os.open(name, inodes.READ_DIRECTORY, dir_fd=at)
            except FileNotFoundError:
                os.mkdir(name, 0o700, dir_fd=at)
                below = os.open(name, inodes.READ_DIRECTORY, dir_fd=at)
                there = view.root(self._theirs)
                seen = view.find(there, names[:depth])
                there.close()
                if seen is None:
                    raise RuntimeError("a directory that was to be there is not") from None
                _like(seen, below)
                seen.close()
            os.close(at)
            at = below
        return at

    def _put(self, parent: int, names: Sequence[str], change: Changed, links: int, found: Found) -> None:
        name, new = names[-1], change.new
        if new is None:
            theirs = view.place(view.root(self._theirs), names)
            if theirs is not None:
                theirs.close()
                inodes.make_whiteout(name, parent)
                found.inodes += 1
        elif isinstance(new, Directory):
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
                found.inodes += 1
            except FileExistsError:
                pass
            fd = os.open(name, inodes.READ_DIRECTORY, dir_fd=parent)
            try:
                _like(new, fd)
            finally:
                os.close(fd)
        else:
            _leaf(parent, new, links, found)


def _what(change: Changed) -> str:
    """What a path is now: gone, something that nothing can be below, or a directory."""
    if change.new is None:
        return _GONE
    return _GOES_ON if isinstance(change.new, Directory) else _LEAF


def _above(path: str) -> Iterator[str]:
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)


def _like(entry: Entry | None, fd: int) -> None:
    """Give a directory of ours what another one has, but for the overlay's marks."""
    assert isinstance(entry, Directory)
    inodes.copy_attributes(entry.parts[0].fd, fd, entry.status)
    if view.value(fd, OPAQUE) is not None:
        os.removexattr(fd, OPAQUE)


def _leaf(parent: int, new: Leaf, links: int, found: Found) -> None:
    """Another name for what we have, or where that cannot be a copy of it."""
    try:
        os.link(new.name, new.name, src_dir_fd=new.at, dst_dir_fd=parent, follow_symlinks=False)
        found.inodes += 1
        return
    except OSError as error:
        if error.errno not in inodes.NO_LINK:
            raise
    first = f"{new.status.st_dev}-{new.status.st_ino}"
    if new.status.st_nlink > 1:
        try:
            os.link(first, new.name, src_dir_fd=links, dst_dir_fd=parent, follow_symlinks=False)
            return
        except FileNotFoundError:
            pass
    if stat.S_ISREG(new.status.st_mode):
        inodes.copy_file(new.at, parent, new.name)
        found.bytes += new.status.st_size
    else:
        inodes.copy_special(new.at, parent, new.name, new.status)
    found.inodes += 1
    if new.status.st_nlink > 1:
        os.link(new.name, first, src_dir_fd=parent, dst_dir_fd=links, follow_symlinks=False)
