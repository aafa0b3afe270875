"""What a job could do if the bytes it reads had taken it over: asked from inside, where its work is done."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from boxwood.engine import kernel as k
from boxwood.engine.disk import files, image
from boxwood.engine.layers import confinement
from engine.overlays import Layers, in_child, new_id

pytestmark = pytest.mark.root


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[Callable[[Mapping[str, int]], int]], int]:
    """The number that `question` returns in the inner process of a job; `source` is read-only, `target` is not."""
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        os.mknod(tmp_path / name / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))

    def ask(question: Callable[[Mapping[str, int]], int]) -> int:
        def child() -> int:
            trees = {}
            for name, attributes in (("source", k.ATTR_RDONLY), ("target", 0)):
                trees[name] = k.open_tree(str(tmp_path / name))
                k.mount_setattr(trees[name], k.ATTR_NOSUID | k.ATTR_NODEV | k.ATTR_NOEXEC | attributes)
            return int(confinement.confined(trees, lambda at: {"said": question(at)})["said"])

        return int(in_child(child))

    return ask


def failed_with(work: Callable[[], object]) -> int:
    try:
        work()
    except OSError as error:
        return error.errno or -1
    return 0


def test_it_sees_its_directories_and_nothing_else(ask: Callable[..., int]) -> None:
    assert ask(lambda at: sorted(os.listdir("/")) == ["source", "target"]) == 1
    assert ask(lambda at: os.stat("..", dir_fd=at["source"]).st_ino == os.stat("/").st_ino) == 1
    assert ask(lambda at: failed_with(lambda: os.stat("/proc"))) == errno.ENOENT


def test_a_source_cannot_be_written(ask: Callable[..., int]) -> None:
    write = os.O_WRONLY | os.O_TRUNC
    assert ask(lambda at: failed_with(lambda: os.open("file", write, dir_fd=at["source"]))) == errno.EROFS
    assert ask(lambda at: failed_with(lambda: os.open("file", write, dir_fd=at["target"]))) == 0
    assert ask(lambda at: failed_with(lambda: os.mkdir("/new"))) == errno.EROFS


def test_devices_are_dead(ask: Callable[..., int]) -> None:
    for name in ("source", "target"):
        assert (
            ask(lambda at, name=name: failed_with(lambda: os.open("zero", os.O_RDONLY, dir_fd=at[name])))
            == errno.EACCES
        )
    device = stat.S_IFBLK | 0o666, os.makedev(254, 0)
    assert ask(lambda at: failed_with(lambda: os.mknod("disk", *device, dir_fd=at["target"]))) == errno.EPERM


def test_it_has_no_network_and_no_other_descriptor(ask: Callable[..., int]) -> None:
    def connect() -> None:
        with socket.socket() as s:
            s.connect(("127.0.0.1", 9))

    def descriptors() -> int:
        return sum(not failed_with(lambda fd=fd: os.fstat(fd)) for fd in range(3, 4096))

    assert ask(lambda at: failed_with(connect)) == errno.ENETUNREACH
    assert ask(lambda at: descriptors() - len(at)) == 1  # its way to say so


@pytest.mark.parametrize(
    "work",
    [
        lambda: k.mount("x", "/target", "tmpfs"),
        lambda: k.umount("/source"),
        lambda: k.unshare(k.NEWNS),
        lambda: os.chroot("/target"),
        lambda: k.sethostname("x"),
        lambda: os.setuid(1),
    ],
)
def test_root_it_is_only_for_files(ask: Callable[..., int], work: Callable[[], object]) -> None:
    assert ask(lambda at: failed_with(work)) == errno.EPERM


def test_there_is_nobody_to_send_a_signal_to(ask: Callable[..., int]) -> None:
    here = os.getpid()
    assert ask(lambda at: os.getpid()) == 1
    assert ask(lambda at: failed_with(lambda: os.kill(here, 0))) == errno.ESRCH


def before_linux_6_15(clone: Callable[..., int]) -> Callable[..., int]:
    """`kernel.open_tree` as it was: what is not attached in the mount namespace that we are in is not cloned."""

    def open_tree(path: str, at: int = -1, **options: bool) -> int:
        fd = os.open(path, os.O_PATH, dir_fd=None if at < 0 else at) if path else os.dup(at)
        try:
            (mount,) = re.findall(r"mnt_id:\t(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
        finally:
            os.close(fd)
        if mount not in {line.split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}:
            raise OSError(errno.EINVAL, "it is not attached here")
        return clone(path, at, **options) if at >= 0 else clone(path, **options)

    return open_tree


def test_layers_in_files_are_reached_on_older_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, layer, target = Layers(tmp_path, forked=True), new_id(), new_id()
    files.make(layers.root, tmp_path / "templates", layer, 16 << 20)

    def write() -> None:
        disk = image.Disks(os.open(layers.root, os.O_RDONLY)).attach(layer, read_only=False)
        assert disk is not None
        root = image.mount(disk)
        with open(os.open("upper/file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=root), "w") as f:
            f.write("kept")

    in_child(write)
    monkeypatch.setattr(k, "open_tree", before_linux_6_15(k.open_tree))
    with pytest.raises(AssertionError, match="not attached here"):
        in_child(lambda: k.open_tree("", k.Filesystem("tmpfs").create()))
    assert layers.job(kind="check", layer=layer) == {"ok": True, "inodes": 1}
    assert layers.job(kind="merge", layers=[["data", layer]], target=target).get("ok")
    assert (layers.upper(target) / "file").read_text() == "kept"


def test_an_inner_process_that_dies_is_an_answer(tmp_path: Path) -> None:
    def child() -> str:
        try:
            confinement.confined({}, lambda at: os._exit(9))
        except confinement.JobFailed as error:
            return str(error)
        return ""

    assert "ended early" in in_child(child)
