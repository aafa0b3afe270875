"""Archives that the agent unpacks, as a stream or with skipping: what is in them ends up below the directory, or is refused."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.engine.agent import files, tar, tarhead, unpacking
from boxwood.engine.agent.unpacking import Unpacker
from boxwood.engine.tarform import checksum

LIMIT = 1 << 30


def info(name: str | bytes, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(os.fsdecode(name))
    made.type = kind
    for key, value in more.items():
        setattr(made, key, value)
    return made


def packed(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def unpack(
    root: Path, data: bytes, *, gz: bool = False, limit: int = LIMIT, whole: bool = False, **how: Any
) -> Unpacker:
    """As a stream, unless something else is said in `how`."""
    reader, writer = os.pipe()

    def give() -> None:
        with open(writer, "wb") as pipe:
            try:
                pipe.write(data)
            except BrokenPipeError:
                pass

    giver = threading.Thread(target=give)
    giver.start()
    top = unpacking.open_top(bytes(root))
    unpacker = Unpacker(top, **how)
    try:
        unpacker.unpack(tar.Source(reader, packed=gz, limit=limit), whole=whole)
    finally:
        os.close(top)
        os.close(reader)
        giver.join()
    return unpacker


def refused(root: Path, data: bytes, number: int = errno.EINVAL, **more: object) -> str:
    with pytest.raises(files.Refusal) as caught:
        unpack(root, data, **more)  # type: ignore[arg-type]
    assert caught.value.errno == number
    return caught.value.text


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("gz", [False, True])
def test_a_tree(tmp_path, form, gz):
    data = packed(
        [
            (info("d", tarfile.DIRTYPE, mode=0o750), b""),
            (info("d/run", mode=0o755, mtime=1_000_000_000), b"#!"),
            (info("./e/" + "n" * 90, mode=0o4640), b"x" * 700_000),
            (info("empty"), b""),
            (info("link", tarfile.SYMTYPE, linkname="/anywhere"), b""),
            (info("hard", tarfile.LNKTYPE, linkname="d/run"), b""),
        ],
        form,
    )
    done = unpack(tmp_path / "to" / "here", gzip.compress(data) if gz else data, gz=gz)
    root = tmp_path / "to" / "here"
    assert (done.entries, done.directories, done.bytes) == (6, 1, 700_002)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "d/run").stat().st_mode) == 0o755
    assert (root / "d/run").stat().st_mtime == 1_000_000_000
    assert (root / "e" / ("n" * 90)).read_bytes() == b"x" * 700_000
    assert stat.S_IMODE((root / "e" / ("n" * 90)).stat().st_mode) == 0o640  # nothing runs as somebody else
    assert os.readlink(root / "link") == "/anywhere"
    assert (root / "hard").samefile(root / "d/run")
    assert (root / "empty").read_bytes() == b""
    assert not [name for name in os.listdir(root) if name.startswith(".boxwood")]


@pytest.mark.parametrize(
    "name",
    ["a\nb", "n" * 255, b"\xff\xfe", "é", "é", " ", "-rf", "\u202e", "x/" * 200 + "y", "d" * 200 + "/" + "e" * 200],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_odd_names(tmp_path, name, form):
    unpack(tmp_path, packed([(info(name), b"in")], form))
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + os.fsencode(name))).read_bytes() == b"in"


def test_what_is_there_is_replaced(tmp_path):
    (tmp_path / "f").write_text("old")
    os.link(tmp_path / "f", tmp_path / "other")
    (tmp_path / "l").symlink_to("other")
    unpack(tmp_path, packed([(info("f"), b"new"), (info("l"), b"own")]))
    assert (tmp_path / "f").read_text() == "new"
    assert (tmp_path / "other").read_text() == "old"
    assert not (tmp_path / "l").is_symlink()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", ""])
def test_names_that_lead_elsewhere(tmp_path, name):
    refused(tmp_path / "in", packed([(info(name), b"x")]))
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_links_are_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    data = packed([(info("l", tarfile.SYMTYPE, linkname="../out"), b""), (info("l/f"), b"x")])
    assert "links are not followed" in refused(tmp_path / "in", data)
    assert os.listdir(tmp_path / "out") == []
    (tmp_path / "out/f").write_text("theirs")
    for target in ("l/f", "../out/f", "/etc/passwd"):
        refused(tmp_path / "in", packed([(info("hard", tarfile.LNKTYPE, linkname=target), b"")]))
    unpack(tmp_path / "in", packed([(info("again", tarfile.LNKTYPE, linkname="l"), b"")]))
    assert (tmp_path / "in/again").is_symlink()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"V", b"Z"])
def test_what_is_no_file(tmp_path, kind):
    assert "not taken" in refused(tmp_path, packed([(info("n", kind), b"")]))
    assert os.listdir(tmp_path) == []


def test_a_directory_is_not_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    assert "directory" in refused(tmp_path, packed([(info("d"), b"x")]), errno.EISDIR)
    (tmp_path / "f").write_text("")
    refused(tmp_path, packed([(info("f/g"), b"x")]))
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_the_directory_may_be_none(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(files.Refusal) as caught:
        unpacking.open_top(bytes(tmp_path / "f"))
    assert caught.value.errno == errno.ENOTDIR


def test_more_than_is_taken(tmp_path):
    data = packed([(info("a"), b"x"), (info("bomb"), bytes(5 << 20))])
    assert "more than is taken" in refused(tmp_path, gzip.compress(data), gz=True, limit=1 << 20)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("cut", [1, 511, 513, 1024, 1500, 4000])
@pytest.mark.parametrize("gz", [False, True])
def test_an_archive_that_breaks_off(tmp_path, cut, gz):
    whole = packed([(info("a"), b"x" * 600), (info("b"), os.urandom(3000))])
    data = gzip.compress(whole)[: cut // 2] if gz else whole[:cut]
    refused(tmp_path, data, gz=gz)
    assert set(os.listdir(tmp_path)) <= {"a"}


def test_what_is_no_archive(tmp_path):
    for data in (b"x" * 512, b"hello", os.urandom(2000)):
        refused(tmp_path, data)
        refused(tmp_path, data, gz=True)
    assert unpack(tmp_path, b"").entries == 0
    assert unpack(tmp_path, packed([])).entries == 0
    assert os.listdir(tmp_path) == []


def test_endless_headers(tmp_path):
    long = info("x")
    long.pax_headers = {"comment": "y" * (2 << 20)}
    assert "too long" in refused(tmp_path, packed([(long, b"")]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_ends_in_a_refusal(tmp_path_factory, data):
    """Whatever is wrong with an archive, nothing else is raised, and nothing is written elsewhere."""
    root = tmp_path_factory.mktemp("damage")
    whole = bytearray(packed([(info("a" * 120), b"x" * 600), (info("l", tarfile.SYMTYPE, linkname="a"), b"")]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpack(root / "in", bytes(whole))
    except files.Refusal:
        pass
    assert os.listdir(root) == ["in"]


# What is said in heads


def edited(data: bytes, at: int, new: bytes) -> bytes:
    """The first head changed, its sum right again."""
    block = data[:at] + new + data[at + len(new) : 512]
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:] + data[512:]


def extended(records: dict[str, str], member: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    member.pax_headers = records
    return packed([(member, content)])


def test_a_name_that_begins_as_compressed_files_do(tmp_path):
    unpack(tmp_path, packed([(info("BZh91"), b"x")]), whole=True)
    assert os.listdir(tmp_path) == ["BZh91"]
    for form in (gzip.compress, bz2.compress, lzma.compress):
        assert "compressed" in refused(tmp_path, form(packed([(info("x"), os.urandom(2000))])))


@pytest.mark.parametrize("seconds", [(1 << 80) - 1, 1 << 60, -(1 << 70)])
def test_times_that_nothing_has(tmp_path, seconds):
    """They are as far away as a file's can be, in either direction."""
    far = edited(
        packed([(info("f"), b"x")], tarfile.GNU_FORMAT), 136, (seconds & ((1 << 96) - 1) | 1 << 95).to_bytes(12, "big")
    )
    unpack(tmp_path, far)
    assert ((tmp_path / "f").stat().st_mtime > 0) == (seconds > 0)
    unpack(tmp_path, extended({"mtime": "9" * 18}, info("g")))
    assert (tmp_path / "g").stat().st_mtime > 0


