"""Helpers that take away or carry over whole trees, one name after the other."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from boxwood.engine.agent.deeds import NEW_DIRECTORY, rename
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.helpers import Out
from boxwood.engine.agent.place import Place, absolute, explained, look, named, place, shown
from boxwood.engine.agent.walk import Walk

_ENTER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 5  # against somebody who puts new files there meanwhile


def remove_tree(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path}`: whatever lies there, with all that is below it. Answers how many names that were."""
    path = absolute(header["path"])
    with explained(path), place(path, follow=False) as found:
        if not stat.S_ISDIR(look(named(found, path), path).st_mode):
            os.unlink(found.name, dir_fd=found.directory)
            return {"removed": 1}
        removed = 0
        for _ in range(_ATTEMPTS):
            removed += _empty(found, path)
            try:
                os.rmdir(found.name, dir_fd=found.directory)
                return {"removed": removed + 1}
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
    raise Refusal(errno.ENOTEMPTY, f"something puts files there while it is deleted: {shown(path)}")


def _empty(found: Place, path: bytes) -> int:
    """Delete all that is below a directory."""
    top = os.open(found.name, _ENTER, dir_fd=found.directory)
    removed = 0
    try:
        for entry in Walk(top, deep=True, leaving=True):
            if entry.is_directory and not entry.leaving:
                continue
            try:
                (os.rmdir if entry.leaving else os.unlink)(entry.name, dir_fd=entry.directory)
                removed += 1
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR):  # it changes: once more
                    raise Refusal(
                        error.errno or errno.EIO,
                        f"{os.strerror(error.errno or errno.EIO)}: {shown(path + b'/' + entry.path)}",
                    ) from None
    finally:
        os.close(top)
    return removed


def move_tree(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, to, replace}`: a directory that has to be moved piece by piece (it comes from a lower layer, in which
    nothing can get another name): directories are made anew, everything else keeps its inode. `to` must not be there,
    or with `replace` be an empty directory. What stops it in the middle leaves some names here and some there, and none
    in both."""
    path, to = absolute(header["path"]), absolute(header["to"])
    with explained(path), place(path, follow=False) as old:
        if not stat.S_ISDIR(look(named(old, path), path).st_mode):
            raise OSError(errno.EXDEV, "")
        with explained(to), place(to, follow=False) as new:
            named(new, to)
            _outside(old, new, to)
            status = os.stat(old.name, dir_fd=old.directory, follow_symlinks=False)
            if os.fstat(new.directory).st_dev != status.st_dev:  # a volume: no name can be carried over
                raise OSError(errno.EXDEV, "")
            _make(new, status, there=header.get("replace") is True)
            _carry(os.open(old.name, _ENTER, dir_fd=old.directory), os.open(new.name, _ENTER, dir_fd=new.directory))
        os.rmdir(old.name, dir_fd=old.directory)
    return {}


def _outside(old: Place, new: Place, to: bytes) -> None:
    """Not into itself. Refusal."""
    moved = os.stat(old.name, dir_fd=old.directory, follow_symlinks=False)
    at = os.dup(new.directory)
    try:
        while True:
            here = os.fstat(at)
            if os.path.samestat(here, moved):
                raise Refusal(errno.EINVAL, f"a directory cannot be moved into itself: {shown(to)}")
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = above
            if os.path.samestat(os.fstat(at), here):
                return
    finally:
        os.close(at)


def _make(new: Place, like: os.stat_result, *, there: bool = False) -> None:
    try:
        os.mkdir(new.name, NEW_DIRECTORY, dir_fd=new.directory)
    except FileExistsError:
        if not there:
            raise
        os.rmdir(new.name, dir_fd=new.directory)  # it may be there if it is empty
        os.mkdir(new.name, NEW_DIRECTORY, dir_fd=new.directory)
    fd = os.open(new.name, _ENTER, dir_fd=new.directory)
    try:
        os.fchown(fd, like.st_uid, like.st_gid)
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
    finally:
        os.close(fd)


def _carry(old: int, new: int) -> None:
    """All that is below one directory into another; both are closed. Depth costs no descriptors beyond those of the
    walk: where each directory has gone is known by its path."""
    try:
        for entry in Walk(old, deep=True, leaving=True):
            if entry.leaving:
                os.rmdir(entry.name, dir_fd=entry.directory)
                continue
            at = _descend(new, entry.path)
            try:
                _carry_one(Place(entry.directory, entry.name), Place(at, entry.name), entry.status)
            finally:
                os.close(at)
            if entry.is_directory:
                entry.enter = _is_there(entry.directory, entry.name)
    finally:
        os.close(old)
        os.close(new)


def _carry_one(old: Place, new: Place, status: os.stat_result) -> None:
    try:
        rename(old, new, replace=False)
    except OSError as error:
        if error.errno != errno.EXDEV or not stat.S_ISDIR(status.st_mode):
            raise
        _make(new, status)


def _is_there(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _descend(top: int, path: bytes) -> int:
    """The directory above `path`, below `top`, open."""
    at = os.dup(top)
    for name in path.split(b"/")[:-1]:
        try:
            below = os.open(name, _ENTER, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at
