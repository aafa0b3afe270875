"""What is in the logs, and what never is: what somebody runs, with which arguments, environment and input."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from boxwood.engine.daemon import instance
from servers import Server

SECRET = "hunter2-0bf1d9"


def logs(server: Server) -> str:
    """Of the server and of its zygote."""
    files = [server.data.parent / f"{server.data.name}.log", *Path(server.data / "log").iterdir()]
    return "\n".join(file.read_text(errors="replace") for file in files)


def test_what_is_run_is_not_logged(make_server: Callable[..., Server]) -> None:
    """Neither when all is well, nor when a run fails, is killed with its box, or makes no sense."""
    server = make_server(network="none")
    _, made = server.request("POST", "/v1/fork", {"source_vm_name": "ubuntu", "command": f"echo {SECRET} fork"})
    vm = made["vm_id"]
    for body in (
        {"command": f"echo {SECRET}", "env": {"TOKEN": SECRET}, "stdin": SECRET},
        {"argv": ["printf", SECRET]},
        {"argv": [f"/{SECRET}"]},
        {"command": f"{SECRET}; exit 3", "cwd": f"/{SECRET}"},
        {"command": f"echo {SECRET}", "user": SECRET},
        {"command": f"echo {SECRET}", "env": {SECRET: 7}},
        {"command": [SECRET], SECRET: SECRET},
        {"command": f"sleep 600; echo {SECRET}", "timeout": 0.2},
    ):
        status, _ = server.request("POST", f"/v1/vms/{vm}/runs", body)
        assert status in (200, 400, 422), body
    server.request("GET", f"/v1/vms/{vm}/runs?{SECRET}={SECRET}")
    server.request("POST", f"/v1/vms/{vm}/sessions", {"env": {"TOKEN": SECRET}, "cwd": f"/{SECRET}"})
    status, begun = server.request(
        "POST", f"/v1/vms/{vm}/runs", {"command": f"sleep 600; echo {SECRET}", "background": True, "env": {"T": SECRET}}
    )
    assert status == 202
    kill_boxes(server)
    _, record = server.request("GET", f"/v1/vms/{vm}/runs/{begun['run_id']}?wait=30")
    assert record["state"] == "failed", record
    while vm not in logs(server):  # the probe: the death of the box is in the log, with the VM's id
        assert server.request("GET", "/v1/health")[0] == 200
    assert SECRET not in logs(server)


def members(box: Path) -> list[str]:
    try:
        return (box / "cgroup.procs").read_text().split()
    except OSError:  # the box has ended meanwhile
        return []


def kill_boxes(server: Server) -> None:
    """All of them at once, as the kernel might."""
    group = f"boxwood-{instance(server.data)}"
    tops = [*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")]
    pids = {int(pid) for top in tops for box in top.iterdir() if box.is_dir() for pid in members(box)}
    assert pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
