"""What a live box and a parked VM cost, seen from the host: MemAvailable, processes, files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from boxwood import VM, Boxwood
from machine import available_kib, forget_deleted
from measure import Series
from server import Server

BOXES = 200
IDLE = 3600.0
QUIET = 4.0  # seconds; a box gives back what it need not have when it has been idle for one or two
PARK_SECONDS = 1.0


def measure(server: Server, repeats: int = 3) -> tuple[list[Series], int]:
    """MiB per live box with one idle shell, KiB of disk and files per parked VM; processes of all parked VMs together.

    Server and zygote are started anew each time, for what earlier boxes had is taken back by and by, and would be given
    to later ones; the last is left running.
    """
    live = Series(f"memory per live box with an idle shell ({BOXES} boxes)", "MiB")
    own = Series("… of it its processes' own, as /proc counts it (PSS)", "MiB")
    files, disk = Series("files per parked VM", "files"), Series("disk per parked VM", "KiB")
    rss = Series("server's memory per parked VM", "KiB")
    left: list[int] = []
    for _ in range(repeats):
        server.down()
        forget_deleted()
        server.start(idle_seconds=IDLE)
        with server.client() as box:
            box.fork("ubuntu").delete()
            bare = _settled(lambda: processes(server))  # what is prepared for any VM
            with box.fork("ubuntu") as vm:
                vm.run(":", check=True)
            _settled(lambda: processes(server))  # and the boxes that are ready for more of the kind
            _settled(lambda: _disk(server.data)[0])  # what earlier measurements left is being collected
            empty, data_before = rss_kib(server.pid), _disk(server.data)
            before, pss_before = _available(), _pss_kib(server)
            made = _fill(box)
            live.add((before - _available()) / 1024 / BOXES)
            own.add((_pss_kib(server) - pss_before) / 1024 / BOXES)
            server.stop()
            server.start(idle_seconds=PARK_SECONDS)
            left.append(_settled(lambda bare=bare: processes(server) - bare, wanted=0))
        with server.client() as box:
            data_after = _disk(server.data)
            files.add((data_after[0] - data_before[0]) / BOXES)
            disk.add((data_after[1] - data_before[1]) / 1024 / BOXES)
            rss.add(max(0, rss_kib(server.pid) - empty) / BOXES)
            for vm in made:
                box.delete(vm.id)
    return [live, own, files, disk, rss], max(0, round(median(left)))


def _fill(box: Boxwood) -> list[VM]:
    def one(_: int) -> VM:
        vm = box.fork("ubuntu")
        vm.run(":", check=True)
        return vm

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(BOXES)))


def processes(server: Server) -> int:
    """The zygote's descendants: boxes, what runs in them, and what is prepared ahead."""
    return sum(1 for _ in _descendants(server.zygote_pid))


def rss_kib(pid: int) -> int:
    """Memory of a process that it shares with no other, in KiB."""
    return _mapped_kib(pid, "Private_Dirty")


def _pss_kib(server: Server) -> int:
    """Memory of the zygote's descendants; what several share is divided among them."""
    return sum(_mapped_kib(pid, "Pss") for pid in _descendants(server.zygote_pid))


def _mapped_kib(pid: int, kind: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")), 0)


def _available() -> float:
    """KiB, once neither written-back pages nor what idle boxes give back (steward.py) moves it any more."""
    os.sync()
    return float(_settled(available_kib, tolerance=2048, quiet=QUIET))


def _settled(
    look: object, wanted: int | None = None, tolerance: int = 0, seconds: float = 60.0, quiet: float = 0.5
) -> int:
    """The value once it stands still for `quiet` seconds (and is `wanted`), or the last one when the time is over."""
    assert callable(look)
    deadline = time.monotonic() + seconds
    value, since = int(look()), time.monotonic()
    while time.monotonic() < deadline:
        if time.monotonic() - since > quiet and wanted in (None, value):
            break
        time.sleep(0.1)
        now = int(look())
        if abs(now - value) > tolerance:
            since = time.monotonic()
        value = now
    return value


def _disk(data: Path) -> tuple[int, int]:
    """Files and bytes that a data directory takes."""
    count = size = 0
    for directory, _, names in os.walk(data):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            try:
                size += os.lstat(path).st_blocks * 512
                count += 1
            except FileNotFoundError:
                continue
    return count, size


def _descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            yield child
