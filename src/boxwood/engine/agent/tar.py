"""A tar stream as it comes: one member after the other, whatever the archive says of itself bounded and checked.

Written for what may be hostile, and for PID 1's children, which import nothing: plain or gzip; nothing is read
backwards, no header is believed to be short.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import Any

from boxwood.engine.agent import tarhead
from boxwood.engine.agent.tarhead import Member, broken
from boxwood.engine.tarform import BLOCK, MOST_EXTENDED, padding

_PIECE = 1 << 18
_NO_LIMIT = 1 << 62
_GZIP = 31  # to zlib: the format, and the largest window
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
_MORE = (tarhead.PAX, tarhead.PAX_GLOBAL, tarhead.GNU_NAME, tarhead.GNU_LINK)  # what comes before a head


class Source:
    """Bytes of a descriptor, which stays the caller's, unpacked if they are `packed` with gzip. `limit`: how many may
    come. Each call may raise Refusal (the archive breaks off, is too large, is not gzip) and OSError."""

    def __init__(self, fd: int, *, packed: bool = False, limit: int = _NO_LIMIT) -> None:
        self._file = io.BufferedReader(_Unzipped(fd) if packed else io.FileIO(fd, closefd=False), _PIECE)
        self._left = limit

    def read(self, size: int) -> bytes:
        """So many bytes at once; fewer only at the end."""
        return self._counted(self._file.read(size))

    def exactly(self, size: int) -> bytes:
        data = self.read(size)
        if len(data) != size:
            raise broken("it is cut short")
        return data

    def pieces(self, size: int) -> Iterator[bytes]:
        """So many bytes, in pieces."""
        while size:
            piece = self._counted(self._file.read1(min(size, _PIECE)))
            if not piece:
                raise broken("it is cut short")
            size -= len(piece)
            yield piece

    def copy(self, size: int, to: int) -> None:
        for piece in self.pieces(size):
            view = memoryview(piece)
            while view:
                view = view[os.write(to, view) :]

    def skip(self, size: int) -> None:
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """To the end: blocks that fill a tape's record, and whoever writes to us is let finish."""
        while self._counted(self._file.read1(_PIECE)):
            pass

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise broken("it holds more than is taken")
        return data


class _Unzipped(io.RawIOBase):
    """What is in gzip members, one after the other; NUL may fill what is behind them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unpacker = zlib.decompressobj(_GZIP)
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._more(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _more(self, most: int) -> bytes:
        while True:
            if not self._packed and not (packed := os.read(self._fd, _PIECE)):
                if not self._unpacker.eof:
                    raise broken("it is cut short")
                return b""
            self._packed = self._packed or packed
            if self._unpacker.eof:  # another one may follow
                if not self._packed.strip(b"\0"):
                    self._packed = b""
                    continue
                self._unpacker = zlib.decompressobj(_GZIP)
            try:
                data = self._unpacker.decompress(self._packed, most)
            except zlib.error:
                raise broken("it is not gzip") from None
            self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            if data:
                return data


def members(source: Source, *, whole: bool) -> Iterator[Member]:
    """One after the other; whoever is given one reads its `content`, and the padding behind it. `whole`: an archive
    that does not say where it ends is cut short. Refusal, OSError."""
    common: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    while block := source.read(BLOCK):
        if block.count(0) == BLOCK:
            source.drain()
            return
        if len(block) < BLOCK or not tarhead.is_head(block):
            raise broken(_why_not(block))
        kind = block[156:157]
        if kind not in _MORE:
            yield tarhead.parse(block, common | own)
            own.clear()
            continue
        said = _extended(source, tarhead.parse(block, {}).size)
        if kind == tarhead.PAX_GLOBAL:
            common |= tarhead.records(said)
        elif kind == tarhead.PAX:
            own |= tarhead.records(said)
        else:
            own[b"path" if kind == tarhead.GNU_NAME else b"linkpath"] = said.partition(b"\0")[0]
    if whole:
        raise broken("it is cut short")


def _why_not(block: bytes) -> str:
    if block.startswith(_COMPRESSED):
        return "it is compressed; send it as it is without that"
    return "it is cut short" if len(block) < BLOCK else "a head with a wrong check sum"


def _extended(source: Source, size: int) -> bytes:
    if size > MOST_EXTENDED:
        raise broken(f"an extended header of {size} bytes is too long")
    return source.exactly(size + padding(size))[:size]
