"""Reading a tar archive that may be hostile, in one pass, into a `Tree`.

How it is compressed (gzip, bzip2, xz, zstd) its first bytes tell. Runs confined (confine.py). What `tarfile` would
believe without asking (sizes of extended headers, an end that never came) is checked here.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from boxwood.images.tree import Refused, Status, Tree, shown

BLOCK = 1 << 20
ZSTD = importlib.import_module("compression.zstd") if sys.version_info >= (3, 14) else None
_HEADER = 1 << 18  # bytes of one extended header: names and attributes
# Of digits: tarfile's work on them grows with the square (CVE-2024-6232).
_LONGEST_NUMBER = re.compile(rb"(?<![0-9])[0-9]{1000}")
_GLOBAL = 200  # keywords that hold for all members: tarfile copies them for each
_BLOCK = tarfile.BLOCKSIZE  # to which all is rounded up
_PIECE = 1 << 14  # bytes at once of a sparse file: tarfile puts them together from as many parts as there are holes
_RATIO = 400  # of unpacked to packed bytes …
_SMALL = 1 << 30  # … beyond this many unpacked
_EXTENDED = {
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
}  # fmt: skip
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}

BROKEN = (
    tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError,
    MemoryError,
)  # fmt: skip


def compression(start: bytes) -> str | None:
    """Of a file that begins so; None: not compressed, or nothing we know."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def decompressed(packed: IO[bytes], kind: str | None) -> IO[bytes]:
    """What is in it. Concatenated streams count as one, as their tools have it."""
    if kind == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=packed))
    if kind == "bzip2":
        return cast(IO[bytes], bz2.BZ2File(packed))
    if kind == "xz":
        return cast(IO[bytes], lzma.LZMAFile(packed))
    if kind == "zstd" and ZSTD is not None:
        return cast(IO[bytes], ZSTD.ZstdFile(packed))
    if kind == "zip":
        raise Refused("this is a zip file; a root file system is a tar archive (.tar, .tar.gz, .tar.xz, .tar.zst)")
    return packed


class _Header(tarfile.TarInfo):
    """A member that is looked at before its data are read."""

    ended = False  # has the mark of the end been seen?

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # public in its module, not in typeshed
            cls.ended = True
            raise
        if header.size < 0 or (header.type in _EXTENDED and header.size > _HEADER):
            raise Refused("the archive holds a header of an impossible size")
        return header

    def _proc_pax(self, archive: Any) -> Any:
        """An extended header is looked at before tarfile looks for keywords in it."""
        if len(archive.pax_headers) > _GLOBAL:
            raise Refused(f"the archive's global headers hold more than {_GLOBAL} keywords")
        stream = archive.fileobj
        data = stream.read(-(-self.size // _BLOCK) * _BLOCK)
        if _LONGEST_NUMBER.search(data):
            raise Refused("an extended header holds a number without end: it is made to be looked at for hours")
        archive.fileobj = _Again(data, stream)
        try:
            return super()._proc_pax(archive)  # type: ignore[misc]  # tarfile's own, in all versions
        finally:
            archive.fileobj = stream


class _Again:
    """A stream of which so much has been read too early."""

    def __init__(self, early: bytes, stream: Any) -> None:
        self._early = io.BytesIO(early)
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._early.read(size) or cast(bytes, self._stream.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Metered:
    """The unpacked stream: counts, and refuses what unpacks to too much. `position` says how many packed bytes went."""

    def __init__(self, stream: IO[bytes], position: Callable[[], int], most: int, told: Callable[[int], None]) -> None:
        self._stream = stream
        self._position = position
        self._most = most
        self._told = told
        self._unpacked = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._unpacked += len(data)
        packed = self._position()
        if self._unpacked > self._most:
            raise Refused(f"the archive unpacks to more than {self._most >> 20} MiB")
        if self._unpacked > _SMALL and self._unpacked > _RATIO * packed:
            raise Refused("the archive unpacks to an absurd size: it is made to fill disks")
        self._told(packed)
        return data

    def drain(self) -> None:
        """Read what follows the archive's end: only then are the checksums of a compressed stream looked at."""
        while self.read(BLOCK):
            pass


def unpack(stream: Metered, tree: Tree) -> int:
    """Put all members into the tree; how many devices were left out.

    :raises Refused: hostile, or no tar archive, or one cut short.
    """

    class Header(_Header):
        """This archive's own: it remembers the end."""

    try:
        archive = tarfile.open(  # noqa: SIM115 (a stream that is not ours to close)
            fileobj=cast(IO[bytes], stream), mode="r|", bufsize=BLOCK, tarinfo=Header, encoding="utf-8",
            errors="surrogateescape",
        )  # fmt: skip
        skipped = 0
        while (member := archive.next()) is not None:
            skipped += not _put(archive, member, tree)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
        stream.drain()
    except (*BROKEN, gzip.BadGzipFile) as error:
        raise Refused(f"not a whole tar archive: {type(error).__name__}: {error}") from error
    if not Header.ended:
        raise Refused("the archive is cut short, or damaged: its end is missing")
    return skipped


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, tree: Tree) -> bool:
    """False: a device, which no layer holds."""
    if member.size < 0:
        raise Refused(f"{shown(member.name)} has an impossible size")
    status = Status(member.mode, member.uid, member.gid, float(member.mtime))
    if member.isdir():
        tree.directory(member.name, status)
    elif member.issym():
        tree.symlink(member.name, member.linkname, status)
    elif member.islnk():
        tree.hard_link(member.name, member.linkname)
    elif member.isfifo():
        tree.fifo(member.name, status)
    elif member.isreg():
        tree.file(member.name, status, member.size, _content(archive, member))
    elif member.isdev():
        return False
    else:
        raise Refused(f"{shown(member.name)} is of a kind that tar does not know ({member.type!r})")
    return True


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    holes = cast("list[tuple[int, int]] | None", member.sparse)  # typeshed has it wrong
    if holes is not None and not _in_order(holes, member.size):
        raise Refused(f"{shown(member.name)} has holes that cannot be")
    source = archive.extractfile(member)
    assert source is not None
    with source:
        while block := source.read(BLOCK if holes is None else _PIECE):
            yield block


def _in_order(parts: Sequence[tuple[int, int]], size: int) -> bool:
    """Do the parts of a sparse file, (offset, size) each, lie one behind the other, and in the file? What tarfile does
    with others takes it as long as there are parts, for every byte."""
    ends = [0, *(offset + length for offset, length in parts)]
    return ends[-1] <= size and all(
        end <= offset <= then for end, (offset, _), then in zip(ends, parts, ends[1:], strict=False)
    )
