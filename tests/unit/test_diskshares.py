"""Do weights count for a disk? Asked of trees of files as /sys has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwood.engine.diskshares import obstacle


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The device of the file system that `tmp_path` is on, as the partition of a disk."""
    number = os.stat(tmp_path).st_dev
    at = tmp_path / "sys/devices/vda"
    (at / "vda1").mkdir(parents=True)
    (at / "queue").mkdir()
    (at / "dev").write_text("254:0\n")
    (at / "vda1/partition").write_text("1\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}").symlink_to(at / "vda1")
    return at


def test_it_is_the_scheduler_of_the_disk_that_counts(tmp_path: Path, disk: Path) -> None:
    (disk / "queue/scheduler").write_text("none mq-deadline [bfq]\n")
    assert obstacle(tmp_path, None, tmp_path / "sys") == ("", "")
    (disk / "queue/scheduler").write_text("none [mq-deadline] bfq\n")
    why, fix = obstacle(tmp_path, None, tmp_path / "sys")
    assert "vda is mq-deadline" in why and fix == "echo bfq > /sys/block/vda/queue/scheduler"
    (disk / "queue/scheduler").write_text("[none]\n")
    assert "modprobe bfq" in obstacle(tmp_path, None, tmp_path / "sys")[1]
    (disk / "queue/scheduler").unlink()
    assert "vda is none" in obstacle(tmp_path, None, tmp_path / "sys")[0]


def test_or_the_cost_model_of_version_2(tmp_path: Path, disk: Path) -> None:
    (disk / "queue/scheduler").write_text("[none]\n")
    model = tmp_path / "io.cost.qos"
    for text, counts in (("254:0 enable=1 ctrl=auto\n", True), ("254:0 enable=0\n", False), ("8:0 enable=1\n", False)):
        model.write_text(text)
        assert (obstacle(tmp_path, str(tmp_path), tmp_path / "sys") == ("", "")) is counts
    assert obstacle(tmp_path, None, tmp_path / "sys")[0], "with version 1 nobody looks at it"


def test_what_is_on_no_disk(tmp_path: Path) -> None:
    why, fix = obstacle(tmp_path, None, tmp_path / "sys")
    assert "no disk" in why and fix == ""
