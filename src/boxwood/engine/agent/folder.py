"""The directory of a session's files. Whoever is root in the box can do to it what he likes: so what is made is made
anew, what is opened is opened without following or waiting for anything, and looked at before it is used."""

from __future__ import annotations

import os
import shutil
import stat

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_READ = 4096


class Folder:
    def __init__(self, path: bytes) -> None:
        self.path = path

    def make(self) -> None:
        os.makedirs(self.path, 0o700, exist_ok=True)

    def __truediv__(self, name: bytes) -> bytes:
        return self.path + b"/" + name

    def has(self, name: bytes) -> bool:
        return os.path.lexists(self / name)

    def write(self, name: bytes, data: bytes) -> None:
        """Always a new file: whoever still reads the old text keeps it."""
        new = self / b"new"
        try:
            fd = os.open(new, _CREATE, 0o600)
        except FileExistsError:
            self.remove(b"new")
            fd = os.open(new, _CREATE, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        try:
            os.rename(new, self / name)
        except IsADirectoryError:
            self.remove(name)
            os.rename(new, self / name)

    def read(self, name: bytes) -> bytes:
        """The beginning of a small file; nothing if there is none."""
        try:
            fd = os.open(self / name, _READ)
        except OSError:
            return b""
        try:
            return os.read(fd, _MOST_READ) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def remove(self, name: bytes) -> None:
        path = self / name
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            shutil.rmtree(path, ignore_errors=True)

    def fifo(self, name: bytes) -> None:
        self.remove(name)
        os.mkfifo(self / name, 0o600)

    def open_fifo(self, name: bytes, flags: int) -> int:
        """Never waits for the other end. OSError if somebody has put something else there."""
        path = self / name
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileExistsError(f"{os.fsdecode(path)} is not what it was")
        return fd

    def holds(self, name: bytes, fd: int) -> bool:
        """Is the file of this name the one that is open at `fd`?"""
        try:
            return os.path.samestat(os.lstat(self / name), os.fstat(fd))
        except OSError:
            return False

    def destroy(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
