"""disk_mib over the API, on real boxes: over all that a VM holds above its image, through forks, parks and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boxwood import VM, Boxwood, BoxwoodError
from servers import Server, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
MIB = 1 << 20
FILL = (
    "for size in 64k 4k; do dd if=/dev/zero of=/root/full bs=$size oflag=append conv=notrunc; sync; done;"
    " stat -c %s /root/full"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("disks") / "data", network="none").start()
    yield started
    started.down()


@pytest.fixture
def box(server: Server) -> Iterator[Boxwood]:
    with server.client() as client:
        yield client


def filled(vm: VM) -> int:
    """MiB that went into one more file, until there was no room."""
    said = vm.run(FILL)
    assert said.stderr.count("No space left") == 2, (said, said.stderr, said.fail_reason)
    return round(int(said.stdout) / MIB)


def put(vm: VM, mib: int, name: str = "data") -> None:
    vm.run(f"head -c {mib}M /dev/urandom > /root/{name}", check=True)


def refusal(step: Callable[[], object]) -> BoxwoodError:
    with pytest.raises(BoxwoodError) as caught:
        step()
    return caught.value


def test_all_generations_count(box: Boxwood) -> None:
    vm = box.fork("ubuntu", disk_mib=40)
    put(vm, 20)
    child = vm.fork()
    assert child.run("stat -c %s /root/data").stdout == f"{20 * MIB}\n"
    assert filled(child) in (19, 20)
    put(vm, 10, "more")
    grandchild = vm.fork()
    assert filled(grandchild) in (9, 10) and filled(vm) in (9, 10)
    assert filled(child.fork(disk_mib=50)) >= 9 + 39 - 20 - 9


def test_a_full_vm_lives_on(server: Server, box: Boxwood) -> None:
    vm = box.fork("ubuntu", disk_mib=32)
    filled(vm)
    error = refusal(lambda: vm.write_file("/root/upload", bytes(4 * MIB)))
    assert error.code == "conflict" and "no space is left in the VM" in str(error)
    vm.run("truncate -s 8M /root/full", check=True)
    vm.write_file("/root/upload", bytes(4 * MIB))
    filled(vm)
    child = vm.fork()  # for which the VM is parked; both have nothing left but a little
    for one in (vm, child):
        assert one.read_text("/root/full")[:3] == "\0\0\0"
        assert filled_a_little(one) < MIB
        assert one.run("rm /root/full /root/little; echo tidied > /root/note; ls /root").stdout == "note\nupload\n"


def filled_a_little(vm: VM) -> int:
    return int(vm.run("cat /dev/zero > /root/little; stat -c %s /root/little").stdout)


def test_it_is_changed_while_it_runs(box: Boxwood) -> None:
    vm = box.fork("ubuntu", disk_mib=20)
    assert filled(vm) in (19, 20)
    vm.update(disk_mib=30)
    assert filled(vm) in (29, 30)
    error = refusal(lambda: vm.update(disk_mib=24))
    assert error.code == "insufficient_resources" and "holds 30 MiB above its image" in str(error)
    assert vm.refresh().resources.disk_mib == 30
    vm.update(disk_mib=200)  # which needs another box, and nothing runs
    assert filled(vm) in (169, 170)  # 30 are in a layer now, from which they were copied up


def test_what_runs_is_in_the_way_of_a_larger_one(box: Boxwood) -> None:
    vm = box.fork("ubuntu", disk_mib=20)
    vm.run("echo here > /root/file", check=True)
    running = vm.run("exec sleep 600", background=True)
    error = refusal(lambda: vm.update(disk_mib=4000))
    assert error.code == "resource_busy" and "end it" in str(error)
    running.cancel()
    vm.update(disk_mib=4000)
    assert vm.run("cat /root/file").stdout == "here\n"
    assert 3999 <= int(vm.run("df -BM --output=avail / | tail -1").stdout.strip(" M\n")) <= 4000


def test_a_first_limit(box: Boxwood) -> None:
    vm = box.fork("ubuntu")
    put(vm, 25)
    error = refusal(lambda: vm.fork(disk_mib=20))
    assert error.code == "insufficient_resources" and "above its image" in str(error)
    assert refusal(lambda: vm.update(disk_mib=20)).code == "insufficient_resources"
    assert filled(vm.fork(disk_mib=40)) in (14, 15)
    vm.update(disk_mib=45)
    assert filled(vm) in (19, 20)
    assert vm.run("stat -c %s /root/data").stdout == f"{25 * MIB}\n"


def test_what_is_refused(box: Boxwood) -> None:
    error = refusal(lambda: box.fork("ubuntu", disk_mib=3))
    assert error.code == "insufficient_resources" and "16 MiB" in str(error)
    assert refusal(lambda: box.fork("ubuntu", disk_mib=1 << 30)).code == "bad_request"


def test_defaults_and_the_ceiling(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", network="none", disk_mib=24, disk_mib_most=64).start()
    try:
        with server.client() as box:
            vm = box.fork("ubuntu")
            assert vm.resources.disk_mib == 24 and filled(vm) in (23, 24)
            assert refusal(lambda: box.fork("ubuntu", disk_mib=65)).code == "bad_request"
            assert refusal(lambda: vm.update(disk_mib=65)).code == "bad_request"
    finally:
        server.down()


def test_server_and_zygote_come_and_go(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", network="none").start()
    try:
        with server.client() as box:
            vm = box.fork("ubuntu", disk_mib=24)
            vm.run("echo kept > /root/kept", check=True)
            size = filled(vm)
            name = vm.id
        server.kill9()
        server.start()
        with server.client() as box:
            vm = box.get(name)
            assert vm.run("cat /root/kept; echo more > /root/more").stdout == "kept\n"
            vm.update(disk_mib=30)  # of a box that was taken over
            assert filled(vm) == size + 6
        for end in (server.kill9_all, server.down):
            end()
            server.start()
            with server.client() as box:
                vm = box.get(name)
                assert vm.run("cat /root/kept").stdout == "kept\n" and filled(vm) == size + 6
    finally:
        server.down()


def test_layers_are_moved_out_of_their_files(server: Server, box: Boxwood) -> None:
    vm = box.fork("ubuntu", disk_mib=40)
    put(vm, 5, "moved")
    child = vm.fork()
    vm.delete()
    until(lambda: list((server.data / "layers").glob("*/upper/root/moved")))
    assert child.run("stat -c %s /root/moved").stdout == f"{5 * MIB}\n" and filled(child) in (34, 35)
