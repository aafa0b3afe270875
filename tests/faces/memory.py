"""Objects of Kubernetes kept in memory: for what the face does whoever keeps them. And a session on them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from boxwood.faces.arl import SandboxSession
from boxwood.faces.arl.errors import refusal

Object = dict[str, Any]
POOL = {"spec": {"replicas": 2}, "status": {"readyReplicas": 2, "allocatedReplicas": 1}}


class Memory:
    """`becomes[plural]` is called with an object whenever it is asked for, and may change it or raise."""

    def __init__(self) -> None:
        self.there: dict[tuple[str, str, str], Object] = {}
        self.asked: list[str] = []
        self.bodies: list[Object] = []
        self.becomes: dict[str, Callable[[Object], None]] = {
            "warmpools": lambda pool: None,
            "sandboxes": lambda sandbox: sandbox.update(status={"phase": "Ready", "podName": "p"}),
            "tasks": lambda task: task.update(status={"state": "Succeeded", "exitCode": 0, "stdout": "hi\n"}),
        }
        self.there["warmpools", "default", "pool"] = {"metadata": {"name": "pool"}, **copy.deepcopy(POOL)}

    def names(self, plural: str) -> list[str]:
        return [name for kind, _, name in self.there if kind == plural]

    def create(self, plural: str, namespace: str, body: Object, *, ours: bool = False) -> Object:
        name = body["metadata"]["name"]
        self.asked.append(f"create {plural}")
        self.bodies.append(copy.deepcopy(body))
        if (plural, namespace, name) in self.there:
            raise no(409, f'{plural} "{name}" already exists')
        self.there[plural, namespace, name] = copy.deepcopy(body)
        return body

    def get(self, plural: str, namespace: str, name: str, seconds: float = 1.0, *, news: bool = False) -> Object:
        self.asked.append(f"get {plural}")
        found = self._found(plural, namespace, name)
        self.becomes[plural](found)
        return copy.deepcopy(found)

    def list(self, plural: str, namespace: str) -> list[Object]:
        self.asked.append(f"list {plural}")
        return [found for (kind, where, _), found in self.there.items() if (kind, where) == (plural, namespace)]

    def delete(self, plural: str, namespace: str, name: str) -> None:
        self.asked.append(f"delete {plural}")
        self._found(plural, namespace, name)
        del self.there[plural, namespace, name]

    def close(self) -> None:
        self.asked.append("close")

    def _found(self, plural: str, namespace: str, name: str) -> Object:
        if (plural, namespace, name) not in self.there:
            raise no(404, f'{plural} "{name}" not found')
        return self.there[plural, namespace, name]


def no(status: int, message: str) -> Exception:
    made = refusal(status, json.dumps({"kind": "Status", "status": "Failure", "message": message}))
    assert made is not None
    return made


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    kept = Memory()
    monkeypatch.setattr("boxwood.faces.arl.connected.connect", lambda *place: kept)
    return kept


@pytest.fixture
def session(memory: Memory) -> SandboxSession:
    made = SandboxSession("pool")
    made.create_sandbox()
    memory.asked.clear()
    return made
