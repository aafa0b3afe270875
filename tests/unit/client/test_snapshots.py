"""Snapshots and differences as the SDK asks for them and hands them out."""

from __future__ import annotations

import pytest

from boxwood import Boxwood, Change, ResourceBusy, ServerError, Snapshot
from unit.client.stub import KEY, VM, VM_ID, StubServer, error

ONE = f"/v1/vms/{VM_ID}"
SNAPSHOT = {"snapshot_id": "01KZ0000000000000000000003", "vm_id": VM_ID, "name": "s", "later": 1}


def test_snapshots_are_named_by_themselves_their_name_or_their_id(server: StubServer) -> None:
    server.script(f"POST {ONE}/snapshots", (201, SNAPSHOT))
    server.script(f"POST {ONE}/restore", (200, VM | {"name": "back"}))
    server.script(f"DELETE {ONE}/snapshots/s", (200, {"deleted": True}))
    server.script(f"GET {ONE}/diff", (200, {"changes": [], "truncated": False}))
    with Boxwood(server.url, KEY) as box:
        vm = box.vm(VM_ID)
        taken = vm.snapshot("s", description="d")
        assert isinstance(taken, Snapshot) and taken.created_at is None
        vm.restore(taken, force=True)
        assert server.last.body == {"snapshot": taken.snapshot_id, "force": True}
        assert vm.name == "back"
        vm.delete_snapshot("s")
        assert vm.diff(taken, "t").changes == []
        assert server.last.query["since"] == [taken.snapshot_id] and server.last.query["to"] == ["t"]
        vm.diff(vm)
        assert server.last.query["since"] == [VM_ID]
        server.script(f"POST {ONE}/restore", (409, error("resource_busy", details={"resource": "vm"})))
        with pytest.raises(ResourceBusy):
            vm.restore("s")


def test_paths_that_are_no_text() -> None:
    assert Change("/a", "added").raw_path == b"/a"
    assert Change("/\ufffd", "added", path_base64="L/8=").raw_path == b"/\xff"
    with pytest.raises(ServerError):
        _ = Change("/", "added", path_base64="L").raw_path
