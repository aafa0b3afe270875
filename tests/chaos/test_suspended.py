"""A VM that is suspended when the server dies, or all of it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from api.test_schedules_real import ok, suspended
from servers import Server, until

pytestmark = pytest.mark.root


def test_it_stands_still_again_and_can_always_be_ended(make_server: Callable[..., Server]) -> None:
    server = make_server()
    vm = ok(server, "POST", "/fork", {"source_vm_name": "ubuntu"})["vm_id"]
    run = suspended(server, vm)
    server.kill9()
    server.start()
    assert ok(server, "GET", f"/vms/{vm}/runs/{run}")["state"] == "pending"
    session = ok(server, "POST", f"/vms/{vm}/sessions", {})["session_id"]
    ok(server, "POST", f"/vms/{vm}/runs", {"command": "touch /root/end", "session_id": session})
    until(lambda: ok(server, "GET", f"/vms/{vm}/runs/{run}")["state"] == "completed")
    *counted, end = ok(server, "GET", f"/vms/{vm}/runs/{run}")["stdout"].split()
    assert counted == [str(n + 1) for n in range(len(counted))] and end == "end"
    ok(server, "POST", f"/vms/{vm}/runs", {"command": "rm /root/end"})
    run = suspended(server, vm, "again")
    server.kill9_all()
    server.start()
    assert ok(server, "GET", f"/vms/{vm}/runs/{run}")["state"] == "failed"
    assert ok(server, "POST", f"/vms/{vm}/runs", {"command": "echo here"})["stdout"] == "here\n"
    suspended(server, vm, "once-more")
    server.down()
