"""What is written to a file of a VM: text, bytes, a file, or pieces as they come; no network I/O."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import IO, cast

from boxwood.client.errors import BadRequest

PIECE = 1 << 20  # bytes that are read from a file at once
Content = str | bytes | IO[bytes] | Iterable[bytes]


class Source:
    """`size`: in bytes, None if only the end will tell. `again`: may it be read a second time? `is_file`: is it read
    from an open file, which may take its time?"""

    def __init__(self, data: Content, what: str) -> None:
        self._what = what
        self._file: IO[bytes] | None = None
        self._data: memoryview | Iterable[bytes] | None = None
        self._begin = 0
        self.size: int | None = None
        given: object = data.encode("utf-8") if isinstance(data, str) else data
        if isinstance(given, bytes | bytearray | memoryview):
            self._data = memoryview(given).cast("B")
            self.size = len(self._data)
        elif isinstance(given, io.TextIOBase):
            raise _no_content()
        elif hasattr(given, "read"):
            self._of_file(cast(IO[bytes], given))
        elif isinstance(given, Iterable) and not isinstance(given, dict):
            self._data = given
        else:
            raise _no_content()
        self.is_file = self._file is not None
        self.again = self.size is not None

    def _of_file(self, file: IO[bytes]) -> None:
        self._file = file
        if file.seekable():
            self._begin = file.tell()
            self.size = max(0, file.seek(0, os.SEEK_END) - self._begin)  # it may stand behind its end
            file.seek(self._begin)

    def pieces(self) -> Iterator[bytes]:
        """From the beginning. BadRequest: the file has become shorter meanwhile, or a piece is none."""
        if self._file is not None:
            yield from self._read(self._file)
        elif isinstance(self._data, memoryview):
            for at in range(0, len(self._data), PIECE):
                yield bytes(self._data[at : at + PIECE])
        else:
            assert self._data is not None
            for piece in self._data:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise _no_content()
                yield bytes(piece)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        if self.size is None:
            while piece := file.read(PIECE):
                yield piece
            return
        file.seek(self._begin)
        left = self.size
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:
                raise BadRequest(
                    "bad_request", f"the file to be written to {self._what} became shorter while it was read"
                )
            left -= len(piece)
            yield piece


def _no_content() -> BadRequest:
    return BadRequest(
        "bad_request", "a file's content is text, bytes, a file opened in binary mode, or pieces of bytes"
    )
