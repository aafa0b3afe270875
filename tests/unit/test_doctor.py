"""The doctor's report, here and on hosts that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boxwood.engine import doctor, idmap, levels, seccomp
from boxwood.engine import kernel as k
from boxwood.engine.api import EngineUnavailable
from boxwood.engine.host import HostEngine
from boxwood.engine.trials.common import DISK, DISK_SHARES, LANDLOCK, Check


def test_missing_is_what_boxes_cannot_do_without() -> None:
    there, wanted = Check("a", True, ""), Check("b", False, "no")
    assert doctor.missing([there, wanted, Check("c", False, "no", required=False)]) == [wanted]


def test_a_level_holds_those_before_it_and_takes_nothing_for_granted() -> None:
    everything = [Check(name, True, "") for name in levels.needed("full")]
    assert levels.reached(everything) == "full"
    assert doctor.unmet("full", everything) == []
    for level in levels.LEVELS:
        for name in levels.LEVELS[level]:
            broken = [Check(name, False, "a reason", "a way out") if one.name == name else one for one in everything]
            (lacking,) = doctor.unmet("full", broken)
            assert doctor.told([lacking]) == f"{name}: a reason (a way out)"
            before = list(levels.LEVELS)[: list(levels.LEVELS).index(level)]
            assert levels.reached(broken) == (before[-1] if before else levels.NONE)
            untried = [one for one in everything if one.name != name]
            assert [one.name for one in doctor.unmet(level, untried)] == [name]
    with pytest.raises(ValueError, match="basic, limits, full"):
        levels.needed("perfect")


@pytest.mark.parametrize(("level", "starts"), [("limits", True), ("full", False)])
async def test_nothing_is_started_below_the_level_that_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, starts: bool
) -> None:
    """The zygote is what comes next; that it is asked for shows that the level was no obstacle."""

    class Reached(Exception):
        pass

    async def connect(self: object, program: bytes) -> None:
        raise Reached

    found = [
        Check(name, name != "disk limit", "no quotas", "make some", required=False) for name in levels.needed("full")
    ]
    monkeypatch.setattr(doctor, "checks", lambda data, images: found)
    monkeypatch.setattr("boxwood.engine.daemon.Zygote.connect", connect)
    engine = HostEngine(tmp_path / "data", tmp_path / "images", require=level)
    with pytest.raises(Reached if starts else EngineUnavailable) as told:
        await engine.start()
    if not starts:
        assert str(told.value) == "this host does not reach the level full: disk limit: no quotas (make some)"


def test_without_root_what_takes_none_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(ids: object) -> None:
        raise PermissionError("user namespaces are refused")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(idmap, "enter", refused)
    found = {check.name: check for check in doctor.try_all(tmp_path, tmp_path)}
    assert [check.name for check in doctor.missing(list(found.values()))] == ["user namespace"]
    assert "refused" in found["user namespace"].why and found["user namespace"].fix
    assert "1000" in found["root"].why and "sudo" in found["root"].fix
    assert not found[DISK].active if DISK in found else True
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
    assert {check.name for check in found if not check.active} <= {DISK_SHARES, LANDLOCK}
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
        assert check["level"] == levels.level_of(check["name"])
    assert f"level: {said['level']}" in told
    for level, state in said["levels"].items():
        assert state["met"] is not bool(state["missing"])
        done = subprocess.run([*command, "--require", level], capture_output=True, check=False)
        assert done.returncode == (0 if state["met"] else 1)


@pytest.mark.root
def test_levels_name_nothing_that_is_not_tried(tmp_path: Path) -> None:
    assert set(levels.needed("full")) <= {check.name for check in doctor.try_all(tmp_path, tmp_path)}


def test_trials_that_break_down_are_a_missing_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (broken,) = doctor.missing(doctor.checks(tmp_path, tmp_path))
    assert broken.name == "doctor"
