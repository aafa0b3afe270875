"""Version 2 against a tree of files that behaves as the kernel's does where it matters.

Version 1, and version 2 for real, are in tests/engine.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any, cast

import pytest

from boxwood.engine.api import EngineUnavailable, Limits
from boxwood.engine.cgroups import files, finding, orphans
from boxwood.engine.cgroups.cgroups import Cgroups, LimitUnavailable
from boxwood.engine.cgroups.removals import Removals
from boxwood.engine.cgroups.separate import Separate
from boxwood.engine.cgroups.unified import Unified

INSTANCE = "01J8Z3K4M5N6P7Q8R9S0T1V2W3"
BOX, OTHER = "01J8Z3K4M5N6P7Q8R9S0T1V2W4", "01J8Z3K4M5N6P7Q8R9S0T1V2W5"
SECOND = "01J8Z3K4M5N6P7Q8R9S0T1V2W6"


class FakeKernel:
    """Directories that are born with control files, vanish with them, and know who may hand on controllers."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, controllers: str) -> None:
        self.root, self._controllers = root, controllers
        self._mkdir, self._rmdir, self._write = os.mkdir, os.rmdir, files.write
        self.busy: set[str] = set()
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(files, "write", self.write)
        self.mkdir(str(root))

    def mkdir(self, path: str, mode: int = 0o777, **more: Any) -> None:
        self._mkdir(path, mode, **more)
        if not str(path).startswith(str(self.root)):
            return
        offered = self._controllers
        if path != str(self.root):
            offered = (Path(path).parent / "cgroup.subtree_control").read_text().replace("+", "")
        files = {"cgroup.controllers": offered, "cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.freeze": "0"}
        files |= {"cgroup.events": "populated 0\nfrozen 0\n", "cgroup.kill": ""}
        if "memory" in offered:
            files |= {"memory.max": "max", "memory.swap.max": "max", "memory.current": "4096\n"}
            files |= {"memory.events": "low 0\noom 1\noom_kill 2\n"}
        if "cpu" in offered:
            files |= {"cpu.max": "max 100000", "cpu.stat": "usage_usec 1500000\nuser_usec 1\n"}
        if "io" in offered:
            files |= {"io.weight": "default 100\n"}
        if "pids" in offered:
            files |= {"pids.max": "max", "pids.current": "3\n"}
        for name, text in files.items():
            (Path(path) / name).write_text(text)

    def rmdir(self, path: str, **more: Any) -> None:
        if path in self.busy:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        if any(entry.is_dir() for entry in Path(path).iterdir()):
            raise OSError(errno.EBUSY, "Device or resource busy")
        for entry in Path(path).iterdir():
            entry.unlink()
        self._rmdir(path, **more)

    def write(self, path: str, text: str) -> None:
        at = Path(path)
        if at.name == "cgroup.subtree_control" and (at.parent / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "Device or resource busy")
        if at.name == "cgroup.procs":  # a process moves
            source = self.root / "cgroup.procs"
            source.write_text(" ".join(pid for pid in source.read_text().split() if pid != text))
        if at.name == "cgroup.freeze" and path.rsplit("/", 2)[0] + "/" + at.parent.name not in self.busy:
            (at.parent / "cgroup.events").write_text(f"populated 1\nfrozen {text}\n")
        if at.name == "cgroup.kill":
            self.busy.discard(str(at.parent))
        os.truncate(path, 0)  # a control file has no length
        self._write(path, text)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel(tmp_path / "cgroup", monkeypatch, "cpuset cpu io memory pids")


def found(kernel: FakeKernel, *more: str, io_weight: int = 0) -> Cgroups:
    mounts = kernel.root.parent / "mounts"
    mounts.write_text(
        "\n".join(["proc /proc proc rw 0 0", f"cgroup2 {kernel.root} cgroup2 rw,nosuid 0 0", *more]) + "\n"
    )
    return finding.find(INSTANCE, mounts, io_weight)


def test_boxes_have_equal_shares_of_the_disk(kernel: FakeKernel) -> None:
    groups = found(kernel, io_weight=50)
    assert (groups.io_weight, groups.unified) == (50, str(kernel.root))
    assert groups.controllers == {"memory", "cpu", "pids", "freezer"}, "a weight is no limit"
    for box in (BOX, OTHER):
        (directory,) = groups.make(box, Limits(pids=0))
        assert Path(directory, "io.weight").read_text() == "50"


