"""Uid ranges: 65,536 ids of the host that a box has to itself, and what can be made ahead for them.

Kernel limits that count per uid (inotify, pipes, pending signals) would otherwise be shared between boxes, and one
box could starve another. So no two live boxes of this host have a range in common, whatever server they belong to,
and the user namespace of a range is made by a process whose euid is the range's own first id: the namespace itself
is then accounted to that id too.

A range costs about 1.8 ms and no memory to speak of; the zygote keeps a few ready and uses them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.engine import userns
from boxwood.engine.ranges import BoxRange

SIZE = 65536
FIRST = 0x80000000  # above everything that useradd, subuid and systemd hand out
CHUNK = 1024  # ranges per lock file
_CHUNKS = (0xFFFE0000 - FIRST) // (SIZE * CHUNK)
_PR_SET_KEEPCAPS = 8

NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
MOUNT_POINTS = ("pts", "shm", "mqueue")


class Range:
    """A range's user namespace, its views of the directories of layers, and a /dev, all as descriptors."""

    def __init__(self, base: int, layers_fd: int, images_fd: int) -> None:
        self.base = base
        self.is_shared = False
        self.count = SIZE
        self.number = (base - FIRST) // SIZE
        with contextlib.ExitStack() as undo:

            def held(fd: int) -> int:
                undo.callback(os.close, fd)
                return fd

            self.userns = held(user_namespace(base))
            self.layers = held(k.idmapped("", self.userns, layers_fd, k.ATTR_NODEV | k.ATTR_NOSUID))
            attributes = k.ATTR_NODEV | k.ATTR_NOSUID | k.ATTR_RDONLY
            self.images = held(k.idmapped("", self.userns, images_fd, attributes))
            self.dev = device_directory(base)
            undo.pop_all()

    def descriptors(self) -> tuple[int, ...]:
        return self.userns, self.layers, self.images, self.dev

    def adopt(self, descriptors: Sequence[int]) -> None:
        self.userns, self.layers, self.images, self.dev = descriptors

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)

    def devices(self) -> int:
        return k.open_tree("", self.dev)

    def view(self, path: str) -> int:
        return k.idmapped(path, self.userns, attributes=k.ATTR_NODEV | k.ATTR_NOSUID)


class Ranges:
    """The ranges of one zygote: `take` one for a box, `give_back` when nothing of the box is left."""

    def __init__(self, locks: Path, layers_fd: int, images_fd: int) -> None:
        self._locks = locks
        self._dirs = layers_fd, images_fd
        self._free: list[BoxRange] = []
        self._bases: Iterator[int] = iter(())
        self._held: dict[int, int] = {}  # numbers of chunks -> descriptors of their lock files

    def __len__(self) -> int:
        return len(self._free)

    def prepare(self) -> None:
        """Make one range more. OSError, RuntimeError: nothing is used up or left open."""
        base = self._next_base()
        try:
            self._free.append(Range(base, *self._dirs))
        except BaseException:
            self._bases = itertools.chain((base,), self._bases)
            raise

    def take(self) -> BoxRange:
        if not self._free:
            self.prepare()
        return self._free.pop()

    def give_back(self, used: BoxRange) -> None:
        self._free.append(used)

    @property
    def chunk(self) -> int:
        """A number that no other zygote of this host has."""
        if not self._held:
            self.prepare()
        return min(self._held)

    def _next_base(self) -> int:
        base = next(self._bases, None)
        if base is None:
            start = FIRST + self._lock_chunk() * CHUNK * SIZE
            self._bases = iter(range(start, start + CHUNK * SIZE, SIZE))
            base = next(self._bases)
        return base

    def _lock_chunk(self) -> int:
        """The number of a chunk that no other process of this host has: held as long as this one lives."""
        self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.stat(self._locks, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{self._locks} must be a directory of ours that nobody else can write to")
        for number in range(_CHUNKS):
            with contextlib.suppress(BlockingIOError):
                self._held[number] = lock(self._locks / f"uids-{number}")
                return number
        raise RuntimeError("all uid ranges of this host are in use")


def lock(path: Path) -> int:
    """A file that nobody else of this host holds now: a descriptor, which holds it. BlockingIOError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def user_namespace(base: int) -> int:
    """A user namespace that maps 0…65535 to `base`…, made by uid `base`: a descriptor."""
    line = f"0 {base} {SIZE}"
    return userns.made(
        [("uid_map", line), ("gid_map", line)],
        lambda: _become_owner(base),
        lambda: None,
        "a user namespace could not be made: see `boxwood doctor`",
    )


def _become_owner(base: int) -> None:
    """Take the range's first id, but keep what hosts that restrict user namespaces want to see."""
    k.prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(base, base, base)
    os.setresuid(base, base, base)
    k.set_capabilities(k.capability_mask("sys_admin"))


def device_directory(base: int) -> int:
    """A read-only /dev with the harmless nodes, owned by the range's root: a detached mount."""
    filesystem = k.Filesystem("tmpfs")
    for key, value in (("mode", "755"), ("size", "64k"), ("source", "dev"), ("uid", str(base)), ("gid", str(base))):
        filesystem.set(key, value)
    fd = filesystem.create(k.ATTR_NOSUID | k.ATTR_NOEXEC)
    old = os.umask(0)
    try:
        for name, (major, minor) in NODES.items():
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=fd)
        for name, target in LINKS.items():
            os.symlink(target, name, dir_fd=fd)
        for name in MOUNT_POINTS:
            os.mkdir(name, 0o755, dir_fd=fd)
        for name in (*NODES, *LINKS, *MOUNT_POINTS):
            os.chown(name, base, base, dir_fd=fd, follow_symlinks=False)
        k.mount_setattr(fd, k.ATTR_RDONLY)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.umask(old)
    return fd
