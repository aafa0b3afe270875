"""What a stack of sealed layers shows, without mounting it: directories are looked up in all layers that have a part of
them, down to the first that is opaque, or that stands over something else than a directory.

Layers are numbered; a directory is described by which layers it is made of, so that two stacks with the same layers at
their bottom can be told to be the same from some directory on without a look into it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from boxwood.engine.layers import inodes
from boxwood.engine.layers.merge import OPAQUE, WHITEOUT

_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One layer's share of a directory. `marked`: regular files in it may be whiteouts."""

    layer: int
    fd: int
    opaque: bool
    marked: bool

    @classmethod
    def open(cls, layer: int, name: str, at: int) -> Part:
        fd = os.open(name, inodes.READ_DIRECTORY, dir_fd=at)
        try:
            mark = value(fd, OPAQUE)
        except BaseException:
            os.close(fd)
            raise
        return cls(layer, fd, mark == b"y", mark == b"x")


@dataclass(frozen=True, slots=True)
class Leaf:
    """Anything but a directory: `name` in the directory `at`, which is open as long as the one it was looked up in."""

    at: int
    name: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Directory:
    """`parts`: the topmost first. Whoever has it closes it."""

    parts: tuple[Part, ...]
    status: os.stat_result

    def close(self) -> None:
        for part in self.parts:
            os.close(part.fd)


Entry = Leaf | Directory


def root(layers: Sequence[tuple[int, int]]) -> Directory:
    """Of a stack: (number, descriptor of its root) of each layer, the topmost first. A root shows every layer, whatever
    it is marked with."""
    parts = []
    for number, fd in layers:
        part = Part.open(number, ".", fd)
        parts.append(Part(number, part.fd, False, part.marked))
    return Directory(tuple(parts), os.fstat(parts[0].fd))


def look(directory: Directory, name: str) -> Entry | None:
    """What is there under a name."""
    parts: list[Part] = []
    try:
        for above in directory.parts:
            try:
                found = os.stat(name, dir_fd=above.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(found.st_mode):
                if parts or _is_whiteout(above, name, found):
                    break
                return Leaf(above.fd, name, found)
            parts.append(Part.open(above.layer, name, above.fd))
            if parts[-1].opaque:
                break
        return Directory(tuple(parts), os.fstat(parts[0].fd)) if parts else None
    except BaseException:
        for part in parts:
            os.close(part.fd)
        raise


def copied(directory: Directory) -> Directory:
    """The same, of its own descriptors."""
    parts = tuple(Part(part.layer, os.dup(part.fd), part.opaque, part.marked) for part in directory.parts)
    return Directory(parts, directory.status)


def find(top: Directory, path: Sequence[str]) -> Directory | None:
    """A directory further down, of its own descriptors; None: there is none."""
    at = copied(top)
    for name in path:
        below = look(at, name)
        at.close()
        if not isinstance(below, Directory):
            return None
        at = below
    return at


@dataclass(frozen=True, slots=True)
class Place:
    """An entry, and the directory that holds it open."""

    entry: Entry
    parent: Directory

    def close(self) -> None:
        self.parent.close()
        if isinstance(self.entry, Directory) and self.entry is not self.parent:
            self.entry.close()


def place(root: Directory, names: Sequence[str]) -> Place | None:
    """Takes the root. Of the root itself: it and no parent."""
    if not names:
        return Place(root, root)
    parent = find(root, names[:-1])
    root.close()
    if parent is None:
        return None
    entry = look(parent, names[-1])
    if entry is None:
        parent.close()
        return None
    return Place(entry, parent)


def names(parts: Iterable[Part]) -> set[str]:
    return {name for part in parts for name in os.listdir(part.fd)}


def kind(entry: Entry) -> str:
    return _KINDS.get(stat.S_IFMT(entry.status.st_mode), "device")


def attributes(entry: Entry) -> dict[str, bytes]:
    """Extended ones, without the overlay's own. May change the working directory."""
    if isinstance(entry, Directory):
        fd = entry.parts[0].fd
        found = {key: value(fd, key) or b"" for key in os.listxattr(fd)}
    else:
        found = inodes.xattrs(entry.at, entry.name)
    return {key: data for key, data in found.items() if not is_overlays(key)}


def is_overlays(key: str) -> bool:
    return key.startswith(("user.overlay.", "trusted.overlay."))


def value(fd: int, key: str) -> bytes | None:
    try:
        return os.getxattr(fd, key)
    except OSError as error:
        if error.errno not in inodes.NO_ATTRIBUTE:
            raise
        return None


def _is_whiteout(part: Part, name: str, found: os.stat_result) -> bool:
    if inodes.is_whiteout(found):
        return True
    if not part.marked or found.st_size or not stat.S_ISREG(found.st_mode):
        return False
    return WHITEOUT in inodes.xattrs(part.fd, name)
