"""What the server and the zygote hold of root's power, and that a server that holds little still does all it has to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from boxwood.engine import kernel as k
from boxwood.server.privileges import ALWAYS, NEVER
from servers import Server

# Reads a process's environment as a process of uid 0 that has no capabilities may: only what lets itself be read.
READ = """
import sys
from boxwood.engine import kernel
kernel.set_capabilities(0)
try:
    print(len(open(f"/proc/{sys.argv[1]}/environ", "rb").read()) > 0)
except PermissionError:
    print("refused")
"""


def status(pid: int, thread: int | None = None) -> dict[str, str]:
    where = f"/proc/{pid}/status" if thread is None else f"/proc/{pid}/task/{thread}/status"
    return dict(line.split(":\t", 1) for line in Path(where).read_text().splitlines() if ":\t" in line)


def capabilities(pid: int, which: str, thread: int | None = None) -> int:
    return int(status(pid, thread)[which], 16)


def test_the_server_has_let_go_of_what_it_does_not_need(boxwood_server: Server) -> None:
    threads = [int(name) for name in os.listdir(f"/proc/{boxwood_server.pid}/task")]
    assert len(threads) > 1, "the probe: a capability is each thread's own"
    for thread in threads:
        assert capabilities(boxwood_server.pid, "CapEff", thread) & ~ALWAYS == 0
        for held in ("CapPrm", "CapBnd", "CapInh", "CapAmb"):
            assert capabilities(boxwood_server.pid, held, thread) & NEVER == 0
        assert status(boxwood_server.pid, thread)["NoNewPrivs"].strip() == "1"


def test_nor_does_the_zygote_get_it_back(boxwood_server: Server) -> None:
    pid = boxwood_server.zygote_pid
    needed = k.capability_mask("sys_admin", "setuid", "setgid", "net_admin")
    assert capabilities(pid, "CapEff") & needed == needed
    for held in ("CapPrm", "CapBnd"):
        assert capabilities(pid, held) & NEVER == 0, "gone from both, also for a zygote that takes another's place"


def test_the_server_lets_nobody_read_its_memory(boxwood_server: Server) -> None:
    def read(pid: int) -> str:
        command = [sys.executable, "-c", READ, str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    weak = (
        "import sys; from boxwood.engine import kernel; kernel.set_capabilities(0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", weak], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
        assert probe.stdout is not None
        probe.stdout.readline()
        assert read(probe.pid) == "True", "the probe: one that is as weak, and lets itself be read"
        probe.kill()
    assert read(boxwood_server.pid) == "refused"


def test_a_zygote_that_died_is_replaced_all_the_same(make_server: Callable[..., Server]) -> None:
    server = make_server()
    with server.client() as client:
        vm = client.fork("ubuntu")
        assert vm.run("echo kept > /root/kept").exit_code == 0
        first = server.zygote_pid
        os.kill(first, signal.SIGKILL)
        while server.zygote_pid == first:  # whoever asks meanwhile may be told that the box was lost
            status_code, _ = server.request("POST", f"/v1/vms/{vm.id}/runs", {"command": "true"})
            assert status_code == 200
        assert vm.run("cat /root/kept").stdout == "kept\n"
        assert server.zygote_pid != first
