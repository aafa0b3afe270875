"""VMs over HTTP: fork, list, get, patch, delete, and what may and may not be in their bodies."""

from __future__ import annotations

import pytest

import contract
from together import together

OURS = ("mode", "address")  # of the network


async def test_fork_answers_a_vm_of_the_contract(either):
    made = await either.ok("POST", "/fork", {"source_vm_name": "ubuntu", "name": "one", "description": "d"})
    contract.check(made, "Vm", *OURS)
    assert (made["name"], made["description"], made["state"]) == ("one", "d", "idle")
    assert made["root_source_vm_name"] == "ubuntu"
    for mandatory in ("vm_id", "owner_org_id", "created_at", "description", "public", "state", "sessions", "resources"):
        assert mandatory in made
    assert await either.ok("GET", f"/vms/{made['vm_id']}") == await either.ok("GET", "/vms/one")


async def test_fork_of_a_vm_by_id_and_by_name(api):
    parent = await api.fork(name="parent")
    await api.run(parent, "put /f hello")
    for source in ({"source_vm_id": parent}, {"source_vm_name": "parent"}):
        child = (await api.ok("POST", "/fork", source))["vm_id"]
        assert (await api.run(child, "cat /f"))["stdout"] == "hello"


async def test_fork_takes_what_old_clients_send_unasked(api):
    body = {
        "source_vm_name": "ubuntu", "source_org_id": "ArkerHQ", "disk": True, "network": False, "egress": True,
        "vcpu_count": 1, "memory_mib": 512, "max_memory_mib": 4096, "tunnel": None, "gpu_count": 0, "layers": ["disk"],
    }  # fmt: skip
    made = await api.ok("POST", "/fork", body)
    assert made["resources"]["memory_mib"] == 512


async def test_every_optional_member_of_a_fork_takes_null(api):
    members = contract.document()["components"]["schemas"]["ForkRequest"]["properties"]
    await api.ok("POST", "/fork", {**dict.fromkeys(members), "source_vm_name": "ubuntu"})


@together(
    "asked, feature",
    [
        ({"image": "ubuntu:24.04"}, None),
        ({"nestedvirt": True}, "nested_virtualization"),
        ({"disk": False}, "diskless"),
        ({"layers": ["disk", "memory"]}, "restore"),
        ({"platforms": ["x86_64-l40s"]}, "platform"),
        ({"policies": {"rules": {"a": {"type": "outbound", "priority": 1, "action": "suspend"}}}}, "network_policy"),
        ({"registry_auth": {"username": "u", "password": "p"}}, None),
        ({"pool_name": "p"}, None),
        ({"resources": {"vgpu": 0.5}}, None),
    ],
)
async def test_fork_refuses_by_name_what_is_not_there(api, asked, feature):
    error = await api.refused(422, "unsupported_operation", "POST", "/fork", {"source_vm_name": "ubuntu", **asked})
    assert error["details"].get("feature") == feature
    name = next(iter(asked)) if "resources" not in asked else "vgpu"
    assert name in error["message"]


@pytest.mark.parametrize(
    "asked",
    [
        {"durable": None, "nestedvirt": None, "platforms": [], "policies": {"rules": {}}, "ssh_public_keys": []},
        {"resources": {"vgpu": 0, "gpu_count": 0, "vcpu": None}},
        {"policies": {}, "ssh_public_keys": {}},
    ],
)
async def test_fork_accepts_defaults_of_what_is_not_there(api, asked):
    await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", **asked})


