"""What each layer of isolation costs: by itself when a box is made, and around a program that a box runs.

Each is done by the engine's own code in a child of a process of its own, small and with one thread, and timed in there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from boxwood.engine import box, seccomp
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroups import finding
from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.overlay import mount_root, prepare_top
from boxwood.engine.uidrange import Range, user_namespace
from boxwood.engine.ulid import new_ulid as new_id
from measure import Series, timed

LIMITS = Limits(vcpu=2, memory_mib=1024, pids=512)
LAYERS = 4  # of the overlay, its top included
CALLS = 100_000
_BASE = 1_879_048_192  # ids that no server gives
_PLAIN = "no layer"

Work = Callable[[], object]


def measure(scratch: Path, n: int) -> tuple[list[Series], list[Series]]:
    """What making them costs, and what runs behind them cost. `n` samples each."""
    command = [sys.executable, __file__, str(n), str(scratch)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    )
    made, run = json.loads(done.stdout)
    return [Series(*one) for one in made], [Series(*one) for one in run]


def _in_child(work: Callable[[], float]) -> float:
    """What `work` returns, in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("bench: a layer could not be measured")
    return float(said)


# --- when a box is made


def _mounts() -> None:
    """A mount namespace of one's own, from which nothing gets out."""
    k.unshare(k.NEWNS)
    k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)


def _filter(program: bytes) -> None:
    k.no_new_privileges()
    k.load_seccomp(program)


def _give_up_privileges() -> None:
    k.limit_bounding_set(box.CAPABILITIES, k.last_capability())
    k.set_capabilities(box.CAPABILITIES)


def _join(directories: list[str], door: str) -> None:
    for directory in directories:
        Path(directory, door).write_text("0")


@contextmanager
def _group() -> Iterator[tuple[Cgroups, list[str]]]:
    groups = finding.find(new_id())
    try:
        yield groups, groups.make(new_id(), LIMITS)
    finally:
        groups.sweep()
        groups.close()


def _make_group() -> float:
    groups, name = finding.find(new_id()), new_id()
    try:
        return timed(lambda: groups.make(name, LIMITS))
    finally:
        groups.sweep()
        groups.close()


def _join_group() -> float:
    with _group() as (groups, directories):
        return _in_child(lambda: timed(lambda: _join(directories, groups.door)))


def _overlay(scratch: Path) -> float:
    """The root of a box: idmapped layers under one overlay."""
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        ids = [new_id() for _ in range(LAYERS - 1)]
        for ident in ids:
            (Path(made) / ident / "upper").mkdir(parents=True)
        at = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        top = new_id()
        prepare_top(at, top)
        range_ = Range(_BASE, at, at)
        try:
            return _in_child(partial(_mount_overlay, tuple(("data", ident) for ident in ids), top, range_))
        finally:
            range_.close()
            os.close(at)


def _mount_overlay(layers: tuple[tuple[str, str], ...], top: str, range_: Range) -> float:
    _mounts()
    k.mount("stage", "/mnt", "tmpfs")
    os.chdir("/mnt")
    os.mkdir("root")
    return timed(lambda: mount_root(layers, top, range_, by_path=False))


def _namespace(flags: int) -> Callable[[], float]:
    return lambda: _in_child(lambda: timed(lambda: k.unshare(flags)))


def _makings(scratch: Path) -> dict[str, Callable[[], float]]:
    program = seccomp.program()
    return {
        "user namespace of ids that nobody else has (ahead of demand)": lambda: timed(
            lambda: os.close(user_namespace(_BASE))
        ),
        "mount namespace, private": lambda: _in_child(lambda: timed(_mounts)),
        "pid, ipc, uts and cgroup namespaces": _namespace(k.NEWPID | k.NEWIPC | k.NEWUTS | k.NEWCGROUP),
        "network namespace (ahead of demand)": _namespace(k.NEWNET),
        "cgroups with limits of memory, cpu and processes: made": _make_group,
        "… and joined (ahead of demand)": _join_group,
        f"root: an overlay of {LAYERS} idmapped layers": lambda: _overlay(scratch),
        "filter of system calls: loaded": lambda: _in_child(lambda: timed(lambda: _filter(program))),
        "capabilities given up": lambda: _in_child(lambda: timed(_give_up_privileges)),
    }


# --- while it runs


def _program() -> float:
    def start() -> None:
        pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(pid, 0)

    start()
    return timed(start)


def _call() -> float:
    """Microseconds of a system call, the loop around it included."""
    began = time.perf_counter()
    for _ in range(CALLS):
        os.getppid()
    return (time.perf_counter() - began) / CALLS * 1e6


def _behind(layers: list[Work], work: Callable[[], float]) -> float:
    def child() -> float:
        for layer in layers:
            layer()
        return work()

    return _in_child(child)


def _runs() -> Iterator[tuple[str, str, Callable[[], float]]]:
    program = seccomp.program()
    filtered, unprivileged = partial(_filter, program), _give_up_privileges
    namespaces = partial(k.unshare, k.NEWNS | k.NEWIPC | k.NEWUTS | k.NEWNET | k.NEWCGROUP)

    def in_group() -> float:
        with _group() as (groups, directories):
            return _behind([partial(_join, directories, groups.door)], _program)

    def in_all() -> float:
        with _group() as (groups, directories):
            join = partial(_join, directories, groups.door)
            return _behind([join, namespaces, unprivileged, filtered], _program)

    yield f"start of /bin/true: {_PLAIN}", "ms", lambda: _behind([], _program)
    yield "… in namespaces", "ms", lambda: _behind([namespaces], _program)
    yield "… in cgroups with limits", "ms", in_group
    yield "… behind the filter of system calls", "ms", lambda: _behind([filtered], _program)
    yield "… all of these, without capabilities", "ms", in_all
    yield f"a system call: {_PLAIN}", "µs", lambda: _behind([], _call)
    yield "… behind the filter", "µs", lambda: _behind([filtered], _call)


def main() -> None:
    n, scratch = int(sys.argv[1]), Path(sys.argv[2])
    k.capabilities(), k.last_capability()  # looked up once, as where boxes are made
    makings, runs = _makings(scratch), list(_runs())
    made = {name: Series(name) for name in makings}
    run = {name: Series(name, unit) for name, unit, _ in runs}
    for _ in range(n):  # in turn, so that noise hits all alike
        for name, step in makings.items():
            made[name].add(step())
        for name, _, step in runs:
            run[name].add(step())
    print(json.dumps([[[one.name, one.unit, one.values] for one in part.values()] for part in (made, run)]))


if __name__ == "__main__":
    main()
