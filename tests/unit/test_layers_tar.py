"""Our tar: what is written is read again, and whatever else is read is refused and nothing worse."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.core.archives import Reader, Writer, zstd
from boxwood.core.errors import BadRequest
from boxwood.engine.layers import tar
from boxwood.engine.layers.tar import Entry, Refused
from boxwood.engine.tarform import BLOCK, checksum

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))
ENTRIES = st.builds(
    Entry, kind=st.sampled_from([tar.DIRECTORY, tar.SYMLINK, tar.FIFO, tar.LINK]), name=NAMES,
    mode=st.integers(0, 0o7777), uid=st.integers(0, 65535), gid=st.integers(0, 65535),
    mtime=st.integers(-(10**18), 10**18), target=NAMES,
    attributes=st.dictionaries(st.sampled_from([b"user.a", b"security.capability"]), st.binary(max_size=50)),
)  # fmt: skip


def read_all(data: bytes) -> list[Entry]:
    stream, found = io.BytesIO(data), []
    while (entry := tar.decode(stream.read)) is not None:
        found.append(entry)
    return found


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=4))
def test_what_is_written_is_read(entries: list[Entry]) -> None:
    assert read_all(b"".join(map(tar.encode, entries))) == entries


def test_sizes_that_no_octal_number_holds() -> None:
    entry = Entry(tar.FILE, b"f", size=1 << 40, real_size=1 << 41)
    assert read_all(tar.encode(entry)) == [entry]
    with pytest.raises(Refused):
        tar.encode(Entry(tar.FILE, b"n" * (2 << 20)))


@settings(max_examples=400, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=2), st.data())
def test_what_is_damaged_is_refused_or_read(entries: list[Entry], data: st.DataObject) -> None:
    archive = bytearray(b"".join(map(tar.encode, entries)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
    for start in range(0, len(archive), BLOCK):  # its sums are right again
        block = bytes(archive[start : start + BLOCK])
        if block[257:263] == b"ustar\0":
            archive[start + 148 : start + 156] = b"%06o\0 " % checksum(block)
    try:
        read_all(bytes(archive))
    except Refused:
        pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_anything_at_all(data: bytes) -> None:
    for read in (lambda: read_all(data), lambda: _taken(data), lambda: _taken(zstd.compress(data))):
        with pytest.raises((Refused, BadRequest)):
            if not read():
                raise Refused("nothing")


def _taken(data: bytes) -> None:
    reader = Reader()
    reader.take(data)
    while reader.more:
        reader.take(b"")
    reader.end()


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_a_file_in_pieces(body: bytes, size: int) -> None:
    writer = Writer({"format": 1, "x": "ä"})
    packed = writer.begin() + writer.more(body) + writer.end()
    reader, found = Reader(), b""
    for at in range(0, len(packed), size):
        found += reader.take(packed[at : at + size])
        while reader.more:
            found += reader.take(b"")
    reader.end()
    assert found == body and reader.about == {"format": 1, "x": "ä"}


def test_tar_reads_the_ends() -> None:
    writer = Writer({"format": 1})
    packed = writer.begin() + writer.end()
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(packed))) as archive:
        assert archive.getnames() == ["boxwood.json", "boxwood.sha256"]
