"""The network of VMs over HTTP: asked for in every generation's words, shown, and accounted for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import contract
from together import together

OLD = ["Python-urllib/3.11", "python-httpx/0.28.1"]
REFUSED = [
    ("inside", "network"),
    ("", "network"),
    (7, "network"),
    (["none"], "network"),
    ({"mode": "inside"}, "network.mode"),
    ({"mode": 7}, "network.mode"),
    ({"mode": False}, "network.mode"),
    ({"mode": {"a": 1}}, "network.mode"),
]


async def mode(api, vm: str) -> str:
    return str((await api.ok("GET", f"/vms/{vm}"))["network"]["mode"])


@pytest.mark.parametrize("asked", ["none", {"mode": "none"}])
async def test_a_fork_without_network(either, asked):
    made = await either.ok("POST", "/fork", {"source_vm_name": "ubuntu", "network": asked})
    assert made["network"] == {"mode": "none"}
    assert (await either.run(made["vm_id"], "fetch 10"))["exit_code"] == 7
    child = await either.fork(source_vm_name=None, source_vm_id=made["vm_id"])
    assert await mode(either, child) == "none"
    other = await either.fork(source_vm_name=None, source_vm_id=made["vm_id"], network="internet")
    assert await mode(either, other) == "internet"


@pytest.mark.parametrize("asked", [None, {}, {"mode": None}, "internet", {"mode": "internet"}])
async def test_a_fork_with_network(api, asked):
    assert await mode(api, await api.fork(network=asked)) == "internet"


@together("agent", ["boxwood/0", *OLD])
@together("asked, field", REFUSED)
async def test_what_is_no_network_is_refused(api, agent, asked, field):
    body = {"source_vm_name": "ubuntu", "network": asked}
    response = await api("POST", "/fork", body, agent=agent)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")
    assert response.json()["error"]["message"] == f"{field}: must be internet or none"


async def test_members_that_are_not_there_are_refused(api):
    for asked, field in (
        ({"mod": "none"}, "network.mod"),
        ({"mode": "none", "address": "10.0.0.1"}, "network.address"),
    ):
        error = await api.refused(400, "bad_request", "POST", "/fork", {"source_vm_name": "ubuntu", "network": asked})
        assert [violation["field"] for violation in error["details"]["violations"]] == [field]


@together("agent", OLD)
@together(
    "said, expected",
    [
        ({"network": False}, "none"),
        ({"network": True}, "internet"),
        ({"network": {"reachable": True, "ssh_public_keys": ["k"]}}, "internet"),
        ({"network": {"reachable": False}, "egress": False}, "none"),
        ({"egress": False}, "none"),
        ({"network": True, "egress": False}, "none"),
        ({"network": False, "egress": True}, "internet"),
        ({"network": "none", "egress": True}, "none"),
        ({"network": {"mode": "none"}, "egress": True}, "none"),
        ({"egress": {"allow": ["a"]}}, "internet"),
    ],
)
async def test_words_of_old_clients(api, agent, said, expected):
    made = await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", **said}, agent=agent)
    assert await mode(api, made["vm_id"]) == expected


@pytest.mark.parametrize(
    "said, expected", [(False, "none"), (True, "internet"), ({"a": 1}, "internet"), ("x", "internet")]
)
async def test_words_of_the_first_generation(api, said, expected):
    for path, more in (("fork", {"from": "ubuntu"}), ("01KQBYKEV5WJ7YB010603T1DCT_d8c0/fork", {})):
        made = await api.ok("POST", f"//api/v1/vms/{path}", {"network": said, **more}, agent=OLD[0])
        assert await mode(api, made["vm_id"]) == expected


async def test_a_vm_tells_its_address_while_it_lives(api):
    vm = await api.fork()
    await api.run(vm, "pwd")
    address = api.machine.boxes[vm].address
    shown = await api.ok("GET", f"/vms/{vm}")
    assert shown["network"] == {"mode": "internet", "address": address}
    assert [one["network"] for one in (await api.ok("GET", "/vms"))["vms"]] == [shown["network"]]
    contract.check(shown, "Vm", "mode", "address")
    assert (await api.ok("GET", f"/vms/{vm}", agent=OLD[0]))["network"] == shown["network"]
    await api.app.core._boxes.park(vm)
    assert (await api.ok("GET", f"/vms/{vm}"))["network"] == {"mode": "internet"}


async def test_the_strict_releases_are_told_nothing(api):
    """0.8.4 to 0.8.7 refuse a member of `network` that they do not know."""
    vm = await api.fork()
    await api.run(vm, "pwd")
    for one in (await api.ok("GET", f"/vms/{vm}", agent=OLD[1]), *(await api.ok("GET", "/vms", agent=OLD[1]))["vms"]):
        assert one["network"] == {}


@pytest.mark.parametrize("asked", ["none", "internet", "x", False, True, {"mode": "internet"}, {"mode": "x", "a": 1}])
async def test_a_vm_keeps_its_network(api, asked):
    vm = await api.fork()
    error = await api.refused(422, "unsupported_operation", "PATCH", f"/vms/{vm}", {"network": asked, "name": "new"})
    assert "fork" in error["message"]
    assert (await api.ok("GET", f"/vms/{vm}"))["name"] is None


async def test_patches_that_ask_for_nothing_or_for_what_is_not_there(api):
    vm = await api.fork()
    for nothing in (None, {}, {"mode": None}, {"ssh_public_keys": []}):
        await api.ok("PATCH", f"/vms/{vm}", {"network": nothing})
    for reachable in ({"ssh_public_keys": ["k"]}, {"reachable": True}):
        error = await api.refused(422, "unsupported_operation", "PATCH", f"/vms/{vm}", {"network": reachable})
        assert error["details"]["feature"] == "public_ingress"
    await api.ok("PATCH", f"/vms/{vm}", {"network": False}, agent=OLD[0])
    assert (await api("PATCH", f"/vms/{vm}", {"network": True}, agent=OLD[0])).status_code == 422


async def test_what_a_vm_moved(either):
    vm = await either.fork(name="busy")
    nothing = {"sent_bytes": 0, "received_bytes": 0, "connections": 0, "denied": 0, "denials": []}
    assert await either.ok("GET", "/vms/busy/network") == {"mode": "internet", "address": None, **nothing}
    before = datetime.now(UTC) - timedelta(seconds=1)
    await either.run(vm, "fetch 1000; fetch 24; knock first.example")
    await either.run(vm, "knock second.example")
    shown = await either.ok("GET", f"/vms/{vm}/network")
    counted = {"sent_bytes": 200, "received_bytes": 1024, "connections": 2, "denied": 2}
    denials = shown.pop("denials")
    assert shown == {"mode": "internet", "address": either.machine.boxes[vm].address, **counted}
    assert [denial["name"] for denial in denials] == ["first.example", "second.example"]
    at = datetime.fromisoformat(denials[0].pop("at"))
    assert before < at < datetime.now(UTC)
    dns = {"protocol": "dns", "address": "", "port": 0, "name": "first.example", "reason": "name"}
    assert denials[0] == dns
    await either.app.core._boxes.park(vm)
    again = await either.ok("GET", f"/vms/{vm}/network")
    assert (again["address"], len(again.pop("denials"))) == (None, 2)
    assert again == {**shown, "address": None}


async def test_the_network_of_what_is_not_there(api):
    await api.refused(404, "not_found", "GET", "/vms/nothing/network")
    await api.refused(405, "method_not_allowed", "POST", "/vms/nothing/network", {})
    await api.refused(403, "forbidden", "GET", "/vms/ubuntu/network")


async def test_only_a_key_opens_it(api):
    vm = await api.fork()
    headers = {"authorization": "Bearer bxw_wrong"}
    await api.refused(401, "unauthorized", "GET", f"/vms/{vm}/network", headers=headers)
