"""What the core asks of a box's files beside reading and writing them, and the values that go back and forth: see api.

Names and paths are bytes, as the kernel has them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FileStatus:
    """`kind`: file, directory, symlink, fifo, socket, character or block. `mode`: permission bits. `modified`:
    nanoseconds since 1970. `target`: where a symlink leads. Names and paths are bytes, as the kernel has them."""

    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    links: int
    modified: int
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """`path`: a name in the directory that was listed, or a path below the one that was looked through."""

    path: bytes
    status: FileStatus


@dataclass(frozen=True, slots=True)
class FilePage:
    """`after`: what the next page begins behind; None: this was the last one."""

    entries: tuple[FileEntry, ...]
    after: bytes | None


@dataclass(frozen=True, slots=True)
class FilesFound:
    """`truncated`: why it is not all: limit, bytes or seconds; empty: it is."""

    entries: tuple[FileEntry, ...]
    truncated: str


@dataclass(frozen=True, slots=True)
class TextQuery:
    """What to look for: a regular expression, or with `literal` a text. `include`, `exclude`: patterns of paths, or of
    names where they have no slash. `engine`: ripgrep, builtin, or auto: ripgrep where the VM has it."""

    pattern: str
    literal: bool = False
    ignore_case: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    engine: str = "auto"


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A line that matches: `line` and `column` count from 1, columns in bytes. `text`: at most 2,000 bytes of it, `cut`
    if there is more."""

    path: bytes
    line: int
    column: int
    text: bytes
    cut: bool = False


@dataclass(frozen=True, slots=True)
class TextFound:
    matches: tuple[TextMatch, ...]
    truncated: str  # as of FilesFound
    engine: str  # that it was: ripgrep or builtin


@dataclass(frozen=True, slots=True)
class FileChange:
    """`kind`: watching (all that was there is watched now), created, modified, written (closed after writing),
    attributes, removed, moved (`to`), overflow (changes were lost), incomplete (more directories than are watched) or
    gone (the directory itself; the last one). `watched`: directories, of what is not about a path."""

    kind: str
    path: bytes = b""
    to: bytes = b""
    directory: bool = False
    watched: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Unpacked:
    """`skipped`: members that were neither files nor directories nor links."""

    entries: int
    bytes: int
    skipped: int


class Unpacking(Protocol):
    """An archive on its way into a box. Whoever has begun it closes it, whatever happens."""

    async def feed(self, data: bytes) -> None:
        """Waits while the box has not taken what came before. GuestError: it has stopped, BoxGone."""

    async def finish(self) -> Unpacked:
        """There is no more. GuestError (a member that makes no sense, no space, …), BoxGone."""

    def close(self) -> None: ...


class BoxFiles(Protocol):
    """File work in a live box, beside reading and writing. Paths are absolute; what is not on the VM's disk is refused
    with EACCES, as of `Box.read_file`. Every call may raise GuestError and BoxGone."""

    async def stat(self, path: bytes, *, follow: bool) -> FileStatus: ...

    async def mkdir(self, path: bytes, *, parents: bool, mode: int | None) -> bool:
        """False: with `parents`, it was there already. `mode` None: 0755."""

    async def chmod(self, path: bytes, mode: int) -> None:
        """Links are followed."""

    async def move(self, path: bytes, to: bytes, *, replace: bool) -> None:
        """EEXIST: there is something at `to`, and `replace` was not said. A directory that comes from a lower layer is
        moved name by name; all else in one step."""

    async def remove(self, path: bytes, *, recursive: bool) -> int:
        """How many names were deleted."""

    async def list(self, path: bytes, *, after: bytes, limit: int) -> FilePage:
        """Entries behind the name `after`, in the order of their bytes."""

    async def glob(self, path: bytes, pattern: str, *, limit: int, seconds: float) -> FilesFound: ...

    async def search(self, path: bytes, query: TextQuery, *, limit: int, seconds: float) -> TextFound: ...

    async def pack(self, path: bytes) -> AsyncGenerator[bytes, None]:
        """A tar archive of a directory, bit by bit; the first bit, or the refusal, is there when this returns. Whoever
        has it closes it."""

    async def unpack(self, path: bytes, *, owners: bool) -> Unpacking:
        """A tar archive into a directory, which is made if need be."""

    async def watch(self, path: bytes, *, recursive: bool, most: int) -> AsyncGenerator[FileChange, None]:
        """Changes below a directory, from `watching` on, which is there when this returns. Whoever has it closes it."""
