"""Merged layers: over whatever lies below, and under whatever lies above, they show what the layers showed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amounts import amount
from engine.overlays import Layers, difference, new_id, tree
from servers import small_disk, unmount

pytestmark = pytest.mark.root
FILES = amount(700, 1500)  # so long a merge takes, and so much room
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def written(layers: Layers, *steps: Callable[[Path], object]) -> list[str]:
    """A layer for each step, made by an overlay over those before; topmost first."""
    stack: list[str] = []
    for step in steps:
        top = layers.new()
        layers.shown(stack, top, lambda at, step=step: (step(at), None)[1])
        stack.insert(0, top)
    return stack


def merged(layers: Layers, stack: list[str], place: str = "data") -> str:
    target = new_id()
    answer = layers.job(kind="merge", layers=[[place, ident] for ident in stack], target=target)
    assert answer.get("ok"), answer
    return target


def base(at: Path) -> None:
    for name in ("a", "d/a", "d/sub/b", "e/c", "x/y/z", "only/low"):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(name)


def replace_directory(at: Path) -> None:
    shutil.rmtree(at / "d")
    (at / "d").mkdir()
    (at / "d/new").write_text("new")


def attributes(at: Path) -> None:
    (at / "e/suid").write_text("x")
    os.chown(at / "e/suid", 7, 8)
    os.chmod(at / "e/suid", 0o4711)
    os.setxattr(at / "e/suid", "security.capability", CAPABILITY)
    os.setxattr(at / "e", "user.mine", b"1")
    os.chmod(at / "e", 0o1777)
    os.utime(at / "e", ns=(1, 2))
    os.link(at / "e/suid", at / "e/again")
    os.symlink("suid", at / "e/link")
    os.mkfifo(at / "e/fifo")


CASES: list[list[Callable[[Path], object]]] = [
    [lambda at: (at / "a").unlink(), lambda at: (at / "n").touch()],
    [lambda at: (at / "a").unlink(), lambda at: (at / "a").write_text("back")],
    [lambda at: (at / "a").unlink(), lambda at: (at / "a").mkdir()],
    [lambda at: shutil.rmtree(at / "d"), lambda at: (at / "d").mkdir()],
    [lambda at: shutil.rmtree(at / "d"), lambda at: (at / "d").write_text("a file")],
    [replace_directory, lambda at: (at / "d/new").unlink()],
    [replace_directory, lambda at: (at / "d/more").touch(), lambda at: shutil.rmtree(at / "d")],
    [
        lambda at: (at / "p/q").mkdir(parents=True),
        lambda at: (at / "p/q/r").touch(),
        lambda at: (at / "p/q/r").unlink(),
    ],
    [lambda at: (at / "x/y/z").unlink(), lambda at: (at / "x/y").rmdir(), lambda at: (at / "x/y").mkdir()],
    [lambda at: (at / "x/y/n").touch(), lambda at: shutil.rmtree(at / "x")],
    [attributes, lambda at: os.chmod(at / "e/suid", 0o711)],
    [attributes, lambda at: (at / "e/again").unlink()],
    [attributes, lambda at: os.removexattr(at / "e", "user.mine"), lambda at: os.utime(at / "e", ns=(3, 4))],
    [lambda at: os.chown(at / "d/sub", 5, 5), lambda at: (at / "d/sub/b").write_text("other")],
]
SOME = amount(
    [CASES[number] for number in (1, 4, 6, 9, 11)], CASES
)  # where another table of CASES is gone through as well


@pytest.mark.parametrize("steps", CASES)
def test_a_merged_layer_shows_the_same(layers: Layers, steps: list[Callable[[Path], object]]) -> None:
    *stack, lowest = written(layers, base, *steps)
    one = merged(layers, stack)
    before = layers.shown([*stack, lowest], None, tree)
    assert difference(before, layers.shown([one, lowest], None, tree)) == {}
    assert layers.names() == {*stack, lowest, one}
    assert os.listdir(layers.root / one) == ["upper"]


@pytest.mark.parametrize("steps", SOME)
def test_it_can_go_on_being_written_over(layers: Layers, steps: list[Callable[[Path], object]]) -> None:
    *stack, lowest = written(layers, base, *steps)
    one = merged(layers, stack)

    def replay(at: Path) -> object:
        shutil.rmtree(at / "d", ignore_errors=True)
        (at / "a").write_text("over") if not (at / "a").is_dir() else (at / "a/in").touch()
        for path in at.rglob("*"):
            os.utime(path, ns=(9, 9), follow_symlinks=False)
        return tree(at, times=False)

    before = layers.shown([*stack, lowest], layers.new(), replay)
    assert difference(before, layers.shown([one, lowest], layers.new(), replay)) == {}


def test_files_are_not_copied(layers: Layers) -> None:
    stack = written(layers, lambda at: (at / "f").write_bytes(bytes(1 << 20)), lambda at: (at / "g").touch())
    target = new_id()
    answer = layers.job(kind="merge", layers=[["data", ident] for ident in stack], target=target)
    assert answer == {"ok": True, "inodes": 0, "bytes": 0, "links": 2}
    assert (layers.upper(target) / "f").samefile(layers.upper(stack[1]) / "f")


def test_the_layers_can_go_afterwards(layers: Layers) -> None:
    *stack, lowest = written(layers, base, *CASES[5], attributes)
    one = merged(layers, stack)
    before = layers.shown([*stack, lowest], None, tree)
    assert layers.job(kind="remove", layers=stack).get("ok")
    assert difference(before, layers.shown([one, lowest], None, tree)) == {}


def test_layers_of_another_file_system_are_copied(layers: Layers) -> None:
    def pair(at: Path) -> None:
        (at / "e/one").write_text("1")
        os.link(at / "e/one", at / "e/two")
        (at / "e/suid").unlink()

    stack = written(layers, attributes_without_base, pair)
    before = layers.shown(stack, None, tree)
    for ident in stack:
        shutil.move(layers.root / ident, layers.images / ident)  # another mount, as far as a job can see
    one = merged(layers, stack, "image")
    assert difference(before, layers.shown([one], None, tree)) == {}
    assert (layers.upper(one) / "e/two").stat().st_nlink == 2


def attributes_without_base(at: Path) -> None:
    (at / "e").mkdir()
    attributes(at)


@pytest.mark.parametrize("mark", ["user.overlay.redirect", "user.overlay.metacopy"])
@pytest.mark.parametrize("name", ["dir", "dir/file"])
def test_marks_of_other_overlays_are_refused(layers: Layers, mark: str, name: str) -> None:
    ident, target = layers.new(), new_id()
    (layers.upper(ident) / "dir").mkdir()
    (layers.upper(ident) / "dir/file").touch()
    os.setxattr(layers.upper(ident) / name, mark, b"/elsewhere")
    answer = layers.job(kind="merge", layers=[["data", ident]], target=target)
    assert mark in answer["error"]
    assert layers.names() == {ident}


def test_layers_are_looked_through(layers: Layers) -> None:
    stack = written(layers, base, *CASES[5], attributes)
    for ident in stack:
        assert layers.job(kind="check", layer=ident).get("ok")
    os.setxattr(layers.upper(stack[0]) / "e/suid", "user.overlay.metacopy", b"")
    assert "metacopy" in layers.job(kind="check", layer=stack[0])["error"]
    shutil.rmtree(layers.upper(stack[1]))
    assert "FileNotFoundError" in layers.job(kind="check", layer=stack[1])["error"]


@pytest.fixture
def small_layers(tmp_path: Path) -> Iterator[Layers]:
    """On a file system of 32 MiB."""
    place = small_disk(tmp_path, 32, 16384)
    yield Layers(place)
    unmount(place)


def test_a_disk_that_is_full_meanwhile_harms_nothing(small_layers: Layers) -> None:
    layers = small_layers

    def many(at: Path) -> None:
        for number in range(FILES):
            (at / f"d{number}").mkdir()
            (at / f"d{number}/f").touch()

    stack = written(layers, many, lambda at: (at / "d7/f").write_text("other"))
    before = layers.shown(stack, None, tree)
    with (layers.root.parent / "ballast").open("wb", buffering=0) as ballast:
        while ballast.tell() < 64 << 20:
            try:
                ballast.write(bytes(4096))
            except OSError:
                break
        ballast.truncate(ballast.tell() - (1 << 18))  # so it begins, and does not get to the end
        target = new_id()
        answer = layers.job(kind="merge", layers=[["data", ident] for ident in stack], target=target)
        assert "No space left" in answer["error"]
        assert layers.names() == set(stack)
        ballast.truncate(0)
    one = merged(layers, stack)
    assert difference(before, layers.shown([one], None, tree)) == {}


def test_killed_in_the_middle_it_leaves_no_layer(layers: Layers) -> None:
    ident, target = layers.new(), new_id()
    for number in range(FILES):
        (layers.upper(ident) / f"{number}").touch()
    job = layers.begun(kind="merge", layers=[["data", ident]], target=target)
    try:
        while not (layers.root / f"{target}.part/upper").is_dir() and target not in layers.names():
            os.sched_yield()
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        for victim in (*workers, job.pid):
            with suppress(ProcessLookupError):  # a worker that has just ended
                os.kill(int(victim), signal.SIGKILL)
    finally:
        job.end()
    if target not in layers.names():  # else it was faster
        assert layers.names() <= {ident, f"{target}.part", f".dead-{target}"}
    assert layers.job(kind="remove", layers=[target]).get("ok")
    assert layers.names() == {ident}
    assert len(list(layers.upper(ident).iterdir())) == FILES


# --- any layers at all: the kernel says what they show

NAMES = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from(["file", "link", "whiteout", "plain", "opaque", "marked"])


@st.composite
def raw_layer(draw: st.DrawFn) -> dict[str, str]:
    """Paths and what is there: no more than what any tar could hold."""
    made: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 8))):
        parts = draw(st.lists(NAMES, min_size=1, max_size=3))
        parents = ["/".join(parts[:n]) for n in range(1, len(parts))]
        if all(made.setdefault(parent, "plain") in ("plain", "opaque", "marked") for parent in parents):
            made.setdefault("/".join(parts), draw(KINDS))
    return made


def make_raw(upper: Path, made: dict[str, str]) -> None:
    if any(kind == "marked" for kind in made.values()):
        os.setxattr(upper, "user.overlay.opaque", b"x")
    for number, (path, kind) in enumerate(sorted(made.items())):
        at = upper / path
        if kind in ("plain", "opaque", "marked"):
            at.mkdir()
            os.chmod(at, 0o700 + number % 8)
        if kind == "opaque":
            os.setxattr(at, "user.overlay.opaque", b"y")
        elif kind == "marked":
            os.setxattr(at, "user.overlay.opaque", b"x")
            (at / "w").touch()
            os.setxattr(at / "w", "user.overlay.whiteout", b"")
        elif kind == "file":
            at.write_text(f"{upper}{path}")
        elif kind == "link":
            os.symlink(f"{number}", at)
        elif kind == "whiteout":
            os.mknod(at, stat.S_IFCHR, 0)


@settings(max_examples=amount(4, 30), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(raw_layer(), min_size=1, max_size=4),
    raw_layer(),
    st.lists(raw_layer(), max_size=1),
)
def test_any_layers_show_the_same(
    middle: list[dict[str, str]], below: dict[str, str], above: list[dict[str, str]]
) -> None:
    # A layer's own whiteouts show in listings where nothing is below them: as the lowest, only plain things.
    lowest = {
        path: "plain" if kind in ("opaque", "marked") else kind for path, kind in below.items() if kind != "whiteout"
    }
    with tempfile.TemporaryDirectory() as directory:
        layers = Layers(Path(directory))
        ids = [layers.new() for _ in range(len(middle) + len(above) + 1)]
        for ident, made in zip(ids, [*above, *middle, lowest], strict=True):
            make_raw(layers.upper(ident), made)
        *rest, last = ids
        over, stack = rest[: len(above)], rest[len(above) :]
        before = layers.shown(ids, None, seen)
        one = merged(layers, stack)
        after = layers.shown([*over, one, last], None, seen)
        assert difference(before, after) == {}


def seen(at: Path) -> dict[str, tuple[object, ...]]:
    """What can be looked up; an overlay may list whiteouts of layers that no overlay made."""
    found: dict[str, tuple[object, ...]] = {}

    def add(path: Path, shown: str) -> None:
        for name in sorted(os.listdir(path)):
            try:
                s = os.lstat(path / name)
            except FileNotFoundError:
                continue
            kind = stat.S_IFMT(s.st_mode)
            contents = (path / name).read_text() if kind == stat.S_IFREG else None
            found[f"{shown}/{name}"] = kind, s.st_mode, s.st_mtime_ns, contents
            if kind == stat.S_IFDIR:
                add(path / name, f"{shown}/{name}")

    add(at, "")
    return found
