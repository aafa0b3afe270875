"""Directories here: what they hold, what of it a VM does not have yet, and archives of it; no network I/O."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, ParamSpec, TypeVar, cast

from boxwood.client.content import PIECE
from boxwood.client.errors import BadRequest
from boxwood.client.ignore import Ignore

SMALL = 4 << 20  # bytes of a file that goes into an archive with others
BATCH_BYTES = 64 << 20
BATCH_FILES = 5000
HASHERS = 8
_BLOCK = 512
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
P = ParamSpec("P")
T = TypeVar("T")
Cache = MutableMapping[str, tuple[int, int, str]]  # by absolute path: size, time of the last change in ns, SHA-256


@dataclass(frozen=True, slots=True)
class LocalFile:
    """`name`: relative to the directory, with slashes. `changed`: in nanoseconds."""

    name: str
    path: str
    size: int
    mode: int
    changed: int

    @property
    def is_text(self) -> bool:
        """Is its name UTF-8? Only in an archive can others be told; of what the VM has they are never told."""
        return self.name.isascii() or not any("\ud800" <= char <= "\udfff" for char in self.name)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy of a directory is: files and bytes that have gone, of so many."""

    files: int
    all_files: int
    bytes: int
    all_bytes: int


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What `sync_dir` did. `sent`, `unchanged`: files; `skipped`: what is neither file nor directory. `truncated`: the
    VM holds more files than the server lists; those beyond were sent whatever they hold."""

    sent: int
    unchanged: int
    skipped: int
    bytes_sent: int
    truncated: bool


def scan(root: str, ignored: Ignore | None) -> tuple[list[LocalFile], int]:
    """The regular files below a directory, in the order of their names, and how many other things there are.

    :raises OSError: a directory cannot be read.
    """
    found: list[LocalFile] = []
    skipped = 0
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(os.path.join(root, prefix) if prefix else root) as entries:
            for entry in entries:
                name = prefix + entry.name
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(name + "/")
                elif ignored is not None and ignored(name):
                    continue
                elif stat.S_ISREG(info.st_mode):
                    mode = stat.S_IMODE(info.st_mode)
                    found.append(LocalFile(name, entry.path, info.st_size, mode, info.st_mtime_ns))
                else:
                    skipped += 1
    return sorted(found, key=lambda file: file.name), skipped


def changed(files: Sequence[LocalFile], there: Mapping[str, tuple[int, str]], cache: Cache | None) -> list[LocalFile]:
    """Those that the VM does not have, or with other bytes; `there`: size and SHA-256 by name."""

    def differs(file: LocalFile) -> bool:
        size, digest = there.get(file.name, (-1, ""))
        return size != file.size or _digest(file, cache) != digest

    with ThreadPoolExecutor(HASHERS) as pool:
        return [file for file, other in zip(files, pool.map(differs, files), strict=True) if other]


def _digest(file: LocalFile, cache: Cache | None) -> str:
    key = os.path.abspath(file.path)
    if cache is not None and (known := cache.get(key)) is not None and known[:2] == (file.size, file.changed):
        return known[2]
    with open(os.open(file.path, _READ), "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if cache is not None:
        cache[key] = (file.size, file.changed, digest)
    return digest


def batches(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    """Small files together, large ones alone."""
    held: list[LocalFile] = []
    size = 0
    for file in files:
        if file.size > SMALL:
            yield [file]
            continue
        if len(held) == BATCH_FILES or (held and size + file.size > BATCH_BYTES):
            yield held
            held, size = [], 0
        held.append(file)
        size += file.size
    if held:
        yield held


class Archive:
    """A tar archive of files, made as it is read. `size`: its bytes."""

    def __init__(self, files: Sequence[LocalFile]) -> None:
        self._files = [(file, _header(file)) for file in files]
        self.size = sum(len(head) + file.size + -file.size % _BLOCK for file, head in self._files) + 2 * _BLOCK

    def pieces(self, moved: Callable[[int], object] | None = None) -> Iterator[bytes]:
        """BadRequest: a file is not what it was. `moved` is told of the bytes of files."""
        held: list[bytes] = []
        count = 0
        for file, head in self._files:
            held.append(head)
            count += len(head)
            for piece in whole(file):
                held.append(piece)
                count += len(piece)
                if count >= PIECE:
                    yield b"".join(held)
                    held, count = [], 0
            held.append(bytes(-file.size % _BLOCK))
            if moved is not None:
                moved(file.size)
        yield b"".join([*held, bytes(2 * _BLOCK)])


def opened(file: LocalFile) -> BinaryIO:
    return cast(BinaryIO, open(os.open(file.path, _READ), "rb", buffering=0))


def whole(file: LocalFile) -> Iterator[bytes]:
    """All bytes of a file. BadRequest: it is not what it was."""
    with opened(file) as content:
        left = file.size
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            raise _other(file)
        while left:
            piece = content.read(min(PIECE, left))
            if not piece:
                raise _other(file)
            left -= len(piece)
            yield piece


def _other(file: LocalFile) -> BadRequest:
    return BadRequest("bad_request", f"{file.path!r} was changed while it was read")


def _header(file: LocalFile) -> bytes:
    info = tarfile.TarInfo(file.name)
    info.size = file.size
    info.mode = file.mode & 0o1777
    info.mtime = file.changed // 1_000_000_000
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def here(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the blocking SDK has for a thread."""
    return work(*args, **kwargs)
