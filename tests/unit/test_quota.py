"""Project quotas against a file system that is played: what is asked of the kernel, and what is made of its answers.

The real thing is in tests/engine/test_quota_guest.py.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from boxwood.engine import kernel as k
from boxwood.engine import quota
from boxwood.engine.quota import FIRST_PROJECT, LEAST_BYTES, LEAST_INODES, NoQuota, Quota, Usage
from unit import playedquota
from unit.playedquota import PlayedKernel

MIB = 1 << 20


kernel, layers = playedquota.kernel, playedquota.layers


def _prepare(quotas: Quota, directory: Path, *limits: int | None) -> int:
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDONLY)
    try:
        return quotas.prepare(fd, *limits)
    finally:
        os.close(fd)


# --- which kind


@pytest.mark.parametrize(
    ("magic", "flags", "why", "fix"),
    [
        (k.TMPFS_MAGIC, 0x30, "XFS and ext4 have", "boxwood storage init"),
        (k.XFS_MAGIC, None, "this kernel's xfs has no quotas", "CONFIG_XFS_QUOTA"),
        (k.XFS_MAGIC, 0, "mounted without project quotas", "prjquota"),
        (k.XFS_MAGIC, 0x03, "mounted without project quotas", "prjquota"),  # those of users are on
        (k.EXT4_MAGIC, 0, "mounted without project quotas", "tune2fs"),
        (k.EXT4_MAGIC, 0x10, "enforces nothing", "tune2fs"),
        (k.EXT4_MAGIC, None, "this kernel's ext4 has no quotas", "CONFIG_QFMT_V2"),
    ],
)
def test_why_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layers: int, magic: int, flags: int | None, why: str, fix: str
) -> None:
    PlayedKernel(monkeypatch, magic).flags = flags
    with pytest.raises(NoQuota) as caught:
        Quota(layers)
    assert why in caught.value.why and fix in caught.value.fix
    assert quota.told(tmp_path / "not" / "there") == (False, caught.value.why, caught.value.fix)


@pytest.mark.parametrize(("magic", "kind"), [(k.XFS_MAGIC, "xfs"), (k.EXT4_MAGIC, "ext4")])
def test_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layers: int, magic: int, kind: str) -> None:
    PlayedKernel(monkeypatch, magic)
    assert Quota(layers).kind == kind
    assert quota.told(tmp_path) == (True, f"project quotas of {kind}", "")


def test_this_host_is_told_of(tmp_path: Path) -> None:
    """Whatever it has, asking does no harm, and a refusal says what to do."""
    active, why, fix = quota.told(tmp_path)
    assert why and active == (not fix)


def test_layers_that_inherit_a_project_are_refused(kernel: PlayedKernel, layers: int) -> None:
    quota.set_project(layers, 5)
    with pytest.raises(NoQuota, match="project of its own"):
        Quota(layers)


# --- limits


def test_limits(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    quotas = Quota(layers)
    project = _prepare(quotas, tmp_path / "top", 10 * MIB, 5000)
    assert quotas.used(project) == Usage(4096, 1, 10 * MIB, 5000)
    quotas.hold(project, None, 300)
    assert quotas.used(project) == Usage(4096, 1, 0, 300)


@pytest.mark.parametrize("left", [0, 1, -MIB])
def test_nothing_left_is_not_no_limit(kernel: PlayedKernel, layers: int, tmp_path: Path, left: int) -> None:
    quotas = Quota(layers)
    project = _prepare(quotas, tmp_path / "top", left, left)
    assert quotas.used(project) == Usage(4096, 1, LEAST_BYTES, LEAST_INODES)


def test_lifted_and_back(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    project = _prepare(Quota(layers), tmp_path / "top", 10 * MIB, 5000)
    with pytest.raises(ZeroDivisionError), quota.lifted(layers, project):
        assert quota.usage(layers, project) == Usage(4096, 1)
        raise ZeroDivisionError
    assert quota.usage(layers, project) == Usage(4096, 1, 10 * MIB, 5000)


def test_limits_of_everybody_are_never_set(kernel: PlayedKernel, layers: int) -> None:
    for wrong in ((0, 1, 1), (7, -1, 0), (7, 0, -1)):
        with pytest.raises(ValueError, match="no limits of a project"):
            quota.set_limits(layers, *wrong)
    for project in (0, 7, FIRST_PROJECT - 1, FIRST_PROJECT + quota.PROJECTS):
        with pytest.raises(ValueError, match="no project of a layer"):
            Quota(layers).clear(project)
    assert not kernel.limits


# --- ids


def test_ids_are_the_tops_own(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    quotas = Quota(layers)
    first, second = (_prepare(quotas, tmp_path / name, MIB, None) for name in ("a", "b"))
    assert (first, second) == (FIRST_PROJECT, FIRST_PROJECT + 1)
    assert _prepare(Quota(layers), tmp_path / "a", MIB, None) == first, "and stay, whoever asks"
    assert _prepare(Quota(layers), tmp_path / "c", MIB, None) == FIRST_PROJECT + 2


def test_an_id_that_anything_has_is_not_given_out(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    kernel.foreign[FIRST_PROJECT] = 1
    kernel.limits[FIRST_PROJECT + 1] = 8, 0
    assert _prepare(Quota(layers), tmp_path / "a", MIB, None) == FIRST_PROJECT + 2
    assert kernel.limits[FIRST_PROJECT + 1] == (8, 0)


def test_an_id_that_another_takes_at_the_same_time(
    kernel: PlayedKernel, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(fd: int, project: int, *, inherit: bool = True) -> None:
        if project == FIRST_PROJECT and inherit:
            kernel.foreign[project] = 1  # between the look and the taking
        real(fd, project, inherit=inherit)

    real = quota.set_project
    monkeypatch.setattr(quota, "set_project", race)
    assert _prepare(Quota(layers), tmp_path / "a", MIB, None) == FIRST_PROJECT + 1
    assert kernel.inodes(FIRST_PROJECT) == 1 and FIRST_PROJECT not in kernel.limits, "the other's is left alone"


def test_ids_are_used_again(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    quotas = Quota(layers)
    projects = [_prepare(quotas, tmp_path / str(number), MIB, None) for number in range(3)]
    del kernel.projects[(tmp_path / "1").stat().st_ino]
    quotas.clear(projects[1])
    quotas.clear(projects[0])  # of which something is left: a merged layer has linked it
    assert _prepare(quotas, tmp_path / "3", MIB, None) == projects[1]
    assert _prepare(quotas, tmp_path / "4", MIB, None) == projects[2] + 1


def test_when_all_are_used(kernel: PlayedKernel, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "PROJECTS", 3)
    quotas = Quota(layers)
    for number in range(3):
        _prepare(quotas, tmp_path / str(number), MIB, None)
    with pytest.raises(OSError, match="all 3 project ids") as caught:
        _prepare(quotas, tmp_path / "more", MIB, None)
    assert caught.value.errno == errno.ENOSPC
    del kernel.projects[(tmp_path / "1").stat().st_ino]
    del kernel.limits[FIRST_PROJECT + 1]
    assert _prepare(quotas, tmp_path / "more", MIB, None) == FIRST_PROJECT + 1


def test_a_top_that_was_made_without_one(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    (tmp_path / "old" / "upper").mkdir(parents=True)
    with pytest.raises(OSError, match="without a quota") as caught:
        _prepare(Quota(layers), tmp_path / "old", MIB, None)
    assert caught.value.errno == errno.ENOTEMPTY and not kernel.projects


def test_a_top_by_its_id(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    quotas, top = Quota(layers), "01J8Z3K4M5N6P7Q8R9S0T1V2W3"
    project = quotas.prepare_top(top, MIB, None)
    assert (tmp_path / top).stat().st_mode & 0o777 == 0o755
    assert quotas.prepare_top(top, 2 * MIB, None) == project
    assert quotas.used(project).most_bytes == 2 * MIB
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "01J8Z3K4M5N6P7Q8R9S0T1V2W4").symlink_to("elsewhere")
    for wrong in ("../x", "elsewhere", "", "01J8Z3K4M5N6P7Q8R9S0T1V2W4"):
        with pytest.raises((ValueError, OSError)):
            quotas.prepare_top(wrong, MIB, None)
    assert len(kernel.projects) == 1
