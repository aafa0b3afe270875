"""Storage that looks after itself, disturbed: kill -9 of everything while layers are merged or removed, and a chain of a
thousand forks."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable

import pytest

from amounts import amount
from boxwood import VM, Boxwood, BoxwoodError, ConnectionFailed
from servers import Server, until

Make = Callable[..., Server]
MERGED_ABOVE = 4
FILES = amount(300, 600)  # in the first VM: so long a merge takes


def unfinished(server: Server, mark: str) -> bool:
    return any(mark in entry.name for entry in (server.data / "layers").iterdir())


def layers(server: Server) -> set[str]:
    return {entry.name for entry in (server.data / "layers").iterdir()}


def first(box: Boxwood) -> VM:
    vm = box.fork("ubuntu")
    make = f"mkdir /root/many; cd /root/many; seq -f d%g {FILES} | xargs mkdir; for i in d*; do echo $i > $i/f; done"
    vm.run(make, check=True)
    return vm


def chain_until_killed(server: Server, last: VM, made: list[str]) -> None:
    """A fork of a fork of a fork…: `made` are those whose file has been acknowledged."""
    with server.client() as box:
        try:
            vm = box.get(last.id).fork()
            while True:
                vm.write_file(f"/root/{len(made)}", f"{len(made)}\n")
                made.append(vm.id)
                vm = vm.fork()
        except BoxwoodError as error:
            assert isinstance(error, ConnectionFailed), error


@pytest.mark.slow
@pytest.mark.parametrize("everything", [True, pytest.param(False, marks=pytest.mark.full)])
def test_killed_in_the_middle_of_a_merge(make_server: Make, everything: bool) -> None:
    """Once or twice, and then left in peace: what was acknowledged is there, and in the end nothing is left over."""
    server = make_server(layers_merged_above=MERGED_ABOVE, ready_boxes=0)
    made: list[str] = []
    with server.client() as box:
        vm = first(box)
    for _ in range(amount(1, 2)):
        forking = threading.Thread(target=chain_until_killed, args=(server, vm, made))
        begun = len(made)
        forking.start()
        until(lambda begun=begun: len(made) > begun + MERGED_ABOVE and unfinished(server, ".part"))  # type: ignore[misc]
        (server.kill9_all if everything else server.kill9)()
        forking.join(60)
        server.start()
        with server.client() as box:
            vm = box.get(made[-1])
    with server.client() as box:
        for number in sorted({*range(0, len(made), amount(3, 1)), len(made) - 1}):
            vm_id = made[number]
            seen = box.get(vm_id).run("cd /root; ls | grep -c '^[0-9]'; cat many/d7/f; ls many | wc -l").stdout.split()
            assert seen == [str(number + 1), "d7", str(FILES)], (number, seen)
        last = box.get(made[-1]).fork()
        assert last.run("cat /root/0").stdout == "0\n"
        for vm in box.list():
            vm.delete()
    until(lambda: not layers(server))


@pytest.mark.slow
def test_killed_in_the_middle_of_collecting(make_server: Make) -> None:
    server = make_server(ready_boxes=0)
    with server.client() as box:
        kept = first(box)
        children = []
        for number in range(amount(2, 3)):
            vm = kept.fork()
            vm.run(f"cp -r /root/many /root/more; echo {number} > /root/own", check=True)
            children.append(vm)
        for vm in children:
            vm.delete()
    while not unfinished(server, ".dead-") and len(layers(server)) > 2:  # it may be quicker than we look
        os.sched_yield()
    server.kill9_all()
    server.start()
    with server.client() as box:
        vm = box.get(kept.id)
        assert vm.run("ls /root/many | wc -l; ls /root").stdout == f"{FILES}\nmany\n"
        until(lambda: len(layers(server)) <= 2)  # the sealed one and the top
        vm.delete()
    until(lambda: not layers(server))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_chain_of_a_thousand(make_server: Make) -> None:
    """None is refused, and the last shows what all have written."""
    server = make_server()
    depths: list[tuple[int]] = []
    with server.client() as box, sqlite3.connect(f"file:{server.data / 'boxwood.db'}?mode=ro", uri=True) as rows:
        vm, made = box.fork("ubuntu"), []
        for number in range(1000):
            vm.write_file(f"/root/chain/{number}", f"{number}\n")
            made.append(vm)
            vm = vm.fork()
            depths += rows.execute("SELECT l.depth FROM vms v JOIN layers l ON l.id = v.base WHERE v.id = ?", [vm.id])
        assert vm.run("cat /root/chain/* | sort -n").stdout == "".join(f"{number}\n" for number in range(1000))
        assert max(depths) < (400,), "merging does not keep up"
        for number in (0, 47, 48, 49, 500, 998):
            assert made[number].run("ls /root/chain | wc -l").stdout == f"{number + 1}\n"
        print(f"the deepest of the chain had {max(depths)[0]} layers")
    rows.close()
