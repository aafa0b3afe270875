"""Files in and out, beside the raw disk and Docker's archive API (what `docker cp` speaks), in the same rounds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from boxwood import VM
from docker import Docker
from measure import Series, rounds, timed
from server import Server

PIECE = os.urandom(1 << 20)
KIB = os.urandom(1024)
TREE_FILES, PER_DIRECTORY = 10_000, 100
UP, DOWN = "write of a large file, streamed", "read of a large file, streamed"
WRITE, READ = "write of 1 KiB", "read of 1 KiB"
GROWN = "server's memory, grown by them"


def pieces(mib: int) -> Iterator[bytes]:
    for _ in range(mib):
        yield PIECE


def small(vm: VM, scratch: Path, n: int, docker: tuple[Docker, str] | None) -> list[Series]:
    """1 KiB, replaced again and again; on the disk as the box does it: a new file, renamed."""
    plain, new = scratch / "small", scratch / "small.new"

    def raw() -> None:
        new.write_bytes(KIB)
        new.rename(plain)

    steps: dict[str, Callable[[], float]] = {
        WRITE: lambda: timed(lambda: vm.write_file("/root/small", KIB)),
        READ: lambda: timed(lambda: vm.read_file("/root/small")),
        "the same write on the raw disk": lambda: timed(raw),
    }
    if docker is not None:
        daemon, container = docker
        steps["Docker: the same write, by exec"] = lambda: timed(
            lambda: daemon.run(container, ["sh", "-c", "head -c 1024 /dev/zero > /small"])
        )
        steps["Docker: the same read, by exec of cat"] = lambda: timed(lambda: daemon.run(container, ["cat", "/small"]))
    return list(rounds(n, steps).values())


def large(server: Server, vm: VM, scratch: Path, mib: int, n: int, docker: tuple[Docker, str] | None) -> list[Series]:
    rates = {name: Series(f"{name}: {mib} MiB", "MiB/s") for name in (UP, DOWN, "the raw disk, written")}
    grown = Series(GROWN, "MiB")
    rates |= {name: Series(f"{name}: {mib} MiB", "MiB/s") for name in _docker(docker, mib)}
    vm.write_file("/root/large", pieces(8))
    before = _memory(server.pid)
    for _ in range(n):
        rates[UP].add(_rate(mib, lambda: vm.write_file("/root/large", pieces(mib))))
        rates[DOWN].add(_rate(mib, lambda: _read(vm, mib)))
        rates["the raw disk, written"].add(_rate(mib, lambda: _raw(scratch / "large", mib)))
        for name, step in _docker(docker, mib).items():
            rates[name].add(_rate(mib, step))
        grown.add(max(0.0, _memory(server.pid) - before))
    return [*rates.values(), grown]


def _docker(docker: tuple[Docker, str] | None, mib: int) -> dict[str, Callable[[], object]]:
    if docker is None:
        return {}
    daemon, container = docker
    return {
        "Docker: cp in": lambda: daemon.copy_in(container, "large", pieces(mib), mib << 20),
        "Docker: cp out": lambda: daemon.copy_out(container, "/large"),
    }


def trees(vm: VM, scratch: Path, n: int) -> list[Series]:
    """10,000 small files: all of them, none of them."""
    root = scratch / "tree"
    for number in range(TREE_FILES):
        if number % PER_DIRECTORY == 0:
            (root / str(number // PER_DIRECTORY)).mkdir(parents=True)
        (root / str(number // PER_DIRECTORY) / str(number)).write_bytes(KIB[: 200 + number % 800])
    first, second = Series(f"sync_dir of {TREE_FILES} small files"), Series("the same again: nothing has changed")
    for turn in range(n):
        sync = partial(vm.sync_dir, root, f"/root/tree{turn}")
        first.add(timed(sync))
        second.add(timed(sync))
    return [first, second]


def _read(vm: VM, mib: int) -> None:
    assert sum(map(len, vm.read_stream("/root/large"))) == mib << 20


def _raw(path: Path, mib: int) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in pieces(mib):
            file.write(piece)


def _rate(mib: int, step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return mib / (time.perf_counter() - began)


def _memory(pid: int) -> float:
    """Resident, in MiB."""
    line = next(one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
