"""The three resources of arl.infra.io: what is sent of them, and what is handed out."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

GROUP, VERSION = "arl.infra.io", "v1alpha1"
DEFAULT_COMMAND = ("/bin/sh", "-c", "sleep infinity")
KEPT_SECONDS = 1800  # after which an idle sandbox of a session that keeps it is deleted, unless the caller says when

Plural = Literal["warmpools", "sandboxes", "tasks"]
Object = dict[str, Any]


class TaskStep(TypedDict, total=False):
    """A Command (`command`, `workDir`, `env`) or a FilePatch (`path`, `content`)."""

    name: str
    type: str
    command: list[str]
    workDir: str
    env: dict[str, str]
    container: str
    path: str
    content: str


class TaskStatus(TypedDict, total=False):
    """What became of a task. `state`: Succeeded or Failed, before its end Pending or Running. `exitCode`, of the last
    step that was executed, is missing where none was. `duration`: as Go writes it. Times: RFC 3339."""

    state: str
    exitCode: int
    stdout: str
    stderr: str
    duration: str
    startTime: str
    completionTime: str
    conditions: list[dict[str, Any]]


class TaskResource(TypedDict, total=False):
    """A task."""

    apiVersion: str
    kind: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: TaskStatus
    callback_result: dict[str, Any]


class SandboxResource(TypedDict, total=False):
    """A sandbox. Its `status` has `phase`, `podName`, `podIP`, `workDir`."""

    apiVersion: str
    kind: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: dict[str, Any]


class TaskStepResult(TypedDict, total=False):
    """What a step came to, for programs that keep results of their own; a task has one result for all its steps."""

    name: str
    exitCode: int
    stdout: str
    stderr: str


def sandbox_name() -> str:
    return f"session-{secrets.token_hex(8)}"


def task_name(sandbox: str) -> str:
    return f"{sandbox}-task-{secrets.token_hex(8)}"


def sandbox(name: str, namespace: str, pool: str, keep_alive: bool, idle_seconds: int | None) -> Object:
    spec: Object = {"poolRef": pool, "keepAlive": keep_alive}
    if idle_seconds is not None or keep_alive:
        spec["idleTimeoutSeconds"] = KEPT_SECONDS if idle_seconds is None else idle_seconds
    return _resource("Sandbox", name, namespace, spec)


def task(
    name: str, namespace: str, sandbox: str, steps: Sequence[Mapping[str, Any]], timeout: str, trace_id: str | None
) -> Object:
    """The steps go out as they are, with whatever keys they have."""
    spec: Object = {"sandboxRef": sandbox, "steps": [dict(step) for step in steps], "timeout": timeout}
    if trace_id is not None:
        spec["traceID"] = trace_id
    return _resource("Task", name, namespace, spec)


def warm_pool(
    name: str,
    namespace: str,
    image: str,
    sidecar_image: str,
    replicas: int,
    command: Sequence[str] | None,
    workspace_path: str,
    testbed_path: str | None,
) -> Object:
    """Two containers, executor and sidecar, which share the directories."""
    paths = {"workspace": workspace_path} | ({} if testbed_path is None else {"testbed": testbed_path})
    mounts = [{"name": volume, "mountPath": path} for volume, path in paths.items()]
    executor = {"name": "executor", "image": image, "command": list(command or DEFAULT_COMMAND), "volumeMounts": mounts}
    sidecar = {
        "name": "sidecar",
        "image": sidecar_image,
        "imagePullPolicy": "Always",
        "ports": [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "grpc", "containerPort": 9090, "protocol": "TCP"},
        ],
        "volumeMounts": mounts,
    }
    volumes = [{"name": volume, "emptyDir": {}} for volume in paths]
    template = {"spec": {"containers": [executor, sidecar], "volumes": volumes}}
    return _resource("WarmPool", name, namespace, {"replicas": replicas, "template": template})


def _resource(kind: str, name: str, namespace: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": metadata, "spec": spec}


def status_of(found: Object) -> Object:
    """An object's status; empty where it has none yet."""
    status = found.get("status")
    return status if isinstance(status, dict) else {}


def count(members: Object, name: str) -> int:
    """A number of a pool; 0 where it is not told."""
    number = members.get(name)
    return number if isinstance(number, int) else 0


def reason(found: Object) -> str:
    """Why an object is not as it should be, in the server's words; empty if it has none."""
    conditions = status_of(found).get("conditions")
    first = conditions[0] if isinstance(conditions, list) and conditions else None
    return str(first.get("message") or "") if isinstance(first, dict) else ""
