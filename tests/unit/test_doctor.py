"""The doctor's report, here and on hosts that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boxwood.engine import doctor, idmap, seccomp
from boxwood.engine import kernel as k
from boxwood.engine.api import EngineUnavailable
from boxwood.engine.doctor import Check

STATED = {"disk limit"}  # what no host has in this version


def test_missing_is_what_boxes_cannot_do_without() -> None:
    there, wanted = Check("a", True, ""), Check("b", False, "no")
    assert doctor.missing([there, wanted, Check("c", False, "no", required=False)]) == [wanted]


def test_without_root_what_takes_none_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(ids: object) -> None:
        raise PermissionError("user namespaces are refused")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(idmap, "enter", refused)
    found = {check.name: check for check in doctor.try_all(tmp_path, tmp_path)}
    assert [check.name for check in doctor.missing(list(found.values()))] == ["user namespace"]
    assert "refused" in found["user namespace"].why and found["user namespace"].fix
    assert "1000" in found["root"].why and "sudo" in found["root"].fix
    assert set(found) > STATED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("release", ["5.15.0-91-generic", "4.18", "strange"])
def test_an_old_kernel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    here = os.uname()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(k, "capabilities", lambda: -1)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*here[:2], release, *here[3:])))
    (lacking,) = doctor.missing(doctor.try_all(tmp_path, tmp_path))
    assert lacking.name == "kernel" and release in lacking.why and "5.19" in lacking.fix


@pytest.mark.root
def test_this_host_runs_boxes(tmp_path: Path) -> None:
    found = doctor.checks(tmp_path / "data", tmp_path / "not/there/yet")
    assert doctor.missing(found) == []
    assert {check.name for check in found if not check.active} == STATED
    names = [check.name for check in found]
    assert len(names) == len(set(names))
    assert {f"cgroup {name}" for name in ("memory", "cpu", "pids", "freezer")} <= set(names)
    assert all(check.why for check in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_what_fails_is_told_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> bytes:
        raise EngineUnavailable("libseccomp is missing")

    def no_namespace(flag: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(seccomp, "program", no_library)
    monkeypatch.setattr(k, "unshare", no_namespace)
    lacking = {check.name: check for check in doctor.missing(doctor.try_all(tmp_path, tmp_path))}
    assert "libseccomp" in lacking["seccomp"].why and "libseccomp2" in lacking["seccomp"].fix
    assert "not permitted" in lacking["user namespace"].why
    assert lacking.keys() >= {"mount namespace", "pid namespace", "network namespace", "overlay"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_the_command_says_it_to_people_and_programs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "boxwood.engine.doctor", "--data", str(tmp_path), "--images", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    said = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert said["ok"] is True
    for check in said["checks"]:
        assert check["name"] in told and check["why"] in told


def test_trials_that_break_down_are_a_missing_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (broken,) = doctor.missing(doctor.checks(tmp_path, tmp_path))
    assert broken.name == "doctor"
