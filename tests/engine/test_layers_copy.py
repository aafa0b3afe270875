"""Copies of a top: what an overlay on the copy shows is what an overlay on the top showed."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amounts import amount
from engine.overlays import Layers, difference, in_child, new_id, tree

pytestmark = pytest.mark.root
DEEP = amount(1030, 1500)  # more than descriptors, and than calls within calls
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ACL = bytes.fromhex("0200000001000700ffffffff02000600e903000004000500ffffffff10000700ffffffff20000500ffffffff")


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def base_tree(top: Path) -> None:
    for directory in ("dir/sub", "kept", "replaced", "both"):
        (top / directory).mkdir(parents=True)
    for name in ("gone", "dir/a", "dir/sub/b", "kept/c", "replaced/d", "changed", "becomes-dir", "both/low"):
        (top / name).write_text(name)


def every_kind(top: Path) -> None:
    (top / "gone").unlink()
    shutil.rmtree(top / "dir")
    (top / "dir").mkdir(mode=0o2775)
    os.chown(top / "dir", 33, 44)
    (top / "dir/new").write_text("new")
    os.chown(top / "dir/new", 1000, 1000)
    os.chmod(top / "dir/new", 0o4755)
    os.setxattr(top / "dir/new", "user.mine", b"1")
    os.setxattr(top / "dir/new", "security.capability", CAPABILITY)
    os.link(top / "dir/new", top / "hard")
    os.link(top / "dir/new", top / "kept/hard too")
    os.setxattr(top / "kept", "system.posix_acl_access", ACL)
    os.setxattr(top / "kept", "system.posix_acl_default", ACL)
    (top / "kept/inherits").write_text("x")
    os.symlink("nowhere", top / "sym")
    os.chown(top / "sym", 5, 6, follow_symlinks=False)
    os.link(top / "sym", top / "sym2", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(top / "socket"))
    with open(top / "sparse", "wb") as f:
        f.truncate(2 << 20)
        f.seek(1 << 20)
        f.write(b"data")
    (top / "large").write_bytes(os.urandom((1 << 20) + 7))
    (top / "changed").write_text("other")
    (top / "becomes-dir").unlink()
    (top / "becomes-dir").mkdir()
    shutil.rmtree(top / "replaced")
    (top / "replaced").write_text("a file now")
    os.utime(top / "changed", ns=(1, 2))
    os.utime(top / "sym", ns=(3, 4), follow_symlinks=False)
    os.utime(top / "both", ns=(5, 6))
    (top / "name with\nnewline and \udcff").write_text("odd")
    (top / "empty").touch()
    os.chmod(top / "empty", 0)


@pytest.fixture
def stack(layers: Layers) -> tuple[str, str]:
    """A base layer, and a top with every kind of change over it."""
    base, top = layers.new(), layers.new()
    base_tree(layers.upper(base))
    layers.shown([base], top, every_kind)
    return base, top


def test_a_copy_is_exact(layers: Layers, stack: tuple[str, str]) -> None:
    _, top = stack
    target = layers.copy(top)
    assert difference(tree(layers.upper(top)), tree(layers.upper(target))) == {}
    kinds = {stat.S_IFMT(os.lstat(p).st_mode) for p in layers.upper(target).rglob("*")}
    assert kinds >= {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR}
    assert os.stat(layers.upper(target) / "sparse").st_blocks < 64


def test_an_overlay_on_the_copy_shows_the_same(layers: Layers, stack: tuple[str, str]) -> None:
    base, top = stack
    before = layers.shown([base], top, tree)
    target = layers.copy(top)
    assert difference(before, layers.shown([target, base], None, tree)) == {}
    under_a_new_top = layers.shown([target, base], layers.new(), tree)
    assert difference(before, under_a_new_top).keys() == {"."}  # whose times are the new top's


def test_only_the_layer_is_left(layers: Layers, stack: tuple[str, str]) -> None:
    target = layers.copy(stack[1])
    assert layers.names() == {*stack, target}
    assert os.listdir(layers.root / target) == ["upper"]


def changes() -> list[Callable[[Path], object]]:
    """What a box may do between the passes."""

    def hard_link_more(top: Path) -> None:
        os.link(top / "hard", top / "kept/third")

    def break_link(top: Path) -> None:
        (top / "hard").unlink()
        (top / "hard").write_text("on its own now")

    def swap_directories(top: Path) -> None:
        for name, text in (("one", "1111"), ("two", "2222")):
            os.rename(top / f"swap/{name}", top / f"swap/{name}.x")
            assert (top / f"swap/{name}.x/f").read_text() == text
        os.rename(top / "swap/one.x", top / "swap/two")
        os.rename(top / "swap/two.x", top / "swap/one")

    def same_size_and_times(top: Path) -> None:
        before = os.stat(top / "large")
        with open(top / "large", "r+b") as f:
            f.write(b"#")
        os.utime(top / "large", ns=(before.st_atime_ns, before.st_mtime_ns))

    def attributes(top: Path) -> None:
        os.removexattr(top / "dir/new", "user.mine")
        os.setxattr(top / "kept", "user.new", b"1")
        os.removexattr(top / "kept", "system.posix_acl_default")
        os.chmod(top / "fifo", 0o604)
        os.chown(top / "sym2", 9, 9, follow_symlinks=False)

    def types(top: Path) -> None:
        (top / "fifo").unlink()
        (top / "fifo").mkdir()
        (top / "fifo/inside").write_text("x")
        shutil.rmtree(top / "becomes-dir")
        os.symlink("fifo", top / "becomes-dir")
        (top / "sym").unlink()
        os.mkfifo(top / "sym")

    return [
        lambda top: None,
        lambda top: (top / "changed").write_text("again"),
        lambda top: (top / "replaced").unlink(),
        lambda top: shutil.rmtree(top / "dir"),
        lambda top: shutil.rmtree(top / "both"),
        lambda top: os.rename(top / "dir", top / "moved"),
        lambda top: os.rename(top / "swap", top / "kept/swap"),
        lambda top: os.rename(top / "large", top / "empty"),
        lambda top: (top / "a/b/c/d").mkdir(parents=True),
        lambda top: (top / "gone").write_text("back"),
        lambda top: os.utime(top / "large", ns=(7, 8)),
        hard_link_more,
        break_link,
        swap_directories,
        same_size_and_times,
        attributes,
        types,
    ]


@pytest.mark.parametrize("change", changes())
def test_the_second_pass_catches_up(layers: Layers, stack: tuple[str, str], change: Callable[[Path], object]) -> None:
    base, top = stack
    shown = layers.shown

    def prepare(at: Path) -> None:
        for name, text in (("one", "1111"), ("two", "2222")):
            (at / f"swap/{name}/deep").mkdir(parents=True)
            (at / f"swap/{name}/f").write_text(text)
            (at / f"swap/{name}/deep/g").write_text(text)
            for path in (at / f"swap/{name}/f", at / f"swap/{name}/deep/g"):
                os.utime(path, ns=(1, 1))

    shown([base], top, prepare)
    target = new_id()
    first = layers.job(kind="copy", source=top, target=target, phase=1)
    shown([base], top, change)
    second = layers.job(kind="copy", source=top, target=target, phase=2, since=first["since"])
    assert second.get("ok"), second
    assert difference(tree(layers.upper(top)), tree(layers.upper(target))) == {}
    assert difference(shown([base], top, tree), shown([target, base], None, tree)) == {}


def test_what_did_not_change_is_not_copied_again(layers: Layers) -> None:
    top, target = layers.new(), new_id()
    for number in range(50):
        (layers.upper(top) / f"{number}").write_text("x")
    old = layers.job(kind="copy", source=top, target=target, phase=1)["since"] + 3600 * 10**9
    (layers.upper(top) / "7").write_text("y")  # as if all else were an hour old
    second = layers.job(kind="copy", source=top, target=target, phase=2, since=old)
    assert second == {"ok": True, "inodes": 1, "bytes": 1}


def test_a_shared_mapping_written_between_the_passes(tmp_path: Path) -> None:
    layers = Layers(tmp_path, forked=True)  # so that jobs see the mount that is written through
    top, target = layers.new(), new_id()

    def work(at: Path) -> bytes:
        (at / "mapped").write_bytes(bytes(8192))
        with open(at / "mapped", "r+b") as f, mmap.mmap(f.fileno(), 8192) as memory:
            memory[0:3] = b"one"
            first = layers.job(kind="copy", source=top, target=target, phase=1)
            memory[0:3] = b"two"
            memory[5000:5003] = b"two"
            second = layers.job(kind="copy", source=top, target=target, phase=2, since=first["since"])
        assert second.get("ok"), second
        return (layers.upper(target) / "mapped").read_bytes()

    copied = layers.shown([], top, work)
    assert (copied[0:3], copied[5000:5003]) == (b"two", b"two")


@pytest.fixture
def racing(layers: Layers) -> Iterator[Callable[[Callable[[int], None]], None]]:
    """Runs something over and over in another process until the test ends."""
    pids: list[int] = []

    def race(step: Callable[[int], None]) -> None:
        pid = os.fork()
        if pid == 0:
            number = 0
            while os.getppid() != 1:
                number += 1
                try:
                    step(number)
                except OSError:
                    continue
            os._exit(0)
        pids.append(pid)

    yield race
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def exchange(a: Path, b: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.renameat2(-100, bytes(a), -100, bytes(b), 2)


def test_swapping_directories_for_links_leads_nowhere(
    layers: Layers, racing: Callable[[Callable[[int], None]], None], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of the host")
    top = layers.new()
    upper = layers.upper(top)
    for number in range(30):
        (upper / f"d{number}/e").mkdir(parents=True)
        (upper / f"d{number}/e/f").write_text("of the box")
        (upper / f"d{number}/secret").write_text("of the box")
        (upper / f"file{number}").write_text("of the box")
    os.symlink(outside, upper / "link")
    os.mkfifo(upper / "fifo")

    def swap(number: int) -> None:
        exchange(upper / f"d{number % 30}", upper / "link")
        exchange(upper / f"file{number % 7}", upper / "fifo")

    racing(swap)
    for _ in range(amount(3, 10)):
        target = new_id()
        assert layers.job(kind="copy", source=top, target=target, phase=1).get("ok")
        for path in layers.root.joinpath(f"{target}.part").rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert b"host" not in path.read_bytes()
        layers.job(kind="remove", layers=[target])


def test_a_busy_tree_is_copied_and_then_caught_up(
    layers: Layers, racing: Callable[[Callable[[int], None]], None]
) -> None:
    top = layers.new()
    upper = layers.upper(top)

    def churn(number: int) -> None:
        here = upper / f"{number % 20}"
        if number % 3:
            (here / "deep").mkdir(parents=True, exist_ok=True)
            (here / "deep/file").write_text(str(number))
            os.link(here / "deep/file", upper / f"l{number % 50}")
        elif number % 2:
            shutil.rmtree(here)
        else:
            os.rename(here, upper / f"{(number + 7) % 20}/deep/moved")
            (upper / f"l{number % 50}").unlink()

    for _ in range(amount(2, 5)):
        target = new_id()
        pid = os.fork()
        if pid == 0:
            for number in range(1 << 40):
                try:
                    churn(number)
                except OSError:
                    continue
        try:
            first = layers.job(kind="copy", source=top, target=target, phase=1)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert first.get("ok"), first
        second = layers.job(kind="copy", source=top, target=target, phase=2, since=first["since"])
        assert second.get("ok"), second
        assert difference(tree(upper), tree(layers.upper(target))) == {}


def deep(at: Path, levels: int) -> None:
    def child() -> None:
        os.chdir(at)
        for _ in range(levels):
            os.mkdir("d" * 20)
            os.chdir("d" * 20)
        Path("bottom").write_text("x")
        os.link("bottom", "linked")

    in_child(child)


def test_deeper_than_any_path(layers: Layers) -> None:
    top = layers.new()
    deep(layers.upper(top), DEEP)
    target = layers.copy(top)

    def descend() -> tuple[int, int]:
        os.chdir(layers.upper(target))
        levels = 0
        while os.path.exists("d" * 20):
            os.chdir("d" * 20)
            levels += 1
        return levels, os.stat("bottom").st_nlink

    assert in_child(descend) == (DEEP, 2)
    assert layers.job(kind="remove", layers=[top, target]).get("ok")
    assert layers.names() == set()


def test_a_source_with_a_device_is_refused_and_nothing_stays(layers: Layers) -> None:
    top = layers.new()
    os.mknod(layers.upper(top) / "disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    answer = layers.job(kind="copy", source=top, target=new_id(), phase=1)
    assert "PermissionError" in answer["error"]
    assert layers.names() == {top}


@pytest.mark.parametrize(
    "job",
    [
        {"kind": "copy", "source": "../etc", "target": new_id(), "phase": 1},
        {"kind": "copy", "source": new_id(), "target": "../../etc", "phase": 1},
        {"kind": "copy", "source": new_id(), "target": new_id(), "phase": 1},
        {"kind": "copy", "source": new_id(), "target": new_id(), "phase": 3},
        {"kind": "merge", "layers": [["data", ".."]], "target": new_id()},
        {"kind": "merge", "layers": [["elsewhere", new_id()]], "target": new_id()},
        {"kind": "merge", "layers": [["data", new_id()]], "target": new_id()},
        {"kind": "remove", "layers": ["."]},
        {"kind": "remove", "layers": [new_id() + "\n"]},
        {"kind": "other"},
        {},
    ],
)
def test_a_job_that_makes_no_sense_is_answered_and_leaves_nothing(layers: Layers, job: dict[str, object]) -> None:
    assert layers.job(**job)["error"]
    assert layers.names() == set()


def test_a_layer_is_not_overwritten(layers: Layers, stack: tuple[str, str]) -> None:
    base, top = stack
    answer = layers.job(kind="copy", source=top, target=base, phase=1)
    assert "there already" in answer["error"]
    assert layers.names() == {base, top}


def test_remove_clears_what_was_cut_off(layers: Layers) -> None:
    top, half, dying = layers.new(), new_id(), new_id()
    assert layers.job(kind="copy", source=top, target=half, phase=1).get("ok")
    (layers.root / f".dead-{dying}/x/y").mkdir(parents=True)
    outside = layers.root.parent / "outside"
    outside.mkdir()
    os.symlink(outside, layers.root / f".dead-{dying}/x/link")
    (outside / "kept").touch()
    assert layers.job(kind="remove", layers=[half, dying, new_id()]).get("ok")
    assert layers.names() == {top}
    assert (outside / "kept").exists()


def test_remove_does_not_care_for_modes(layers: Layers) -> None:
    top = layers.new()
    directory = layers.upper(top) / "closed/inner"
    directory.mkdir(parents=True)
    (directory / "f").touch()
    os.chmod(directory / "f", 0)
    os.chmod(directory, 0)
    os.chmod(directory.parent, 0)
    assert layers.job(kind="remove", layers=[top]) == {"ok": True, "inodes": 5}
    assert layers.names() == set()
