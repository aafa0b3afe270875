"""A full disk is told, harms nothing that was acknowledged, and is over when there is room again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servers
from boxwood import BoxwoodError, ConnectionFailed
from servers import Server, unmount

SIZE_MIB = 48


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = servers.small_disk(tmp_path, SIZE_MIB, 8192)
    yield place
    unmount(place)


def test_disk_full(small_disk: Path, make_server: Callable[..., Server]) -> None:
    server = make_server(data=small_disk / "data", disk_spare_mib=0)
    ballast = small_disk / "ballast"
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.write_file("/root/kept", "kept\n")
        filled = vm.run("dd if=/dev/zero of=/root/fill bs=1M; echo code $?")
        assert "No space left" in filled.stderr and "code 1" in filled.stdout
        try:
            _fill(ballast)
            _either_way(lambda: vm.write_file("/root/more", bytes(1 << 20)))
            _either_way(lambda: box.fork("ubuntu").run("true"))
            assert vm.read_text("/root/kept") == "kept\n"
        finally:
            ballast.unlink()
        vm.run("rm /root/fill", check=True)
        vm.write_file("/root/more", bytes(1 << 20))
        assert vm.run("stat -c %s /root/more; cat /root/kept").stdout == "1048576\nkept\n"
        assert box.fork("ubuntu").run("echo room").stdout == "room\n"


def _either_way(step: Callable[[], object]) -> None:
    """It may work, or be refused with an error of the contract; it may not hang, nor break the connection."""
    try:
        step()
    except BoxwoodError as error:
        assert error.status and not isinstance(error, ConnectionFailed), error


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), bytes(1 << 16))
        except OSError:
            pass
        try:
            while True:
                os.write(file.fileno(), bytes(512))
        except OSError:
            return
