"""Hostile archives: whatever they hold, nothing outside the target is touched, and what is broken is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwood.images import archive
from boxwood.images.tree import Limits, Refused, Tree

Adder = Callable[..., None]
ME = {"uid": os.getuid(), "gid": os.getgid()}


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in {**ME, **more}.items():
        setattr(info, key, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, kind, linkname=target)


def pax(member: tuple[tarfile.TarInfo, bytes], linkpath: str) -> tuple[tarfile.TarInfo, bytes]:
    """The same with a header before it that says it leads elsewhere."""
    member[0].pax_headers = {"linkpath": linkpath}
    return member


def tar(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    return packed.getvalue()


class Sandbox:
    """A target with a neighbour that must stay as it is."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.target = home / "target"
        self.target.mkdir()
        (home / "outside").mkdir()
        (home / "outside/canary").write_text("alive")

    def unpack(self, data: bytes, limits: Limits | None = None) -> int:
        fd = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        packed = io.BytesIO(data)
        stream = archive.decompressed(packed, archive.compression(data))
        limits = limits or Limits(free=0)
        tree = Tree(fd, limits)
        try:
            skipped = archive.unpack(archive.Metered(stream, packed.tell, 1 << 40, lambda _: None), tree)
            tree.close()
            return skipped
        finally:
            os.close(fd)

    def assert_unharmed(self) -> None:
        assert sorted(os.listdir(self.home)) == ["outside", "target"]
        assert os.listdir(self.home / "outside") == ["canary"]
        canary = self.home / "outside/canary"
        assert canary.read_text() == "alive"
        assert canary.stat().st_nlink == 1
        assert stat.S_IMODE(canary.stat().st_mode) == 0o644


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.assert_unharmed()


