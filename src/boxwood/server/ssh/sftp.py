"""SFTP, as `sftp`, `scp` and sshfs speak it: the files of the VM that somebody has logged in to.

asyncssh speaks the protocol, one request after the other; the core does the work, in the VM's box. No path of a VM is
opened here, and no descriptor of its files held.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast
from weakref import WeakSet

import asyncssh
from asyncssh import constants, sftp

from boxwood.core.core import Core
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.handles import Handle
from boxwood.core.model import Caller
from boxwood.engine.fileapi import FileEntry, FileStatus
from boxwood.engine.handleapi import Attributes, Opening
from boxwood.server.ssh.failures import told
from boxwood.server.ssh.login import Login

NAME, VERSION = "sftp", 3
FILES, DIRECTORIES = 64, 16  # open in one channel at once
PAGE = 2048  # entries of a directory that are kept at once
_REFUSED = 255
_HOME = b"/root"  # where a session begins too, if it is there
_UMASK = 0o022
_HIGHEST = (1 << 32) - 1  # ids and seconds of version 3
_TYPES = {
    "file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK, "character": stat.S_IFCHR, "block": stat.S_IFBLK,
}  # fmt: skip
Process = asyncssh.SSHServerProcess[bytes]
Writer = asyncssh.SSHWriter[bytes]


async def handle(core: Core, process: Process, reader: asyncssh.SSHReader[bytes], writer: Writer) -> None:
    """One channel, to its end; whatever is open then is closed."""
    login: Login = process.get_extra_info("connection").get_extra_info("login")
    if login.caller is None or not login.enter():
        process.exit(_REFUSED)
        return
    files = VMFiles(core, login.caller, login.vm, process)
    try:
        requests = cast("asyncssh.SSHReader[bytes]", _Requests(process, reader, writer))
        await sftp.run_sftp_server(files, requests, writer, VERSION)
    except (EOFError, OSError, asyncssh.Error):  # the client has gone
        process.close()
    finally:
        login.leave()
        await files.exit()


class _Requests:
    """What asyncssh reads requests from: nothing is read while the client does not take the answers."""

    def __init__(self, process: Process, reader: asyncssh.SSHReader[bytes], writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self.logger = reader.logger
        self.get_extra_info = process.get_extra_info

    async def readexactly(self, count: int) -> bytes:
        await self._writer.drain()
        return await self._reader.readexactly(count)


class OpenFile:
    """What asyncssh has a number for."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def seek(self, at: int, whence: int) -> int:
        """asyncssh asks for the data between holes so: there are no holes."""
        return at if whence == os.SEEK_DATA else 1 << 63


