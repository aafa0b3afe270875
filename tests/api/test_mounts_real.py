"""Filesystems in real VMs: without a restart, of two at once, through fork, park, a new server, and the file API."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from boxwood import VM, BadRequest, Boxwood, Conflict, NotFound, OperationFailed
from servers import Server, until


@pytest.fixture
def box(boxwood_server: Server) -> Iterator[Boxwood]:
    with boxwood_server.client() as client:
        yield client


@pytest.fixture
def volume(box: Boxwood) -> Iterator[str]:
    name = f"v-{uuid4().hex[:8]}"
    box.filesystems.create(name)
    yield name
    box.filesystems.delete(name)


def out(vm: VM, command: str) -> str:
    return vm.run(command, check=True).stdout


def test_two_running_vms_share_a_filesystem(box: Boxwood, volume: str) -> None:
    with box.fork("ubuntu") as one, box.fork("ubuntu") as two:
        running = one.run("while ! test -e /mnt/v/go; do sleep 0.01; done; cat /mnt/v/go", background=True)
        one.mounts.create(volume, "/mnt/v")
        two.mounts.create(volume, "/data/deep", read_only=False)
        out(two, "echo came > /data/deep/new && mv /data/deep/new /data/deep/go")
        assert running.wait(60).stdout == "came\n"  # it was not restarted for it
        two.write_file("/data/deep/a/file", b"by the file API")
        assert one.read_file("/mnt/v/a/file") == b"by the file API"
        assert [entry.path for entry in one.manifest("/mnt/v").entries] == ["a/file", "go"]
        assert box.filesystems.get(volume).size_bytes
        with pytest.raises(Conflict):
            box.filesystems.delete(volume)
        (mount,) = two.mounts.list()
        two.mounts.delete(mount)
        assert out(two, "ls -A /data/deep") == "" and out(one, "cat /mnt/v/go") == "came\n"


def test_what_cannot_be_moved_says_why(box: Boxwood, volume: str) -> None:
    with box.fork("ubuntu") as vm:
        vm.mounts.create(volume, "/v")
        vm.write_file("/root/d/f", b"x")
        for path in ("/root/d", "/root/d/f"):
            with pytest.raises(BadRequest, match=r"between the VM's disk and a volume.*copy it"):
                vm.files.move(path, "/v/d")
        with pytest.raises(Conflict, match=r"a volume is mounted: /v or /w$"):
            vm.files.move("/v", "/w")
        with pytest.raises(Conflict, match=r"a volume is mounted: /v$"):
            vm.files.remove("/v", recursive=True)
        assert vm.read_file("/root/d/f") == b"x" and out(vm, "ls -A /v") == ""


def test_a_fork_has_none_and_the_source_has_it_in_its_next_box(box: Boxwood, volume: str) -> None:
    with box.fork("ubuntu") as vm:
        vm.mounts.create(volume, "/v")
        out(vm, "echo shared > /v/f; echo own > /root/f; cd /v")
        before = out(vm, "stat -c %i /proc/self/ns/mnt")
        with vm.fork() as child:  # for which the source, idle, was put down
            assert out(child, "cat /root/f; ls -A /v; mountpoint -q /v || echo none") == "own\nnone\n"
            assert child.mounts.list() == []
        assert out(vm, "pwd; cat f") == "/v\nshared\n"
        assert out(vm, "stat -c %i /proc/self/ns/mnt") != before
        running = vm.run("sleep 1000", background=True, session=1)
        with vm.fork() as copy:  # of a VM that goes on: a copy of its disk alone
            assert out(copy, "cat /root/f; ls -A /v") == "own\n"
        running.cancel()


def test_a_place_that_is_refused(box: Boxwood, volume: str) -> None:
    with box.fork("ubuntu") as vm:
        out(vm, "ln -s /etc /link")
        with pytest.raises(OperationFailed, match="/link is a symbolic link"):
            vm.mounts.create(volume, "/link")
        assert out(vm, "test -e /etc/passwd && echo fine") == "fine\n"
        out(vm, "rm /link")
        assert vm.mounts.create(volume, "/link").state == "mounted"  # asked once more


def test_what_a_vm_leaves_behind(box: Boxwood, boxwood_server: Server) -> None:
    made = box.filesystems.create(f"v-{uuid4().hex[:8]}")
    with box.fork("ubuntu") as vm:
        vm.mounts.create(made)
        out(vm, f"cd /mnt/{made.name} && mkdir -p a/b && echo x > a/b/c && chmod 0 a/b && mkfifo f")
    box.filesystems.delete(made)
    with pytest.raises(NotFound):
        box.filesystems.get(made)
    place = boxwood_server.data / "layers/volumes"
    until(lambda: not any(made.filesystem_id in entry.name for entry in place.iterdir()))
