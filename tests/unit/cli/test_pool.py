"""`boxwood pool`."""

from __future__ import annotations

import json

from unit.client.stub import VM, VM_ID, StubServer

POOL = {
    "pool_id": "01KZ0000000000000000000002", "name": "p", "namespace": "default", "state": "running",
    "source_vm_name": "ubuntu", "replicas": 3, "ready": 2, "starting": 1, "allocated": 4, "problem": None,
    "resources": {"vcpu": None, "memory_mib": 512, "disk_mib": None}, "network": "internet", "labels": {},
    "created_at": "2026-11-21T00:00:00Z",
}  # fmt: skip
ONE = "/v1/warm-pools/p"


def test_create(server: StubServer, boxwood) -> None:
    server.script("POST /v1/warm-pools", (201, POOL))
    done = boxwood("pool", "create", "p", "ubuntu", "--replicas", "3", "--memory", "512", "--network", "none")
    assert done.stdout.decode().split("\t")[:7] == ["p", "default", "3", "2", "1", "4", "ubuntu"]
    assert server.last.body == {
        "name": "p", "namespace": "default", "replicas": 3, "source_vm_name": "ubuntu",
        "resources": {"memory_mib": 512}, "network": "none",
    }  # fmt: skip


def test_ls_and_get(server: StubServer, boxwood) -> None:
    server.script("GET /v1/warm-pools", (200, {"pools": [POOL, POOL | {"name": "q"}]}))
    lines = boxwood("pool", "ls").stdout.decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["p", "q"]
    assert [one["name"] for one in json.loads(boxwood("pool", "ls", "--json").stdout)] == ["p", "q"]
    server.script(f"GET {ONE}", (200, POOL | {"problem": "no room"}))
    assert "no room" in boxwood("pool", "get", "p").stdout.decode()
    assert (server.last.path, server.last.query) == (ONE, {"namespace": ["default"]})


def test_scale_claim_and_rm(server: StubServer, boxwood) -> None:
    server.script(f"GET {ONE}", (200, POOL))
    server.script(f"PATCH {ONE}", (200, POOL | {"replicas": 5}))
    assert boxwood("pool", "scale", "p", "5").stdout.decode().split("\t")[2] == "5"
    assert server.last.body == {"replicas": 5}
    server.script(f"POST {ONE}/claim", (201, VM))
    done = boxwood("pool", "claim", "p", "--name", "n", "--ttl", "60", "-n", "default")
    assert done.stdout.decode() == f"{VM_ID}\n"
    assert server.last.body == {"name": "n", "ttl": 60}
    assert server.last.headers["idempotency-key"].startswith("boxwood-")
    server.script(f"DELETE {ONE}", (200, POOL))
    assert boxwood("pool", "rm", "p", "--vms").returncode == 0
    assert (server.last.path, server.last.query) == (ONE, {"namespace": ["default"], "vms": ["true"]})


def test_wrong_usage(server: StubServer, boxwood) -> None:
    for wrong in (("scale", "p", "-1"), ("scale", "p"), ("create",), ("claim", "p", "--ttl", "-1")):
        assert boxwood("pool", *wrong).returncode == 2
    assert boxwood("pool", "get", "..").returncode == 1
    assert not server.requests
