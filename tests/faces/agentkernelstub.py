"""A client of agentkernel's surface, over a stub of the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from boxwood.faces.agentkernel import (
    AgentKernel,
)
from unit.client.stub import KEY, RUN, VM, VM_ID, StubServer

GOLDEN, NODE = "01KZ000000000000000000000G", "01KZ000000000000000000000N"
GOLDENS = [
    VM | {"vm_id": GOLDEN, "name": "ubuntu", "owner_org_id": "ArkerHQ", "public": True},
    VM | {"vm_id": NODE, "name": "node-22-alpine", "owner_org_id": "ArkerHQ", "public": True},
]
MINE = VM | {"name": "mine", "description": "agentkernel image=python:3.12-alpine", "root_source_vm_name": "ubuntu"}
RUNS = f"/v1/vms/{VM_ID}/runs"
SIZES = {"vcpu": 1, "memory_mib": 512}
RUNNING = {"run_id": "r1", "session_id": "s1", "state": "running"}


@pytest.fixture
def client(server: StubServer) -> Iterator[AgentKernel]:
    server.script("GET /v1/vms", (200, {"vms": GOLDENS, "next_cursor": None}))
    server.script("POST /v1/fork", (200, VM))
    server.script(f"POST {RUNS}", (200, RUN))
    server.script(f"DELETE /v1/vms/{VM_ID}", (200, {"deleted": True}))
    server.script("GET /v1/vms/mine", (200, MINE))
    with AgentKernel(server.url, KEY) as client:
        yield client


def asked(server: StubServer) -> list[str]:
    return [f"{request.method} {request.path}" for request in server.requests]


def body_of(server: StubServer, route: str) -> dict[str, object]:
    """Of the last request to a route."""
    found = [request.body for request in server.requests if f"{request.method} {request.path}" == route]
    return found[-1]  # type: ignore[no-any-return]
