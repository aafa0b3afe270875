"""What a shell session must stand (wire 2.7, 2.8), in real boxes: the commands that published clients really send."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from archives import archive
from boxwood import VM
from servers import Server, until


@pytest.fixture(scope="module")
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


def test_unpacking_as_sync_dir_does(vm: VM) -> None:
    """`set -e` neither survives into the session nor kills it, whether the command ends well or not."""
    vm.write_file("/root/t.tar", archive(**{"sub/file": b"one"}))
    command = "set -e; mkdir -p /root/d; tar -xf /root/t.tar -C /root/d; rm -f /root/t.tar"
    vm.run("kept=1")
    vm.run(command, check=True)
    assert vm.run("false; cat /root/d/sub/file; echo $kept").stdout == "one1\n"
    assert vm.run(command).exit_code not in (0, None)  # the archive is gone
    assert vm.run("false; echo on $kept").stdout == "on 1\n"


def test_listing_as_e2b_does(vm: VM) -> None:
    """`exit` is the run's code and leaves the session as it was; `cd` moves it."""
    assert vm.run("cd /nowhere 2>/dev/null || exit 3; ls").exit_code == 3
    assert vm.run("mkdir -p /root/e; cd /root/e 2>/dev/null || exit 3; touch a").exit_code == 0
    assert vm.run("pwd; ls; exit 0").stdout == "/root/e\na\n"
    assert vm.run("pwd").stdout == "/root/e\n"


def test_steps_as_the_builder_of_dockerfiles_takes_them(vm: VM) -> None:
    vm.run("export K='a b' L=c", check=True)
    vm.run("mkdir -p /root/w && cd /root/w", check=True)
    assert vm.run('printf "%s|" "$K" "$L" "$PWD"; env | grep -c "^K=a b$"').stdout == "a b|c|/root/w|1\n"


def test_other_things_that_are_sent(vm: VM) -> None:
    assert vm.run("su -p user -c 'id -un; echo $K'").stdout.startswith("user\n")
    vm.run("mkdir -p /srv/o; touch /srv/o/f; chown -R user:user /srv/o; chmod +x /srv/o/f", check=True)
    assert vm.run("stat -c '%U:%G %a' /srv/o/f").stdout == "user:user 755\n"
    assert vm.run("test -e /srv/o/f; echo $?; rm -rf /srv/o; test -e /srv/o; echo $?").stdout == "0\n1\n"


def test_a_run_ends_when_all_that_it_started_has(vm: VM) -> None:
    """A daemon that it leaves behind keeps it running, until its time is over or its session is deleted."""
    daemon = "(setsid sleep 1000 > /dev/null 2>&1 &) ; echo left"
    late = vm.run(daemon, session=2, timeout=1)
    assert (late.state, late.stdout) == ("failed", "left\n")
    run = vm.run(daemon, session=3, background=True)
    until(lambda: run.refresh().stdout == "left\n")
    assert run.state == "running"
    next(one for one in vm.sessions() if one.index == 3).delete()
    assert run.refresh().state == "cancelled"
    assert "sleep" not in vm.exec(["ps", "-e"]).stdout


def test_an_interpreter_is_fed_by_the_runs_that_follow(vm: VM) -> None:
    """Its prompt ends a run, without an exit code; so does a text of one's own; `none` waits for the end."""
    begun = vm.run("python3 -q -i", session=4)
    assert (begun.exit_code, begun.state) == (None, "completed")
    assert vm.run("x = 6 * 7", session=4).exit_code is None
    assert "42" in vm.run("print(x)", session=4).stdout
    ended = vm.run("exit(9)", session=4)
    assert ended.exit_code == 9
    assert vm.run("echo shell again", session=4).stdout == "shell again\n"


def test_a_marker_ends_a_run(boxwood_server: Server, vm: VM) -> None:
    url = f"/v1/vms/{vm.id}/runs"
    program = "python3 -c \"for line in open('/dev/stdin'): print('got', line, end='ready> \\n', flush=True)\""
    body = {"command": f"printf 'ready> '; {program}", "session_idx": 5, "end_symbol": "ready> "}
    status, begun = boxwood_server.request("POST", url, body)
    assert (status, begun["stdout"], begun["exit_code"]) == (200, "ready> ", None)
    body = {"command": "word", "session_idx": 5, "end_symbol": "ready> \n"}
    status, told = boxwood_server.request("POST", url, body)
    assert (status, told["exit_code"]) == (200, None) and "got word" in told["stdout"]
    next(one for one in vm.sessions() if one.index == 5).delete()
