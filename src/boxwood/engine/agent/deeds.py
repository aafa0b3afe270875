"""File work that one or a few system calls do, in the agent itself: status, directories made, names changed or deleted,
permission bits. What may take long is done by helpers (helpers.py)."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from boxwood.engine.agent.files import Refusal, check_on_disk
from boxwood.engine.agent.place import absolute, because, describe, explained, look, named, place, shown
from boxwood.engine.kernel import libc

_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NOREPLACE = 1  # of renameat2(2)
NEW_DIRECTORY = 0o755


def status(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, follow}`. Without `follow` a link is told of itself."""
    path = absolute(header["path"])
    with explained(path), place(path, follow=header.get("follow") is True) as found:
        return describe(found, look(found, path))


def make_directory(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, parents, mode}`: with `parents` those above it are made too, and one that is there is well. `mode` None:
    0755. Answers whether it was made."""
    path, mode = absolute(header["path"]), permissions(header.get("mode"))
    with explained(path):
        if header.get("parents") is True:
            made, directory = _descend(path)
        else:
            with place(path, follow=False) as found:
                os.mkdir(named(found, path).name, NEW_DIRECTORY, dir_fd=found.directory)
                made, directory = True, os.open(found.name, _OPEN | os.O_NOFOLLOW, dir_fd=found.directory)
        try:
            if made and mode is not None:
                os.chmod(_of(directory), mode)
        finally:
            os.close(directory)
    return {"made": made}


def _descend(path: bytes) -> tuple[bool, int]:
    """Whether the last directory had to be made, and that directory, open."""
    at, made = os.open(b"/", _OPEN), False
    try:
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            made = False
            try:
                below = os.open(name, _OPEN, dir_fd=at)
            except FileNotFoundError:
                check_on_disk(at, shown(path))
                made = _made(at, name)
                below = os.open(name, _OPEN, dir_fd=at)
            os.close(at)
            at = below
        check_on_disk(at, shown(path))
    except BaseException:
        os.close(at)
        raise
    return made, at


def _made(directory: int, name: bytes) -> bool:
    try:
        os.mkdir(name, NEW_DIRECTORY, dir_fd=directory)
    except FileExistsError:
        return False  # somebody else was quicker; if it is no directory we shall see
    return True


def change_mode(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, mode}`: links are followed, as chmod(1) does."""
    path, mode = absolute(header["path"]), permissions(header["mode"])
    with explained(path), place(path, follow=True) as found:
        look(found, path)
        fd = os.open(found.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.directory)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode) or mode is None:
                raise OSError(errno.ELOOP, "")  # put there since it was followed
            os.chmod(_of(fd), mode)
        finally:
            os.close(fd)
    return {}


def move(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, to, replace}`: another name for what lies at `path`; links are moved themselves. Without `replace` what
    is at `to` stays (EEXIST); a directory replaces an empty one alone. EXDEV: it has to be moved piece by piece."""
    path, to = absolute(header["path"]), absolute(header["to"])
    with explained(path), place(path, follow=False) as source:
        look(named(source, path), path)
        with explained(to), place(to, follow=False) as target:
            named(target, to)
            try:
                rename(source, target, replace=header.get("replace") is True)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise because(error, path + b" or " + to) from None  # the kernel does not say which
    return {}


def rename(source: tuple[int, bytes], target: tuple[int, bytes], *, replace: bool) -> None:
    """OSError, EEXIST among them."""
    if replace:
        os.rename(source[1], target[1], src_dir_fd=source[0], dst_dir_fd=target[0])
    elif libc.renameat2(*source, *target, _NOREPLACE) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def remove(header: dict[str, Any]) -> dict[str, Any]:
    """`{path}`: a file, a link itself, or an empty directory."""
    path = absolute(header["path"])
    with explained(path), place(path, follow=False) as found:
        if stat.S_ISDIR(look(named(found, path), path).st_mode):
            os.rmdir(found.name, dir_fd=found.directory)
        else:
            os.unlink(found.name, dir_fd=found.directory)
    return {}


def permissions(mode: object) -> int | None:
    if mode is None:
        return None
    if type(mode) is not int or not 0 <= mode <= 0o7777:
        raise Refusal(errno.EINVAL, "mode must be permission bits, from 0 to 0o7777")
    return mode


def _of(fd: int) -> str:
    """A name for what a descriptor stands for, though it was opened with O_PATH."""
    return f"/proc/self/fd/{fd}"


DEEDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "file.stat": status,
    "file.mkdir": make_directory,
    "file.chmod": change_mode,
    "file.move": move,
    "file.remove": remove,
}