def test_an_honest_archive(sandbox: Sandbox) -> None:
    data = tar(
        entry("./", tarfile.DIRTYPE, mode=0o755, mtime=1_000_000),
        entry("./bin", tarfile.DIRTYPE, mode=0o555, mtime=1_000_001),
        entry("./bin/tool", data=b"x" * 3_000_000, mode=0o4755, mtime=1_000_002.5),
        link("./bin/alias", "tool"),
        link("./bin/other", "./bin/tool", tarfile.LNKTYPE),
        entry("./a/" + "long" * 40 + "/" + "name" * 40, data=b"deep"),
        entry("./pipe", tarfile.FIFOTYPE),
        entry("/absolute", data=b"below the root"),
    )
    assert sandbox.unpack(data) == 0
    tool = sandbox.target / "bin/tool"
    assert tool.stat().st_mode & 0o7777 == 0o4755
    assert tool.stat().st_mtime == 1_000_002.5
    assert tool.read_bytes() == b"x" * 3_000_000
    assert (sandbox.target / "bin/other").samefile(tool)
    assert os.readlink(sandbox.target / "bin/alias") == "tool"
    assert (sandbox.target / "bin").stat().st_mode & 0o7777 == 0o555
    assert (sandbox.target / "bin").stat().st_mtime == 1_000_001
    assert stat.S_ISFIFO((sandbox.target / "pipe").lstat().st_mode)
    assert (sandbox.target / "absolute").read_text() == "below the root"
    assert (sandbox.target / ("a/" + "long" * 40 + "/" + "name" * 40)).read_text() == "deep"


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_compressions(sandbox: Sandbox, packed: Callable[[bytes], bytes]) -> None:
    data = packed(tar(entry("file", data=b"abc")))
    sandbox.unpack(data)
    assert (sandbox.target / "file").read_bytes() == b"abc"
    with pytest.raises(Refused):
        sandbox.unpack(data[: len(data) // 20])


def test_concatenated_gzip_streams_are_one(sandbox: Sandbox) -> None:
    data = tar(entry("file", data=b"abc" * 1000))
    sandbox.unpack(gzip.compress(data[:700]) + gzip.compress(data[700:]))
    assert (sandbox.target / "file").read_bytes() == b"abc" * 1000


OUTSIDE = "../outside/canary"


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../outside/new", data=b"x")],
        [entry("a/../../outside/new", data=b"x")],
        [entry("..", tarfile.DIRTYPE)],
        [entry("a/..", tarfile.DIRTYPE)],
        [link("door", "../outside"), entry("door/new", data=b"x")],
        [link("door", "../outside"), entry("door/new", tarfile.DIRTYPE)],
        [link("door", "../outside"), link("door/new", "x")],
        [link("door", "../outside"), link("copy", "door/canary", tarfile.LNKTYPE)],
        [link("door", "../outside"), entry("x", data=b"x"), link("door/new", "x", tarfile.LNKTYPE)],
        [link("door", "."), link("door/door2", "../outside"), entry("door2/new", data=b"x")],
        [link("steal", OUTSIDE, tarfile.LNKTYPE)],
        [link("steal", "/etc/passwd", tarfile.LNKTYPE)],
        [link("steal", "", tarfile.LNKTYPE)],
        [entry("d", tarfile.DIRTYPE), link("steal", "d", tarfile.LNKTYPE)],
        [entry("file", data=b""), entry("file/below", data=b"x")],
        [entry("a\0b", data=b"x", pax_headers={"path": "a\0b"})],
        [entry("n" * 256, data=b"x")],
        [entry("d/" * 201 + "x", data=b"x")],
        [entry("é" * 2500, data=b"x")],
        [entry(".wh.etc", data=b"")],
        [entry("etc/.wh..wh..opq", data=b"")],
        [entry("big", uid=65536)],
        [entry("big", gid=2_000_000)],
        [entry("negative", pax_headers={"uid": "-1"})],
        [entry("negative", pax_headers={"size": "-512"})],
        [entry("", data=b"x")],
        [entry("./", data=b"x")],
        [link("empty", "")],
        [entry("odd", b"Q", data=b"x")],
        [entry("good", data=b"x", pax_headers={"path": "../outside/new"})],
        [
            entry("good", data=b"x"),
            link("steal", "good", tarfile.LNKTYPE),
            pax(link("s", "good", tarfile.LNKTYPE), OUTSIDE),
        ],
        [link("door", "."), pax(link("door", "."), "../outside"), entry("door/new", data=b"x")],
    ],
)
def test_what_is_refused(sandbox: Sandbox, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with pytest.raises(Refused):
        sandbox.unpack(tar(*entries))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (link("x", OUTSIDE), entry("x", data=b"new")),
        (entry("x", data=b"old"), entry("x", data=b"new")),
        (entry("x", tarfile.DIRTYPE), entry("x", data=b"new")),
        (entry("x/deep/er", data=b"old"), entry("x", data=b"new")),
        (entry("x", tarfile.FIFOTYPE), entry("x", data=b"new")),
    ],
)
def test_the_last_of_the_same_name_wins(sandbox: Sandbox, first: object, second: object) -> None:
    sandbox.unpack(tar(first, second))  # type: ignore[arg-type]
    assert (sandbox.target / "x").read_bytes() == b"new"
    assert not (sandbox.target / "x").is_symlink()


def test_a_directory_takes_the_place_of_a_link_and_keeps_what_it_has(sandbox: Sandbox) -> None:
    sandbox.unpack(tar(link("x", "../outside"), entry("x", tarfile.DIRTYPE), entry("x/new", data=b"1")))
    assert not (sandbox.target / "x").is_symlink()
    sandbox.unpack(tar(entry("x", tarfile.DIRTYPE, mode=0o700)))
    assert (sandbox.target / "x/new").read_bytes() == b"1"
    assert (sandbox.target / "x").stat().st_mode & 0o777 == 0o700


def test_devices_are_left_out_and_counted(sandbox: Sandbox) -> None:
    devices = [entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), entry("disk", tarfile.BLKTYPE)]
    whiteout = entry("gone", tarfile.CHRTYPE, devmajor=0, devminor=0)
    assert sandbox.unpack(tar(*devices, whiteout, entry("file", data=b"x"))) == 3
    assert os.listdir(sandbox.target) == ["file"]


def test_names_that_others_take_for_the_same_are_several(sandbox: Sandbox) -> None:
    names = ["a", "A", "\u00e9", "e\u0301", "\ufb01", "fi"]
    sandbox.unpack(tar(*(entry(name, data=name.encode()) for name in names)))
    assert {name: (sandbox.target / name).read_text() for name in names} == {name: name for name in names}


