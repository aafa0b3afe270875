"""Links and where they lead: symbolic ones, further names of files, paths without either."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from boxwood.engine.agent.attributes import change, space
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.place import ITSELF, PATH_BYTES, absolute, explained, look, named, place, raw, shown, told


def symlink(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, target}`: any text, as of symlink(2): it is resolved when somebody follows it, in here."""
    path, target = absolute(header["path"]), raw(header["target"])
    if not target or b"\0" in target or len(target) > PATH_BYTES:
        raise Refusal(errno.EINVAL, f"a link leads to 1 to {PATH_BYTES} bytes without NUL")
    with explained(path), place(path, follow=False) as found:
        os.symlink(target, named(found, path).name, dir_fd=found.directory)
    return {}


def link(header: dict[str, Any]) -> dict[str, Any]:
    """`{path, to}`: another name for the file at `path`; of a link itself, for that."""
    path, to = absolute(header["path"]), absolute(header["to"])
    with explained(path), place(path, follow=False) as source:
        if stat.S_ISDIR(look(named(source, path), path).st_mode):
            raise Refusal(errno.EPERM, f"is a directory, which has one name: {shown(path)}")
        with explained(to), place(to, follow=False) as target:
            os.link(
                source.name, named(target, to).name, src_dir_fd=source.directory, dst_dir_fd=target.directory,
                follow_symlinks=False,
            )  # fmt: skip
    return {}


def resolve(header: dict[str, Any]) -> dict[str, Any]:
    """`{path}`: the path without links, `.` and `..`; its last name need not be there. The kernel follows, so that it
    ends however the links lie."""
    path = absolute(header["path"])
    with explained(path):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return {"path": told(_of_missing(path))}
        try:
            return {"path": told(_where(fd))}
        finally:
            os.close(fd)


def _of_missing(path: bytes) -> bytes:
    with place(path, follow=True) as found:
        if found.name == ITSELF:
            raise FileNotFoundError(errno.ENOENT, "")
        where = _where(found.directory).rstrip(b"/") + b"/" + found.name
        if len(where) > PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        return where


def _where(fd: int) -> bytes:
    return os.readlink(b"/proc/self/fd/%d" % fd)


LINKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "file.symlink": symlink,
    "file.link": link,
    "file.resolve": resolve,
    "file.change": change,
    "file.space": space,
}
