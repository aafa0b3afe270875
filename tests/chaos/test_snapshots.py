"""kill -9 in the middle of what changes a VM's state: it is as it was, or as it was to be, and nothing is left over."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from amounts import amount
from boxwood import VM, Boxwood, BoxwoodError
from servers import Server, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
ROUNDS = amount(1, 4)
FILES = amount(150, 400)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without boxes that are ready, whose tops come and go."""
    made = Server(tmp_path_factory.mktemp("snapshots") / "data", network="none", ready_boxes=0)
    yield made.start()
    made.down()


def cut_off(server: Server, work: Callable[[Boxwood], object], when: Callable[[], object]) -> None:
    """Begin it, and kill server and zygote once `when` is so."""
    begun = threading.Event()

    def go() -> None:
        with server.client() as box, suppress(BoxwoodError):
            begun.set()
            work(box)

    thread = threading.Thread(target=go)
    thread.start()
    begun.wait()
    until(lambda: when() or not thread.is_alive())
    server.kill9_all()
    thread.join()
    server.start()


def layers(server: Server) -> set[str]:
    return {path.name for path in (server.data / "layers").iterdir()}


def filled(vm: VM, files: int = FILES) -> None:
    vm.run(
        f"mkdir -p /work; cd /work; for n in $(seq {files}); do echo $n > f$n; done; head -c 3M /dev/urandom > big",
        check=True,
    )


def nothing_left(server: Server, box: Boxwood, vms: list[VM]) -> None:
    """All space comes back."""
    for vm in vms:
        vm.delete()
    until(lambda: not layers(server))


def test_killed_while_a_commit_is_made(server: Server) -> None:
    with server.client() as box:
        parent = box.fork("ubuntu")
        parent.run("echo old > /root/a", check=True)
        child = parent.fork()
        filled(child)
        parent.run("echo parent > /root/p", check=True)
    for _ in range(ROUNDS):
        known = layers(server)
        cut_off(server, lambda box: box.vm(child.id).commit(), lambda known=known: layers(server) - known)
        with server.client() as box:
            seen = box.vm(parent.id).run("cat /root/p; ls /work | wc -l").stdout
            assert seen in (f"parent\n{FILES + 1}\n", "parent\n0\n"), seen
    with server.client() as box:
        box.vm(child.id).commit()
        assert (
            box.vm(parent.id).run(f"cat /root/p /work/f{FILES}; ls /work | wc -l").stdout
            == f"parent\n{FILES}\n{FILES + 1}\n"
        )
        nothing_left(server, box, [box.vm(parent.id), box.vm(child.id)])


def test_killed_while_a_vm_goes_back(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("echo one > /root/a", check=True)
        vm.snapshot("s")
    for _ in range(ROUNDS):
        with server.client() as box:
            box.vm(vm.id).run("echo two > /root/a; sync", check=True)
        cut_off(server, lambda box: box.vm(vm.id).restore("s"), lambda: True)
        with server.client() as box:
            assert box.vm(vm.id).run("cat /root/a").stdout in ("one\n", "two\n")
    with server.client() as box:
        again = box.vm(vm.id)
        again.restore("s")
        assert again.run("cat /root/a").stdout == "one\n"
        nothing_left(server, box, [again])


def test_killed_while_a_vm_is_imported_or_exported(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        filled(vm)
        file = io.BytesIO()
        vm.export(file)
        vm.snapshot("sealed")
    until(lambda: not any(name.endswith(".part") for name in layers(server)))
    known = layers(server)
    for _ in range(ROUNDS):
        cut_off(server, lambda box: box.import_vm(io.BytesIO(file.getvalue())), lambda: layers(server) - known)
        with server.client() as box:
            made = [one for one in box.list() if one.id != vm.id]
            for one in made:  # it was quicker
                assert one.run("ls /work | wc -l").stdout == f"{FILES + 1}\n"
                one.delete()
            until(lambda: layers(server) == known)
        cut_off(server, lambda box: box.vm(vm.id).export(io.BytesIO()), lambda: True)
    with server.client() as box:
        back = box.import_vm(io.BytesIO(file.getvalue()))
        assert back.run(f"cat /work/f{FILES}; ls /work | wc -l").stdout == f"{FILES}\n{FILES + 1}\n"
        nothing_left(server, box, [back, box.vm(vm.id)])