def test_attributes_are_left_out(sandbox: Sandbox) -> None:
    """They give capabilities, or are marks of overlays: whiteouts, opaque directories, redirects."""
    marks = {
        "SCHILY.xattr.security.capability": "\x01",
        "SCHILY.xattr.user.overlay.whiteout": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "LIBARCHIVE.xattr.user.overlay.opaque": "eQ==",
    }
    sandbox.unpack(tar(entry("f", pax_headers=marks), entry("d", tarfile.DIRTYPE, pax_headers=marks)))
    assert os.listxattr(sandbox.target / "f") == os.listxattr(sandbox.target / "d") == []


def extended(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    info, _ = entry("x", kind)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def record(keyword: str, value: str) -> bytes:
    """A line of an extended header, which begins with its own length."""
    rest = len(f" {keyword}={value}\n")
    size = rest + len(str(rest + len(str(rest))))
    return f"{size} {keyword}={value}\n".encode()


@pytest.mark.parametrize("content", [b"1" * (1 << 18), record("comment", "1" * 200_000), b"7" * 250_000 + b" path=x\n"])
def test_numbers_without_end_in_extended_headers(sandbox: Sandbox, content: bytes) -> None:
    """Each would keep tarfile of many Pythons busy for minutes (CVE-2024-6232)."""
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        with pytest.raises(Refused, match="without end"):
            sandbox.unpack(extended(content, kind) + tar(entry("file", data=b"x")))


def test_global_headers_are_bounded(sandbox: Sandbox) -> None:
    """tarfile copies them for every member that has a header of its own."""
    file = tar(entry("file", data=b"x", pax_headers={"mtime": "1.5"}))
    few = b"".join(extended(record(f"k{number}", "v"), tarfile.XGLTYPE) for number in range(150))
    sandbox.unpack(few + file)
    assert (sandbox.target / "file").stat().st_mtime == 1.5
    many = extended(b"".join(record(f"k{number}", "v") for number in range(10_000)), tarfile.XGLTYPE)
    with pytest.raises(Refused, match="keywords"):
        sandbox.unpack(many + file)


def sparse(realsize: int, *parts: tuple[int, int]) -> bytes:
    """A file with holes, as GNU tar writes it (format 1.0)."""
    packed = b"".join(b"%d\n%d\n" % part for part in parts)
    packed = b"%d\n" % len(parts) + packed
    packed += bytes(-len(packed) % 512) + b"".join(b"x" * length for _, length in parts if 0 < length < 1 << 20)
    says = {"major": "1", "minor": "0", "name": "holes", "realsize": str(realsize)}
    return tar(entry("f", data=packed, pax_headers={f"GNU.sparse.{name}": value for name, value in says.items()}))


def test_a_file_with_holes(sandbox: Sandbox) -> None:
    sandbox.unpack(sparse(100_000, (10, 5), (50_000, 3), (100_000, 0)))
    expected = bytearray(100_000)
    expected[10:15], expected[50_000:50_003] = b"x" * 5, b"x" * 3
    assert (sandbox.target / "holes").read_bytes() == expected


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (100, [(50, 1), (0, 1)]),
        (100, [(0, 50), (49, 1)]),
        (100, [(0, 101)]),
        (100, [(-5, 10)]),
        (100, [(20, -10)]),
        (3000, [(number, 1) for number in reversed(range(3000))]),
    ],
)
def test_holes_that_cannot_be(sandbox: Sandbox, size: int, parts: list[tuple[int, int]]) -> None:
    """tarfile would look through all parts again for every byte."""
    with pytest.raises(Refused, match="holes"):
        sandbox.unpack(sparse(size, *parts))


def test_limits(sandbox: Sandbox) -> None:
    many = tar(*(entry(f"f{i}", data=b"x" * 100) for i in range(20)))
    sandbox.unpack(many, Limits(inodes=20, bytes=2000, free=0))
    for limits in (Limits(inodes=19, free=0), Limits(bytes=1999, free=0), Limits(free=1 << 60)):
        with pytest.raises(Refused):
            sandbox.unpack(many, limits)
    with pytest.raises(Refused):
        sandbox.unpack(tar(entry("a/b/c/d", data=b"")), Limits(inodes=3, free=0))


