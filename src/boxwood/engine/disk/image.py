"""A layer's file system in a file: attached, mounted, bounded. It is mounted where nobody else can see it, and only
what uses it holds it: when the last box or job is gone, however it went, mount and loop device are gone too.

A file that is attached already is reached through its device, for that is the same file system: a box that has ended
may not be done with it yet, for it is still writing, or somebody reads a file of it. Who does not know the device of a
file takes a lock on its descriptor: the loop device has the descriptor until all that was written is in the file, so
whoever gets the lock sees all of it.

The bound is exact, and can be changed at any time: blocks are held back from everybody (`reserved_clusters`) until only
so many can be used as the limit says. The number of inodes is fixed when the file is made.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from boxwood.engine import kernel as k
from boxwood.engine import roots
from boxwood.engine.disk import BLOCK, IMAGE, MIB, loop
from boxwood.engine.ranges import BoxRange

SYSFS = "/sys/fs/ext4"
_MARGIN = 4 * MIB  # of a file system, that no limit gives away: an overlay of a full top must be mountable
# noinit_itable: no thread fills the file with empty inodes; nobarrier: an unmount is not a flush of the host's disk.
_OPTIONS = (("errors", "remount-ro"), ("noinit_itable", None), ("nobarrier", None))
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_KNOWN = 4096
ALL = 1 << 62  # a limit that is none


class TooMuch(OSError):
    """The limit is below what is used, or above what the file system can grow to; the text says which."""


@dataclass(slots=True)
class Attached:
    """A layer's file, open, and the loop device over it. `read_only`: it is to be mounted so; `sealed`: the device
    allows nothing else. `ours`: nobody need wait for others, who may have it too."""

    layer: str
    file: int
    device: int
    number: int
    read_only: bool
    sealed: bool
    ours: bool

    def close(self) -> None:
        os.close(self.file)
        os.close(self.device)


Loops = Mapping[str, int]  # layers and the numbers of their loop devices


class Disks:
    """Attaches layers' files, and remembers the devices."""

    def __init__(self, layers_fd: int, known: Loops | None = None) -> None:
        self._layers = layers_fd
        self.known: dict[str, int] = dict(known or {})

    def attach(self, layer: str, *, read_only: bool) -> Attached | None:
        """None: the layer does not lie in a file. Waits for nothing."""
        try:
            file = os.open(f"{layer}/{IMAGE}", (os.O_RDONLY if read_only else os.O_RDWR) | _FILE, dir_fd=self._layers)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if (found := self._attached(layer, file, read_only)) is not None:
                return found
            device, number = loop.attach(file, read_only=read_only)
        except BaseException:
            os.close(file)
            raise
        ours = _locked(file, fcntl.LOCK_SH if read_only else fcntl.LOCK_EX)
        if ours:  # else those who knew the device would not wait for whoever has the file
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[layer] = number
        return Attached(layer, file, device, number, read_only, sealed=read_only, ours=ours)

    def _attached(self, layer: str, file: int, read_only: bool) -> Attached | None:
        """By the device that the file has already."""
        if (number := self.known.get(layer)) is None:
            return None
        device, sealed = _device(number, file)
        if device is not None and (read_only or not sealed):
            return Attached(layer, file, device, number, read_only, sealed, ours=True)
        if device is not None:  # somebody looks at it, by a device of his own that has got the number of the last one
            os.close(device)
        del self.known[layer]
        return None

    def attach_all(self, layers: Sequence[str], top: str, *, read_only: bool) -> list[Attached]:
        """`layers`: those of a stack that lie in files, as far as is known; the top is to be written to, unless
        `read_only`."""
        found: list[Attached] = []
        try:
            for layer in layers:
                one = self.attach(layer, read_only=read_only or layer != top)
                found += [one] if one is not None else []
        except BaseException:
            for one in found:
                one.close()
            raise
        return found