def test_shares_that_nobody_wants_or_nobody_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, offered, wanted in (("unwanted", "cpu io memory pids", 0), ("none", "cpu memory pids", 100)):
        (tmp_path / name).mkdir()
        groups = found(FakeKernel(tmp_path / name / "cgroup", monkeypatch, offered), io_weight=wanted)
        (directory,) = groups.make(BOX, Limits(pids=0))
        assert groups.io_weight is None and not Path(directory, "io.weight").exists()


def test_shares_of_version_1_are_a_hierarchy_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if its groups have weights: without bfq they have none, and boxes need not join."""
    lines = []
    for name in ("memory", "cpu", "pids", "blkio"):
        (tmp_path / name / f"boxwood-{INSTANCE}").mkdir(parents=True)
        lines.append(f"cgroup {tmp_path / name} cgroup rw,{name} 0 0")
    (tmp_path / "mounts").write_text("\n".join(lines) + "\n")
    weights = tmp_path / "blkio" / f"boxwood-{INSTANCE}" / "blkio.bfq.weight"
    weights.write_text("100")
    mkdir = os.mkdir

    def born(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        if path.startswith(str(weights.parent)):
            Path(path, "blkio.bfq.weight").write_text("100")

    monkeypatch.setattr(os, "mkdir", born)
    groups = finding.find(INSTANCE, tmp_path / "mounts", 20)
    directories = groups.make(BOX, Limits(pids=0))
    assert groups.io_weight == 20 and len(directories) == 4
    assert (weights.parent / BOX / "blkio.bfq.weight").read_text().startswith("20")
    weights.unlink()
    for io_weight in (20, 0):
        groups = finding.find(INSTANCE, tmp_path / "mounts", io_weight)
        assert groups.io_weight is None and len(groups.make(OTHER if io_weight else SECOND, Limits(pids=0))) == 3


def test_a_host_with_nothing_but_shares_has_no_limits(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(f"cgroup {tmp_path} cgroup rw,blkio 0 0\n")
    with pytest.raises(EngineUnavailable, match="cgroup"):
        finding.find(INSTANCE, tmp_path / "mounts", 100)


def test_a_box_has_a_group_with_its_limits(kernel: FakeKernel) -> None:
    groups = found(kernel)
    assert isinstance(groups, Unified)
    assert groups.controllers == {"memory", "cpu", "pids", "freezer"}
    (directory,) = groups.make(BOX, Limits(vcpu=1.5, memory_mib=256, pids=100))
    at = Path(directory)
    assert at == kernel.root / f"boxwood-{INSTANCE}" / BOX
    read = {name: (at / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert read == {"memory.max": str(256 << 20), "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "100"}


def test_zero_is_no_bound(kernel: FakeKernel) -> None:
    at = Path(found(kernel).make(BOX, Limits(vcpu=0, memory_mib=0, pids=0))[0])
    assert [(at / name).read_text() for name in ("memory.max", "cpu.max", "pids.max")] == ["max", "max 100000", "max"]


def test_the_smallest_share_of_a_core_is_what_the_kernel_takes(kernel: FakeKernel) -> None:
    at = Path(found(kernel).make(BOX, Limits(vcpu=0.001))[0])
    assert (at / "cpu.max").read_text() == "1000 100000"


def test_freeze_waits_until_all_stand_still(kernel: FakeKernel) -> None:
    groups = found(kernel)
    at = Path(groups.make(BOX, Limits())[0])
    groups.freeze(BOX)
    assert (at / "cgroup.freeze").read_text() == "1"
    groups.thaw(BOX)
    assert (at / "cgroup.freeze").read_text() == "0"


def test_a_box_that_does_not_freeze_runs_again(kernel: FakeKernel) -> None:
    groups = found(kernel)
    directory = groups.make(BOX, Limits())[0]
    kernel.busy.add(directory)
    with pytest.raises(TimeoutError, match=BOX):
        groups.freeze(BOX, timeout=0)
    assert (Path(directory) / "cgroup.freeze").read_text() == "0"


def test_remove_does_not_wait(kernel: FakeKernel) -> None:
    groups = found(kernel)
    directory = groups.make(BOX, Limits())[0]
    kernel.busy.add(directory)
    assert groups.remove(BOX) is False
    kernel.busy.clear()
    assert groups.remove(BOX) is True
    assert not Path(directory).exists()
    assert groups.remove(BOX) is True  # gone is gone


def test_a_second_box_of_the_same_id_leaves_the_first_alone(kernel: FakeKernel) -> None:
    groups = found(kernel)
    directory = groups.make(BOX, Limits(pids=7))[0]
    with pytest.raises(FileExistsError):
        groups.make(BOX, Limits(pids=8))
    assert (Path(directory) / "pids.max").read_text() == "7"


def test_sweep_kills_what_a_dead_zygote_left(kernel: FakeKernel) -> None:
    before = found(kernel)
    kernel.busy.add(before.make(BOX, Limits())[0])
    before.make(OTHER, Limits())
    kernel.mkdir(f"{kernel.root}/boxwood-{INSTANCE}/{OTHER}/nested")
    after = found(kernel)
    assert after.sweep() == set()
    assert [p for p in (kernel.root / f"boxwood-{INSTANCE}").iterdir() if p.is_dir()] == []
    after.close()
    assert not (kernel.root / f"boxwood-{INSTANCE}").exists()


def test_sweep_leaves_other_instances_alone(kernel: FakeKernel) -> None:
    found(kernel).make(BOX, Limits())
    mounts = kernel.root.parent / "mounts"
    finding.find(OTHER, mounts).sweep()
    assert (kernel.root / f"boxwood-{INSTANCE}" / BOX).is_dir()


def test_what_is_left_of_instances_that_are_gone_is_cleared(kernel: FakeKernel) -> None:
    gone, lives, populated = (f"{kernel.root}/boxwood-{ident}" for ident in (BOX, OTHER, SECOND))
    for group in (gone, populated):
        kernel.mkdir(group)
        kernel.mkdir(f"{group}/{BOX}")
    (Path(populated) / BOX / "cgroup.procs").write_text("0\n")
    kernel.mkdir(f"{kernel.root}/boxwood-aside")
    other = finding.find(OTHER, kernel.root.parent / "mounts") if found(kernel) else None
    assert other is not None
    parents = list(found(kernel)._parents())
    assert orphans.clear(parents) == []  # they are young
    assert orphans.clear(parents, young=-1) == [BOX]
    assert not os.path.exists(gone) and os.path.exists(lives) and os.path.exists(f"{populated}/{BOX}")
    os.truncate(f"{populated}/{BOX}/cgroup.procs", 0)
    assert orphans.clear(parents, young=-1) == [SECOND]
    assert os.path.exists(parents[0]) and os.path.exists(f"{kernel.root}/boxwood-aside")


def test_who_comes_while_it_is_cleared_has_a_group_all_the_same(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the directory open already, which is about to go."""
    group = f"{kernel.root}/boxwood-{BOX}"
    lock, cleared = fcntl.flock, []

    def flock(fd: int, how: int) -> None:
        if not cleared:
            cleared.append(group)
            kernel.rmdir(group)
        lock(fd, how)

    kernel.mkdir(group)
    monkeypatch.setattr(fcntl, "flock", flock)
    fd = files.hold(group)
    assert cleared and os.path.samestat(os.fstat(fd), os.stat(group))
    assert files.hold_orphan(group) is None
    os.close(fd)


