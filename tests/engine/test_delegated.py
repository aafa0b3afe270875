"""Cgroups that were handed to a user who has no root: limits hold, busy VMs are forked, on a server of his."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import rootless
import servers
from boxwood.engine.cgroups.files import MOUNTS, hierarchies

pytestmark = pytest.mark.timeout(900)
_JOIN = 'n=$1; shift; while [ $n -gt 0 ]; do echo 0 > "$1"; shift; n=$((n-1)); done; exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"'


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """A group in each hierarchy of version 1, owned by the user."""
    _, separate = hierarchies(MOUNTS)
    wanted = {"memory", "cpu", "freezer", "pids"}
    if not wanted <= set(separate):
        pytest.skip("this host has no hierarchies of version 1")
    made = [Path(place, f"test-rootless-{os.getpid()}") for place in dict.fromkeys(separate[name] for name in wanted)]
    for group in made:
        group.mkdir()
        os.chown(group, rootless.UID, rootless.UID)
        for name in ("cgroup.procs", "tasks"):
            os.chown(group / name, rootless.UID, rootless.UID)
    yield made
    for group in made:
        servers.until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()


def test_limits_hold_and_busy_vms_are_forked(rootless_home: Path, groups: list[Path]) -> None:
    doors = [str(group / "cgroup.procs") for group in groups]

    def within(command: list[str]) -> list[str]:
        return ["bash", "-ec", _JOIN, "bash", str(len(doors)), *doors, str(rootless.UID), *command]

    server = rootless.RootlessServer(rootless_home, name=f"delegated-{os.getpid()}", within=within).start()
    try:
        resources = {"memory_mib": 128, "vcpu": 1}
        status, made = server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu", "resources": resources})
        assert status == 200, made
        vm = made["vm_id"]
        assert all(list(group.glob("boxwood-*/*/")) for group in groups)
        hog = {"command": "python3 -c 'print(len(bytearray(1 << 29)))'"}
        _, done = server.request("POST", f"/v1/vms/{vm}/runs", hog)
        assert done["exit_code"] == 137 and done["stdout"] == "", done
        busy = {"command": "echo x > /f; sleep 300", "time_to_background": 0}
        assert server.request("POST", f"/v1/vms/{vm}/runs", busy)[0] == 202
        read = {"op": "read", "path": "/f"}
        servers.until(lambda: server.request("POST", f"/v1/vms/{vm}/sync", read)[0] == 200)
        status, child = server.request("POST", "/v1/fork", {"source_vm_id": vm})
        assert status == 200 and child["copied"]["inodes"] >= 1, child
        _, done = server.request("POST", f"/v1/vms/{child['vm_id']}/runs", {"command": "cat /f"})
        assert done["stdout"] == "x\n"
    finally:
        server.down()
    assert not [found for group in groups for found in group.glob("boxwood-*")]
