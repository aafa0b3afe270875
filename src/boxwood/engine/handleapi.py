"""What the core asks of files that stay open in a box, to be read and written in place, and of names and attributes
beside what fileapi has: see api. Paths are bytes and absolute; what is not on the VM's disk is refused with EACCES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # agents import this module, and need no more of the others than that
    from boxwood.engine.fileapi import FileStatus

HANDLES = 256  # open in one box at once
PIECE = 1 << 18  # bytes that are read or written at once, at most
FURTHEST = (1 << 63) - 1  # byte of a file


@dataclass(frozen=True, slots=True)
class Opening:
    """How a file is opened. `append`: whatever is written goes to its end. `exclusive`: with `create`, it must not be
    there. `mode`: permission bits of one that is made, without those of the umask 022."""

    read: bool = False
    write: bool = False
    append: bool = False
    create: bool = False
    exclusive: bool = False
    truncate: bool = False
    mode: int = 0o666


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is to be changed of a file; None: left as it is. `size` in bytes, `mode` permission bits, `accessed` and
    `modified` in seconds since 1970."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    accessed: int | None = None
    modified: int | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """Of a file system: sizes in bytes, and how many files there may be more."""

    block: int
    total: int
    free: int
    files: int
    files_free: int


class FileHandle(Protocol):
    """A regular file that is open in a box. Every call may raise GuestError and BoxGone."""

    async def read(self, at: int, size: int) -> bytes:
        """At most `PIECE` bytes; none: there are no more."""

    async def write(self, at: int, data: bytes) -> None: ...

    async def status(self) -> FileStatus: ...

    async def change(self, wanted: Attributes) -> None: ...

    async def flush(self) -> None:
        """What was written, and the name if it is new, is on the disk, where the box is one of a durable VM."""

    async def close(self) -> None: ...


class BoxHandles(Protocol):
    async def open(self, path: bytes, how: Opening) -> FileHandle:
        """EISDIR, EINVAL (no regular file), EAGAIN (`HANDLES` are open). Nothing waits for the other end of a FIFO."""

    async def change(self, path: bytes, wanted: Attributes, *, follow: bool) -> None:
        """EOPNOTSUPP: the mode or the size of a link itself."""

    async def symlink(self, path: bytes, target: bytes) -> None:
        """A link at `path` that leads to `target`, whatever that is. EEXIST."""

    async def link(self, path: bytes, to: bytes) -> None:
        """Another name `to` for the file at `path`. EEXIST, EXDEV."""

    async def resolve(self, path: bytes) -> bytes:
        """The path without links, `.` and `..`; its last name need not be there."""

    async def space(self, path: bytes) -> Space: ...