def test_usage(kernel: FakeKernel) -> None:
    groups = found(kernel)
    groups.make(BOX, Limits())
    usage = groups.usage(BOX)
    assert (usage.memory_bytes, usage.pids, usage.cpu_seconds, usage.oom_kills) == (4096, 3, 1.5, 2)


def test_in_a_container_processes_of_the_root_make_room(kernel: FakeKernel) -> None:
    (kernel.root / "cgroup.procs").write_text("1 42")
    groups = found(kernel)
    assert groups.controllers >= {"memory", "cpu", "pids"}
    assert (kernel.root / "cgroup.procs").read_text() == ""


@pytest.mark.parametrize(
    "box", ["", "..", "a/b", "01J8Z3K4M5N6P7Q8R9S0T1V2W4/..", "81J8Z3K4M5N6P7Q8R9S0T1V2W4", None, 7, BOX + "\n"]
)
def test_nothing_but_a_ulid_becomes_a_path(kernel: FakeKernel, box: Any) -> None:
    groups = found(kernel)
    for ask in (lambda: groups.make(box, Limits()), lambda: groups.remove(box), lambda: groups.thaw(box)):
        with pytest.raises(ValueError, match="ULID"):
            ask()
    with pytest.raises(ValueError, match="ULID"):
        finding.find(box, kernel.root.parent / "mounts")


