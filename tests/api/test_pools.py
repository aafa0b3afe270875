"""Warm pools over HTTP."""

from __future__ import annotations

import asyncio

from together import together

POOLS = "/warm-pools"


async def full(api, name="p", query=""):
    while True:
        pool = await api.ok("GET", f"{POOLS}/{name}{query}")
        if pool["ready"] == pool["replicas"]:
            return pool
        await asyncio.sleep(0.001)


async def test_a_pool(api):
    made = await api.ok("POST", POOLS, {"name": "p", "source_vm_name": "ubuntu", "replicas": 2, "labels": {"a": "b"}})
    assert (made["name"], made["namespace"], made["state"], made["problem"]) == ("p", "default", "running", None)
    pool = await full(api)
    assert (pool["starting"], pool["allocated"], pool["labels"]) == (0, 0, {"a": "b"})
    assert (await api.ok("GET", POOLS))["pools"] == [pool]
    assert (await api.ok("GET", f"{POOLS}?namespace=other"))["pools"] == []
    vm = await api.ok("POST", f"{POOLS}/p/claim", {"name": "mine"})
    assert vm["vm_id"] in api.machine.boxes and vm["name"] == "mine"
    assert (await api.run(vm["vm_id"], "pwd"))["stdout"] == "/root\n"
    scaled = await api.ok("PATCH", f"{POOLS}/p", {"replicas": 0})
    assert (scaled["replicas"], scaled["state"], scaled["allocated"]) == (0, "stopped", 1)
    assert (await api.ok("DELETE", f"{POOLS}/p"))["name"] == "p"
    assert (await api.ok("GET", "/vms/mine"))["vm_id"] == vm["vm_id"]
    await api.refused(404, "not_found", "GET", f"{POOLS}/p")


async def test_a_claim_with_a_key_is_one_claim(api):
    await api.ok("POST", POOLS, {"name": "p", "source_vm_name": "ubuntu", "replicas": 1})
    await full(api)
    claims = [await api.ok("POST", f"{POOLS}/p/claim", {}, headers={"idempotency-key": "k"}) for _ in range(3)]
    assert len({vm["vm_id"] for vm in claims}) == 1
    await api.refused(
        409, "idempotency_conflict", "POST", f"{POOLS}/p/claim", {"name": "x"}, headers={"idempotency-key": "k"}
    )
    assert (await full(api))["allocated"] == 1
    await api.ok("DELETE", f"/vms/{claims[0]['vm_id']}")
    await api.refused(404, "not_found", "POST", f"{POOLS}/p/claim", {}, headers={"idempotency-key": "k"})


async def test_namespaces_and_deletion_with_vms(api):
    for namespace in ("a", "b"):
        await api.ok("POST", POOLS, {"name": "p", "namespace": namespace, "source_vm_name": "ubuntu", "replicas": 0})
    vm = await api.ok("POST", f"{POOLS}/p/claim?namespace=a", {"ttl": 60, "description": "d"})
    assert vm["description"] == "d"
    assert (await api.ok("GET", f"{POOLS}/p?namespace=b"))["allocated"] == 0
    await api.refused(404, "not_found", "DELETE", f"{POOLS}/p")
    await api.ok("DELETE", f"{POOLS}/p?namespace=a&vms=true")
    await api.refused(404, "not_found", "GET", f"/vms/{vm['vm_id']}")


@together(
    ("status", "code", "body"),
    [
        (400, "bad_request", {}),
        (400, "bad_request", {"name": "p"}),
        (400, "bad_request", {"name": "../p", "source_vm_name": "ubuntu"}),
        (400, "bad_request", {"name": "p", "source_vm_name": "ubuntu", "replicas": -1}),
        (400, "bad_request", {"name": "p", "source_vm_name": "ubuntu", "replicas": 513}),
        (400, "bad_request", {"name": "p", "source_vm_name": "ubuntu", "extra": 1}),
        (404, "not_found", {"name": "p", "source_vm_name": "nowhere"}),
    ],
)
async def test_pools_that_are_none(api, status, code, body):
    await api.refused(status, code, "POST", POOLS, body)
    assert (await api.ok("GET", POOLS))["pools"] == []


async def test_the_contracts_pools_are_others(api):
    """Which a disabled organisation does not see."""
    assert (await api("GET", "/pools")).status_code == 404


async def test_keys(api):
    await api.ok("POST", POOLS, {"name": "p", "source_vm_name": "ubuntu", "replicas": 1})
    for method, path in (("GET", POOLS), ("POST", f"{POOLS}/p/claim"), ("DELETE", f"{POOLS}/p")):
        await api.refused(401, "unauthorized", method, path, headers={"authorization": "Bearer wrong"})
    assert (await full(api))["allocated"] == 0
