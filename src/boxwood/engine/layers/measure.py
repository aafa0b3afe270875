"""How much of the disk a tree takes: every inode once, however many names it has."""

from __future__ import annotations

import math
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from boxwood.engine.layers.inodes import READ_DIRECTORY

_BLOCK = 512  # bytes that st_blocks counts in


@dataclass(slots=True)
class Count:
    """Inodes, and bytes of their blocks; holes are none."""

    inodes: int = 0
    bytes: int = 0


def tree(top: int, seconds: float = math.inf) -> Count:
    """Of a directory (a descriptor), without itself. What goes away meanwhile may count or not. TimeoutError: there was
    more than could be looked at in so many seconds."""
    until = time.monotonic() + seconds
    count, shared = Count(), set[int]()
    levels: list[tuple[int, Iterator[str]]] = [(os.dup(top), iter(os.listdir(top)))]
    try:
        while levels:
            if time.monotonic() > until:
                raise TimeoutError(f"there is more than can be looked at in {seconds:g} s")
            fd, names = levels[-1]
            name = next(names, None)
            if name is None:
                os.close(levels.pop()[0])
                continue
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                directory = stat.S_ISDIR(found.st_mode)
                below = os.open(name, READ_DIRECTORY, dir_fd=fd) if directory else -1
            except (FileNotFoundError, NotADirectoryError):
                continue
            if directory:
                levels.append((below, iter(os.listdir(below))))
            if found.st_nlink > 1 and not directory:
                if found.st_ino in shared:
                    continue
                shared.add(found.st_ino)
            count.inodes += 1
            count.bytes += found.st_blocks * _BLOCK
    finally:
        for fd, _ in levels:
            os.close(fd)
    return count
