"""VMs: fork, list, get, change, delete; keys, images, health."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from boxwood import AlreadyExists, BadRequest, Boxwood, Denial, NetworkUsage, NotFound, VMNetwork
from unit.client.stub import KEY, NETWORK, RUN, VM, VM_ID, StubServer, error


@pytest.fixture
def box(server: StubServer):
    server.script("POST /v1/fork", (200, VM))
    server.script(f"GET /v1/vms/{VM_ID}", (200, VM))
    server.script(f"DELETE /v1/vms/{VM_ID}", (200, {"deleted": True}))
    with Boxwood(server.url, KEY) as client:
        yield client


def test_fork_by_name_tells_all_of_the_new_vm(server: StubServer, box: Boxwood) -> None:
    vm = box.fork("ubuntu", name="n", vcpu=1, memory_mib=512)
    assert server.last.body == {
        "source_vm_name": "ubuntu", "name": "n", "resources": {"vcpu": 1, "memory_mib": 512},
    }  # fmt: skip
    assert (vm.id, vm.name, vm.state, vm.public, vm.resources.memory_mib) == (VM_ID, "n", "idle", False, 512)
    assert vm.created_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_fork_by_id_by_vm_and_from_the_vm_itself(server: StubServer, box: Boxwood) -> None:
    vm = box.fork(VM_ID.lower())
    assert server.last.body == {"source_vm_id": VM_ID}
    assert box.fork(vm, command=["touch", "/a b"]) == vm
    assert server.last.body == {"source_vm_id": VM_ID, "command": "touch '/a b'"}
    vm.fork(name="child", description="d", public=True)
    assert server.last.body == {"source_vm_id": VM_ID, "name": "child", "description": "d", "public": True}


def test_every_fork_has_a_key_of_its_own(server: StubServer, box: Boxwood) -> None:
    box.fork()
    box.fork()
    box.fork(idempotency_key="mine")
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"
    with pytest.raises(BadRequest):
        box.fork(idempotency_key="x" * 65)


def test_a_fork_as_context_manager_deletes_the_vm(server: StubServer, box: Boxwood) -> None:
    with box.fork("ubuntu") as vm:
        assert vm.id == VM_ID
    assert (server.last.method, server.last.path) == ("DELETE", f"/v1/vms/{VM_ID}")
    server.script(f"DELETE /v1/vms/{VM_ID}", (404, error("not_found", details={"resource": "vm"})))
    with box.fork("ubuntu"):
        pass  # gone already: what was wanted
    with pytest.raises(NotFound):
        box.delete(vm)


def test_a_name_that_is_taken(server: StubServer, box: Boxwood) -> None:
    server.script("POST /v1/fork", (409, error("already_exists", "taken", details={"resource": "vm"})))
    with pytest.raises(AlreadyExists, match="taken") as caught:
        box.fork(name="n")
    assert (caught.value.status, caught.value.request_id, caught.value.resource) == (409, "q1", "vm")


def test_a_fork_of_a_busy_vm_tells_what_it_cost(server: StubServer, box: Boxwood) -> None:
    copied = {"inodes": 3, "bytes": 4096, "frozen_ms": 0.5, "total_ms": 2.0}
    server.script("POST /v1/fork", (200, VM | {"copied": copied}))
    report = box.fork().copied
    assert report is not None
    assert (report.inodes, report.bytes, report.frozen_ms) == (3, 4096, 0.5)


def test_a_handle_needs_no_request(server: StubServer, box: Boxwood) -> None:
    vm = box.vm("n")
    assert not server.requests
    server.script("POST /v1/vms/n/runs", (200, RUN))
    assert vm.run("echo hi").stdout == "hi"


def test_list_follows_the_pages(server: StubServer, box: Boxwood) -> None:
    other = "01KZ0000000000000000000001"
    server.script("GET /v1/vms", (200, {"vms": [VM], "next_cursor": "a b"}), (200, {"vms": [VM | {"vm_id": other}]}))
    found = list(box.list(state="idle", public=False, created_after=datetime(2026, 1, 1, tzinfo=UTC)))
    assert [vm.id for vm in found] == [VM_ID, other]
    assert server.last.query == {
        "cursor": ["a b"], "state": ["idle"], "public": ["false"], "created_after": ["2026-01-01T00:00:00+00:00"],
    }  # fmt: skip


def test_forks_say_what_network_they_want(server: StubServer, box: Boxwood) -> None:
    vm = box.fork("ubuntu", network="none")
    assert server.last.body == {"source_vm_name": "ubuntu", "network": "none"}
    vm.fork(network="internet")
    assert server.last.body == {"source_vm_id": VM_ID, "network": "internet"}
    assert vm.address is None
    server.script("POST /v1/fork", (200, VM | {"network": {"mode": "internet", "address": "198.18.0.6"}}))
    vm = box.fork()
    assert "network" not in server.last.body
    assert (vm.address, vm.record.network) == ("198.18.0.6", VMNetwork("internet", "198.18.0.6"))


def test_what_a_vm_moved(server: StubServer, box: Boxwood) -> None:
    route = f"GET /v1/vms/{VM_ID}/network"
    server.script(route, (200, NETWORK), (200, {"mode": "none", "address": None, "newer": 1}))
    vm = box.vm(VM_ID)
    seen = vm.network()
    assert (seen.mode, seen.address, seen.sent_bytes, seen.received_bytes) == ("internet", "198.18.0.6", 10, 2048)
    assert (seen.connections, seen.denied, len(seen.denials)) == (3, 51, 2)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert seen.denials[1] == Denial(at, "tcp", "10.0.0.1", 22, "db.example", "private")
    assert vm.network() == NetworkUsage("none")
    server.script(route, (404, error("not_found", details={"resource": "vm"})))
    with pytest.raises(NotFound):
        vm.network()


def test_get_update_refresh(server: StubServer, box: Boxwood) -> None:
    vm = box.get(VM_ID)
    server.script(f"PATCH /v1/vms/{VM_ID}", (200, VM | {"description": "d"}))
    assert vm.update(description="d", memory_mib=64).description == "d"
    assert server.last.body == {"resources": {"memory_mib": 64}, "description": "d"}
    server.script(f"GET /v1/vms/{VM_ID}", (200, VM | {"state": "running"}))
    assert vm.refresh().state == "running"


@pytest.mark.parametrize("name", ["a/b", "a?b#c", "ä %2F", "..a"])
def test_odd_names_stay_one_segment(server: StubServer, box: Boxwood, name: str) -> None:
    with pytest.raises(NotFound):
        box.get(name)
    assert server.last.path.count("/") == 3
    assert not server.last.query


@pytest.mark.parametrize("name", ["", ".", "..", "\udc80"])
def test_names_that_would_be_another_route_are_not_sent(server: StubServer, box: Boxwood, name: str) -> None:
    with pytest.raises(BadRequest):
        box.delete(name)
    assert not server.requests


def test_members_of_a_newer_server_are_ignored(server: StubServer, box: Boxwood) -> None:
    server.script("POST /v1/fork", (200, VM | {"colour": "green"}))
    assert box.fork().id == VM_ID


def test_keys(server: StubServer, box: Boxwood) -> None:
    key = {"api_key_id": "ci-1", "role": "admin", "scopes": [], "vm_id": None, "created_at": "2026-01-01T00:00:00Z"}
    server.script("POST /v1/api-keys", (201, key | {"key": "bxw_secret"}))
    server.script("GET /v1/api-keys", (200, {"api_keys": [key]}))
    server.script("DELETE /v1/api-keys/ci-1", (204, b""))
    made = box.create_api_key("ci")
    assert made.key == "bxw_secret"
    assert "bxw_secret" not in repr(made)
    assert [found.api_key_id for found in box.api_keys()] == ["ci-1"]
    box.revoke_api_key("ci-1")
    assert server.last.method == "DELETE"


def test_images_whoami_health_down(server: StubServer, box: Boxwood) -> None:
    server.script("GET /v1/vms", (200, {"vms": [VM], "next_cursor": None}))
    assert [image.name for image in box.images()] == ["n"]
    assert server.last.query == {"public": ["true"], "org_id": ["ArkerHQ"]}
    server.script("POST /boxwood/images", (200, {"vm_id": VM_ID, "name": "mine"}))
    assert box.import_image("mine", "/tmp/root.tar").name == "mine"
    server.script("GET /v1/whoami", (200, {"org_id": "o", "org_name": "O"}))
    assert box.whoami().org_name == "O"
    server.script("GET /v1/health", (200, {"status": "ok", "timestamp": "t", "isolation": {"seccomp": True}}))
    assert (box.health().status, box.health().isolation) == ("ok", {"seccomp": True})
    starting = {"status": "unavailable", "timestamp": "t", "preparing": {"step": "copying", "fraction": 0.5}}
    server.script("GET /v1/health", (503, starting))
    preparing = box.health().preparing
    assert preparing is not None
    assert (preparing.step, preparing.fraction) == ("copying", 0.5)
    server.script("POST /boxwood/down", (200, {}))
    box.down()