def test_an_announced_size_is_refused_before_it_is_written(sandbox: Sandbox) -> None:
    info, _ = entry("huge")
    info.size = 1 << 50
    with pytest.raises(Refused, match="MiB"):
        sandbox.unpack(info.tobuf(tarfile.GNU_FORMAT))
    assert os.listdir(sandbox.target) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_that_would_fill_memory(sandbox: Sandbox, kind: bytes) -> None:
    info, _ = entry("x", kind)
    info.size = 8 << 30
    with pytest.raises(Refused, match="impossible size"):
        sandbox.unpack(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def test_headers_upon_headers(sandbox: Sandbox) -> None:
    info, _ = entry("x", tarfile.XHDTYPE)
    info.size = 0
    with pytest.raises(Refused):
        sandbox.unpack(info.tobuf(tarfile.GNU_FORMAT) * 5000 + bytes(1024))


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    packed = io.BytesIO(b"x" * 100)

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return bytes(size or 0)

    stream = archive.Metered(Endless(), packed.tell, 1 << 60, lambda _: None)
    with pytest.raises(Refused, match="fill disks"):
        while True:
            stream.read(1 << 26)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused_however_it_is_packed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(archive, "_SMALL", 1 << 20)
    with pytest.raises(Refused, match="fill disks"):
        sandbox.unpack(pack(tar(entry("zeros", data=bytes(32 << 20)))))


def test_a_sparse_file_stays_sparse(sandbox: Sandbox) -> None:
    sandbox.unpack(tar(entry("holes", data=bytes(8 << 20) + b"end")))
    status = (sandbox.target / "holes").stat()
    assert status.st_size == (8 << 20) + 3
    assert status.st_blocks * 512 < 4 << 20
    assert (sandbox.target / "holes").read_bytes()[-3:] == b"end"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04rest", b"\x1f\x8b" + b"junk" * 100, b"text " * 500, bytes(512)])
def test_no_archive_at_all(sandbox: Sandbox, data: bytes) -> None:
    if data == bytes(512):
        sandbox.unpack(data + bytes(512))  # an empty archive is one
    else:
        with pytest.raises(Refused):
            sandbox.unpack(data)


def test_an_archive_cut_between_two_files_is_refused(sandbox: Sandbox) -> None:
    whole = tar(entry("a", data=b"1"), entry("b", data=b"2"), form=tarfile.USTAR_FORMAT)
    with pytest.raises(Refused, match="cut short"):
        sandbox.unpack(whole[:1024])
    damaged = whole[:1024] + b"\xff" * 512 + whole[1536:]
    with pytest.raises(Refused, match="cut short, or damaged"):
        sandbox.unpack(damaged)


def test_times_that_are_none(sandbox: Sandbox) -> None:
    times = ["nan", "inf", "-5", "99999999999999"]
    sandbox.unpack(tar(*(entry(f"t{i}", pax_headers={"mtime": time}) for i, time in enumerate(times))))
    assert {(sandbox.target / f"t{i}").stat().st_mtime for i in range(len(times))} == {0}


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "outside", "canary", "target"]), min_size=1, max_size=4).map(
    "/".join
)
ENTRIES = st.one_of(
    st.builds(lambda name, data: entry(name, data=data), NAMES, st.binary(max_size=20)),
    st.builds(lambda name: entry(name, tarfile.DIRTYPE), NAMES),
    st.builds(link, NAMES, NAMES),
    st.builds(lambda name, target: link(name, target, tarfile.LNKTYPE), NAMES, NAMES),
    st.builds(lambda name: entry(name, tarfile.FIFOTYPE), NAMES),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=st.lists(ENTRIES, max_size=8), absolute=st.booleans())
def test_no_mixture_of_entries_leaves_the_target(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[tarfile.TarInfo, bytes]], absolute: bool
) -> None:
    sandbox = Sandbox(tmp_path_factory.mktemp("mixture"))
    if absolute:
        for info, _ in entries:
            info.linkname = info.linkname and str(sandbox.home / info.linkname)
    try:
        sandbox.unpack(tar(*entries))
    except Refused:
        pass
    sandbox.assert_unharmed()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_damage_leaves_the_target_or_goes_unsaid(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sandbox = Sandbox(tmp_path_factory.mktemp("damage"))
    whole = bytearray(tar(entry("d/f", data=b"x" * 700), link("l", "../outside"), link("h", "d/f", tarfile.LNKTYPE)))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        whole[at] = data.draw(st.integers(0, 255))
    try:
        sandbox.unpack(bytes(whole))
    except Refused:
        pass
    sandbox.assert_unharmed()