def test_a_limit_without_its_controller_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = found(FakeKernel(tmp_path / "cgroup", monkeypatch, "cpu pids"))
    with pytest.raises(LimitUnavailable, match="memory"):
        groups.make(BOX, Limits(memory_mib=64))
    assert groups.make(BOX, Limits(memory_mib=0))


def test_version_2_is_taken_before_version_1(kernel: FakeKernel, tmp_path: Path) -> None:
    (tmp_path / "v1 named").mkdir()
    assert isinstance(found(kernel, f"cgroup {tmp_path}/v1\\040named cgroup rw,name=systemd 0 0"), Unified)


def test_a_hybrid_host_uses_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel(tmp_path / "cgroup", monkeypatch, "hugetlb")
    lines = []
    for name in ("memory", "cpu,cpuacct", "pids", "freezer"):
        (tmp_path / name).mkdir(exist_ok=True)
        lines.append(f"cgroup {tmp_path / name} cgroup rw,{name} 0 0")
    groups = found(kernel, *lines)
    assert isinstance(groups, Separate)
    assert groups.controllers == {"memory", "cpu", "pids", "freezer"}


def test_no_hierarchy_at_all(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    with pytest.raises(EngineUnavailable, match="cgroup"):
        finding.find(INSTANCE, tmp_path / "mounts")


def test_limits_change_and_are_lifted(kernel: FakeKernel) -> None:
    groups = found(kernel)
    before = Limits(vcpu=1, memory_mib=256, pids=100)
    at = Path(groups.make(BOX, before)[0])
    names = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
    after = Limits(vcpu=2, memory_mib=512, pids=50)
    groups.limit(BOX, after, before)
    assert [(at / name).read_text() for name in names] == [str(512 << 20), "0", "200000 100000", "50"]
    groups.limit(BOX, Limits(vcpu=0, memory_mib=0, pids=0), after)
    assert [(at / name).read_text() for name in names] == ["max", "max", "max 100000", "max"]


def test_no_bound_that_would_kill(kernel: FakeKernel) -> None:
    """What is used already is not taken away; what is only cached counts for nothing."""
    group = Unified(INSTANCE, str(kernel.root))
    group.make(BOX, Limits(memory_mib=100))
    at = kernel.root / f"boxwood-{INSTANCE}" / BOX
    (at / "memory.current").write_text(f"{60 << 20}\n")
    (at / "memory.stat").write_text(f"anon {50 << 20}\ninactive_file {8 << 20}\nactive_file {2 << 20}\n")
    with pytest.raises(LimitUnavailable, match="more than 40 MiB"):
        group.change(BOX, Limits(memory_mib=40), Limits(memory_mib=100))
    assert (at / "memory.max").read_text() == str(100 << 20)
    group.change(BOX, Limits(memory_mib=50), Limits(memory_mib=100))
    assert (at / "memory.max").read_text() == str(50 << 20)


def test_all_of_a_change_or_nothing(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Unified(INSTANCE, str(kernel.root))
    group.make(BOX, Limits(memory_mib=100, vcpu=1))
    at = kernel.root / f"boxwood-{INSTANCE}" / BOX
    write = files.write

    def refuse(path: str, text: str) -> None:
        if path.endswith("cpu.max") and text.startswith("200000"):
            raise OSError(errno.EBUSY, "busy")
        write(path, text)

    monkeypatch.setattr(files, "write", refuse)
    with pytest.raises(LimitUnavailable):
        group.change(BOX, Limits(memory_mib=200, vcpu=2), Limits(memory_mib=100, vcpu=1))
    assert (at / "memory.max").read_text() == str(100 << 20)


def test_a_group_that_cannot_be_removed_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """And tried again: a host that is short of descriptors may be so for long."""

    class Short:
        opens = False

        def remove(self, group: str) -> bool:
            if not self.opens:
                raise OSError(errno.EMFILE, "no more descriptors")
            return True

    removals, short = Removals(), Short()
    removals.cgroups = cast(Cgroups, short)
    removals.remove(BOX)
    assert capsys.readouterr().err.count("Traceback") == 1
    for _ in range(3):
        removals.try_again()
    assert len(removals) == 1 and not capsys.readouterr().err
    short.opens = True
    removals.try_again()
    assert not len(removals)
