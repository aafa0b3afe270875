"""What is told of two stacks of layers is what differs in the trees that the kernel shows of them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amounts import amount
from boxwood.engine.layers import diff, view
from engine.overlays import Layers
from engine.test_layers_merge import attributes, base, make_raw, raw_layer, written

pytestmark = pytest.mark.root

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def told(
    layers: Layers, old: list[str], new: list[str], *, most: int = 10_000, text: bool = False, below: str = ""
) -> tuple[dict[str, Any], bool]:
    """The changes by path, and whether there are more."""
    ids = list(dict.fromkeys([*old, *new]))
    stream = os.memfd_create("changes")
    try:
        answer = layers.job(
            stream, kind="diff", layers=[["data", one] for one in ids], old=[ids.index(one) for one in old],
            new=[ids.index(one) for one in new], most=most, text=text, below=below,
        )  # fmt: skip
        assert answer.get("ok"), answer
        said = os.pread(stream, os.fstat(stream).st_size, 0)
    finally:
        os.close(stream)
    lines = [json.loads(line) for line in said.splitlines()]
    assert len({line["path"] for line in lines}) == len(lines)
    return {line.pop("path"): line for line in lines}, bool(answer["truncated"])


def short(changes: dict[str, Any]) -> dict[str, Any]:
    """(kind before, kind after, what) by path."""
    return {path: (one.get("old_kind"), one.get("kind"), one["what"]) for path, one in changes.items()}


def plain(at: Path) -> dict[str, Any]:
    """All that counts of a tree, by path."""
    found: dict[str, Any] = {}

    def add(path: Path, shown: str) -> None:
        for name in sorted(os.listdir(path)):
            try:
                s = os.lstat(path / name)
            except FileNotFoundError:  # a whiteout of a layer that no overlay made may be listed
                continue
            kind = KINDS[stat.S_IFMT(s.st_mode)]
            content = (path / name).read_bytes() if kind == "file" else None
            target = os.readlink(path / name) if kind == "symlink" else None
            extra = {n: os.getxattr(path / name, n, follow_symlinks=False) for n in _attributes(path / name)}
            found[f"{shown}/{name}"] = (kind, s.st_mode, (s.st_uid, s.st_gid), content, target, extra)
            if kind == "directory":
                add(path / name, f"{shown}/{name}")

    add(at, "")
    return found


def _attributes(path: Path) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("user.overlay.")]


def expected(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The plain model: two trees, compared path by path."""
    found: dict[str, Any] = {}
    gone: list[str] = []
    for path in sorted(old.keys() | new.keys(), key=lambda path: path.split("/")):
        a, b = old.get(path), new.get(path)
        if any(path.startswith(above + "/") for above in gone):
            a = None
            if b is None:
                continue
        if a is not None and a[0] == "directory" and (b is None or b[0] != "directory"):
            gone.append(path)
        if a is None or b is None:
            found[path] = (a and a[0], b and b[0], [])
        elif a[0] != b[0]:
            found[path] = (a[0], b[0], ["kind"])
        elif a != b:
            names = ("kind", "mode", "owner", "content", "target", "attributes")
            found[path] = (a[0], b[0], [name for name, one, other in zip(names, a, b, strict=True) if one != other])
    return found


def check(layers: Layers, old: list[str], new: list[str]) -> dict[str, Any]:
    changes, more = told(layers, old, new)
    changes.pop("/", None)
    trees = [layers.shown(stack, None, plain) for stack in (old, new)]
    assert short(changes) == expected(*trees)
    assert not more
    return changes


def change(at: Path) -> None:
    shutil.rmtree(at / "d")
    (at / "d").mkdir()
    (at / "d/new").write_text("new")
    (at / "a").unlink()
    (at / "x/y/z").chmod(0o600)
    os.chown(at / "e/c", 5, 6)
    (at / "x/more").write_text("more")
    os.symlink("here", at / "link")


def test_changes_of_all_kinds(layers: Layers) -> None:
    stack = written(layers, base, change)
    changes = check(layers, stack[1:], stack)
    assert short(changes) == {
        "/a": ("file", None, []),
        "/d/a": ("file", None, []),
        "/d/new": (None, "file", []),
        "/d/sub": ("directory", None, []),
        "/e/c": ("file", "file", ["owner"]),
        "/link": (None, "symlink", []),
        "/x/more": (None, "file", []),
        "/x/y/z": ("file", "file", ["mode"]),
    }
    assert changes["/x/more"]["size"] == 4 and changes["/x/y/z"]["mode"] == 0o600
    check(layers, stack, stack[1:])


@pytest.mark.parametrize(
    "step",
    [
        lambda at: (shutil.rmtree(at / "d"), (at / "d").write_text("a file")),
        lambda at: ((at / "a").unlink(), (at / "a").mkdir(), (at / "a/b").touch()),
        lambda at: os.setxattr(at / "e", "user.mine", b"2"),
        lambda at: ((at / "a").unlink(), os.mkfifo(at / "a")),
        lambda at: (at / "a").rename(at / "z"),
        lambda at: attributes(at),
        lambda at: (at / "a").write_text("a"),  # the same again
        lambda at: os.utime(at / "a", ns=(1, 1)),
    ],
)
def test_one_thing_at_a_time(layers: Layers, step: Any) -> None:
    stack = written(layers, base, lambda at: (step(at), None)[1])
    check(layers, stack[1:], stack)
    check(layers, stack, stack[1:])


def test_two_that_went_different_ways(layers: Layers) -> None:
    stack = written(layers, base)
    sides = []
    for step in (change, attributes):
        top = layers.new()
        layers.shown(stack, top, lambda at, step=step: (step(at), None)[1])
        sides.append([top, *stack])
    check(layers, *sides)