def _device(number: int, file: int) -> tuple[int | None, bool]:
    """A descriptor of the loop device of this number, if it is over this file, and whether it can only be read; it
    stays that as long as it is open."""
    try:
        device = os.open(loop.path(number), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None, False
    try:
        inode, sealed = loop.file_of(device)
        if inode == os.fstat(file).st_ino:
            return device, sealed
    except OSError:
        pass  # it is over no file any more
    os.close(device)
    return None, False


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def mount(of: Attached) -> int:
    """Mount it, detached, as soon as it may be: a descriptor of its root directory. For processes of which nobody
    expects anything meanwhile."""
    if not of.ours:
        fcntl.flock(of.file, fcntl.LOCK_SH if of.sealed else fcntl.LOCK_EX)
    attributes = k.ATTR_RDONLY if of.read_only else 0
    return _mount(f"/proc/self/fd/{of.device}", read_only=of.sealed, attributes=attributes)


def again(layers_fd: int, layer: str, number: int) -> int:
    """One more mount, through which nothing is written, of a top that is mounted from a device. ESTALE: no longer."""
    file = os.open(f"{layer}/{IMAGE}", os.O_RDONLY | _FILE, dir_fd=layers_fd)
    try:
        device, _ = _device(number, file)
        if device is None:
            raise OSError(errno.ESTALE, "the disk of the box has been let go of")
        try:
            return _mount(f"/proc/self/fd/{device}", attributes=k.ATTR_RDONLY)
        finally:
            os.close(device)
    finally:
        os.close(file)


def _mount(source: str, *, read_only: bool = False, attributes: int = 0) -> int:
    filesystem = k.Filesystem("ext4")
    filesystem.set("source", source)
    for name, value in _OPTIONS:
        filesystem.set(name, value)
    if read_only:
        filesystem.set("ro")
    return filesystem.create(attributes | k.ATTR_NODEV | k.ATTR_NOSUID)


@contextmanager
def mounted(disks: Sequence[Attached], range_: BoxRange) -> Iterator[Mapping[str, int]]:
    """All of them, seen through the range's map: descriptors of their roots, by layer. What was made meanwhile of them
    keeps them; the descriptors are closed."""
    held: dict[str, int] = {}
    try:
        for disk in disks:
            held[disk.layer] = root = mount(disk)
            k.mount_setattr(root, k.ATTR_IDMAP, userns=range_.userns)
        yield held
    finally:
        for root in held.values():
            os.close(root)
        for disk in disks:
            disk.close()


# --- the bound


def used(root: int) -> tuple[int, int]:
    """Bytes and inodes that are in use in a file system (a descriptor of its root directory)."""
    found = os.fstatvfs(root)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def hold_back(sysfs: int, number: int, root: int, limit: int) -> None:
    """From now on not more than `limit` bytes can be in use. `sysfs`: a descriptor of `SYSFS`."""
    found = os.fstatvfs(root)
    fd = os.open(f"loop{number}/reserved_clusters", os.O_WRONLY | os.O_CLOEXEC, dir_fd=sysfs)
    try:
        os.write(fd, str(max(0, found.f_blocks - limit // BLOCK)).encode())
    finally:
        os.close(fd)


def look(layers_fd: int, layer: str, number: int) -> tuple[int, bool]:
    """Of what is mounted and in use: bytes, and whether nothing was ever written to it."""
    root = again(layers_fd, layer, number)
    try:
        taken, _, empty = seen(root)
        return taken, empty
    finally:
        os.close(root)


def seen(root: int) -> tuple[int, int, bool]:
    """Bytes and inodes in use in a file system, and whether nothing was ever written to it as a top."""
    upper = os.open("upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        with os.scandir(upper) as entries:  # whether there is a name; not which
            named = next(entries, None) is not None
        return *used(root), not named and roots.is_as_made(root)
    finally:
        os.close(upper)


def change(layers_fd: int, layer: str, number: int, limit: int) -> None:
    """Another limit for what is mounted and in use. TooMuch, with nothing changed."""
    root, sysfs = again(layers_fd, layer, number), os.open(SYSFS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found, (taken, _) = os.fstatvfs(root), used(root)
        if limit > found.f_blocks * found.f_frsize - _MARGIN:
            raise TooMuch(errno.EFBIG, f"its disk can be made {capacity_of(found) // MIB} MiB large while it runs")
        if limit < taken:
            raise TooMuch(errno.ENOSPC, f"its disk holds {-(-taken // MIB)} MiB")
        hold_back(sysfs, number, root, limit)
    finally:
        os.close(root)
        os.close(sysfs)


def capacity_of(found: os.statvfs_result) -> int:
    return max(0, found.f_blocks * found.f_frsize - _MARGIN)
