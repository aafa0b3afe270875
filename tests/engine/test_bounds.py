"""Processes and open files of a box: bounded from its first process on, and at once when the bound is changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from servers import Server

OPEN = "python3 -c 'import os\ntry:\n  while True: os.dup(0)\nexcept OSError as error: print(error.errno)'"
HAVE = "ulimit -Sn; ulimit -Hn; python3 -c 'import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))'"
RAISE = "ulimit -n 5000 2>/dev/null && echo raised || echo refused"


@pytest.fixture
def run(boxwood_server: Server) -> Callable[..., str]:
    def run(vm: str, command: str) -> str:
        status, done = boxwood_server.request("POST", f"/v1/vms/{vm}/runs", {"command": command})
        assert (status, done["state"]) == (200, "completed"), done
        return str(done["stdout"])

    return run


@pytest.fixture
def fork(boxwood_server: Server) -> Callable[..., str]:
    def fork(**resources: int) -> str:
        body = {"source_vm_name": "ubuntu", "resources": resources}
        status, made = boxwood_server.request("POST", "/v1/fork", body)
        assert status == 200, made
        return str(made["vm_id"])

    return fork


def change(server: Server, vm: str, **resources: int) -> None:
    status, made = server.request("PATCH", f"/v1/vms/{vm}", {"resources": resources})
    assert status == 200, made


def test_open_files_of_a_box_are_bounded(
    boxwood_server: Server, fork: Callable[..., str], run: Callable[..., str]
) -> None:
    vm, other = fork(nofile=2000), fork()
    assert run(vm, HAVE) == "2000\n2000\n2000 2000\n"
    assert run(vm, OPEN) == "24\n"  # EMFILE
    assert run(vm, RAISE) == "refused\n", "root inside has no say in it"
    assert run(other, "ulimit -Hn") != "2000\n"


def test_a_bound_of_open_files_is_changed_at_once(
    boxwood_server: Server, fork: Callable[..., str], run: Callable[..., str]
) -> None:
    vm = fork()
    before = run(vm, "ulimit -n; kept=1")
    change(boxwood_server, vm, nofile=1500)
    assert run(vm, HAVE + "; echo $kept") == "1500\n1500\n1500 1500\n1\n", "the shell that was there has it"
    change(boxwood_server, vm, nofile=3000)
    assert run(vm, "ulimit -n; echo $kept") == "3000\n1\n"
    assert before not in ("1500\n", "3000\n")


def test_a_bound_of_processes_is_changed_at_once(
    boxwood_server: Server, fork: Callable[..., str], run: Callable[..., str]
) -> None:
    many = (  # not by a shell, which tries for seconds
        "python3 -c 'import os\nn, (r, w) = 0, os.pipe()\ntry:\n  while n < 60:\n"
        "    os.fork() or [os.close(w), os.read(r, 1), os._exit(0)]\n    n += 1\nexcept OSError: pass\nprint(n)'"
    )
    vm = fork(pids=200)
    assert run(vm, many) == "60\n"
    change(boxwood_server, vm, pids=30)
    status, done = boxwood_server.request("POST", f"/v1/vms/{vm}/runs", {"command": many, "timeout": 60})
    assert status == 200 and 0 < int(done["stdout"]) < 30, done
    change(boxwood_server, vm, pids=200)
    assert run(vm, many) == "60\n"
