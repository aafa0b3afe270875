"""The helper that tells of changes below a directory, as they happen (inotify(7)).

Events are told of names in directories; a directory that is made meanwhile is watched from then on, and what was put
into it before that is told as created. What the kernel had to drop is told as an overflow: then all directories are
watched anew, and whoever listens has to look for himself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from boxwood.engine.agent.files import Refusal, check_on_disk
from boxwood.engine.agent.helpers import Out
from boxwood.engine.agent.place import PATH_BYTES, absolute, directory, explained, shown, told
from boxwood.engine.agent.walk import Walk
from boxwood.engine.kernel import libc

MODIFY, ATTRIB, WRITTEN, FROM, TO = 0x2, 0x4, 0x8, 0x40, 0x80
CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED, IS_DIRECTORY = 0x2000, 0x4000, 0x8000, 0x40000000
_ONLYDIR, _EXCL_UNLINK = 0x1000000, 0x4000000
_MASK = MODIFY | ATTRIB | WRITTEN | FROM | TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR | _EXCL_UNLINK
_HEAD = struct.Struct("iIII")
_BUFFER = 1 << 16
_PAIR_MS = 20  # for the second half of a move, which the kernel queues right behind the first
_KINDS = {CREATE: "created", MODIFY: "modified", WRITTEN: "written", ATTRIB: "attributes", DELETE: "removed"}


class Change(NamedTuple):
    watch: int
    mask: int
    cookie: int
    name: bytes


class Watcher:
    """What is watched below the directory at `path`, which is held open only while it is looked at: of one that is held
    open the kernel does not tell that it was deleted."""

    def __init__(self, path: bytes, most: int, recursive: bool, out: Out) -> None:
        self._fd = _check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._path = path
        self._room = PATH_BYTES - len(path) - 1
        self._most = most
        self._recursive = recursive
        self._out = out
        self._paths: dict[int, bytes] = {}
        self._watches: dict[bytes, int] = {}
        self._told: tuple[str, bytes] | None = None
        self._leaving: Change | None = None  # the first half of a move
        self.complete = True

    def begin(self) -> None:
        """Watch all that is there. Refusal, OSError."""
        top = directory(self._path)
        try:
            self._add(top, b"")
            if self._recursive:
                self._add_below(top, b"", tell=False)
        finally:
            os.close(top)
        if not self._watches:
            raise Refusal(errno.ENOSPC, "the VM has no inotify watch left (fs.inotify.max_user_watches)")

    def _add(self, fd: int, path: bytes) -> bool:
        if path not in self._watches and len(self._watches) >= self._most:
            self._bounded()
            return False
        watch = libc.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % fd, ctypes.c_uint32(_MASK))
        if watch < 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSPC, errno.ENOMEM):
                self._bounded()
            return False
        old = self._paths.get(watch)
        if old is not None:
            self._watches.pop(old, None)  # it has come from there
        self._paths[watch], self._watches[path] = path, watch
        return True

    def _bounded(self) -> None:
        if self.complete:
            self.complete = False
            if self._told is not None:
                self._out.line({"change": "incomplete", "watched": len(self._watches)})

    def _add_below(self, fd: int, path: bytes, *, tell: bool) -> None:
        for entry in Walk(fd, room=self._room - len(path) - 1):
            below = path + b"/" + entry.path if path else entry.path
            if tell:
                self._tell("created", below, entry.is_directory)
            if not entry.is_directory:
                continue
            try:
                own = os.open(entry.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=entry.directory)
            except OSError:
                continue
            entry.enter = self._add(own, below)
            os.close(own)

    def _forget_below(self, path: bytes) -> None:
        """It is somewhere else now, or gone."""
        for known in [one for one in self._watches if one == path or one.startswith(path + b"/")]:
            watch = self._watches.pop(known)
            del self._paths[watch]
            libc.inotify_rm_watch(self._fd, watch)

    # --- what happens

    def go_on(self) -> None:
        """Until nobody listens, or the top is gone."""
        self._told = ("", b"")
        self._out.line({"change": "watching", "watched": len(self._watches), "complete": self.complete})
        self._out.flush()
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._out.fd, 0)
        while True:
            for fd, _ in poll.poll(_PAIR_MS if self._leaving is not None else None):
                if fd == self._out.fd:
                    return  # nobody reads
            for change in self._changes():
                if not self._take(change):
                    self._out.line({"change": "gone"})
                    return
            self._out.flush()

    def _changes(self) -> Iterator[Change]:
        try:
            data = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            data = b""
            yield from self._lost_half(None)
        at = 0
        while at < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            change = Change(watch, mask, cookie, name)
            yield from self._lost_half(change)
            yield change

    def _lost_half(self, following: Change | None) -> Iterator[Change]:
        """What was moved out of sight is gone from here."""
        left = self._leaving
        if left is None or (following is not None and following.mask & TO and following.cookie == left.cookie):
            return
        self._leaving = None
        above = self._paths.get(left.watch)
        if above is not None and left.mask & IS_DIRECTORY:
            self._forget_below(above + b"/" + left.name if above else left.name)
        yield left._replace(mask=DELETE | left.mask & IS_DIRECTORY)

    def _take(self, change: Change) -> bool:
        """False: there is nothing to watch any more."""
        if change.mask & OVERFLOW:
            return self._start_over()
        above = self._paths.get(change.watch)
        if above is None:
            return True
        if change.mask & (DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED):
            return self._end_of(change, above)
        path = above + b"/" + change.name if above else change.name
        is_directory = bool(change.mask & IS_DIRECTORY)
        if change.mask & FROM:
            self._leaving = change
        elif change.mask & TO and self._leaving is not None:
            old, self._leaving = self._leaving, None
            before = self._paths.get(old.watch)
            self._moved(old, before, path, is_directory)
        else:
            self._changed(change.mask, path, is_directory)
        return True

    def _end_of(self, change: Change, path: bytes) -> bool:
        if path == b"":
            return False
        if change.mask & (DELETE_SELF | IGNORED | UNMOUNT) and self._watches.get(path) == change.watch:
            del self._watches[path], self._paths[change.watch]
        return True

    def _moved(self, old: Change, above: bytes | None, path: bytes, is_directory: bool) -> None:
        if above is None:
            self._changed(CREATE, path, is_directory)
            return
        before = above + b"/" + old.name if above else old.name
        known = is_directory and self._moved_below(before, path)
        self._told = ("", b"")
        if len(before) > self._room or len(path) > self._room:
            self._tell("created", path, is_directory)
            return
        self._out.line({"change": "moved", "path": told(before), "to": told(path), "directory": is_directory})
        if is_directory and not known:
            self._look_into(path, tell=False)

    def _moved_below(self, before: bytes, path: bytes) -> bool:
        """Its watches stay: what happens in there meanwhile is told by them. Was it watched?"""
        self._forget_below(path)  # an empty directory may have been in its place
        known = before in self._watches
        for one in [one for one in self._watches if one == before or one.startswith(before + b"/")]:
            watch, now = self._watches.pop(one), path + one[len(before) :]
            self._watches[now], self._paths[watch] = watch, now
        return known

    def _changed(self, mask: int, path: bytes, is_directory: bool) -> None:
        if mask & TO:
            mask = CREATE
        for bit, kind in _KINDS.items():
            if mask & bit:
                self._tell(kind, path, is_directory)
        if is_directory and mask & DELETE and (watch := self._watches.pop(path, None)) is not None:
            self._paths.pop(watch, None)  # it was empty, and with it its watch has gone
        if is_directory and mask & CREATE:
            self._look_into(path, tell=True)

    def _look_into(self, path: bytes, *, tell: bool) -> None:
        """A directory that has come: watch it, then see what it holds already."""
        if not self._recursive or len(path) > self._room:
            return
        try:
            fd = self._open(path)
        except (OSError, Refusal):
            return  # gone again, or the whole tree is
        try:
            if self._add(fd, path):
                self._add_below(fd, path, tell=tell)
        finally:
            os.close(fd)

    def _open(self, path: bytes) -> int:
        """No part of it may be a link, nor on another file system. OSError, Refusal."""
        at = directory(self._path)
        for name in path.split(b"/"):
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            finally:
                os.close(at)
            at = below
        try:
            check_on_disk(at, shown(path))
        except Refusal:
            os.close(at)
            raise
        return at

    def _tell(self, kind: str, path: bytes, is_directory: bool) -> None:
        """The same said twice is said once; what has too long a path to be asked for is not said."""
        if len(path) <= self._room and self._told != (kind, path):
            self._told = (kind, path)
            self._out.line({"change": kind, "path": told(path), "directory": is_directory})

    def _start_over(self) -> bool:
        """Events were lost: directories may have come, gone and moved. False: the top has."""
        self._leaving = self._told = None
        for watch in self._paths:
            libc.inotify_rm_watch(self._fd, watch)
        self._paths.clear()
        self._watches.clear()
        self.complete = True
        try:
            self.begin()
        except (OSError, Refusal):
            return False
        self._told = ("", b"")
        self._out.line({"change": "overflow", "watched": len(self._watches), "complete": self.complete})
        return True


def watch(header: dict[str, Any], out: Out, source: int) -> dict[str, Any]:
    """`{path, recursive, most}`: lines `{change, path, directory}`, as they happen. `most`: directories watched."""
    path = absolute(header["path"])
    out.limit(0)  # it ends with whoever listens
    watcher = Watcher(path, header["most"], header["recursive"] is True, out)
    with explained(path):
        watcher.begin()
    watcher.go_on()
    return {}


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise Refusal(number, f"inotify: {os.strerror(number)}")
    return result
