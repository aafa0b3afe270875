"""Files that stay open, to be read and written in place, as SFTP does. The server knows them by ids of its own; they
are opened, and stay, in here: what is written is then frozen with the box, counted as its memory, bounded by its disk,
and gone with it, and the server never holds a descriptor into a layer that is about to be sealed.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from functools import partial
from typing import Any

from boxwood.engine.agent import copyups
from boxwood.engine.agent.attributes import change_open, check_regular, wanted
from boxwood.engine.agent.files import Refusal, check_on_disk, flush_names
from boxwood.engine.agent.flushes import Flushes
from boxwood.engine.agent.place import Place, absolute, because, explained, look, place, shown, status_of
from boxwood.engine.agent.requests import Reply, ident
from boxwood.engine.handleapi import FURTHEST, HANDLES, PIECE

_OPEN = os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Handle:
    """`directory`: the one that holds it, open, if it was made; else -1."""

    def __init__(self, fd: int, path: bytes, directory: int) -> None:
        self.fd = fd
        self.path = path
        self.directory = directory

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(fd for fd in (self.fd, self.directory) if fd >= 0)

    def duplicate(self) -> _Handle:
        """OSError."""
        made = _Handle(os.dup(self.fd), self.path, -1)
        try:
            if self.directory >= 0:
                made.directory = os.dup(self.directory)
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


class Handles:
    def __init__(self, flushes: Flushes) -> None:
        self._flushes = flushes
        self._open: dict[str, _Handle] = {}
        self._coming: set[str] = set()  # those that a child sees to
        self.ops: dict[str, Callable[[dict[str, Any], bytes, Reply], None]] = {
            "handle.open": self._on_open,
            "handle.read": self._on_read,
            "handle.write": self._on_write,
            "handle.stat": self._on_stat,
            "handle.change": self._on_change,
            "handle.flush": self._on_flush,
            "handle.close": self._on_close,
        }

    def relink(self) -> None:
        """Another server: it knows nothing of what the last one had open."""
        self._coming.clear()
        while self._open:
            self._open.popitem()[1].close()

    def _on_open(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        name, path = ident(header, "id"), absolute(header["path"])
        if name in self._open or name in self._coming:
            raise ValueError("id is in use")
        most = min(HANDLES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)  # we need some for all else
        if len(self._open) + len(self._coming) >= most:
            raise Refusal(errno.EAGAIN, f"the VM has {most} files open for SFTP at once: close some")
        if path.endswith(b"/"):
            raise Refusal(errno.EISDIR, f"is a directory: {shown(path)}")
        if _is_long_in_coming(header, path):
            self._open_later(name, path, header, reply)
            return
        self._open[name] = _opened(path, header)
        reply()

    def _open_later(self, name: str, path: bytes, header: dict[str, Any], reply: Reply) -> None:
        """What a lower layer holds is copied as a whole when it is opened to be written: a child does that."""

        self._coming.add(name)

        def told(number: int) -> None:
            try:
                if number:
                    self._coming.discard(name)
                    raise OSError(number, "")
                if name in self._coming:  # else it was closed before it was open
                    self._coming.discard(name)
                    self._open[name] = _opened(path, header)
                reply()
            except Refusal as refusal:
                reply.error(refusal.errno, refusal.text)
            except OSError as error:
                reply.error(error.errno or errno.EIO, because(error, path).text)

        self._flushes.run((), partial(_copy_up, path, header), told)

    def _found(self, header: dict[str, Any]) -> _Handle:
        """Refusal."""
        found = self._open.get(ident(header, "id"))
        if found is None:
            raise Refusal(errno.EBADF, "the file is not open any more")
        return found

    def _on_read(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        handle, size = self._found(header), header["size"]
        if type(size) is not int or not 0 <= size <= PIECE:
            raise ValueError("size is out of bounds")
        with explained(handle.path):
            data = os.pread(handle.fd, size, _offset(header))
        reply({}, data)

    def _on_write(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        handle, at = self._found(header), _offset(header)
        view = memoryview(payload)
        with explained(handle.path):
            while view:
                written = os.pwrite(handle.fd, view, at)
                view, at = view[written:], at + written
        reply()

    def _on_stat(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        reply(status_of(os.fstat(self._found(header).fd)))

    def _on_change(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """In a child if it is large: one that was opened to be read may have to be copied for that."""
        handle, want = self._found(header), wanted(header)
        if os.fstat(handle.fd).st_size > copyups.AT_ONCE:
            self._in_child(handle, reply, lambda fd, *_: change_open(fd, want))
            return
        with explained(handle.path):
            change_open(handle.fd, want)
        reply()

    def _on_flush(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        """In a child: a disk takes its time."""
        self._in_child(self._found(header), reply, _flush)

    def _in_child(self, handle: _Handle, reply: Reply, do: Callable[..., None]) -> None:
        """With its descriptor, and its directory's if it has one. It is closed meanwhile, should somebody want that."""
        held = handle.duplicate()

        def told(number: int) -> None:
            held.close()
            copyups.answer(reply, held.path, number)

        self._flushes.run(held.descriptors, partial(do, *held.descriptors), told)

    def _on_close(self, header: dict[str, Any], payload: bytes, reply: Reply) -> None:
        self._coming.discard(ident(header, "id"))
        if (handle := self._open.pop(ident(header, "id"), None)) is not None:
            handle.close()
        reply()


