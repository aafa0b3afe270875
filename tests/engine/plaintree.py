"""What a VM's files are, in memory and without layers: what overlays, forks and merges are compared with.

An operation is a tuple: its name, a path, and what else it takes (see `OPERATIONS`). `perform` does it to real files
below the working directory, `Tree.perform` to the model; both say whether it could be done.

Two things are not as on a plain file system, since boxes' overlays have neither `index` nor `redirect_dir`: names of one
file come apart when one of them is changed after a fork, and a directory that was there at the fork cannot be renamed
(EXDEV, upon which mv copies). The model knows what was there at the last fork: `sealed`.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Operation = tuple[Any, ...]
Seen = dict[str, tuple[Any, ...]]
SPARSE, AT = 4 << 20, 2_100_000  # a file of this size, with something there
SLACK = (1 << 20) + (128 << 10)  # what may be allocated beside what was written: the kernel copies up by the MiB
NAMESPACE = "user."


@dataclass(eq=False)
class Node:
    """A file, directory, symlink or FIFO. `mtime`: nanoseconds, where an operation has set it and nothing has changed
    it since."""

    kind: int
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    data: bytes = b""  # a symlink's: where it leads
    xattrs: dict[str, bytes] = field(default_factory=dict)
    mtime: int | None = None
    children: dict[str, Node] = field(default_factory=dict)
    sealed: bool = False

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class Impossible(Exception):
    """A real file system would have refused."""


class Tree:
    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR, 0o755)

    def fork(self) -> Tree:
        """The same once more; from now on all of it is sealed in both."""
        _seal(self.root)
        return copy.deepcopy(self)

    def perform(self, operation: Operation) -> bool:
        name, *arguments = operation
        try:
            getattr(self, f"_{name}")(*arguments)
        except Impossible:
            return False
        return True

    def seen(self) -> Seen:
        found: Seen = {}
        first: dict[int, str] = {}

        def add(node: Node, path: str) -> None:
            linked = None if node.is_directory else first.setdefault(id(node), path)
            found[path] = (
                node.kind, node.mode, node.owner, _short(node.data), sorted(node.xattrs.items()), linked, node.mtime,
            )  # fmt: skip
            for name, child in node.children.items():
                add(child, f"{path}/{name}")

        for name, child in self.root.children.items():
            add(child, name)
        return found

    # --- where things are

    def _place(self, path: str) -> tuple[Node, str, Node | None]:
        *parents, name = path.split("/")
        at = self.root
        for parent in parents:
            below = at.children.get(parent)
            if below is None or not below.is_directory:
                raise Impossible
            at = below
        return at, name, at.children.get(name)

    def _there(self, path: str) -> tuple[Node, str, Node]:
        at, name, node = self._place(path)
        if node is None:
            raise Impossible
        return at, name, node

    def _own(self, at: Node, name: str, node: Node) -> Node:
        """The node, to be changed through this name alone if it was sealed."""
        if node.is_directory or not node.sealed:
            return node
        made = copy.deepcopy(node)
        made.sealed = False
        at.children[name] = made
        return made

    def _make(self, path: str, node: Node) -> Node:
        at, name, before = self._place(path)
        if before is not None:
            raise Impossible
        at.children[name] = node
        at.mtime = None
        return node

    def _file(self, path: str, *, make: bool) -> Node:
        at, name, node = self._place(path)
        if node is None and make:
            return self._make(path, Node(stat.S_IFREG))
        if node is None or node.kind != stat.S_IFREG:
            raise Impossible
        node = self._own(at, name, node)
        node.mtime = None
        return node

    # --- operations

    def _write(self, path: str, data: bytes) -> None:
        self._file(path, make=True).data = data

    def _append(self, path: str, data: bytes) -> None:
        self._file(path, make=False).data += data

    def _truncate(self, path: str, size: int) -> None:
        node = self._file(path, make=False)
        node.data = node.data[:size].ljust(size, b"\0")

    def _sparse(self, path: str, data: bytes) -> None:
        node = self._file(path, make=True)
        node.data = (bytes(AT) + data).ljust(SPARSE, b"\0")

    def _unlink(self, path: str) -> None:
        at, name, node = self._there(path)
        if node.is_directory:
            raise Impossible
        del at.children[name]
        at.mtime = None

    def _mkdir(self, path: str) -> None:
        self._make(path, Node(stat.S_IFDIR, 0o755))

    def _rmdir(self, path: str) -> None:
        at, name, node = self._there(path)
        if not node.is_directory or node.children:
            raise Impossible
        del at.children[name]
        at.mtime = None

    def _rmtree(self, path: str) -> None:
        at, name, node = self._there(path)
        if not node.is_directory:
            raise Impossible
        del at.children[name]
        at.mtime = None

    def _symlink(self, path: str, target: str) -> None:
        self._make(path, Node(stat.S_IFLNK, 0o777, data=target.encode()))

    def _mkfifo(self, path: str) -> None:
        self._make(path, Node(stat.S_IFIFO, 0o644))

    def _link(self, path: str, other: str) -> None:
        at, name, node = self._there(path)
        if node.is_directory or self._place(other)[2] is not None:
            raise Impossible
        self._make(other, self._own(at, name, node))

    def _rename(self, path: str, other: str) -> None:
        at, name, node = self._there(path)
        to, new, before = self._place(other)
        if before is node and (path == other or not node.sealed):
            return
        if node.is_directory and (other.startswith(f"{path}/") or node.sealed):
            raise Impossible
        if before is not None and (before.is_directory != node.is_directory or before.children):
            raise Impossible
        moved = self._own(at, name, node)
        del at.children[name]
        to.children[new] = moved
        at.mtime = to.mtime = None

    def _attributes(self, path: str, mode: int, owner: tuple[int, int]) -> None:
        at, name, node = self._there(path)
        if node.kind == stat.S_IFLNK:
            raise Impossible
        node = self._own(at, name, node)
        node.mode, node.owner = mode, owner

    def _setxattr(self, path: str, key: str, value: bytes) -> None:
        self._attributed(path).xattrs[NAMESPACE + key] = value

    def _removexattr(self, path: str, key: str) -> None:
        _, _, node = self._there(path)
        if NAMESPACE + key not in node.xattrs:
            raise Impossible
        del self._attributed(path).xattrs[NAMESPACE + key]

    def _attributed(self, path: str) -> Node:
        at, name, node = self._there(path)
        if node.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise Impossible
        return self._own(at, name, node)

    def _utime(self, path: str, when: int) -> None:
        at, name, node = self._there(path)
        self._own(at, name, node).mtime = when


def _seal(node: Node) -> None:
    node.sealed = True
    for child in node.children.values():
        _seal(child)


# --- the same to real files


def perform(operation: Operation) -> bool:
    """To what lies below the working directory."""
    name, *arguments = operation
    try:
        OPERATIONS[name](*arguments)
    except OSError:
        return False
    return True


def _put(flags: int) -> Callable[[str, bytes], None]:
    def put(path: str, data: bytes) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o644), "wb") as file:
            file.write(data)

    return put


def _sparse(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(fd, SPARSE)
        os.pwrite(fd, data, AT)
    finally:
        os.close(fd)


def _truncate(path: str, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _attributes(path: str, mode: int, owner: tuple[int, int]) -> None:
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise OSError("its mode cannot be changed")
    os.chown(path, *owner)
    os.chmod(path, mode)


def _rmtree(path: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError
    shutil.rmtree(path)


OPERATIONS: dict[str, Callable[..., object]] = {
    "write": _put(os.O_CREAT | os.O_TRUNC),
    "append": _put(os.O_APPEND),
    "truncate": _truncate,
    "sparse": _sparse,
    "unlink": os.unlink,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "rmtree": _rmtree,
    "symlink": lambda path, target: os.symlink(target, path),
    "mkfifo": os.mkfifo,
    "link": lambda path, other: os.link(path, other, follow_symlinks=False),
    "rename": os.rename,
    "attributes": _attributes,
    "setxattr": lambda path, key, value: os.setxattr(path, NAMESPACE + key, value, follow_symlinks=False),
    "removexattr": lambda path, key: os.removexattr(path, NAMESPACE + key, follow_symlinks=False),
    "utime": lambda path, when: os.utime(path, ns=(when, when), follow_symlinks=False),
}


def _short(data: bytes) -> object:
    """To compare, and to be shown where it differs."""
    return data if len(data) < 100 else (len(data), hashlib.sha256(data).hexdigest())


def seen() -> Seen:
    """All below the working directory, as `Tree.seen` has it; a file that takes more room than what is in it says so."""
    found: Seen = {}
    first: dict[int, str] = {}

    def add(path: str) -> None:
        s = os.lstat(path)
        kind = stat.S_IFMT(s.st_mode)
        data: object = b""
        if kind == stat.S_IFREG:
            with open(path, "rb") as file:
                data = file.read()
            data = _short(data)
            if s.st_blocks * 512 > SLACK:
                data = f"{data} without its holes"
        elif kind == stat.S_IFLNK:
            data = os.readlink(path).encode()
        linked = None if kind == stat.S_IFDIR else first.setdefault(s.st_ino, path)
        xattrs = [(n, os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False)]
        found[path] = (
            kind, stat.S_IMODE(s.st_mode), (s.st_uid, s.st_gid), data, sorted(xattrs), linked, s.st_mtime_ns,
        )  # fmt: skip
        if kind == stat.S_IFDIR:
            for name in os.listdir(path):
                add(f"{path}/{name}")

    for name in os.listdir("."):
        add(name)
    return found


def difference(model: Seen, real: Seen) -> dict[str, tuple[Any, Any]]:
    """Of what the model knows. The first of several names is whichever a listing has first."""
    model, real = _comparable(model), _comparable(real)
    for path in model.keys() & real.keys():
        if model[path][-1] is None:
            real[path] = (*real[path][:-1], None)
    return {
        path: (model.get(path), real.get(path))
        for path in model.keys() | real.keys()
        if model.get(path) != real.get(path)
    }


def _comparable(found: Seen) -> Seen:
    groups: dict[str, str] = {}
    for path, (*_, linked, _when) in found.items():
        if linked is not None:
            groups[linked] = min(groups.get(linked, path), path)
    return {
        path: (*rest, None if linked is None else groups[linked], when) for path, (*rest, linked, when) in found.items()
    }
