"""A VM that its policy suspends, on a real server with real boxes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Server, until

COUNT = "i=0; until [ -e /root/end ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo end"
NOW = {"type": "schedule", "at": "2020-01-01T00:00:00Z", "action": "suspend"}


@pytest.fixture
def vm(boxwood_server: Server) -> Iterator[str]:
    status, made = boxwood_server.request("POST", "/v1/fork", {"source_vm_name": "ubuntu"})
    assert status == 200, made
    yield made["vm_id"]
    boxwood_server.request("DELETE", f"/v1/vms/{made['vm_id']}")


def ok(server: Server, method: str, path: str, body: dict | None = None) -> dict:
    status, answer = server.request(method, f"/v1{path}", body)
    assert status in (200, 202), answer
    return answer


def suspended(server: Server, vm: str, name: str = "now") -> str:
    """A run that counts, and stands still: its id."""
    run = ok(server, "POST", f"/vms/{vm}/runs", {"command": COUNT, "time_to_background": 0})["run_id"]
    path = f"/vms/{vm}/runs/{run}"
    until(lambda: "\n3\n" in ok(server, "GET", path)["stdout"])
    ok(server, "PATCH", f"/vms/{vm}", {"policies": {"rules": {name: NOW}}})
    until(lambda: ok(server, "GET", path)["state"] == "pending")
    return run


def elsewhere(server: Server) -> None:
    """Time passes for others."""
    other = ok(server, "POST", "/fork", {"source_vm_name": "ubuntu"})["vm_id"]
    assert ok(server, "POST", f"/vms/{other}/runs", {"command": "sleep 0.1"})["exit_code"] == 0
    ok(server, "DELETE", f"/vms/{other}")


def test_a_run_counts_on_where_it_was(boxwood_server: Server, vm: str) -> None:
    server = boxwood_server
    run = suspended(server, vm)
    elsewhere(server)  # what was on its way has come
    before = ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"]
    elsewhere(server)
    assert ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"] == before
    assert ok(server, "GET", f"/vms/{vm}")["state"] == "idle"
    woken = ok(server, "POST", f"/vms/{vm}/runs", {"time_to_background": 0})
    assert (woken["run_id"], woken["state"]) == (run, "running")
    until(lambda: len(ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"]) > len(before))
    session = ok(server, "POST", f"/vms/{vm}/sessions", {})["session_id"]
    ok(server, "POST", f"/vms/{vm}/runs", {"command": "touch /root/end", "session_id": session})
    until(lambda: ok(server, "GET", f"/vms/{vm}/runs/{run}")["state"] == "completed")
    *counted, end = ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"].split()
    assert counted == [str(n + 1) for n in range(len(counted))] and end == "end"


def test_what_stands_still_is_forked_and_deleted(boxwood_server: Server, vm: str) -> None:
    server = boxwood_server
    ok(server, "POST", f"/vms/{vm}/runs", {"command": "echo kept > /root/kept"})
    run = suspended(server, vm)
    child = ok(server, "POST", "/fork", {"source_vm_id": vm})["vm_id"]
    assert ok(server, "POST", f"/vms/{child}/runs", {"command": "cat /root/kept"})["stdout"] == "kept\n"
    ok(server, "DELETE", f"/vms/{child}")
    ok(server, "PATCH", f"/vms/{vm}", {"resources": {"pids": 500}})
    elsewhere(server)
    found = ok(server, "GET", f"/vms/{vm}/runs/{run}")
    assert found["state"] == "pending"
    elsewhere(server)
    assert ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"] == found["stdout"]
    assert ok(server, "DELETE", f"/vms/{vm}") == {"deleted": True}
