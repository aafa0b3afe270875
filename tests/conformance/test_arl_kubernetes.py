"""ARL's first generation and kubectl, unchanged, over https with the kubeconfig that `boxwood kubeconfig` writes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KUBERNETES = "35.0.0"
CASES = [
    "pools", "unknown_image", "unknown_pool", "session_without_keep_alive", "session_with_keep_alive",
    "nothing_is_left_for_the_next", "failure_in_the_middle", "file_patches", "env_and_directory",
    "arguments_arrive_as_they_are", "callbacks", "names_collide", "answers_are_held", "many_tasks_at_once",
]  # fmt: skip
Drive = Callable[..., None]


@pytest.mark.parametrize(
    "version", [pytest.param("0.1.3", marks=pytest.mark.full), pytest.param("0.1.4", marks=pytest.mark.full), "0.1.5"]
)
def test_published_clients(version: str, arl_kubernetes_cases: Drive) -> None:
    """One interpreter for all of them: to import the official client takes longer than most."""
    arl_kubernetes_cases(version, KUBERNETES, *CASES, *(["pool_status"] if version == "0.1.5" else []))


@pytest.mark.full
def test_the_first_client(arl_kubernetes_cases: Drive) -> None:
    arl_kubernetes_cases("0.1.3", KUBERNETES, "pools", "session_without_keep_alive", "file_patches")


@pytest.mark.parametrize("kubernetes", [pytest.param("28.1.0", marks=pytest.mark.full), "37.0.2"])
def test_other_releases_of_the_official_client(kubernetes: str, arl_kubernetes_cases: Drive) -> None:
    """37 sends no Content-Type."""
    arl_kubernetes_cases("0.1.5", kubernetes, "pools", "session_without_keep_alive")


# kubectl


class Kubectl:
    """In a namespace of its own. `kubectl("get", "pods")`: what it prints; it fails as the command does."""

    def __init__(self, program: str, kubeconfig: Path, home: Path) -> None:
        self.namespace = f"ns-{secrets.token_hex(4)}"
        self._program = program
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)}

    def ran(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [self._program, "--namespace", self.namespace, *args]
        return subprocess.run(
            command, env=self._environment, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )

    def __call__(self, *args: str, stdin: str = "") -> str:
        done = self.ran(*args, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(args)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *args: str, stdin: str = "") -> str:
        done = self.ran(*args, stdin=stdin)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def begin(self, *args: str) -> subprocess.Popen[str]:
        command = [self._program, "--namespace", self.namespace, *args]
        return subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def apply(self, *objects: dict[str, Any]) -> str:
        return self("apply", "-f", "-", stdin=documents(*objects))


def documents(*objects: dict[str, Any]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def an(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "arl.infra.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool(name: str = "p1", replicas: int = 1, image: str = "python:3.12-slim") -> dict[str, Any]:
    container = {"name": "executor", "image": image, "command": ["/bin/sh", "-c", "sleep infinity"]}
    return an("WarmPool", name, replicas=replicas, template={"spec": {"containers": [container]}})


def step(*argv: str) -> dict[str, Any]:
    return {"name": "a", "type": "Command", "command": list(argv)}


@pytest.fixture
def kubectl(kubeconfig: Path, tmp_path: Path) -> Iterator[Kubectl]:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("needs kubectl")
    made = Kubectl(program, kubeconfig, tmp_path)
    yield made
    made("delete", "tasks,sandboxes,warmpools", "--all")


def test_the_cluster(kubectl: Kubectl) -> None:
    assert "is running at" in kubectl("cluster-info") and "/k8s" in kubectl("cluster-info")
    crds = kubectl("get", "crds").splitlines()
    assert [line.split()[0] for line in crds] == [
        "NAME", "warmpools.arl.infra.io", "sandboxes.arl.infra.io", "tasks.arl.infra.io",
    ]  # fmt: skip
    assert "default" in kubectl("get", "namespaces", "-o", "name")
    assert "condition met" in kubectl("wait", "--for=condition=Established", "crd/tasks.arl.infra.io")
    assert "WarmPool" in kubectl("api-resources", "--api-group=arl.infra.io")
    assert "idleTimeoutSeconds" in kubectl("explain", "sandboxes.spec")


def test_from_apply_to_delete(kubectl: Kubectl) -> None:
    told = kubectl.apply(pool(replicas=2), an("Sandbox", "x", poolRef="p1", keepAlive=True))
    assert told.splitlines() == ["warmpool.arl.infra.io/p1 created", "sandbox.arl.infra.io/x created"]
    kubectl("wait", "--for=jsonpath={.status.phase}=Ready", "sandbox/x", "--timeout=30s")
    kubectl("wait", "--for=jsonpath={.status.readyReplicas}=2", "warmpool/p1", "--timeout=30s")
    assert kubectl.apply(pool(replicas=2)) == "warmpool.arl.infra.io/p1 unchanged\n"
    assert kubectl.apply(pool(replicas=1)) == "warmpool.arl.infra.io/p1 configured\n"
    kubectl("wait", "--for=jsonpath={.status.readyReplicas}=1", "warmpool/p1", "--timeout=30s")
    kubectl.apply(an("Task", "t", sandboxRef="x", steps=[step("sh", "-c", "echo $PWD; exit 3")]))
    kubectl("wait", "--for=jsonpath={.status.state}=Failed", "task/t", "--timeout=30s")
    table = [line.split() for line in kubectl("get", "tasks").splitlines()]
    assert table[0] == ["NAME", "STATE", "EXITCODE", "AGE"] and table[1][:3] == ["t", "Failed", "3"]
    sandbox = [line.split() for line in kubectl("get", "sandbox", "x").splitlines()]
    assert sandbox[0] == ["NAME", "PHASE", "POD", "AGE"] and sandbox[1][:2] == ["x", "Ready"]
    task = json.loads(kubectl("get", "task", "t", "-o", "json"))
    assert task["status"]["stdout"] == "/workspace\n" and task["metadata"]["namespace"] == kubectl.namespace
    described = kubectl("describe", "sandbox", "x")
    assert "Pool Ref:    p1" in described and "Events:" in described
    assert kubectl("delete", "sandbox", "x") == 'sandbox.arl.infra.io "x" deleted\n'
    assert "NotFound" in kubectl.refused("delete", "sandbox", "x")
    assert "NotFound" in kubectl.refused("get", "sandbox", "x")


def test_changes(kubectl: Kubectl) -> None:
    kubectl.apply(pool(replicas=0))
    kubectl("label", "warmpool", "p1", "team=a")
    kubectl("annotate", "warmpool", "p1", "why=because")
    assert "p1" in kubectl("get", "warmpools", "-l", "team in (a, b)")
    assert "p1" not in kubectl("get", "warmpools", "-l", "team!=a")
    kubectl("patch", "warmpool", "p1", "--type=merge", "-p", '{"spec":{"replicas":1}}')
    kubectl("patch", "warmpool", "p1", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":0}]')
    found = json.loads(kubectl("get", "warmpool", "p1", "-o", "json"))
    assert found["spec"]["replicas"] == 0 and found["metadata"]["generation"] == 3
    replaced = {**found, "spec": {**found["spec"], "replicas": 1}}
    kubectl("replace", "-f", "-", stdin=json.dumps(replaced))
    assert "the object has been modified" in kubectl.refused("replace", "-f", "-", stdin=json.dumps(replaced))


def test_refusals(kubectl: Kubectl) -> None:
    wrong = documents(an("Sandbox", "x", poolRef="p1", keepAlife=True))
    assert 'unknown field "spec.keepAlife"' in kubectl.refused("apply", "-f", "-", stdin=wrong)
    assert "boxwood image import" in kubectl.refused("apply", "-f", "-", stdin=documents(pool(image="nope:1")))
    assert "server-side apply" in kubectl.refused("apply", "--server-side", "-f", "-", stdin=documents(pool()))
    assert "No resources found" in kubectl.ran("get", "warmpools").stderr


def test_watches(kubectl: Kubectl) -> None:
    kubectl.apply(pool(replicas=0))
    watch = kubectl.begin("get", "sandboxes", "-w", "-o", "name")
    events = kubectl.begin("get", "sandboxes", "-w", "--output-watch-events")
    assert watch.stdout is not None and events.stdout is not None
    try:
        kubectl.apply(an("Sandbox", "x", poolRef="p1"))
        assert watch.stdout.readline() == "sandbox.arl.infra.io/x\n"
        kubectl("delete", "sandbox", "x", "--wait=false")
        kubectl("wait", "--for=delete", "sandbox/x", "--timeout=30s")
        seen = [events.stdout.readline().split()]
        while seen[-1][0] != "DELETED":
            seen.append(events.stdout.readline().split())
        assert seen[0] == ["EVENT", "NAME", "PHASE", "POD", "AGE"] and seen[1][:2] == ["ADDED", "x"]
    finally:
        for process in (watch, events):
            process.kill()
            process.communicate()


def test_everything_of_a_namespace(kubectl: Kubectl) -> None:
    kubectl.apply(pool(replicas=0), *(an("Sandbox", name, poolRef="p1") for name in ("a", "b")))
    assert kubectl.namespace in kubectl("get", "sandboxes", "--all-namespaces")
    assert len(kubectl("delete", "sandboxes", "--all").splitlines()) == 2
    assert kubectl("get", "sandboxes", "-o", "name") == ""