def test_times_to_the_nanosecond(tmp_path):
    unpack(tmp_path, extended({"mtime": "1700000000.123456789"}, info("f")))
    assert (tmp_path / "f").stat().st_mtime_ns == 1_700_000_000_123_456_789
    link = info("l", tarfile.SYMTYPE, linkname="f", mtime=5)
    unpack(tmp_path, packed([(link, b"")]))
    assert (tmp_path / "l").lstat().st_mtime == 5


@pytest.mark.parametrize("how", [{}, {"skipping": True}])
def test_sparse_files_are_refused_whichever_way_they_are_said(tmp_path, how):
    assert "--sparse" in refused(tmp_path, extended({"GNU.sparse.major": "1"}, info("f")), **how)
    assert "--sparse" in refused(tmp_path, packed([(info("f", b"S"), b"x")]), **how)


def test_a_device_has_no_content(tmp_path):
    """Whatever size its head names: as others read it."""
    fifo = edited(packed([(info("p", tarfile.FIFOTYPE), b""), (info("f"), b"x")]), 124, b"%011o\0" % 4096)
    with tarfile.open(fileobj=io.BytesIO(fifo)) as archive:
        assert archive.getnames() == ["p", "f"]
    done = unpack(tmp_path, fifo, skipping=True)
    assert (done.entries, done.skipped, os.listdir(tmp_path)) == (1, 1, ["f"])


