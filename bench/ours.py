"""Boxwood through its SDK over HTTP, as a program uses it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boxwood import VM, Boxwood, Pool, Session
from measure import Series, rounds, timed

FILES, FILE_BYTES = 20_000, (1 << 30) // 20_000
FILL = f"""
mkdir -p /root/data; cd /root/data
python3 -c '
import os
data = os.urandom({FILE_BYTES})
for n in range({FILES}):
    if n % 200 == 0: os.mkdir(str(n // 200))
    with open("%d/%d" % (n // 200, n), "wb") as f: f.write(data)
'
sync -f .
"""


def steps(box: Boxwood, vm: VM) -> dict[str, Callable[[], float]]:
    """What is measured beside the peers, in the same rounds. `vm`: one with a live shell."""
    return {
        "fork": lambda: _fork(box),
        "fork + first command": lambda: fork_and_run(box, ":"),
        "fork + first /bin/true": lambda: fork_and_run(box, "/bin/true"),
        "run of a builtin": lambda: timed(lambda: vm.run(":")),
        "run of /bin/true": lambda: timed(lambda: vm.run("/bin/true")),
        "exec of /bin/true": lambda: timed(lambda: vm.exec(["/bin/true"])),
    }


def python(context: Session) -> dict[str, Callable[[], float]]:
    """The same sum in a Python context and by an interpreter of its own, in the same rounds."""
    vm, sum_ = context.vm, "sum(range(10))"
    return {
        "run in a Python context": lambda: timed(lambda: context.run(sum_, check=True)),
        "python3 -c in a run": lambda: timed(lambda: vm.run(["python3", "-c", f"print({sum_})"], check=True)),
        "python3 -c in an exec": lambda: timed(lambda: vm.exec(["python3", "-c", f"print({sum_})"], check=True)),
    }


NETWORKS = ("fork + first command, with a network", "fork + first command, without")


def networks(box: Boxwood) -> dict[str, Callable[[], float]]:
    """In the same rounds; both kinds of boxes are booted ahead, as they are for whoever forks both."""
    internet, none = NETWORKS
    return {
        internet: lambda: fork_and_run(box, ":", network="internet"),
        none: lambda: fork_and_run(box, ":", network="none"),
    }


def _fork(box: Boxwood, source: VM | str = "ubuntu") -> float:
    began = time.perf_counter()
    vm = box.fork(source)
    took = (time.perf_counter() - began) * 1e3
    vm.delete()
    return took


def fork_and_run(box: Boxwood, command: str, source: VM | str = "ubuntu", network: str | None = None) -> float:
    began = time.perf_counter()
    vm = box.fork(source, network=network)
    run = vm.run(command)
    took = (time.perf_counter() - began) * 1e3
    assert run.exit_code == 0, run
    vm.delete()
    return took


def claims(box: Boxwood, n: int) -> list[Series]:
    """From a pool that is full, and from one that is empty."""
    full, empty = box.create_pool("bench-full", replicas=8), box.create_pool("bench-empty", replicas=0)
    try:
        while full.refresh().ready < 8:
            time.sleep(0.01)

        def claim(pool: Pool, command: str | None) -> float:
            began = time.perf_counter()
            vm = pool.claim()
            if command is not None:
                vm.run(command, check=True)
            took = (time.perf_counter() - began) * 1e3
            vm.delete()
            return took

        return list(
            rounds(
                n,
                {
                    "claim from a pool": lambda: claim(full, None),
                    "claim from a pool + first command": lambda: claim(full, ":"),
                    "claim from an empty pool": lambda: claim(empty, None),
                    "claim from an empty pool + first command": lambda: claim(empty, ":"),
                },
            ).values()
        )
    finally:
        full.delete()
        empty.delete()


# --- how a fork grows


def size(box: Boxwood, n: int) -> list[Series]:
    """A fork of a VM with 1 GiB in 20,000 files beside one of a VM with one file; each with a live, idle shell."""
    with _vms(box, 6) as made:
        large, small = made[:3], made[3:]
        for vm in large:
            vm.run(FILL, check=True)
        for vm in small:
            vm.run("echo > /root/f", check=True)
        os.sync()
        full = Series("fork of a VM whose top holds 1 GiB in 20,000 files")
        slim = Series("fork of a VM whose top holds a file")
        for one, other in zip(large, small, strict=True):
            slim.add(_fork(box, other))
            full.add(_fork(box, one))

        def again(vm: VM) -> Callable[[], float]:
            def step() -> float:
                vm.run("echo >> /root/f")
                return _fork(box, vm)

            return step

        later = rounds(n, {"large": again(large[0]), "small": again(small[0])})
    later["large"].name = "fork of a VM that has 1 GiB in 20,000 files, once more"
    later["small"].name = "fork of a VM that has a file, once more"
    return [full, slim, later["large"], later["small"]]


def chain(box: Boxwood, length: int, samples: int) -> list[Series]:
    """Each VM a fork of the one before, with a write at each step: fork + first command at the start and at the end."""
    first = Series("chain: first fork + first command")
    last = Series(f"chain: fork {length} + first command")
    made = [box.fork("ubuntu")]
    try:
        made[0].run("mkdir /root/chain; echo 0 > /root/chain/0", check=True)
        for _ in range(samples):
            first.add(_touched(box, made[0]))
        for depth in range(1, length):
            made.append(made[-1].fork())
            made[-1].run(f"echo {depth} > /root/chain/{depth}", check=True)
        for _ in range(samples):
            last.add(_touched(box, made[-1]))
        seen = made[-1].run("cat /root/chain/* | sort -n | tr '\\n' ' '").stdout.split()
        assert seen == [str(depth) for depth in range(length)], "the chain's end does not show what was written"
    finally:
        for vm in made:
            vm.delete()
    return [first, last]


def _touched(box: Boxwood, vm: VM) -> float:
    """With something new in the top, so that every fork seals."""
    vm.run("echo >> /root/chain/0-")
    return fork_and_run(box, ":", vm)


def busy(box: Boxwood, n: int) -> list[Series]:
    """Fork of a VM in which a process writes without a pause: its top is copied, at the end with the process frozen."""
    total = Series("fork of a busy VM")
    frozen = Series("… its processes stand still")
    copied = Series("… copied", "KiB")
    loop = "n=0; while :; do n=$((n+1)); echo $n > /root/loop.$((n % 100)); done"
    with box.fork("ubuntu") as vm:
        vm.run("mkdir /root/more; for n in $(seq 1000); do echo $n > /root/more/$n; done", check=True)
        vm.run(loop, background=True, session=1)
        for _ in range(n):
            began = time.perf_counter()
            child = vm.fork()
            total.add((time.perf_counter() - began) * 1e3)
            report = child.record.copied
            assert report is not None, "the source was not busy"
            frozen.add(report.frozen_ms)
            copied.add(report.bytes / 1024)
            child.delete()
    return [total, frozen, copied]


@contextmanager
def _vms(box: Boxwood, count: int) -> Iterator[list[VM]]:
    made = [box.fork("ubuntu") for _ in range(count)]
    try:
        yield made
    finally:
        for vm in made:
            vm.delete()