class VMFiles(asyncssh.SFTPServer):
    def __init__(self, core: Core, caller: Caller, vm: str, process: Process) -> None:
        super().__init__(process.channel)
        self._core = core
        self._caller = caller
        self._vm = vm
        self._process = process
        self._open: set[OpenFile] = set()
        self._listings: WeakSet[Listing] = WeakSet()
        self._home: bytes | None = None

    async def _at(self, path: bytes) -> bytes:
        """Paths that are not absolute begin at home. CoreError."""
        if path.startswith(b"/"):
            return path
        if self._home is None:
            self._home = await self._find_home()
        return self._home.rstrip(b"/") + b"/" + path

    async def _find_home(self) -> bytes:
        with suppress(NotFound):
            if (await self._core.filework.stat(self._caller, self._vm, _HOME, follow=True)).kind == "directory":
                return _HOME
        return b"/"

    # Files

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> OpenFile:
        if len(self._open) >= FILES:
            raise asyncssh.SFTPFailure(f"{FILES} files are open: close some")
        mode = 0o666 if attrs.permissions is None else attrs.permissions
        how = Opening(
            read=bool(pflags & constants.FXF_READ), write=bool(pflags & constants.FXF_WRITE),
            append=bool(pflags & constants.FXF_APPEND), create=bool(pflags & constants.FXF_CREAT),
            exclusive=bool(pflags & constants.FXF_EXCL), truncate=bool(pflags & constants.FXF_TRUNC),
            mode=mode & 0o777,
        )  # fmt: skip
        with told():
            found = OpenFile(await self._core.handles.open(self._caller, self._vm, await self._at(path), how))
        self._open.add(found)
        return found

    async def close(self, file_obj: object) -> None:
        file = cast(OpenFile, file_obj)
        self._open.discard(file)
        with told():
            await self._core.handles.close(file.handle)

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        if self._process.channel.is_closing():  # `copy-data`, of a file behind itself, has no end of its own
            raise asyncssh.SFTPConnectionLost("the client has gone")
        with told():
            return await self._core.handles.read(_handle(file_obj), offset, size)

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        with told():
            await self._core.handles.write(_handle(file_obj), offset, data)
        return len(data)

    async def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        with told():
            return _attributes(await self._core.handles.status(_handle(file_obj)))

    async def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        with told():
            await self._core.handles.change_open(_handle(file_obj), _wanted(attrs))

    async def fsync(self, file_obj: object) -> None:
        with told():
            await self._core.handles.flush(_handle(file_obj))

    async def fstatvfs(self, file_obj: object) -> asyncssh.SFTPVFSAttrs:
        raise asyncssh.SFTPOpUnsupported("ask for the room at a path")

    async def exit(self) -> None:
        """The channel ends. Twice is once."""
        while self._open:
            with suppress(CoreError):  # nobody is there any more to be told
                await self._core.handles.close(self._open.pop().handle)
        with suppress(OSError):  # the channel is closed
            self._process.exit(0)

    # Attributes

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return await self._status(path, follow=True)

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return await self._status(path, follow=False)

    async def _status(self, path: bytes, *, follow: bool) -> asyncssh.SFTPAttrs:
        with told():
            found = await self._core.filework.stat(self._caller, self._vm, await self._at(path), follow=follow)
        return _attributes(found)

    async def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        await self._change(path, attrs, follow=True)

    async def lsetstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        await self._change(path, attrs, follow=False)

    async def _change(self, path: bytes, attrs: asyncssh.SFTPAttrs, *, follow: bool) -> None:
        with told():
            await self._core.handles.change(self._caller, self._vm, await self._at(path), _wanted(attrs), follow=follow)

    async def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        with told():
            room = await self._core.handles.space(self._caller, self._vm, await self._at(path))
        unit = max(room.block, 1)
        return asyncssh.SFTPVFSAttrs(
            bsize=unit, frsize=unit, blocks=room.total // unit, bfree=room.free // unit, bavail=room.free // unit,
            files=room.files, ffree=room.files_free, favail=room.files_free, namemax=255,
        )  # fmt: skip

    # Directories and names

    def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if len(self._listings) >= DIRECTORIES:
            raise asyncssh.SFTPFailure(f"{DIRECTORIES} directories are open: close some")
        listing = Listing(self, path)
        self._listings.add(listing)
        return listing

    async def page(self, path: bytes, after: bytes) -> tuple[tuple[FileEntry, ...], bytes | None]:
        with told():
            found = await self._core.filework.list(self._caller, self._vm, await self._at(path), after, PAGE)
        return found.entries, found.after

    async def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        mode = 0o777 if attrs.permissions is None else attrs.permissions
        with told():
            place = await self._at(path)
            await self._core.filework.mkdir(self._caller, self._vm, place, parents=False, mode=mode & 0o7777 & ~_UMASK)

    async def rmdir(self, path: bytes) -> None:
        await self._remove(path, is_directory=True)

    async def remove(self, path: bytes) -> None:
        await self._remove(path, is_directory=False)

    async def _remove(self, path: bytes, *, is_directory: bool) -> None:
        with told():
            place = await self._at(path)
            found = await self._core.filework.stat(self._caller, self._vm, place)
            if (found.kind == "directory") is not is_directory:
                raise asyncssh.SFTPFailure("it is a directory" if not is_directory else "it is no directory")
            await self._core.filework.remove(self._caller, self._vm, place, recursive=False)

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._move(oldpath, newpath, replace=False)

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._move(oldpath, newpath, replace=True)

    async def _move(self, old: bytes, new: bytes, *, replace: bool) -> None:
        with told():
            source, target = await self._at(old), await self._at(new)
            await self._core.filework.move(self._caller, self._vm, source, target, replace=replace)

    async def realpath(self, path: bytes) -> bytes:
        with told():
            return await self._core.handles.resolve(self._caller, self._vm, await self._at(path))

    async def readlink(self, path: bytes) -> bytes:
        with told():
            found = await self._core.filework.stat(self._caller, self._vm, await self._at(path))
        if found.target is None:
            raise asyncssh.SFTPFailure("it is no link")
        return found.target

    async def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        with told():
            await self._core.handles.symlink(self._caller, self._vm, await self._at(newpath), oldpath)

    async def link(self, oldpath: bytes, newpath: bytes) -> None:
        with told():
            source, target = await self._at(oldpath), await self._at(newpath)
            await self._core.handles.link(self._caller, self._vm, source, target)

    # Names of users: those of the server's machine are not the VM's

    def format_user(self, uid: int | None) -> str:
        return "" if uid is None else str(uid)

    def format_group(self, gid: int | None) -> str:
        return "" if gid is None else str(gid)


class Listing:
    """The entries of a directory, page by page."""

    def __init__(self, files: VMFiles, path: bytes) -> None:
        self._files = files
        self._path = path
        self._page: list[FileEntry] = []
        self._after: bytes | None = b""

    def __aiter__(self) -> Listing:
        return self

    async def __anext__(self) -> asyncssh.SFTPName:
        while not self._page:
            if self._after is None:
                raise StopAsyncIteration
            entries, self._after = await self._files.page(self._path, self._after)
            self._page = [*reversed(entries)]
        entry = self._page.pop()
        return asyncssh.SFTPName(entry.path, attrs=_attributes(entry.status))


def _handle(file: object) -> Handle:
    return cast(OpenFile, file).handle


def _attributes(found: FileStatus) -> asyncssh.SFTPAttrs:
    """What a box says may be out of the bounds of the protocol. The last access is not told: it is said to be the last
    change."""
    modified = min(max(found.modified // 1_000_000_000, 0), _HIGHEST)
    return asyncssh.SFTPAttrs(
        size=found.size, uid=min(found.uid, _HIGHEST), gid=min(found.gid, _HIGHEST),
        permissions=_TYPES[found.kind] | found.mode, atime=modified, mtime=modified,
        nlink=min(found.links, _HIGHEST),
    )  # fmt: skip


def _wanted(attrs: asyncssh.SFTPAttrs) -> Attributes:
    mode: Any = attrs.permissions
    if attrs.size is not None and attrs.size >= 1 << 63:
        raise asyncssh.SFTPFailure("no file is as long as that")
    if _HIGHEST in (attrs.uid, attrs.gid):
        raise asyncssh.SFTPFailure("nobody has that id")
    return Attributes(
        attrs.size, None if mode is None else mode & 0o7777, attrs.uid, attrs.gid, attrs.atime, attrs.mtime
    )
