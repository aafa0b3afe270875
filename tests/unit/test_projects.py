"""Tops that are bounded by project quotas, as the zygote has it done, against a file system that is played."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwood.engine import kernel as k
from boxwood.engine import quota
from boxwood.engine.api import Limits
from boxwood.engine.disk import projects
from boxwood.engine.disk.image import TooMuch
from boxwood.engine.disk.projects import Projects
from unit import playedquota
from unit.playedquota import PlayedKernel

MIB = 1 << 20
TOP, OTHER = "01J8Z3K4M5N6P7Q8R9S0T1V2W3", "01J8Z3K4M5N6P7Q8R9S0T1V2W4"


kernel, layers = playedquota.kernel, playedquota.layers


def test_every_top_has_a_project_and_can_be_limited(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    tops = Projects(layers)
    project = tops.prepare(TOP, Limits())
    assert project and quota.usage(layers, project).most_bytes == 0
    assert projects.capacity(tmp_path, TOP) > 1 << 40
    tops.change(project, 32 * MIB)
    assert quota.usage(layers, project) == quota.Usage(4096, 1, 32 * MIB, 2048)
    assert projects.known(layers, TOP) == quota.usage(layers, project)
    tops.change(project, 0)
    assert quota.usage(layers, project) == quota.Usage(4096, 1)
    assert tops.prepare(TOP, Limits(disk=16 * MIB)) == project
    assert tops.of([TOP, OTHER]) == [project]


def test_a_limit_below_what_is_used(kernel: PlayedKernel, layers: int) -> None:
    tops = Projects(layers)
    project = tops.prepare(TOP, Limits(disk=64 * MIB))
    kernel.foreign[project] = 5000  # files
    with pytest.raises(TooMuch, match="its disk holds 20 MiB"):
        tops.change(project, 16 * MIB)
    assert quota.usage(layers, project).most_bytes == 64 * MIB


def test_a_top_from_before(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    (tmp_path / TOP / "upper").mkdir(parents=True)
    tops = Projects(layers)
    assert tops.prepare(TOP, Limits()) == 0
    assert projects.known(layers, TOP) is None and projects.capacity(tmp_path, TOP) == 0
    with pytest.raises(TooMuch, match="can be sealed but not limited"):
        tops.prepare(TOP, Limits(disk=16 * MIB))


def test_layers_that_are_gone_leave_no_limits(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    tops = Projects(layers)
    project = tops.prepare(TOP, Limits(disk=64 * MIB))
    found = tops.of([TOP])
    del kernel.projects[(tmp_path / TOP).stat().st_ino]
    (tmp_path / TOP).rmdir()
    tops.clear(found)
    assert quota.usage(layers, project) == quota.Usage()
    assert tops.prepare(OTHER, Limits()) == project


def test_without_quotas(monkeypatch: pytest.MonkeyPatch, layers: int, tmp_path: Path) -> None:
    PlayedKernel(monkeypatch, k.TMPFS_MAGIC)
    tops = Projects(layers)
    assert tops.prepare(TOP, Limits()) == 0 and not tops.of([TOP])
    assert not (tmp_path / TOP).exists(), "it is left to who makes tops"
    with pytest.raises(TooMuch):
        tops.prepare(TOP, Limits(disk=16 * MIB))
    with projects.lifted(layers, 0):
        pass


def test_projects_of_others_are_none_of_ours(kernel: PlayedKernel, layers: int, tmp_path: Path) -> None:
    (tmp_path / TOP).mkdir()
    fd = os.open(tmp_path / TOP, os.O_RDONLY)
    quota.set_project(fd, 7)
    os.close(fd)
    assert Projects(layers).of([TOP]) == [] and projects.known(layers, TOP) is None
