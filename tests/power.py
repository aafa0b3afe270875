"""A disk whose power can be cut: an ext4 file system in a file, on a loop device.

What the kernel has not given to the device yet is not in the file. So a copy of the file, made while the file system is
mounted and in use, is what a disk would hold had the power gone at that moment: whoever mounts the copy sees what was
safe, and nothing else. The kernel is told not to write on its own account meanwhile (`commit`), and whoever could write
stands still while the copy is made. The file lies in memory: to flush a disk of the host's takes long, and shows nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import guard
from servers import Server

SIZE, ALL = 1 << 30, 4 << 30  # of the disk; of it and its copies, which take what is in them
NEVER = 3600  # seconds until the kernel commits the journal by itself


class Disk:
    """`place`: where it is mounted. `cuts`: copies, made so far."""

    def __init__(self, directory: Path) -> None:
        self._memory = directory / "memory"
        self._file = self._memory / "disk.img"
        self.place = self._memory / "disk"
        self._copies = 0

    @contextmanager
    def plugged_in(self) -> Iterator[Path]:
        """Made, and mounted."""
        self._memory.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"nosuid,nodev,size={ALL}", "boxwood-tests", str(self._memory))
        try:
            with self._file.open("wb") as file:
                file.truncate(SIZE)
            _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(self._file))
            with _mounted(self._file, self.place):
                yield self.place
        finally:
            # Whoever has started a zygote meanwhile, for another test, has the disk among its mounts as well for a while.
            _run("umount", "--lazy", str(self._memory))
            self._memory.rmdir()

    def cut(self, server: Server) -> Path:
        """What would be left, were the power to go now: a file for `after`."""
        self._copies += 1
        copy = self._file.with_name(f"cut-{self._copies}.img")
        pids = [server.pid, server.zygote_pid, *guard.descendants(server.zygote_pid)]
        try:
            _tell(pids, signal.SIGSTOP)
            _run("cp", "--sparse=always", "--reflink=never", str(self._file), str(copy))
        finally:
            _tell(pids, signal.SIGCONT)
        return copy


def _tell(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


@contextmanager
def after(cut: Path) -> Iterator[Path]:
    """The power is back: the file system as it is then, mounted."""
    with _mounted(cut, cut.with_suffix("")) as place:
        yield place


@contextmanager
def _mounted(file: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    _run("mount", "-t", "ext4", "-o", f"loop,commit={NEVER}", str(file), str(place))
    try:
        yield place
    finally:
        _run("umount", str(place))
        place.rmdir()
        file.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, (command, done.stderr)
