"""File work on directories of this machine: heads of archives, trees packed and unpacked, patterns, walks."""

from __future__ import annotations

import errno
import fnmatch
import io
import json
import os
import re
import stat
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boxwood.engine.agent import place, removal, ripgrep, search, tarhead, walk
from boxwood.engine.agent.files import Refusal
from boxwood.engine.agent.globs import Glob
from boxwood.engine.agent.helpers import Out
from boxwood.engine.agent.packing import Packer
from boxwood.engine.agent.place import raw, told
from boxwood.engine.agent.tar import Source
from boxwood.engine.agent.unpacking import Unpacker
from boxwood.engine.agent.walk import Walk
from boxwood.engine.tarform import padding

names = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b".."))
short = st.sampled_from([b"a", b"b", b"\xff", b"\n", b"\xc3\xa9", b"x" * 120, b" "]) | names
trees = st.recursive(
    st.binary(max_size=2000), lambda below: st.dictionaries(short, below, max_size=5), max_leaves=12
).filter(lambda tree: isinstance(tree, dict))


class Gathered:
    """Takes the place of the pipe to the server."""

    def __init__(self) -> None:
        self.bytes = b""

    def data(self, data: bytes | memoryview) -> None:
        self.bytes += bytes(data)


def build(tree: object, at: bytes) -> None:
    if isinstance(tree, bytes):
        Path(os.fsdecode(at)).write_bytes(tree)
        return
    os.mkdir(at)
    assert isinstance(tree, dict)
    for name, below in tree.items():
        build(below, at + b"/" + name)


def read(at: bytes) -> object:
    if not os.path.isdir(at):
        return Path(os.fsdecode(at)).read_bytes()
    return {name: read(at + b"/" + name) for name in os.listdir(at)}


def opened(path: bytes) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def packed(path: bytes) -> bytes:
    out, top = Gathered(), opened(path)
    try:
        Packer(out, path).pack(top)  # type: ignore[arg-type]
    finally:
        os.close(top)
    return out.bytes


def unpacked(data: bytes, into: bytes) -> Unpacker:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        os.makedirs(into, exist_ok=True)
        top = opened(into)
        unpacker = Unpacker(top)
        try:
            unpacker.unpack(Source(file.fileno()), whole=True)
        finally:
            os.close(top)
    return unpacker


@given(tree=trees)
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_unpacked(tree: object) -> None:
    with tempfile.TemporaryDirectory() as directory:
        at = os.fsencode(directory)
        build(tree, at + b"/from")
        data = packed(at + b"/from")
        unpacked(data, at + b"/to")
        assert read(at + b"/to") == tree
        with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:  # others read it as well
            members = {os.path.normpath(os.fsencode(member.name)): member for member in tar}
        assert len(data) % 512 == 0 and {name for name in members if name != b"."} == set(paths(tree))


def paths(tree: object, prefix: bytes = b"") -> list[bytes]:
    if not isinstance(tree, dict):
        return []
    return [one for name, below in tree.items() for one in (prefix + name, *paths(below, prefix + name + b"/"))]


@given(
    name=names, target=st.binary(max_size=300).filter(lambda one: 0 not in one), size=st.integers(0, 1 << 60), mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 40), modified=st.integers(0, 1 << 62),
)  # fmt: skip
def test_heads_come_back_as_they_were(
    name: bytes, target: bytes, size: int, mode: int, uid: int, modified: int
) -> None:
    member = tarhead.Member(name, tarhead.SYMLINK, size, mode, uid, uid, modified, target)
    assert read_head(tarhead.head(member)) == member


def read_head(data: bytes) -> tarhead.Member:
    extended: dict[bytes, bytes] = {}
    if data[156:157] == tarhead.PAX:
        length = tarhead.parse(data[:512], {}).size
        extended = tarhead.records(data[512 : 512 + length])
        data = data[512 + length + padding(length) :]
    assert len(data) == 512
    return tarhead.parse(data, extended)


@given(block=st.binary(min_size=512, max_size=512), extended=st.binary(max_size=200))
@settings(max_examples=300)
def test_whatever_comes_is_understood_or_refused(block: bytes, extended: bytes) -> None:
    whole = block[:148] + b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:])) + block[156:]
    for one in (block, whole):
        try:
            assert tarhead.parse(one, {}).size >= 0
        except Refusal:
            pass
    try:
        tarhead.records(extended)
    except Refusal:
        pass


def test_several_names_are_one_file_again(tmp_path: Path) -> None:
    (tmp_path / "from" / "d").mkdir(parents=True)
    (tmp_path / "from" / "a").write_text("x")
    os.link(tmp_path / "from" / "a", tmp_path / "from" / "d" / "b")
    os.symlink("nowhere", tmp_path / "from" / "link")
    os.mkfifo(tmp_path / "from" / "pipe")
    unpacked(packed(bytes(tmp_path / "from")), bytes(tmp_path / "to"))
    assert os.stat(tmp_path / "to" / "a").st_nlink == 2 and os.readlink(tmp_path / "to" / "link") == "nowhere"
    assert not (tmp_path / "to" / "pipe").exists()


