"""How many runs come to their end in a second, for one client and for many at once, beside Docker's exec."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from boxwood import VM, Boxwood
from docker import Docker
from measure import Series

CLIENTS = (1, 8, 64)
MANY = 32
START_SECONDS = 120.0
Step = Callable[[], object]
Client = Callable[[], AbstractContextManager[Step]]  # entered in a process of its own


def measure(connect: Callable[[], Boxwood], daemon: Docker | None, each: int) -> list[Series]:
    """At each number of clients in turn, all in one go, so that the machine is the same for all. Every client is a
    process and has a VM, or a container, of its own. `each`: steps of each client of the greatest number; the fewer
    there are the more each of them takes, up to eight times that."""
    with _places(connect, daemon) as kinds:
        found: list[Series] = []
        for count in CLIENTS:
            steps = each * min(8, max(CLIENTS) // count)
            for name, clients in kinds.items():
                latencies, rate = race(clients[:count], steps)
                series = Series(f"{count} clients: {name}" if count > 1 else f"1 client: {name}", values=latencies)
                found += [series, Series(series.name, "runs/s", [rate])]
        return found


def many(connect: Callable[[], Boxwood], command: str, each: int) -> list[Series]:
    """Without peers: latencies, and runs per second of all together."""

    @contextmanager
    def client() -> Iterator[Step]:
        with connect() as box, box.fork("ubuntu") as vm:
            yield lambda: vm.run(command)

    latencies, rate = race([client] * MANY, each)
    name = f"{MANY} clients: {command}"
    return [Series(name, values=latencies), Series(name, "runs/s", [rate])]


@contextmanager
def _places(connect: Callable[[], Boxwood], daemon: Docker | None) -> Iterator[dict[str, list[Client]]]:
    with connect() as box:
        made = [box.fork("ubuntu") for _ in range(max(CLIENTS))]
        containers = [daemon.create() for _ in made] if daemon is not None else []
        try:
            for vm in made:
                vm.run(":", check=True)
            kinds = {
                "run of a builtin": [_ours(connect, vm, lambda vm: vm.run(":", check=True)) for vm in made],
                "run of /bin/true": [_ours(connect, vm, lambda vm: vm.run("/bin/true", check=True)) for vm in made],
                "exec of /bin/true": [_ours(connect, vm, lambda vm: vm.exec(["/bin/true"], check=True)) for vm in made],
            }
            if daemon is not None:
                kinds["Docker: exec of true"] = [_docker(daemon, container) for container in containers]
            yield kinds
        finally:
            for vm in made:
                vm.delete()
            for container in containers:
                assert daemon is not None
                daemon.remove(container)


def _ours(connect: Callable[[], Boxwood], vm: VM, step: Callable[[VM], object]) -> Client:
    @contextmanager
    def client() -> Iterator[Step]:
        with connect() as box:
            mine = box.vm(vm.id)
            yield lambda: step(mine)

    return client


def _docker(daemon: Docker, container: str) -> Client:
    @contextmanager
    def client() -> Iterator[Step]:
        yield lambda: daemon.run(container, ["true"])

    return client


def race(clients: Sequence[Client], each: int) -> tuple[list[float], float]:
    """Each in a process of its own, `each` steps: all latencies in milliseconds, and steps per second of all
    together."""
    fork = multiprocessing.get_context("fork")
    ready, go, found = fork.Barrier(len(clients) + 1), fork.Barrier(len(clients) + 1), fork.SimpleQueue()

    def live(client: Client) -> None:
        values: list[float] = []
        try:
            with client() as step:
                step()
                ready.wait(START_SECONDS)
                go.wait(START_SECONDS)
                for _ in range(each):
                    began = time.perf_counter()
                    step()
                    values.append((time.perf_counter() - began) * 1e3)
                found.put((time.monotonic(), values))
        finally:
            if len(values) < each:
                ready.abort()
                found.put((0.0, []))

    workers = [fork.Process(target=live, args=(client,)) for client in clients]
    for worker in workers:
        worker.start()
    ready.wait(START_SECONDS)
    go.wait(START_SECONDS)
    began = time.monotonic()
    answers = [found.get() for _ in workers]
    for worker in workers:
        worker.join()
    latencies = [value for _, values in answers for value in values]
    if len(latencies) < each * len(clients):
        raise SystemExit("bench: a client failed: its error is above")
    return latencies, len(latencies) / (max(ended for ended, _ in answers) - began)
