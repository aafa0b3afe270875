"""Heads of tar archives (POSIX.1-2001 pax, ustar; GNU's long names and large numbers are read): bytes to members and
back. Names are bytes, whatever they are; nothing is looked up."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from boxwood.engine import tarform
from boxwood.engine.agent.files import Refusal
from boxwood.engine.tarform import BLOCK, padding

_NUMBERS = 0o7777777  # the largest that a head's short fields hold
_LARGEST = 0o77777777777  # of its long ones
_DIGITS = 19  # of a number in an extended header
_FAR = 1 << 62  # nanoseconds either way of 1970: further away no file is from
FILE, LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
CHARACTER, DEVICE, FIFO, OLD_SPARSE = b"3", b"4", b"6", b"S"
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"x", b"g", b"L", b"K"
_SPARSE = b"GNU.sparse"
_KEYWORDS = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", _SPARSE})


@dataclass(slots=True)
class Member:
    """`kind`: FILE, LINK (a hard link to the member `target`), SYMLINK, DIRECTORY or another type flag. `modified`:
    nanoseconds since 1970."""

    name: bytes
    kind: bytes
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    modified: int = 0
    target: bytes = b""

    @property
    def content(self) -> int:
        """Bytes that follow in the archive, without their padding."""
        return 0 if self.kind in (LINK, SYMLINK, DIRECTORY, CHARACTER, DEVICE, FIFO) else self.size


# --- writing


def head(member: Member) -> bytes:
    """All blocks in front of a member's content."""
    records: dict[bytes, bytes] = {}
    name = _fitting(member.name, 100, b"path", records)
    target = _fitting(member.target, 100, b"linkpath", records)
    size = _small(b"size", member.size, _LARGEST, records)
    uid, gid = _small(b"uid", member.uid, _NUMBERS, records), _small(b"gid", member.gid, _NUMBERS, records)
    seconds, nanoseconds = divmod(member.modified, 10**9)
    if nanoseconds or not 0 <= seconds <= _LARGEST:
        records[b"mtime"] = b"%d.%09d" % (seconds, nanoseconds) if seconds >= 0 else b"%d" % seconds
    own = tarform.header(
        name, member.kind, target,
        mode=member.mode & 0o7777, uid=uid, gid=gid, size=size, seconds=min(max(seconds, 0), _LARGEST),
    )  # fmt: skip
    if not records:
        return own
    extended = b"".join(tarform.record(keyword, value) for keyword, value in records.items())
    above = tarform.header(
        b"././@PaxHeader", PAX, b"", mode=0o644, uid=0, gid=0, size=len(extended), seconds=0
    )  # fmt: skip
    return above + extended + bytes(padding(len(extended))) + own


def end() -> bytes:
    return bytes(2 * BLOCK)


def _fitting(value: bytes, room: int, keyword: bytes, records: dict[bytes, bytes]) -> bytes:
    if len(value) <= room and value.isascii():
        return value
    records[keyword] = value
    if not tarform.is_text(value):
        records.setdefault(b"hdrcharset", b"BINARY")
    return value[:room].decode("ascii", "replace").encode("ascii", "replace")


def _small(keyword: bytes, value: int, most: int, records: dict[bytes, bytes]) -> int:
    if 0 <= value <= most:
        return value
    records[keyword] = b"%d" % value
    return 0


# --- reading


def parse(block: bytes, extended: dict[bytes, bytes]) -> Member:
    """The member that a head begins (see `is_head`), `extended` by what came before it. Refusal."""
    name, prefix = _text(block[:100]), _text(block[345:500]) if block[257:263] == tarform.USTAR else b""
    member = Member(
        name=prefix + b"/" + name if prefix else name,
        kind=FILE if block[156:157] in (b"\0", b"7") else block[156:157],
        size=_number(block[124:136]),
        mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        modified=_number(block[136:148]) * 10**9,
        target=_text(block[157:257]),
    )
    _extend(member, {keyword: value for keyword, value in extended.items() if value})  # an empty one takes back
    if member.size < 0:
        raise broken("a size below zero")
    member.modified = min(max(member.modified, -_FAR), _FAR)
    if member.kind == FILE and member.name.endswith(b"/"):
        member.kind = DIRECTORY  # of the old way to say it
    return member


def is_head(block: bytes) -> bool:
    """Is its sum right?"""
    try:
        return tarform.checksum(block) == _number(block[148:156])
    except Refusal:
        return False


def _extend(member: Member, extended: dict[bytes, bytes]) -> None:
    if _SPARSE in extended or member.kind == OLD_SPARSE:
        raise Refusal(errno.EINVAL, "a sparse file is not taken: pack it without --sparse")
    member.name = extended.get(b"path", member.name)
    member.target = extended.get(b"linkpath", member.target)
    member.size = _decimal(extended, b"size", member.size)
    member.uid, member.gid = _decimal(extended, b"uid", member.uid), _decimal(extended, b"gid", member.gid)
    if (modified := extended.get(b"mtime")) is not None:
        seconds, _, fraction = modified.partition(b".")
        member.modified = _decimal({b"mtime": seconds}, b"mtime", 0) * 10**9
        if fraction[:9].isdigit() and member.modified >= 0:
            member.modified += int(fraction[:9].ljust(9, b"0"))


def _decimal(extended: dict[bytes, bytes], keyword: bytes, otherwise: int) -> int:
    value = extended.get(keyword)
    if value is None:
        return otherwise
    digits = value.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > _DIGITS:
        raise broken(f"an extended header with {value[:30]!r} for a number")
    return int(value)


def records(data: bytes) -> dict[bytes, bytes]:
    """What of an extended header is of use here; some end it with NUL. Refusal."""
    found: dict[bytes, bytes] = {}
    try:
        for keyword, value in tarform.records(data.rstrip(b"\0")):
            if keyword.startswith(_SPARSE):
                found[_SPARSE] = b"1"
            elif keyword in _KEYWORDS:
                found[keyword] = value
    except ValueError:
        raise broken("an extended header that makes no sense") from None
    return found


def broken(what: str) -> Refusal:
    return Refusal(errno.EINVAL, f"not a tar archive that can be read: {what}")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: binary, of two's complement
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big") - (
            (field[0] & 0x40) << (8 * len(field) - 7)
        )
    digits = _text(field).strip(b" ")
    if digits and (not digits.isdigit() or b"8" in digits or b"9" in digits):
        raise broken(f"{field[:12]!r} for a number")
    return int(digits, 8) if digits else 0
