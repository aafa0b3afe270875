"""Other people's published clients against Boxwood, each in an environment of its own, driven step by step.

Their drivers lie in bench/clients; each names what it measures, and this module what that is beside.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from environments import CannotInstall, python_of
from measure import Series
from peers import Unavailable
from server import Server

DRIVERS = Path(__file__).parent / "clients"
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Client:
    """A release of a package. `steps`: the driver's names of them, with how the table has them and what the client's
    own project tells of its system."""

    package: str
    version: str
    driver: str
    steps: dict[str, tuple[str, str]]
    also: tuple[str, ...] = ()  # other requirements

    @property
    def title(self) -> str:
        return f"{self.package} {self.version}"


CLIENTS = (
    Client(
        "agentkernel-sdk", "0.21.0", "agentkernel_sdk",
        {
            "run": ("run", "its project says: Docker pool some 250 ms, Firecracker daemon 195"),
            "exec": ("exec", "its project says: 19 ms by vsock, some 83 in Docker"),
            "stream": ("first byte of run_stream", ""),
        },
    ),
    Client(
        "arl-env", "0.1.5", "arl_crd",
        {
            "create": ("create_sandbox from a warm pool", "its project says: below 100 ms; it looks once a second"),
            "execute": ("execute, one step", "its project says: 1-5 ms in the sidecar; its client looks each 500 ms"),
        },
        ("kubernetes==35.0.0",),
    ),
    Client(
        "arl-env", "0.27.0", "arl_gateway",
        {
            "create": ("create_sandbox from a warm pool", "its server looks each 500 ms"),
            "execute": ("execute, one step", "its project says: some 51 ms for an echo; its client looks each 2 s"),
        },
    ),
)  # fmt: skip


@contextlib.contextmanager
def steps(server: Server, cache: Path, scratch: Path) -> Iterator[dict[str, Step]]:
    """By the names that the table has. Unavailable: a client cannot be installed, or does not work."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Step] = {}
        for client in CLIENTS:
            ask = stack.enter_context(_driver(client, server, cache, scratch))
            for step, (name, _) in client.steps.items():
                found[f"{client.title}: {name}"] = _step(ask, step)
        yield found


def noted(series: Series) -> Series:
    """With what the client's own project tells."""
    notes = {f"{client.title}: {name}": note for client in CLIENTS for name, note in client.steps.values()}
    series.note = notes.get(series.name, "")
    return series


def _step(ask: Callable[[str], float], name: str) -> Step:
    return lambda: ask(name)


@contextlib.contextmanager
def _driver(client: Client, server: Server, cache: Path, scratch: Path) -> Iterator[Callable[[str], float]]:
    python = _environment(client, cache)
    kubeconfig = scratch / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(json.dumps(_kubeconfig(server)))
    process = subprocess.Popen(
        [python, str(DRIVERS / f"{client.driver}.py")],
        env={
            "PATH": os.environ["PATH"], "HOME": str(scratch), "PYTHONPATH": str(DRIVERS), "KUBECONFIG": str(kubeconfig),
            "BENCH_URL": server.url, "BENCH_GATEWAY": f"{server.url}/arl", "BENCH_KEY": server.key,
        },
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    told, heard = process.stdin, process.stdout

    def ask(step: str) -> float:
        told.write(f"{step}\n")
        told.flush()
        took = heard.readline()
        if not took:
            raise RuntimeError(f"{client.title}: its driver ended in the middle of {step}")
        return float(took)

    try:
        if heard.readline() != "ready\n":
            raise Unavailable(f"{client.title}: its driver did not start")
        yield ask
    finally:
        told.close()
        process.wait(60)
        heard.close()


def _kubeconfig(server: Server) -> dict[str, object]:
    """As `boxwood kubeconfig` writes it, but over plain http: the Python client sends its key all the same."""
    cluster = {"name": "bench", "cluster": {"server": f"{server.url}/k8s"}}
    user = {"name": "bench", "user": {"token": server.key}}
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": "default"}}
    return {
        "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": [context],
        "current-context": "bench",
    }  # fmt: skip


def _environment(client: Client, cache: Path) -> Path:
    """Its interpreter. Made once."""
    try:
        return python_of(cache / "clients", f"{client.package}=={client.version}", *client.also)
    except CannotInstall as error:
        raise Unavailable(f"{client.title} cannot be installed: {error}") from error