@together(
    "body, field",
    [
        ({"source_vm_name": "ubuntu", "naem": "x"}, "naem"),
        ({"source_vm_name": "ubuntu", "resources": {"cores": 1}}, "resources.cores"),
        ({"source_vm_name": "ubuntu", "resources": {"vcpu": 0}}, "resources.vcpu"),
        ({"source_vm_name": "ubuntu", "name": 7}, "name"),
        ({"source_vm_name": "ubuntu", "name": "list"}, "name"),
        ({"source_vm_name": "ubuntu", "name": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, "name"),
        ({"source_vm_name": "ubuntu", "name": "a/b"}, "name"),
        ({"source_vm_name": "ubuntu", "description": "d" * 1025}, "description"),
        ({"source_vm_name": "ubuntu", "dockerfile": "FROM a"}, "dockerfile"),
        ({"source_vm_name": "ubuntu", "layers": ["memory"]}, "layers"),
        ({"source_vm_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "source_org_id": "ArkerHQ"}, "source_org_id"),
        ([], "body"),
    ],
)
async def test_a_wrong_member_is_named(api, body, field):
    error = await api.refused(400, "bad_request", "POST", "/fork", body)
    assert [violation["field"] for violation in error["details"]["violations"]] == [field]


async def test_sources_of_a_fork(api):
    await api.refused(400, "bad_request", "POST", "/fork", {})
    await api.refused(400, "bad_request", "POST", "/fork", {"source_vm_name": "a", "source_vm_id": "b"})
    error = await api.refused(404, "not_found", "POST", "/fork", {"source_vm_name": "nope"})
    assert error["request"] == {"kind": "matched", "operation_id": "fork"}
    await api.fork(name="taken")
    error = await api.refused(409, "already_exists", "POST", "/fork", {"source_vm_name": "ubuntu", "name": "taken"})
    assert error["details"] == {"resource": "vm"}


async def test_fork_command_runs_in_the_default_session(api):
    vm = await api.fork(command="put /made yes")
    assert (await api.run(vm, "cat /made"))["stdout"] == "yes"


async def test_fork_with_an_idempotency_key(api):
    key = {"headers": {"idempotency-key": "sdk-fork-1"}}
    body = {"source_vm_name": "ubuntu", "name": "once"}
    first = await api.ok("POST", "/fork", body, **key)
    again = await api.ok("POST", "/fork", body, **key)
    assert first["vm_id"] == again["vm_id"]
    retried = await api.ok("POST", "/fork", {**body, "queueing_timeout": 3}, **key)
    assert retried["vm_id"] == first["vm_id"]
    await api.refused(409, "idempotency_conflict", "POST", "/fork", {**body, "name": "other"}, **key)
    await api.ok("DELETE", "/vms/once")
    await api.refused(404, "not_found", "POST", "/fork", body, **key)
    for wrong in ("x" * 65, ""):
        headers = {"idempotency-key": wrong}
        error = await api.refused(400, "bad_request", "POST", "/fork", body, headers=headers)
        assert error["details"]["violations"][0]["field"] == "Idempotency-Key"


async def test_list_pages_and_filters(either):
    made = [await either.fork(name=f"vm{number}") for number in range(5)]
    first = await either.ok("GET", "/vms?limit=2")
    contract.check(first, "ListVmsResponse", *OURS)
    assert [vm["vm_id"] for vm in first["vms"]] == [made[4], made[3]]
    second = await either.ok("GET", "/vms", params={"limit": 2, "cursor": first["next_cursor"]})
    rest = await either.ok("GET", "/vms", params={"limit": 1000, "cursor": second["next_cursor"]})
    assert [vm["vm_id"] for vm in second["vms"] + rest["vms"]] == made[2::-1]
    assert rest["next_cursor"] is None
    for empty in ("region=mars", "provider=aws", "platform=z80", "state=running", "public=True", "pool_id=p"):
        assert (await either.ok("GET", f"/vms?{empty}"))["vms"] == [], empty
    for full in ("region=local", "public=False", "public=false", "state=idle", "cursor=", "provider="):
        assert len((await either.ok("GET", f"/vms?{full}"))["vms"]) == 5, full
    newest = (await either.ok("GET", f"/vms/{made[4]}"))["created_at"]
    assert len((await either.ok("GET", "/vms", params={"created_after": newest}))["vms"]) == 1
    assert len((await either.ok("GET", "/vms", params={"created_before": newest}))["vms"]) == 4


async def test_list_items_never_name_provider_and_region(api):
    await api.fork()
    for agent in ("python-httpx2/2.16.2", "python-httpx/0.28.1", "Python-urllib/3.11", "x"):
        (item,) = (await api.ok("GET", "/vms", agent=agent))["vms"]
        assert not (item["provider"] and item["region"])


async def test_public_vms_are_listed_for_the_catalogue(api):
    found = await api.ok("GET", "/vms", params={"org_id": "ArkerHQ", "public": "True", "limit": 1000})
    names = {vm["name"] for vm in found["vms"]}
    assert {"arkuntu", "ubuntu", "ubuntu-full", "ubuntu-coding"} <= names
    assert all(vm["public"] and vm["immutable"] for vm in found["vms"])
    same = await api.ok("GET", "/vms", params={"source_org_id": "ArkerHQ", "limit": 1000})
    assert {vm["name"] for vm in same["vms"]} == names


@together(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=forged", "state=gone", "created_after=2026-01-01T00:00:00",
              "created_after=yesterday", "public=maybe", "colour=red", "limit=1&limit=2", "%ff=%ff"],
)  # fmt: skip
async def test_list_refuses(api, query):
    await api.refused(400, "bad_request", "GET", f"/vms?{query}")


async def test_a_cursor_belongs_to_its_list(api):
    vm = await api.fork()
    await api.fork()
    cursor = (await api.ok("GET", "/vms?limit=1"))["next_cursor"]
    await api.refused(400, "bad_request", "GET", f"/vms/{vm}/runs?cursor={cursor}")


async def test_patch(api):
    vm = await api.fork(name="before", description="old")
    patched = await api.ok("PATCH", f"/vms/{vm}", {"name": "after", "resources": {"vcpu": 2, "memory_mib": 256}})
    contract.check(patched, "Vm", *OURS)
    assert (patched["name"], patched["description"]) == ("after", "old")
    assert patched["resources"]["vcpu"] == 2
    assert (await api.ok("PATCH", f"/vms/{vm}", {"description": "new"}))["description"] == "new"
    for blank in (None, "  "):
        assert (await api.ok("PATCH", f"/vms/{vm}", {"description": blank}))["description"] is None
    await api.refused(400, "bad_request", "PATCH", f"/vms/{vm}", {"immutable": True, "description": "x"})
    await api.refused(400, "bad_request", "PATCH", f"/vms/{vm}", {"policies": {"rules": {"a": {"b": 1}}}})
    await api.ok("PATCH", f"/vms/{vm}", {"pool_id": None, "network": {"ssh_public_keys": []}, "policies": {}})
    assert (await api.ok("PATCH", f"/vms/{vm}", {"immutable": True}))["immutable"] is True


async def test_an_immutable_vm_only_looks_forks_and_goes(api):
    vm = await api.fork(name="done")
    await api.ok("PATCH", f"/vms/{vm}", {"immutable": True})
    error = await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/runs", {"command": "pwd"})
    assert error["details"]["requirement"] == "mutable"
    await api.refused(409, "invalid_state", "PATCH", f"/vms/{vm}", {"description": "x"})
    await api.ok("POST", "/fork", {"source_vm_id": vm})
    await api.ok("DELETE", f"/vms/{vm}")


async def test_delete(either):
    vm = await either.fork(name="gone")
    assert await either.ok("DELETE", f"/vms/{vm}") == {"deleted": True}
    await either.refused(404, "not_found", "DELETE", f"/vms/{vm}")
    await either.refused(404, "not_found", "GET", "/vms/gone")
    await either.fork(name="gone")


async def test_goldens_are_not_to_be_harmed(api):
    assert (await api("DELETE", "/vms/ubuntu")).status_code in (403, 404)
    assert (await api("PATCH", "/vms/ubuntu", {"description": "mine"})).status_code in (403, 404, 409)
    assert (await api("POST", "/vms/ubuntu/runs", {"command": "pwd"})).status_code in (403, 404, 409)


async def test_the_fork_of_a_busy_vm_tells_its_price(api):
    vm = await api.fork()
    await api.run(vm, "put /x y; daemon")
    made = await api.ok("POST", "/fork", {"source_vm_id": vm})
    assert set(made["copied"]) == {"inodes", "bytes", "frozen_ms", "total_ms"}
    assert "copied" not in await api.ok("GET", f"/vms/{made['vm_id']}")
    contract.check(made, "Vm", "copied", *OURS)


@together("odd", ["a%2Fb", "%2E%2E", "..%2Fetc", "%00", "no such", "%F0%9F%A6%8A", "a" * 3000])
async def test_odd_ids_are_merely_not_found(api, odd):
    for method, path in (("GET", f"/vms/{odd}"), ("DELETE", f"/vms/{odd}"), ("GET", f"/vms/{odd}/runs")):
        await api.refused(404, "not_found", method, path)


async def test_bounds_of_our_own(api):
    """Members that the contract has not: they are shown where they were given, and nowhere else."""
    plain = await api.ok("POST", "/fork", {"source_vm_name": "ubuntu"})
    assert not {"pids", "nofile"} & plain["resources"].keys() and "expires_at" not in plain
    wanted = {"pids": 100, "nofile": 2048}
    vm = await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", "resources": wanted, "ttl": 3600})
    assert wanted.items() <= vm["resources"].items() and "expires_at" in vm
    vm = await api.ok("PATCH", f"/vms/{vm['vm_id']}", {"resources": {"pids": 200}, "ttl": None})
    assert vm["resources"]["pids"] == 200 and "expires_at" not in vm
    for body in ({"resources": {"pids": 1}}, {"resources": {"nofile": 0}}, {"ttl": -1}, {"ttl": "1"}):
        await api.refused(400, "bad_request", "PATCH", f"/vms/{vm['vm_id']}", body)


async def test_bounds_of_a_key(api):
    wanted = {"name": "ci", "ttl_default": 60, "ttl_most": 90, "expires_in": 1000}
    made = (await api("POST", "/api-keys", wanted)).json()
    assert (made["ttl_default"], made["ttl_most"]) == (60, 90) and "expires_at" in made
    own = {"authorization": f"Bearer {made['key']}"}
    assert "expires_at" in await api.ok("POST", "/fork", {"source_vm_name": "ubuntu"}, headers=own)
    error = await api.refused(400, "bad_request", "POST", "/fork", {"source_vm_name": "ubuntu", "ttl": 91}, headers=own)
    assert "90 seconds" in error["message"] and "ttl_most" in error["message"]


async def test_other_protocols_are_bound_by_the_key_too(api, ak, arl):
    """They give VMs times of their own, also to copies that nobody sees: these are cut, and all goes on."""
    made = (await api("POST", "/api-keys", {"name": "ci", "ttl_most": 90})).json()
    ak.key = arl.key = made["key"]
    await ak.create("box")
    session = await arl.session()
    for _ in range(2):
        await arl.execute(session, ["put", "/x", "y"])
    near = api.app.core._database.near
    ages = [age for (age,) in near.execute("SELECT expires_at - created_at FROM vms WHERE origin IS NULL")]
    assert len(ages) >= 3 and all(age is not None and age <= 90_000_000 for age in ages), ages
