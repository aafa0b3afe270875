"""On a disk whose scheduler knows shares, each box has its own: a loop device with bfq."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boxwood.engine import doctor
from boxwood.engine.trials.common import DISK_SHARES
from servers import Server, small_disk, unmount


@pytest.fixture
def shared_disk(tmp_path: Path) -> Iterator[Path]:
    place = small_disk(tmp_path, 256, 8192)
    try:
        device = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", str(place)], check=True, capture_output=True, text=True
        ).stdout.strip()
        scheduler = Path("/sys/block") / Path(device).name / "queue/scheduler"
        if "bfq" not in scheduler.read_text():
            pytest.skip("this kernel has no bfq")
        scheduler.write_text("bfq")
        yield place
    finally:
        unmount(place)


def test_boxes_have_equal_shares(shared_disk: Path, make_server: Callable[..., Server]) -> None:
    checks = {check.name: check for check in doctor.checks(shared_disk / "data", shared_disk / "images")}
    if "no weights" in checks[DISK_SHARES].why:
        pytest.skip("the cgroups of this host have no weights")
    assert checks[DISK_SHARES].active, checks[DISK_SHARES]
    server = make_server(data=shared_disk / "data", io_weight=40, disk_spare_mib=0, ready_boxes=0)
    with server.client() as client:
        client.fork("ubuntu").run("true", check=True)
        health = client.health()
        assert health.isolation[DISK_SHARES]
        while True:  # one that is being prepared has not joined its groups yet
            weights = [weights_of(pid) for pid in server.box_pids()]
            assert weights and set().union(*weights) <= {"40"}, weights
            if all(weights):
                break


def weights_of(pid: int) -> list[str]:
    """In the groups that a process is in; of all files of weights that this kernel has."""
    found: list[str] = []
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended: others are looked at again
    for line in lines:
        _, names, path = line.split(":", 2)
        if names in ("", "blkio"):
            root = Path("/sys/fs/cgroup", names) if names else Path("/sys/fs/cgroup")
            for name in ("io.weight", "io.bfq.weight", "blkio.bfq.weight", "blkio.weight"):
                file = root / path.lstrip("/") / name
                found += [file.read_text().split()[-1]] if file.exists() else []
    return found
