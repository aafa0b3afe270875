"""Snapshots, going back, and differences: beside a VM that holds a file, one that holds 1 GiB in 20,000 files."""

from __future__ import annotations

from collections.abc import Callable

from boxwood import VM, Boxwood
from measure import Series, rounds, timed
from ours import FILL


def states(box: Boxwood, n: int, fill: str = FILL) -> list[Series]:
    """Each step writes one file before; what is measured is told by its name."""
    small, large = box.fork("ubuntu"), box.fork("ubuntu")
    try:
        small.run("echo > /root/f", check=True)
        large.run(fill, check=True)
        steps: dict[str, Callable[[], float]] = {}
        for vm, holds in ((small, "that holds a file"), (large, "that holds 1 GiB in 20,000 files")):
            vm.snapshot("base")
            steps[f"restore of a VM {holds}"] = _restore(vm)
            steps[f"restore + first command of a VM {holds}"] = _restore(vm, ":")
            steps[f"diff of one file in a VM {holds}"] = _diff(vm)
        return list(rounds(n, steps).values())
    finally:
        for vm in (small, large):
            vm.delete()


def _restore(vm: VM, command: str | None = None) -> Callable[[], float]:
    def step() -> float:
        vm.run("echo more > /root/more", check=True)

        def back() -> None:
            vm.restore("base")
            if command is not None:
                vm.run(command)

        return timed(back)

    return step


def _diff(vm: VM) -> Callable[[], float]:
    def step() -> float:
        vm.run("echo more >> /root/more", check=True)
        found: list[str] = []
        took = timed(lambda: found.extend(one.path for one in vm.diff("base").changes))
        assert found == ["/root/more"], found
        vm.restore("base")
        return took

    return step
