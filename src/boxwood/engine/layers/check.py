"""Whether a sealed layer is whole: all of it can be listed and looked at, and nothing in it is another overlay's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from boxwood.engine.layers.inodes import READ_DIRECTORY
from boxwood.engine.layers.merge import refuse_marks


def tree(top: int) -> int:
    """Of a directory (a descriptor), which nobody changes: how many inodes are below it. OSError, merge.Unmergeable."""
    count = 0
    levels: list[tuple[int, Iterator[str]]] = [(os.dup(top), iter(os.listdir(top)))]
    try:
        while levels:
            fd, names = levels[-1]
            name = next(names, None)
            if name is None:
                os.close(levels.pop()[0])
                continue
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            count += 1
            if stat.S_ISDIR(found.st_mode):
                below = os.open(name, READ_DIRECTORY, dir_fd=fd)
                levels.append((below, iter(())))  # closed whatever happens next
                refuse_marks(os.listxattr(below), name)
                levels[-1] = below, iter(os.listdir(below))
            elif stat.S_ISREG(found.st_mode):
                os.fchdir(fd)
                refuse_marks(os.listxattr(name, follow_symlinks=False), name)
    finally:
        for fd, _ in levels:
            os.close(fd)
    return count
