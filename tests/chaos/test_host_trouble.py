"""A host that is short of descriptors, whose clock is set, whose disk cannot be written (attacks.md, item 37)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boxwood import BoxwoodError
from servers import Server, free_port, unmount


def test_a_server_without_descriptors_lives_on(make_server: Callable[..., Server]) -> None:
    """What it is asked meanwhile may fail; what was there before is there afterwards, and nothing else."""
    server = make_server(ready_boxes=0)
    with server.client() as client:
        vm = client.fork("ubuntu")
        vm.write_file("/root/kept", "kept\n")
        before = {one.id for one in client.list()}
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        held = {int(name) for name in os.listdir(f"/proc/{server.pid}/fd")}
        free = next(number for number in range(1 << 20) if number not in held)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free, limits[1]))  # the next one would be more
        failed = 0
        try:
            for _ in range(5):
                try:
                    failed += client.fork("ubuntu").run("true").exit_code != 0
                except BoxwoodError as error:
                    assert error.status, error
                    failed += 1
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        assert failed, "the probe: the bound was felt"
        assert vm.run("cat /root/kept").stdout == "kept\n"
        assert client.fork("ubuntu").run("echo room").stdout == "room\n"
        assert before <= {one.id for one in client.list()}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,size=4m", "none", str(place)], check=True)
    (place / "data").mkdir(mode=0o700)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield place
    unmount(place)


def test_a_disk_that_cannot_be_written_is_named_at_the_start(read_only: Path) -> None:
    data = read_only / "data"
    command = [sys.executable, "-m", "boxwood.server", "--data", str(data), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Read-only file system" in done.stderr and str(data) in done.stderr
