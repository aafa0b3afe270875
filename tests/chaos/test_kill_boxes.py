"""kill -9 of the zygote, of a box, of everything: VMs are data, boxes a cache."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable

from amounts import amount
from boxwood import VM
from servers import Server, until, wait_gone

Make = Callable[..., Server]
DEPTH = amount(5, 12)


def test_the_zygote_dies(make_server: Make) -> None:
    """Its boxes die with it; the same server starts another and VMs go on."""
    server = make_server(network="internet")
    with server.client() as box:
        vm = _vm_with_a_past(box.fork("ubuntu"))
        running = vm.run("echo begun; sleep 1000", background=True, session=1)
        until(lambda: running.refresh().stdout == "begun\n")
        zygote, boxes = server.zygote_pid, server.box_pids()
        os.kill(zygote, signal.SIGKILL)
        wait_gone(zygote, *boxes)
        until(lambda: running.refresh().ended)
        assert (running.state, running.stdout) == ("failed", "begun\n")
        _has_its_past(vm)
        assert server.zygote_pid != zygote


def test_a_box_dies(server: Server) -> None:
    """The first process of a box is killed: all of the box is gone, and the VM's next use has a new one."""
    with server.client() as box:
        vm, other = _vm_with_a_past(box.fork("ubuntu")), box.fork("ubuntu")
        undisturbed = other.run("read x < /dev/null; sleep 0.5; echo undisturbed", background=True)
        running = vm.run("echo begun; sleep 1000 & sleep 1000", background=True, session=1)
        until(lambda: running.refresh().stdout == "begun\n")
        os.kill(_box_of(server, vm), signal.SIGKILL)
        until(lambda: running.refresh().ended)
        assert (running.state, running.stdout) == ("failed", "begun\n")
        _has_its_past(vm)
        assert undisturbed.wait(60).stdout == "undisturbed\n"


def test_a_stopped_agent_is_replaced(server: Server) -> None:
    """SIGSTOP: an agent that says nothing any more must not hold up its VM for ever, nor others at all."""
    with server.client() as box:
        vm, other = _vm_with_a_past(box.fork("ubuntu")), box.fork("ubuntu")
        os.kill(_box_of(server, vm), signal.SIGSTOP)
        assert other.run("echo fine").stdout == "fine\n"
        vm.delete()
        assert other.run("echo fine").stdout == "fine\n"


def test_everything_dies(make_server: Make) -> None:
    server = make_server(ready_boxes=2, network=amount("none", "internet"))
    with server.client() as box:
        first = _vm_with_a_past(box.fork("ubuntu", name="first"))
        child = first.fork(name="child")
        child.write_file("/root/own", "the child's\n")
        ended = child.run("echo ended; exit 5")
        running = first.run("echo begun; sleep 1000", background=True, session=1)
        until(lambda: running.refresh().stdout == "begun\n")
    server.kill9_all()
    server.start()
    with server.client() as box:
        assert {vm.name for vm in box.list()} >= {"first", "child"}
        _has_its_past(box.get("first"))
        child = box.get("child")
        _has_its_past(child)
        assert child.read_text("/root/own") == "the child's\n"
        kept = child.get_run(str(ended.run_id))
        assert (kept.stdout, kept.exit_code) == ("ended\n", 5)
        lost = box.get("first").get_run(str(running.run_id))
        assert lost.ended and lost.state == "failed", lost.state


def test_everything_dies_during_forks(make_server: Make) -> None:
    server = make_server(ready_boxes=2)
    with server.client() as box:
        vm = box.fork("ubuntu")
        for number in range(DEPTH):
            vm.write_file(f"/root/{number}", str(number))
            vm = vm.fork()
            vm.run(f"echo {number} >> /root/log")
    server.kill9_all()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        assert vm.run("cat /root/[0-9]* /root/log | sort -n | uniq | wc -l").stdout == f"{DEPTH}\n"
        assert vm.run("ls /root").stdout.split() == sorted([*map(str, range(DEPTH)), "log"])


def test_down_and_up_again(server: Server) -> None:
    """`down` in good order keeps all that kill -9 keeps, and the shells too."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("export WORD=kept; cd /srv; plain=also; f() { echo f; }")
    boxes = server.box_pids()
    server.down()
    wait_gone(*boxes)
    server.start()
    with server.client() as box:
        assert box.get(vm.id).run('echo "$PWD $WORD $plain"; f').stdout == "/srv kept also\nf\n"


def _vm_with_a_past(vm: VM) -> VM:
    vm.write_file("/root/sent", "sent\n")
    vm.run("echo written > /root/written")
    return vm


def _has_its_past(vm: VM) -> None:
    assert vm.read_text("/root/sent") == "sent\n"
    assert vm.run("cat /root/sent /root/written").stdout == "sent\nwritten\n"


def _box_of(server: Server, vm: VM) -> int:
    """The host's pid of the VM's first process: the one whose namespace holds a process that the VM started."""
    mark = f"{86_400 + secrets.randbelow(10**9)}"  # another one's box may be on its way out
    vm.run(f"sleep {mark} > /dev/null 2>&1 & disown; echo", background=True, session=2)
    found: list[int] = []

    def look() -> bool:
        for pid in server.box_pids():
            for child in _below(pid):
                if mark.encode() in _command(child):
                    found.append(pid)
        return bool(found)

    until(look)
    return found[0]


def _below(pid: int) -> list[int]:
    import guard

    return list(guard.descendants(pid))


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return b""
