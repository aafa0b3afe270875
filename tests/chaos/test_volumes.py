"""kill -9 of the server and of everything, with filesystems mounted and about to be: what was acknowledged is so."""

from __future__ import annotations

import threading
from collections.abc import Callable

import guard
from amounts import amount
from boxwood import BoxwoodError, ConnectionFailed
from servers import Server, until

Make = Callable[..., Server]


def test_mounts_live_on_without_a_server_and_with_the_next(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        box.filesystems.create("v")
        vm.mounts.create("v", "/v")
        running = vm.run("echo begun; while ! test -e /v/go; do sleep 0.01; done; cat /v/go", background=True)
        until(lambda: running.refresh().stdout == "begun\n")
    server.kill9()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        vm.run("echo on > /v/new; mv /v/new /v/go", session=1, check=True)
        assert vm.get_run(str(running.run_id)).wait(60).stdout == "begun\non\n"
        vm.mounts.delete(vm.mounts.list()[0])
        assert vm.run("ls -A /v", session=2).stdout == ""


def test_what_is_in_a_filesystem_outlives_everything(server: Server) -> None:
    with server.client() as box:
        vm, limit = (
            box.fork("ubuntu"),
            box.filesystems.create("plain") and box.filesystems.create("bounded", size_mib=32),
        )
        assert limit.size_mib == 32
        for name in ("plain", "bounded"):
            vm.mounts.create(name)
            vm.run(f"echo {name} > /mnt/{name}/f", check=True)
    server.kill9_all()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        assert vm.run("cat /mnt/*/f").stdout == "bounded\nplain\n"
        assert {one.state for one in vm.mounts.list()} == {"mounted"}
        vm.delete()
        for name in ("plain", "bounded"):
            box.filesystems.delete(name)
    until(lambda: not list((server.data / "layers/volumes").iterdir()))
    until(lambda: not guard.loops(server.data))


def test_killed_in_the_midst_of_mounting(server: Server) -> None:
    """Mounts come and go all the time; after each death rows and boxes are brought in line."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        for number in range(3):
            box.filesystems.create(f"v{number}")
            vm.mounts.create(f"v{number}")
            vm.run(f"echo {number} > /mnt/v{number}/f", check=True)
    for death in amount([Server.kill9_all], [Server.kill9, Server.kill9_all, Server.kill9]):
        over = threading.Event()

        def busy(over: threading.Event = over) -> None:
            with server.client() as box:
                mounts = box.vm(vm.id).mounts
                while not over.is_set():
                    try:
                        for number in range(3):
                            for mount in mounts.list(f"v{number}"):
                                mounts.delete(mount)
                            mounts.create(f"v{number}", timeout=0)
                    except (BoxwoodError, ConnectionFailed):
                        return

        worker = threading.Thread(target=busy)
        with server.client() as box:
            worker.start()
            until(lambda: box.vm(vm.id).mounts.list() != [])
        death(server)
        over.set()
        worker.join()
        server.start()
        with server.client() as box:
            until(lambda box=box: all(one.state == "mounted" for one in box.vm(vm.id).mounts.list()))
            for number in range(3):
                box.vm(vm.id).mounts.create(f"v{number}")
            seen = box.vm(vm.id).run("cat /mnt/v*/f; grep -c /volumes/ /proc/self/mountinfo", session=0).stdout
            assert seen == "0\n1\n2\n3\n"
