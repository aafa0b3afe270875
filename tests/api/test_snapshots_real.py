"""Snapshots of real VMs: back in place with files and sessions, and what has changed, told of real layers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from amounts import amount
from boxwood import VM, BadRequest, Boxwood, BoxwoodError, Conflict, NotFound, ResourceBusy
from servers import Server, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("snapshots") / "data", network="none", ready_boxes=0).start()
    yield started
    started.down()


@pytest.fixture
def box(server: Server) -> Iterator[Boxwood]:
    with server.client() as client:
        yield client


def changes(vm: VM, since: str | VM | None = None, **more: str) -> dict[str, str]:
    found = vm.diff(since, **more)  # type: ignore[arg-type]
    assert not found.truncated
    return {one.path: one.change for one in found.changes}


def test_back_and_forth(box: Boxwood) -> None:
    vm = box.fork("ubuntu", name="there-and-back")
    vm.run("echo one > /root/a; mkdir -p /srv/d; cd /srv/d; export K=v", check=True)
    vm.snapshot("one")
    vm.run("rm -rf /srv /root/a; echo two > /root/b; cd /; export K=w; rm /usr/bin/env", check=True)
    vm.snapshot("two")
    for _ in range(amount(1, 3)):
        vm.restore("one")
        assert vm.run("pwd; echo $K; cat /root/a; ls /root/b; test -x /usr/bin/env && echo env").stdout == (
            "/srv/d\nv\none\nenv\n"
        )
        vm.restore("two")
        assert vm.run("pwd; echo $K; cat /root/b; ls /srv/d /usr/bin/env").stdout == "/\nw\ntwo\n"
    assert vm.refresh().name == "there-and-back"


def test_a_process_at_work_is_ended_only_by_force(box: Boxwood) -> None:
    vm = box.fork("ubuntu")
    run = vm.run("echo 1 > /root/n; while :; do echo >> /root/n; sleep 0.01; done", background=True)
    until(lambda: vm.exec(["cat", "/root/n"]).stdout.startswith("1"))
    assert vm.snapshot("busy").copied_bytes > 0
    with pytest.raises(ResourceBusy):
        vm.restore("busy")
    vm.restore("busy", force=True)
    assert run.wait().state == "cancelled"
    assert vm.run("head -1 /root/n; pgrep -c sleep").stdout == "1\n0\n"


def test_what_has_changed(box: Boxwood) -> None:
    parent = box.fork("ubuntu")
    parent.run("mkdir /work; cd /work; seq 5 > list; echo gone > old; ln -s list link", check=True)
    child = parent.fork()
    assert changes(child) == {}
    child.run("cd /work; seq 4 > list; rm old; mkdir new; echo x > new/x; ln -sf new link; chmod 700 .", check=True)
    assert changes(child) == {
        "/work": "changed", "/work/link": "changed", "/work/list": "changed", "/work/new": "added",
        "/work/new/x": "added", "/work/old": "deleted",
    }  # fmt: skip
    assert changes(child, parent) == changes(child)
    assert changes(parent, child)["/work/new"] == "deleted"
    (one,) = (one for one in child.diff(text=True).changes if one.path == "/work/list")
    assert one.diff == "--- a/work/list\n+++ b/work/list\n@@ -2,4 +2,3 @@\n 2\n 3\n 4\n-5\n"
    assert changes(child, path="/work/new") == {"/work/new": "added", "/work/new/x": "added"}
    child.snapshot("s")
    child.run("rm -rf /work", check=True)
    assert changes(child, "s") == {"/work": "deleted"}
    assert changes(child) == {"/work": "deleted"}
    assert "/work" not in changes(child, "image")


def test_nothing_but_what_was_written_differs_from_the_image(box: Boxwood) -> None:
    vm = box.fork("ubuntu")
    vm.run("echo x > /root/x", check=True)
    assert changes(vm, "image") == {"/root/x": "added"}
    assert changes(vm, "ubuntu") == {"/root/x": "added"}


def test_a_vm_with_a_limited_disk(box: Boxwood) -> None:
    try:
        vm = box.fork("ubuntu", disk_mib=40)
    except BoxwoodError as error:
        pytest.skip(error.message)
    vm.run("head -c 10M /dev/urandom > /root/a", check=True)
    vm.snapshot("s")
    vm.run("rm /root/a; echo b > /root/b", check=True)
    assert changes(vm, "s") == {"/root/a": "deleted", "/root/b": "added"}
    vm.restore("s")
    assert vm.run("stat -c %s /root/a; ls /root/b").stdout == f"{10 << 20}\n"
    assert changes(vm, "s") == {}


def test_over_a_restart_and_a_kill(box: Boxwood, server: Server) -> None:
    vm = box.fork("ubuntu")
    vm.run("echo one > /root/a", check=True)
    vm.snapshot("s")
    vm.run("echo two > /root/a", check=True)
    server.kill9_all()
    server.start()
    with server.client() as again:
        vm = again.get(vm.id)
        assert changes(vm, "s") == {"/root/a": "changed"}
        vm.restore("s")
        server.kill9_all()
        server.start()
    with server.client() as again:
        assert again.get(vm.id).run("cat /root/a").stdout == "one\n"


def test_commit(box: Boxwood) -> None:
    parent = box.fork("ubuntu")
    parent.run("mkdir /work; seq 3 > /work/list; echo keep > /work/keep; echo old > /work/old", check=True)
    child, rival = parent.fork(), parent.fork()
    child.run("seq 9 > /work/list; rm /work/old; mkdir /work/new; echo x > /work/new/x", check=True)
    assert child.commit() == parent.id
    assert parent.run("cat /work/new/x /work/keep; wc -l < /work/list; ls /work").stdout == (
        "x\nkeep\n9\nkeep\nlist\nnew\n"
    )
    rival.run("echo rival > /work/keep; echo y > /work/y", check=True)
    rival.commit()
    assert parent.run("cat /work/new/x /work/keep /work/y").stdout == "x\nrival\ny\n"
    rival.run("seq 4 > /work/list", check=True)
    with pytest.raises(Conflict) as refused:
        rival.commit()
    assert refused.value.details["collisions"] == ["/work/list"]
    assert parent.run("wc -l < /work/list").stdout == "9\n"
    child.run("echo more > /work/new/x", check=True)
    child.commit(parent)
    assert parent.run("cat /work/new/x").stdout == "more\n"


def test_export_and_import(box: Boxwood, server: Server, tmp_path: Path) -> None:
    vm = box.fork("ubuntu")
    vm.run(
        "mkdir -p /work/sub; cd /work; head -c 3M /dev/urandom > data; truncate -s 1G sparse; ln data again; ln -s data l;"
        " chown 7:8 sub; chmod 2750 sub; rm /usr/bin/env; rm -rf /etc/skel; mkfifo pipe; echo ä > $'odd\\nname'",
        check=True,
    )
    look = (
        "cd /work; sha256sum data; stat -c '%n %a %u:%g %h %F %s %Y' *; du -k sparse | cut -f1; ls -d /usr/bin/env"
        " /etc/skel 2>&1; ls / /usr/bin | sha256sum; id; python3 -c 'print(1)'"
    )
    before = vm.run(look).stdout
    with open(tmp_path / "vm.tar.zst", "wb") as file:
        assert vm.export(file) == file.tell()
    vm.delete()
    with pytest.raises(NotFound):
        vm.export(tmp_path / "vm.tar.zst")
    assert [path.name for path in tmp_path.iterdir()] == ["vm.tar.zst"]
    back = box.import_vm(tmp_path / "vm.tar.zst")
    assert back.run(look).stdout == before
    assert back.run("find / -xdev -type c -not -path '/dev/*' | wc -l").stdout == "0\n"
    child = back.fork()
    child.run("echo > /work/more; rm /work/l", check=True)
    assert changes(child) == {"/work/l": "deleted", "/work/more": "added"}


def test_what_is_cut_short_leaves_nothing(box: Boxwood, server: Server, tmp_path: Path) -> None:
    vm = box.fork("ubuntu")
    vm.run("head -c 3M /dev/urandom > /root/data; mkdir /root/d; touch /root/d/x", check=True)
    vm.export(tmp_path / "vm")
    vm.snapshot("all of it is sealed".replace(" ", "-"))
    whole = (tmp_path / "vm").read_bytes()
    names = {path.name for path in (server.data / "layers").iterdir()}
    for data in (whole[: len(whole) // 2], whole[:-1], whole[:-200] + bytes(200), whole + b"x"):
        with pytest.raises(BadRequest):
            box.import_vm(io.BytesIO(data))
    until(lambda: {path.name for path in (server.data / "layers").iterdir()} == names)
