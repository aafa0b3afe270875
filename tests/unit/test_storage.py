"""A pool that is not made, and what is said of it. Pools that are: tests/engine/test_quota_guest.py."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boxwood.cli.main import execute
from boxwood.engine import quota, storage
from boxwood.engine.api import EngineUnavailable
from boxwood.engine.storage import GIB, Refused

POOL = {"quotas": "xfs", "pool": "/d/pool.xfs", "mounted": True, "size": GIB, "used": 1 << 20, "free": 1000 << 20}


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(storage, "_need", lambda program, package: None)


def _no_quota(*_: object) -> str:
    raise quota.NoQuota("there are none", "get some")


@pytest.fixture
def without_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "kind_of", _no_quota)


def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match="run this as root"):
        storage.make(tmp_path / "data", 1)
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("as_root", "without_quotas")
class TestRefusals:
    def test_layers_that_are_there(self, tmp_path: Path) -> None:
        (tmp_path / "layers" / "some").mkdir(parents=True)
        with pytest.raises(Refused, match="holds layers already"):
            storage.make(tmp_path, 1)

    def test_a_server(self, tmp_path: Path) -> None:
        with open(tmp_path / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(Refused, match="boxwood down"):
                storage.make(tmp_path, 1)
        assert not (tmp_path / "layers").exists()

    def test_too_little_space(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match=r"too much: .* are free"):
            storage.make(tmp_path, 1 << 30)
        assert sorted(os.listdir(tmp_path)) == ["layers", "lock"]

    def test_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = os.statvfs_result((4096, 4096, 100_000, 100_000, 100_000, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda place: disk)
        with pytest.raises(Refused, match="needs 1 GiB or more"):
            storage.make(tmp_path, None)

    def test_without_the_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(quota, "kind_of", _no_quota)
        monkeypatch.setattr(storage, "_PATH", str(tmp_path))
        with pytest.raises(Refused, match="apt install xfsprogs"):
            storage.make(tmp_path, 1)

    def test_a_program_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage, "_MKFS", ("sh", "-c", "echo it is broken >&2; exit 3"))
        with pytest.raises(Refused, match=r"mkfs\.xfs: it is broken"):
            storage.make(tmp_path, 1)
        assert sorted(os.listdir(tmp_path)) == ["layers", "lock"]


@pytest.mark.usefixtures("as_root")
def test_where_there_are_quotas_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "kind_of", lambda fd: "ext4")
    monkeypatch.setattr(quota, "project_of", lambda fd: (0, False))
    (tmp_path / "layers" / "some").mkdir(parents=True)
    found = storage.make(tmp_path, 1)
    assert (found.quotas, found.pool, found.why) == ("ext4", None, "") and found.free > 0
    assert not (tmp_path / "pool.xfs").exists()


def test_without_a_pool_nothing_is_mounted(tmp_path: Path) -> None:
    storage.attach(tmp_path)
    storage.detach(tmp_path)


def test_a_pool_that_cannot_be_mounted_is_never_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Path, place: Path) -> None:
        raise Refused("the kernel does not want to")

    monkeypatch.setattr(storage, "_mount", refuse)
    (tmp_path / "layers").mkdir()
    (tmp_path / "pool.xfs").write_bytes(bytes(4096))
    with pytest.raises(EngineUnavailable, match=r"cannot be mounted on .*layers: the kernel does not want to"):
        storage.attach(tmp_path)
    (tmp_path / "layers" / "stray").touch()
    with pytest.raises(EngineUnavailable, match="not empty"):
        storage.attach(tmp_path)
    found = storage.show(tmp_path)
    assert not found.mounted and found.why == "the pool is not mounted" and found.size == 4096


def test_the_process_answers_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory")
    for what, member in (("show", "quotas"), ("init", "error")):
        command = [sys.executable, "-I", "-m", "boxwood.engine.storage", what, "--data", str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert member in json.loads(done.stdout), done.stderr


# --- the command


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the engine says to `show` and to `init`."""
    said: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr("boxwood.cli.storage._asked", lambda what, data, gib=None: said[what])
    return said


def test_what_is_shown(answers: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers["show"] = {"data": "/d", "why": "", "fix": "", **POOL}
    assert execute(["storage", "--data", "/d"]) == 0
    shown = capsys.readouterr().out
    assert "/d/pool.xfs" in shown and "xfs" in shown and "used 1.0 MiB, free 1000.0 MiB" in shown
    assert execute(["storage", "--data", "/d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answers["show"]
    answers["show"] |= {"quotas": "none", "pool": None, "why": "there are none", "fix": "get some"}
    execute(["storage"])
    shown = capsys.readouterr().out
    assert "none: there are none" in shown and "→ get some" in shown


def test_what_need_not_be_made(answers: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    answers["show"] = {"data": "/d", "why": "", "fix": "", **POOL, "quotas": "ext4", "pool": None}
    assert execute(["storage", "init", "--data", "/d"]) == 0
    assert "nothing to make: /d lies on ext4 with project quotas" in capsys.readouterr().err


def test_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the engine's own process."""
    (tmp_path / "layers" / "some").mkdir(parents=True)
    (tmp_path / "pool.xfs").mkdir()
    (tmp_path / "lock").mkdir()
    assert execute(["storage", "init", "--data", str(tmp_path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["code"] == "storage" and said["message"]
    assert execute(["storage", "init", "--size", "0", "--data", str(tmp_path)]) == 2