def test_what_an_empty_value_takes_back(tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", pax_headers={"path": "common"}) as archive:
        archive.addfile(info("own"))
    data.seek(0)
    unpack(tmp_path, data.getvalue())
    assert os.listdir(tmp_path) == ["common"]
    unpack(tmp_path / "d", data.getvalue()[:1024] + extended({"path": ""}, info("own")))
    assert os.listdir(tmp_path / "d") == ["own"]


def test_an_extended_header_that_ends_in_nul(tmp_path):
    record = b"10 path=f\n" + bytes(6)
    head = tarhead.head(tarhead.Member(b"x", tarhead.PAX, size=len(record)))
    unpack(tmp_path, head + record.ljust(512, b"\0") + packed([(info("own"), b"x")]))
    assert os.listdir(tmp_path) == ["f"]


def test_keywords_that_mean_nothing_are_not_kept(tmp_path):
    """Else a global header after the other would fill the memory."""
    said = tarhead.records(b"".join(b"%d a%02d=x\n" % (8, number) for number in range(99)) + b"10 path=f\n")
    assert said == {b"path": b"f"}


@pytest.mark.parametrize("field", [b"0o644\0\0\0", b"-000644\0", b"+000644\0", b"0_0644\0\0", b"0000648\0"])
def test_numbers_that_are_none(tmp_path, field):
    refused(tmp_path, edited(packed([(info("f"), b"x")], tarfile.USTAR_FORMAT), 100, field))


def test_what_lies_behind_a_number_is_nothing(tmp_path):
    unpack(tmp_path, edited(packed([(info("f"), b"x")], tarfile.USTAR_FORMAT), 100, b"640\0 xyz"))
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_where_it_ends_must_be_said_if_it_is_to_be_whole(tmp_path):
    data = packed([(info("f"), b"x")])[:1024]
    assert unpack(tmp_path, data).entries == 1
    assert "cut short" in refused(tmp_path, data, whole=True)
    assert "cut short" in refused(tmp_path, b"", whole=True)


def test_no_more_members_than_may_be(tmp_path):
    data = packed([(info(name), b"") for name in "abc"])
    assert "more than 2 members" in refused(tmp_path, data, most=2)
    assert unpack(tmp_path, data, most=3).entries == 3


def test_links_to_directories_and_to_nothing(tmp_path):
    (tmp_path / "d").mkdir()
    for target in ("d", "."):
        assert "directory" in refused(tmp_path, packed([(info("l", tarfile.LNKTYPE, linkname=target), b"")]))
    assert "nothing" in refused(tmp_path, packed([(info("l", tarfile.SYMTYPE), b"")]))
    said = refused(tmp_path, packed([(info("l", tarfile.LNKTYPE, linkname="none"), b"")]))
    assert said == "'l': a hard link to what is not there: none"
    assert os.listdir(tmp_path) == ["d"]


def test_the_directory_is_made_where_a_link_leads(tmp_path):
    (tmp_path / "link").symlink_to("not/yet")
    unpack(tmp_path / "link" / "sub", packed([(info("f"), b"x")]))
    assert (tmp_path / "not/yet/sub/f").read_bytes() == b"x"


def test_nothing_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for data in (packed([(info("a/b/f"), b"x"), (info("a/l", tarfile.LNKTYPE, linkname="a/b/f"), b"")]), b"x" * 600):
        try:
            unpack(tmp_path, data)
        except files.Refusal:
            pass
    assert len(os.listdir("/proc/self/fd")) == before