def test_only_what_has_changed_is_looked_at(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of directories that both sides share, however many, nothing is listed."""

    def many(at: Path) -> None:
        for n in range(100):
            (at / f"many/{n}").mkdir(parents=True)
            (at / f"many/{n}/f").touch()

    stack = written(layers, many, base, change)
    listed: list[int] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda fd: (listed.append(1), listdir(fd))[1])
    fds = [os.open(layers.upper(ident), os.O_RDONLY) for ident in stack]
    try:
        roots = [view.root(list(enumerate(fds))[first:]) for first in (1, 0)]
        paths = [found.path for found in diff.walk(*roots)]
    finally:
        for fd in fds:
            os.close(fd)
    assert "/x/more" in paths and not any(path.startswith("/many") for path in paths)
    assert len(listed) < 20


def test_bounds(layers: Layers) -> None:
    stack = written(layers, base, lambda at: [(at / f"{n:03}").touch() for n in range(20)] and None)
    changes, more = told(layers, stack[1:], stack, most=5)
    assert more and sorted(changes) == [f"/{n:03}" for n in range(5)]
    changes, more = told(layers, stack[1:], stack, most=20)
    assert not more and len(changes) == 20


def test_one_directory_alone(layers: Layers) -> None:
    stack = written(layers, base, change)
    assert set(told(layers, stack[1:], stack, below="x")[0]) == {"/x/more", "/x/y/z"}
    assert set(told(layers, stack[1:], stack, below="d/sub")[0]) == {"/d/sub"}
    assert set(told(layers, stack, stack[1:], below="d/sub")[0]) == {"/d/sub", "/d/sub/b"}
    for which, kinds in ((("old", "new"), ("directory", "file")), (("new", "old"), ("file", "directory"))):
        sides = {"old": [layers.new()], "new": [layers.new()]}
        (layers.upper(sides["old"][0]) / "turned").mkdir()
        (layers.upper(sides["old"][0]) / "turned" / "in").touch()
        (layers.upper(sides["new"][0]) / "turned").touch()
        found = short(told(layers, sides[which[0]], sides[which[1]], below="turned")[0])
        assert found.pop("/turned") == (*kinds, ["kind"])
        assert found == ({} if kinds[1] == "file" else {"/turned/in": (None, "file", [])})
    assert told(layers, stack[1:], stack, below="nowhere")[0] == {}
    assert told(layers, stack[1:], stack, below="a/b")[0] == {}


def test_text_is_told_line_by_line_and_other_things_are_not(layers: Layers) -> None:
    def before(at: Path) -> None:
        (at / "text").write_text("one\ntwo\n")
        (at / "binary").write_bytes(b"\0one")
        (at / "big").write_text("x\n" * 200_000)

    def after(at: Path) -> None:
        (at / "text").write_text("one\nthree\n")
        (at / "binary").write_bytes(b"\0two")
        (at / "big").write_text("y\n" * 200_000)
        (at / "latin").write_bytes(b"\xe4\n")
        (at / "new").write_text("here\n")
        os.symlink("text", at / "link")

    stack = written(layers, before, after)
    changes, _ = told(layers, stack[1:], stack, text=True)
    assert {path for path, one in changes.items() if "diff" in one} == {"/text", "/new"}
    assert changes["/text"]["diff"] == "--- a/text\n+++ b/text\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert changes["/new"]["diff"] == "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+here\n"
    assert "diff" not in told(layers, stack[1:], stack)[0]["/text"]


def test_names_that_are_no_text(layers: Layers) -> None:
    stack = written(layers, base, lambda at: Path(os.fsdecode(bytes(at) + b"/\xff\n")).touch())
    assert set(told(layers, stack[1:], stack)[0]) == {"/\udcff\n"}


def test_sparse_files_are_compared_without_their_holes(layers: Layers) -> None:
    def sparse(last: bytes) -> Any:
        def make(at: Path) -> None:
            with open(at / "sparse", "wb") as file:
                file.seek(1 << 42)
                file.write(last)

        return make

    stack = written(layers, sparse(b"a"), lambda at: os.chmod(at, 0o755), sparse(b"a"), sparse(b"b"))
    assert "/sparse" not in told(layers, stack[2:], stack[1:])[0]
    assert told(layers, stack[1:], stack)[0]["/sparse"]["what"] == ["content"]


def test_it_sees_nothing_else_and_changes_nothing(layers: Layers) -> None:
    stack = written(layers, base, change)
    before = layers.names()
    assert "error" in layers.job(
        os.memfd_create("x"),
        kind="diff",
        layers=[["data", "../../etc"]],
        old=[0],
        new=[0],
        most=1,
        text=False,
        below="",
    )
    check(layers, stack[1:], stack)
    assert layers.names() == before


@settings(max_examples=amount(4, 30), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(raw_layer(), max_size=2), st.lists(raw_layer(), max_size=2), st.lists(raw_layer(), max_size=2), raw_layer()
)
def test_any_two_stacks(
    old: list[dict[str, str]], new: list[dict[str, str]], both: list[dict[str, str]], below: dict[str, str]
) -> None:
    lowest = {
        path: "plain" if kind in ("opaque", "marked") else kind for path, kind in below.items() if kind != "whiteout"
    }
    with tempfile.TemporaryDirectory() as directory:
        layers = Layers(Path(directory))
        made = [*old, *new, *both, lowest]
        ids = [layers.new() for _ in made]
        for ident, one in zip(ids, made, strict=True):
            make_raw(layers.upper(ident), one)
        shared = ids[len(old) + len(new) :]
        check(layers, [*ids[: len(old)], *shared], [*ids[len(old) : len(old) + len(new)], *shared])