def _is_long_in_coming(header: dict[str, Any], path: bytes) -> bool:
    if header.get("write") is not True or header.get("truncate") is True or _is_exclusive(header):
        return False
    return copyups.is_large(path, follow=True)


def _is_exclusive(header: dict[str, Any]) -> bool:
    return header.get("create") is True and header.get("exclusive") is True


def _copy_up(path: bytes, header: dict[str, Any]) -> None:
    _opened(path, {**header, "create": False}).close()


def _opened(path: bytes, header: dict[str, Any]) -> _Handle:
    """Refusal, OSError. Nothing but a regular file of the disk is opened, and none waited for."""
    exclusive = _is_exclusive(header)
    with explained(path), place(path, follow=not exclusive) as found:
        return _opened_at(found, path, header, exclusive)


def _opened_at(found: Place, path: bytes, header: dict[str, Any], exclusive: bool) -> _Handle:
    mode = header["mode"]
    if type(mode) is not int or not 0 <= mode <= 0o777:
        raise ValueError("mode must be permission bits, from 0 to 0o777")
    is_new = False
    try:
        status = look(found, path)
        if exclusive:
            raise FileExistsError(errno.EEXIST, "")
        check_regular(status, path)
    except FileNotFoundError:
        if header.get("create") is not True:
            raise
        is_new = True
    fd = os.open(found.name, _flags(header, exclusive), mode, dir_fd=found.directory)
    try:
        check_regular(os.fstat(fd), path)
        check_on_disk(fd, shown(path))
        return _Handle(fd, path, os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=found.directory) if is_new else -1)
    except BaseException:
        os.close(fd)
        raise


def _flags(header: dict[str, Any], exclusive: bool) -> int:
    flags = _OPEN
    if header.get("write") is True:
        flags |= os.O_RDWR if header.get("read") is True else os.O_WRONLY
        flags |= os.O_TRUNC if header.get("truncate") is True else 0
        flags |= os.O_APPEND if header.get("append") is True else 0
    flags |= os.O_CREAT if header.get("create") is True else 0
    return flags | (os.O_EXCL if exclusive else 0)


def _offset(header: dict[str, Any]) -> int:
    at = header["at"]
    if type(at) is not int or not 0 <= at <= FURTHEST - PIECE:
        raise ValueError("no file is as long as that")
    return at


def _flush(fd: int, directory: int = -1) -> None:
    os.fsync(fd)
    if directory >= 0:
        flush_names(directory)
