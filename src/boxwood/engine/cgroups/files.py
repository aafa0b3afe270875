"""The files of cgroups: which hierarchies there are, groups made, held and removed, settings written and read."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
CONTROLLERS = frozenset({"memory", "cpu", "pids"})
PREFIX = "boxwood-"  # of the group of an instance
WEIGHT_FILES = ("io.weight", "io.bfq.weight", "blkio.bfq.weight", "blkio.weight")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def hierarchies(mounts: Path) -> tuple[str | None, dict[str, str]]:
    """Where version 2 is mounted, and where each controller of version 1 is."""
    unified: str | None = None
    separate: dict[str, str] = {}
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split(" ")
        place = place.encode().decode("unicode_escape")
        if kind == "cgroup2" and unified is None:
            unified = place
        elif kind == "cgroup":
            for name in options.split(","):
                if name in CONTROLLERS | {"freezer", "cpuacct", "blkio"}:
                    separate.setdefault(name, place)
    return unified, separate


def delegate(directory: str, controllers: Iterable[str]) -> None:
    """Let the children of a group have controllers."""
    path = f"{directory}/cgroup.subtree_control"
    missing = sorted(set(controllers) - words(path))
    if not missing:
        return
    text = " ".join(f"+{name}" for name in missing)
    try:
        write(path, text)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        make_room(directory)
        write(path, text)


def make_room(directory: str) -> None:
    """A group that has processes cannot hand on controllers, save the host's root: in a container, move them aside."""
    leaf = f"{directory}/boxwood-aside"
    make_directory(leaf)
    for _ in range(10):  # processes fork meanwhile
        pids = words(f"{directory}/cgroup.procs")
        if not pids:
            return
        for pid in pids:
            try:
                write(f"{leaf}/cgroup.procs", pid)
            except ProcessLookupError:
                pass


def make_directory(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        pass


def hold(top: str) -> int:
    """Make the group of an instance, if it is not there: a descriptor, which says that the instance lives as long as it
    is open."""
    while True:
        make_directory(top)
        try:
            fd = os.open(top, _DIRECTORY)
        except FileNotFoundError:
            continue  # somebody has cleared it a moment ago: see orphans.py
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if _is_there(top, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def hold_orphan(top: str) -> int | None:
    """The same of an instance that is to be cleared: meanwhile nobody else holds it. None: it lives, or is gone."""
    try:
        fd = os.open(top, _DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _is_there(top: str, fd: int) -> bool:
    try:
        found = os.stat(top)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == ((own := os.fstat(fd)).st_dev, own.st_ino)


def tree(top: str) -> Iterator[str]:
    """A group and all groups below it, the deepest first."""
    try:
        names = os.listdir(top)
    except FileNotFoundError:
        return
    for name in names:
        if os.path.isdir(f"{top}/{name}"):
            yield from tree(f"{top}/{name}")
    yield top


def remove_tree(top: str) -> bool:
    """All of it that has no processes. False: some has."""
    try:
        os.rmdir(top)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    done = True
    for directory in tree(top):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            done = False
    return done


def kill_all(top: str, number: int = signal.SIGKILL) -> None:
    """Send a signal to all that are there now."""
    for directory in tree(top):
        pids = words(f"{directory}/cgroup.procs")
        for pid in pids - {"0"}:  # 0: not of our pid namespace; kill(0) would be ourselves
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                pass


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_if_there(path: str, text: str) -> None:
    try:
        write(path, text)
    except FileNotFoundError:
        pass


def read(path: str) -> str:
    with open(path) as f:
        return f.read()


def words(path: str) -> set[str]:
    try:
        return set(read(path).split())
    except FileNotFoundError:
        return set()


def number(path: str) -> int | None:
    try:
        return int(read(path))
    except FileNotFoundError:
        return None


def value(path: str, key: str) -> int | None:
    """A value of a file of lines `key value`."""
    try:
        found = dict(line.split(" ", 1) for line in read(path).splitlines())
    except FileNotFoundError:
        return None
    return int(found[key]) if key in found else None


def weigh(directory: str, weight: int) -> None:
    for name in WEIGHT_FILES:  # a kernel has what its schedulers look at
        write_if_there(f"{directory}/{name}", str(weight))
