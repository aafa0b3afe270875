"""The tar archives that states of VMs travel in: written so that any tar reads them, read as strictly as written.

An entry is a POSIX header, before which an extended one says what does not fit in it: names of any length and bytes,
times to the nanosecond, extended attributes, the holes of sparse files (GNU's format 1.0). Nothing else is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from boxwood.engine import tarform
from boxwood.engine.tarform import BLOCK, MOST_EXTENDED, padding

FILE, LINK, SYMLINK, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"5", b"6"
_EXTENDED = b"x"
_ATTRIBUTE = b"SCHILY.xattr."
_KEYS = {b"path", b"linkpath", b"size", b"mtime", b"hdrcharset"}
_SPARSE = {b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"GNU.sparse.realsize"}
_OCTAL_SIZE = 8**11


class Refused(Exception):
    """The archive is broken, or made to do harm; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` and `target` are bytes as they are on the disk, without `/` at their ends. `size`: bytes of content that
    follow in the archive. `real_size`: of a sparse file, whose content begins with a map of its data. `mtime` in ns."""

    kind: bytes
    name: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: bytes = b""
    real_size: int | None = None
    attributes: Mapping[bytes, bytes] = field(default_factory=dict)


# --- writing


def encode(entry: Entry) -> bytes:
    """Its headers. Refused: no header is long enough for it."""
    records = {b"mtime": b"%d.%09d" % divmod(entry.mtime, 10**9)}
    if len(entry.name) > 100 or not _is_plain(entry.name):
        records[b"path"] = entry.name
    if len(entry.target) > 100 or not _is_plain(entry.target):
        records[b"linkpath"] = entry.target
    if entry.size >= _OCTAL_SIZE:
        records[b"size"] = b"%d" % entry.size
    if entry.real_size is not None:
        records |= {
            b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": entry.name,
            b"GNU.sparse.realsize": b"%d" % entry.real_size,
        }  # fmt: skip
    records |= {_ATTRIBUTE + key: value for key, value in entry.attributes.items()}
    if not all(tarform.is_text(records.get(key, b"")) for key in (b"path", b"linkpath")):
        records = {b"hdrcharset": b"BINARY", **records}
    extended = b"".join(tarform.record(key, value) for key, value in records.items())
    if len(extended) > MOST_EXTENDED:
        raise Refused(f"a path, or its attributes, have more than {MOST_EXTENDED} bytes")
    first = tarform.header(b"boxwood", _EXTENDED, b"", mode=0o644, uid=0, gid=0, size=len(extended), seconds=0)
    own = tarform.header(
        entry.name[:100], entry.kind, entry.target[:100], mode=entry.mode, uid=entry.uid, gid=entry.gid,
        size=0 if entry.size >= _OCTAL_SIZE else entry.size,
        seconds=min(max(entry.mtime // 10**9, 0), _OCTAL_SIZE - 1),
    )  # fmt: skip
    return first + extended + bytes(padding(len(extended))) + own


def _is_plain(name: bytes) -> bool:
    return name.isascii() and b"\0" not in name


# --- reading


def decode(read: Callable[[int], bytes]) -> Entry | None:
    """The next entry, whose content is the next to be read; None: the end. `read` gives exactly so many bytes, or at
    the end of all nothing. Refused."""
    block = read(BLOCK)
    if not block:
        return None
    kind, fields = _parsed(block)
    records: dict[bytes, bytes] = {}
    if kind == _EXTENDED:
        size = _octal(fields, 124, 12)
        if size > MOST_EXTENDED:
            raise Refused("an extended header is too long")
        records = _records(read(size + padding(size))[:size])
        kind, fields = _parsed(read(BLOCK))
    if kind not in (FILE, LINK, SYMLINK, DEVICE, DIRECTORY, FIFO):
        raise Refused(f"an entry is of a kind that is none of ours ({kind!r})")
    size = _number(records[b"size"]) if b"size" in records else _octal(fields, 124, 12)
    if size and kind != FILE:
        raise Refused("something that is no file has content")
    if kind == DEVICE and fields[329:345].strip(b"0\0 "):
        raise Refused("a device node")
    return Entry(
        kind, records.get(b"path", fields[:100].rstrip(b"\0")), _octal(fields, 100, 8), _octal(fields, 108, 8),
        _octal(fields, 116, 8), size, _time(records, fields), records.get(b"linkpath", fields[157:257].rstrip(b"\0")),
        _real_size(records),
        {key.removeprefix(_ATTRIBUTE): value for key, value in records.items() if key.startswith(_ATTRIBUTE)},
    )  # fmt: skip


def _parsed(block: bytes) -> tuple[bytes, bytes]:
    if len(block) != BLOCK or block[257:263] != tarform.USTAR:
        raise Refused("something that is no header stands where one should")
    if _octal(block, 148, 8) != tarform.checksum(block):
        raise Refused("a header is damaged: its sum is wrong")
    return block[156:157], block


def _octal(block: bytes, at: int, size: int) -> int:
    text = block[at : at + size].strip(b"\0 ")
    if not text.isdigit():
        raise Refused("a header holds a number that is none")
    try:
        return int(text, 8)
    except ValueError:
        raise Refused("a header holds a number that is none") from None


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise Refused("an extended header holds a number that is none")
    return int(text)


def _time(records: Mapping[bytes, bytes], fields: bytes) -> int:
    if b"mtime" not in records:
        return _octal(fields, 136, 12) * 10**9
    text = records[b"mtime"]
    seconds, _, rest = text.removeprefix(b"-").partition(b".")
    whole = _number(seconds) * 10**9 + (_number(rest[:9].ljust(9, b"0")) if rest else 0)
    if whole >= 1 << 62:
        return 0
    # What is before 1970 was written as a whole number below and a part above it.
    return whole if not text.startswith(b"-") else -_number(seconds) * 10**9 + (whole % 10**9)


def _real_size(records: Mapping[bytes, bytes]) -> int | None:
    if not _SPARSE & records.keys():
        return None
    if records.get(b"GNU.sparse.major") != b"1" or records.get(b"GNU.sparse.minor") != b"0":
        raise Refused("a sparse file of another format")
    return _number(records.get(b"GNU.sparse.realsize", b""))


def _records(data: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    try:
        for key, value in tarform.records(data):
            if key in found or not (key in _KEYS or key in _SPARSE or key.startswith(_ATTRIBUTE)):
                what = "holds a keyword that is none of ours, or is there twice"
                raise Refused(f"an extended header {what} ({key[:60]!r})")
            found[key] = value
    except ValueError:
        raise Refused("an extended header is broken") from None
    return found
