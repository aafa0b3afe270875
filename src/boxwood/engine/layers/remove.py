"""Deleting a directory's contents, whatever a box left there: any names, any modes, any depth."""

from __future__ import annotations

import errno
import os

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty(top: int) -> int:
    """Delete all that is in a directory (a descriptor), which nobody else changes. Returns how many inodes that was.

    Directories in directories are moved up to `top` and come later, so depth costs neither descriptors nor long paths.
    What carries the immutable or append-only flag (no box can set them) is not deleted: PermissionError.
    """
    unlike_any = os.urandom(8).hex()
    count = moved = 0
    while names := _unlink_files(top):
        count += len(names)
        for name in names:
            below = os.open(name, _DIRECTORY, dir_fd=top)
            try:
                with os.scandir(below) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            moved += 1
                            try:
                                os.rename(entry.name, f"{unlike_any}-{moved}", src_dir_fd=below, dst_dir_fd=top)
                            except OSError as error:
                                if error.errno not in _FULL:
                                    raise
                                count += _empty_in_place(entry.name, below)
                        else:
                            os.unlink(entry.name, dir_fd=below)
                            count += 1
            finally:
                os.close(below)
            os.rmdir(name, dir_fd=top)
    return count


def _empty_in_place(name: str, at: int) -> int:
    """Where the disk is so full that not even a name can be moved: what is below goes first, and makes room."""
    fd = os.open(name, _DIRECTORY, dir_fd=at)
    try:
        count = empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=at)
    return count + 1


def _unlink_files(top: int) -> list[str]:
    """The names of the directories that are left."""
    directories = []
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=top)
    return directories
