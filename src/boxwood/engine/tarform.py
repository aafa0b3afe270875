"""What every tar archive is made of (POSIX.1-2001, pax): blocks, their sums, records of extended headers. What may be
in an archive say those who read it: engine/agent/tarhead.py for anybody's, engine/layers/tar.py for our own."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 512
MOST_EXTENDED = 1 << 20  # bytes of an extended header
USTAR = b"ustar\0"
_LENGTH_BYTES = 12  # of the number that a record begins with, and the space behind it


def padding(size: int) -> int:
    """How many bytes follow so many of content."""
    return -size % BLOCK


def checksum(block: bytes) -> int:
    """That of a header, whose own field counts as spaces."""
    return sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def header(name: bytes, kind: bytes, target: bytes, *, mode: int, uid: int, gid: int, size: int, seconds: int) -> bytes:
    """One block. Names have up to 100 bytes, mode and owners 21 bits, size and time 33."""
    fields = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%s" % (
        name.ljust(100, b"\0"), mode, uid, gid, size, seconds, kind, target.ljust(100, b"\0"),
    )  # fmt: skip
    block = (fields + USTAR + b"00" + bytes(64) + b"0000000\0" * 2).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def record(keyword: bytes, value: bytes) -> bytes:
    """`LENGTH keyword=value\\n`, in which the length counts itself."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + 1
    while len(digits := b"%d" % length) + len(rest) != length:
        length = len(digits) + len(rest)
    return digits + rest


def records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(keyword, value) of an extended header. ValueError: it makes no sense."""
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + _LENGTH_BYTES].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else at
        keyword, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise ValueError("a record of an extended header makes no sense")
        yield keyword, value[:-1]
        at = end


def is_text(value: bytes) -> bool:
    """Else it goes with `hdrcharset=BINARY`."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
