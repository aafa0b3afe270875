"""Log files are bounded while somebody goes on writing them."""

from __future__ import annotations

import asyncio
import os

import pytest

from boxwood.core import logs
from boxwood.core.logs import Logs
from boxwood.core.tasks import Tasks


@pytest.fixture
def writer(tmp_path):
    descriptor = os.open(tmp_path / "zygote.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    yield descriptor
    os.close(descriptor)


def test_what_is_too_long_is_moved_aside_under_its_writer(tmp_path, writer):
    bound = Logs(tmp_path, 100, Tasks()).bound
    os.write(writer, b"a" * 100)
    bound()
    assert sorted(os.listdir(tmp_path)) == ["zygote.log"]
    os.write(writer, b"b")
    bound()
    os.write(writer, b"after")
    assert (tmp_path / "zygote.log").read_bytes() == b"after", "the writer goes on in the file that it has"
    assert (tmp_path / "zygote.log.1").read_bytes() == b"a" * 99 + b"b", "the end of it is kept"
    assert (tmp_path / "zygote.log.1").stat().st_mode & 0o777 == 0o600
    os.write(writer, b"c" * 1000)
    bound()
    assert (tmp_path / "zygote.log.1").read_bytes() == b"c" * 100, "one is kept, not one for each time"
    assert sorted(os.listdir(tmp_path)) == ["zygote.log", "zygote.log.1"]


def test_what_is_no_log_of_ours_is_left_alone(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"x" * 200)
    (tmp_path / "link.log").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo.log")
    (tmp_path / "directory.log").mkdir()
    Logs(tmp_path, 100, Tasks()).bound()
    assert (tmp_path / "elsewhere").read_bytes() == b"x" * 200


def test_a_full_disk_costs_the_old_log_and_not_the_bound(tmp_path, writer, monkeypatch):
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "_write_all", full)
    os.write(writer, b"x" * 200)
    with pytest.raises(OSError, match="No space"):
        Logs(tmp_path, 100, Tasks()).bound()
    assert (tmp_path / "zygote.log").stat().st_size == 0
    assert sorted(os.listdir(tmp_path)) == ["zygote.log"]


async def test_a_server_sees_to_it(make_world, monkeypatch):
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.01)
    world = await make_world(log_bytes=65536)
    path = world.config.data / "log" / "server.log"
    path.write_bytes(b"x" * 65537)
    while path.stat().st_size:
        await asyncio.sleep(0.002)
