"""Layers that are packed and unpacked show the same; what strangers pack is refused, and nothing of it stays."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amounts import amount
from boxwood.engine.layers import tar
from boxwood.engine.layers.tar import Entry
from boxwood.engine.tarform import checksum, padding
from engine.overlays import Layers, difference, new_id, tree
from engine.test_layers_diff import plain
from engine.test_layers_merge import SOME, attributes, base, make_raw, raw_layer, written

pytestmark = pytest.mark.root
TREE = Entry(tar.DIRECTORY, b"tree", 0o755)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def packed(layers: Layers, stack: list[str], *, whole: bool = False) -> bytes:
    stream = os.memfd_create("archive")
    try:
        answer = layers.job(stream, kind="pack", layers=[["data", one] for one in stack], whole=whole)
        assert answer.get("ok"), answer
        return os.pread(stream, os.fstat(stream).st_size, 0)
    finally:
        os.close(stream)


def unpacked(layers: Layers, archive: bytes, *, whole: bool = False, most: int = 1 << 40, hide: str = "") -> Any:
    """The new layer, or the error."""
    reading, writing = os.pipe()

    def feed() -> None:
        try:
            with open(writing, "wb") as out:
                out.write(archive)
        except BrokenPipeError:
            pass

    target, feeder = new_id(), threading.Thread(target=feed)
    feeder.start()
    try:
        answer = layers.job(reading, kind="unpack", target=target, whole=whole, most=most, hide=hide)
    finally:
        os.close(reading)
        feeder.join()
    assert (target in layers.names()) == ("ok" in answer)
    assert not any(name.startswith(".dead") or name.endswith(".part") for name in layers.names())
    return target if "ok" in answer else answer["error"]


@pytest.mark.parametrize("steps", SOME)
def test_what_is_packed_shows_the_same(layers: Layers, steps: list[Callable[[Path], object]]) -> None:
    *stack, lowest = written(layers, base, *steps)
    one = unpacked(layers, packed(layers, stack))
    before = layers.shown([*stack, lowest], None, tree)
    assert difference(before, layers.shown([one, lowest], None, tree)) == {}


def test_odd_files(layers: Layers) -> None:
    def odd(at: Path) -> None:
        deep = at / "/".join(["d" * 200] * 10)
        deep.mkdir(parents=True)
        (deep / ("n" * 255)).write_text("far down")
        for name in (b"\xff\xfe", b"new\nline", b" ", b"-", "ä".encode(), "a\u0308".encode(), b"=\\"):
            Path(os.fsdecode(bytes(at) + b"/" + name)).write_bytes(name)
        os.symlink("x" * 4000, at / "long")
        os.symlink(b"\xff", os.fsencode(at / "raw"))
        with open(at / "sparse", "wb") as file:
            file.truncate(1 << 40)
            os.pwrite(file.fileno(), b"middle", 1 << 39)
        (at / "hole").touch()
        os.truncate(at / "hole", 1 << 20)
        os.utime(at / "long", ns=(-5, -5), follow_symlinks=False)
        attributes(at)

    (at := layers.upper(stack := layers.new())).joinpath("e").mkdir()
    odd(at)
    shown = {}
    for ident in (stack, unpacked(layers, packed(layers, [stack]))):
        top = layers.upper(ident)
        assert (top / "sparse").stat().st_blocks < 100 and (top / "sparse").stat().st_size == 1 << 40
        with open(top / "sparse", "rb") as file:
            assert os.pread(file.fileno(), 8, (1 << 39) - 1) == b"\0middle\0"
        (top / "sparse").unlink()
        shown[ident] = tree(top)
    before, after = shown.values()
    assert {path for path in difference(before, after) if path != "."} == set()


def test_any_tar_reads_it(layers: Layers) -> None:
    *stack, _ = written(layers, base, attributes)
    with tarfile.open(fileobj=io.BytesIO(packed(layers, stack) + bytes(1024))) as archive:
        found = {member.name: member for member in archive}
    one = found["tree/e/again"]
    assert (one.mode, one.uid, one.gid, one.size) == (0o4711, 7, 8, 1)
    assert found["tree/e/suid"].islnk()
    assert found["tree/e/link"].linkname == "suid"


def test_a_whole_tree_hides_what_is_below(layers: Layers) -> None:
    stack = written(layers, base, attributes)
    other = layers.new()
    for name in ("usr/bin", "etc"):
        (layers.upper(other) / name).mkdir(parents=True)
        (layers.upper(other) / name / "file").touch()
    (layers.upper(other) / "e").mkdir()
    (layers.upper(other) / "e/below").touch()
    shutil.copytree(layers.root / other, layers.images / other)
    one = unpacked(layers, packed(layers, stack, whole=True), whole=True, hide=other)
    assert layers.shown([one, other], None, plain) == layers.shown(stack, None, plain)


@settings(max_examples=amount(4, 25), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(raw_layer(), min_size=1, max_size=3), raw_layer())
def test_any_layers(above: list[dict[str, str]], below: dict[str, str]) -> None:
    lowest = {
        path: "plain" if kind in ("opaque", "marked") else kind for path, kind in below.items() if kind != "whiteout"
    }
    with tempfile.TemporaryDirectory() as directory:
        layers = Layers(Path(directory))
        ids = [layers.new() for _ in (*above, lowest)]
        for ident, made in zip(ids, [*above, lowest], strict=True):
            make_raw(layers.upper(ident), made)
        one = unpacked(layers, packed(layers, ids[:-1]))
        assert layers.shown([one, ids[-1]], None, plain) == layers.shown(ids, None, plain)


# --- strangers


def archive(*entries: Entry, content: bytes = b"") -> bytes:
    made = b"".join(tar.encode(entry) for entry in (TREE, *entries))
    return made + content + bytes(padding(len(content)))


def raw(entry: Entry, **fields: Any) -> bytes:
    return archive(replace(entry, **fields))


FILE = Entry(tar.FILE, b"tree/f", 0o644)
HOSTILE = {
    "nothing": b"",
    "no tree": tar.encode(FILE),
    "rubbish": b"x" * 4096,
    "cut": archive(replace(FILE, size=1000), content=b"x" * 400),
    "up": raw(FILE, name=b"tree/../x"),
    "absolute": raw(FILE, name=b"/etc/passwd"),
    "elsewhere": raw(FILE, name=b"other/x"),
    "dot": raw(FILE, name=b"tree/./x"),
    "empty": raw(FILE, name=b"tree//x"),
    "nul": raw(FILE, name=b"tree/a\0b"),
    "long": raw(FILE, name=b"tree/" + b"n" * 256),
    "twice": archive(FILE, FILE),
    "root twice": archive(TREE),
    "through a link": archive(
        Entry(tar.SYMLINK, b"tree/l", 0o777, target=b"/etc"), replace(FILE, name=b"tree/l/passwd")
    ),
    "link replaced": archive(Entry(tar.SYMLINK, b"tree/l", 0o777, target=b"/etc"), Entry(tar.DIRECTORY, b"tree/l")),
    "no parent": raw(FILE, name=b"tree/a/b"),
    "out of order": archive(
        Entry(tar.DIRECTORY, b"tree/a"), replace(FILE, name=b"tree/x"), replace(FILE, name=b"tree/a/y")
    ),
    "hard link out": archive(Entry(tar.LINK, b"tree/l", target=b"tree/../../x")),
    "hard link through": archive(
        Entry(tar.SYMLINK, b"tree/s", 0o777, target=b"/etc"), Entry(tar.LINK, b"tree/t", target=b"tree/s/passwd")
    ),
    "hard link nowhere": archive(Entry(tar.LINK, b"tree/l", target=b"tree/x")),
    "hard link to itself": archive(Entry(tar.LINK, b"tree/l", target=b"tree/l")),
    "hard link to a directory": archive(Entry(tar.LINK, b"tree/l", target=b"tree")),
    "owner": raw(FILE, uid=65536),
    "overlay mark": raw(FILE, attributes={b"user.overlay.redirect": b"/"}),
    "metacopy": raw(FILE, attributes={b"user.overlay.metacopy": b""}),
    "opaque file": raw(FILE, attributes={b"user.overlay.opaque": b"y"}),
    "opaque x": archive(Entry(tar.DIRECTORY, b"tree/d", attributes={b"user.overlay.opaque": b"x"})),
    "trusted": raw(FILE, attributes={b"trusted.overlay.opaque": b"y"}),
    "label": raw(FILE, attributes={b"security.selinux": b"x"}),
    "capability of a directory": archive(Entry(tar.DIRECTORY, b"tree/d", attributes={b"security.capability": b"x"})),
    "attribute of a link": archive(Entry(tar.SYMLINK, b"tree/l", 0o777, target=b"x", attributes={b"user.mine": b"x"})),
    "huge": raw(FILE, size=1 << 50),
    "huge hole": raw(FILE, real_size=1 << 60),
    "no target": archive(Entry(tar.SYMLINK, b"tree/l", 0o777)),
    "map without end": archive(replace(FILE, size=512, real_size=10), content=b"9" * 512),
    "map of nonsense": archive(replace(FILE, size=512, real_size=10), content=b"1\n5\n-1\n".ljust(512, b"\0")),
    "map too far": archive(replace(FILE, size=1024, real_size=10), content=b"1\n5\n6\n".ljust(1024, b"\0")),
    "map backwards": archive(replace(FILE, size=1024, real_size=100), content=b"2\n50\n1\n5\n1\n".ljust(1024, b"\0")),
    "map of too many": archive(replace(FILE, size=512, real_size=10), content=b"999999999\n".ljust(512, b"\0")),
    "device": archive(FILE).replace(b"0000000\0" * 2, b"0000001\0" * 2) + b"x",
    "content of a directory": archive(Entry(tar.DIRECTORY, b"tree/d", size=512), content=bytes(512)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_strangers_pack_is_refused(layers: Layers, name: str) -> None:
    said = unpacked(layers, HOSTILE[name])
    assert said.startswith("Refused: "), said
    assert layers.names() == set()


def test_device_nodes_and_deletions_where_nothing_is_below(layers: Layers) -> None:
    node = bytearray(tar.encode(Entry(tar.DEVICE, b"tree/d")))
    at = len(node) - 512
    node[at + 329 : at + 337] = b"0000010\0"
    block = bytes(node[at:])
    node[at + 148 : at + 156] = b"%06o\0 " % checksum(block)
    assert "device" in unpacked(layers, tar.encode(TREE) + bytes(node))
    gone = archive(Entry(tar.DEVICE, b"tree/d"))
    assert "deletes" in unpacked(layers, gone, whole=True)
    opaque = archive(Entry(tar.DIRECTORY, b"tree/d", attributes={b"user.overlay.opaque": b"y"}))
    assert "not allowed" in unpacked(layers, opaque, whole=True)
    kept = unpacked(layers, gone)
    assert stat.S_ISCHR((layers.upper(kept) / "d").lstat().st_mode)


def test_more_than_there_may_be(layers: Layers) -> None:
    big = archive(replace(FILE, size=1 << 20), content=bytes(1 << 20))
    assert "MiB" in unpacked(layers, big, most=1 << 19)
    assert layers.names() == set()
    assert layers.upper(unpacked(layers, big, most=1 << 20)).joinpath("f").stat().st_size == 1 << 20