def test_again_over_what_is_there(tmp_path: Path) -> None:
    """Hard links in place of themselves leave nothing behind."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_text("x")
    os.link(tmp_path / "from" / "a", tmp_path / "from" / "b")
    data = packed(bytes(tmp_path / "from"))
    for _ in range(2):
        unpacked(data, bytes(tmp_path / "to"))
    assert sorted(os.listdir(tmp_path / "to")) == ["a", "b"]


def test_nothing_is_made_where_nothing_can_be_carried_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "check_on_disk", lambda directory, shown: None)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:  # another file system, as a volume is
        (Path(elsewhere) / "from").mkdir()
        (Path(elsewhere) / "from" / "f").touch()
        with pytest.raises(Refusal) as refused:
            removal.move_tree({"path": f"{elsewhere}/from", "to": f"{tmp_path}/to"}, cast(Out, None), -1)
        assert refused.value.errno == errno.EXDEV and refused.value.text.endswith(f"copy it: {tmp_path}/to")
        assert os.listdir(f"{elsewhere}/from") == ["f"] and os.listdir(tmp_path) == []


segments = st.text(st.sampled_from("ab*?[]!.{},"), min_size=1, max_size=6).filter(lambda one: one not in (".", ".."))


@given(pattern=segments, name=st.text(st.sampled_from("ab.{},"), min_size=1, max_size=6))
def test_one_name_is_matched_as_shells_do(pattern: str, name: str) -> None:
    if "{" in pattern or "**" in pattern or name in (".", ".."):
        return
    assert Glob(pattern).fits(name.encode()) == fnmatch.fnmatchcase(name, pattern)


def test_patterns_that_would_need_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a box there is none: that is said, and not that the time was over."""
    monkeypatch.setitem(sys.modules, "unicodedata", None)
    refused = search._matcher(r"\N{BULLET}", literal=False, ignore_case=False)
    assert isinstance(refused, re.error) and "named" in str(refused)
    assert isinstance(search._matcher(r"\N{BULLET}", literal=True, ignore_case=False), re.Pattern)


def test_what_ripgrep_says_is_taken_for_nothing_but_utf8() -> None:
    """Another codec would have to be looked up."""
    line = {
        "type": "match",
        "data": {"path": {"text": "a"}, "lines": {"text": "x"}, "line_number": 1, "submatches": [{"start": 0}]},
    }
    assert ripgrep._match(json.dumps(line).encode()) == (b"a", 1, 1, b"x")
    for codec in ("utf-16", "utf-16-le", "utf-32-be"):
        assert ripgrep._match(json.dumps(line).encode(codec)) is None


def test_patterns_across_directories() -> None:
    assert Glob("**/x").fits(b"x") and Glob("**/x").fits(b"a/b/x") and not Glob("**/x").fits(b"a/b/xx")
    assert Glob("a/**").fits(b"a/b/c") and not Glob("a/**").fits(b"a")
    assert Glob("a/**/b/*").fits(b"a/b/c") and Glob("a/**/b/*").fits(b"a/x/y/b/c") and not Glob("a/**/b/*").fits(b"a/b")
    assert Glob("{a,b/{c,d}}/e").fits(b"b/d/e") and Glob("{a}").fits(b"{a}") and Glob("x{,y}").fits(b"x")
    assert Glob("\udcff?").fits(b"\xffa") and Glob("?").fits("é".encode())


@given(name=st.binary(max_size=300))
def test_every_name_can_be_said(name: bytes) -> None:
    assert raw(told(name)) == name


@pytest.mark.parametrize("most", [1, 2, 3, 64])
def test_a_walk_needs_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(walk, "MOST_OPEN", most)
    at = tmp_path
    for depth in range(12):
        at = at / f"d{depth}"
        at.mkdir()
        for name in ("a", "z"):
            (at / name).touch()
    top = opened(bytes(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    met, seen = [], 0
    for entry in Walk(top, leaving=True):
        seen = max(seen, len(os.listdir("/proc/self/fd")) - before)
        assert stat.S_IFMT(os.stat(entry.name, dir_fd=entry.directory, follow_symlinks=False).st_mode) == stat.S_IFMT(
            entry.status.st_mode
        )
        met.append((entry.path.decode(), entry.leaving))
    assert seen <= most + 2 and len(os.listdir("/proc/self/fd")) == before
    expected = [(str(path.relative_to(tmp_path)), False) for path in tmp_path.rglob("*")]
    left = [(str(path.relative_to(tmp_path)), True) for path in tmp_path.rglob("*") if path.is_dir()]
    assert sorted(met) == sorted(expected + left)
    places = {one: number for number, one in enumerate(met)}
    assert all(
        places[path, True] > places[other, False] for path, _ in left for other, _ in expected if other.startswith(path)
    )
    os.close(top)


def test_a_walk_goes_on_when_directories_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MOST_OPEN", 1)
    for name in ("a/b/c/d", "z"):
        (tmp_path / name).mkdir(parents=True)
    top, met = opened(bytes(tmp_path)), []
    for entry in Walk(top):
        met.append(entry.path)
        if entry.path == b"a/b/c/d":
            os.rename(tmp_path / "a", tmp_path / "moved")
    assert met == [b"a", b"a/b", b"a/b/c", b"a/b/c/d", b"z"]
    os.close(top)
