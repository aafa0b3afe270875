"""A VM as one file: a tar archive, packed with zstd.

    boxwood.json     what it is: format, settings of the VM, the image that it stands on
    tree/…           its files (engine/layers/pack.py)
    boxwood.sha256   of every byte before this entry; then the end of the archive

Both ways run in constant memory. What is read comes from strangers: nothing is kept of it before it was checked, and
the sum is that of an intact archive, not of a trustworthy one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from boxwood.core.errors import BadRequest
from boxwood.engine import tarform
from boxwood.engine.layers import tar
from boxwood.engine.tarform import BLOCK, padding

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

FORMAT = 1
HEAD, TAIL = b"boxwood.json", b"boxwood.sha256"
MOST_HEAD = 256 << 10  # bytes
PIECE = 1 << 20
_WINDOW = 27  # bits: the memory that an archive may want
_TAIL_BYTES = 4 * BLOCK  # header, sum, end
_OPTIONS: dict[int, int] = {zstd.CompressionParameter.compression_level: 3, zstd.CompressionParameter.checksum_flag: 1}


class Writer:
    """What comes out of each method is the next of the file."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._sum = hashlib.sha256()
        self._packer = zstd.ZstdCompressor(options=_OPTIONS)
        self._head = json.dumps(about, indent=1).encode() + b"\n"

    def begin(self) -> bytes:
        head = self._head
        return self.more(_plain(HEAD, len(head)) + head + bytes(padding(len(head))))

    def more(self, data: bytes) -> bytes:
        self._sum.update(data)
        return self._packer.compress(data)

    def end(self) -> bytes:
        return self._packer.compress(_tail(self._sum.hexdigest())) + self._packer.flush()


class Reader:
    """Takes the file bit by bit, and gives what is between its head and its tail. BadRequest."""

    def __init__(self) -> None:
        self._unpacker = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW})
        self._sum = hashlib.sha256()
        self._kept = bytearray()  # what has come and may be the tail; before the head is whole: all of it
        self.about: Mapping[str, Any] | None = None

    def take(self, data: bytes) -> bytes:
        """At most `PIECE` bytes of what is in `data`; as long as there is `more`, b"" brings it."""
        try:
            if self._unpacker.eof:
                if data:
                    raise _bad("something comes after its end")
                return b""
            self._kept += self._unpacker.decompress(data, PIECE)
        except zstd.ZstdError as error:
            raise _bad(f"it is not packed with zstd, or damaged: {error}") from None
        if self._unpacker.unused_data:
            raise _bad("something comes after its end")
        if self.about is None and not self._begin():
            return b""
        ready = bytes(self._kept[: max(0, len(self._kept) - _TAIL_BYTES)])
        del self._kept[: len(ready)]
        self._sum.update(ready)
        return ready

    @property
    def more(self) -> bool:
        """Is there some in what was taken last that has not come out?"""
        return not self._unpacker.needs_input and not self._unpacker.eof

    def end(self) -> None:
        """All has been taken: was it whole?"""
        if self.about is None or not self._unpacker.eof:
            raise _bad("it is cut short")
        if not hmac.compare_digest(bytes(self._kept), _tail(self._sum.hexdigest())):
            raise _bad("its digest is not that of what is in it")

    def _begin(self) -> bool:
        """Read the head; False: it has not all come yet."""
        if len(self._kept) < BLOCK:
            return False
        block = bytes(self._kept[:BLOCK])
        try:
            size = int(block[124:135], 8)
        except ValueError:
            size = -1
        if size < 0 or block != _plain(HEAD, size):
            raise _bad(f"it does not begin with {HEAD.decode()}")
        if size > MOST_HEAD:
            raise _bad("its head is too long")
        end = BLOCK + size + padding(size)
        if len(self._kept) < end:
            return False
        try:
            about = json.loads(bytes(self._kept[BLOCK : BLOCK + size]))
        except (ValueError, RecursionError):
            raise _bad("its head is no JSON") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise _bad(f"it is of a format that this server does not read (it reads {FORMAT})")
        self._sum.update(self._kept[:end])
        del self._kept[:end]
        self.about = about
        return True


def _plain(name: bytes, size: int) -> bytes:
    """A header without an extended one, always the same."""
    return tarform.header(name, tar.FILE, b"", mode=0o644, uid=0, gid=0, size=size, seconds=0)


def _tail(digest: str) -> bytes:
    text = digest.encode() + b"\n"
    return _plain(TAIL, len(text)) + text + bytes(padding(len(text))) + bytes(2 * BLOCK)


def _bad(why: str) -> BadRequest:
    return BadRequest(f"the archive cannot be imported: {why}")
