"""What works as root works for a user who has none: the same tests on his server, and what is different there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rootless
import servers
from api.test_mounts_real import (  # noqa: F401
    box,
    test_a_fork_has_none_and_the_source_has_it_in_its_next_box,
    test_a_place_that_is_refused,
    test_two_running_vms_share_a_filesystem,
    test_what_a_vm_leaves_behind,
    volume,
)
from api.test_real import (  # noqa: F401
    run,
    sync_status,
    test_a_program_without_a_shell,
    test_a_session_is_told_as_its_run_has_left_it,
    test_files_on_a_vm_that_never_ran,
    test_first_generation,
    test_run_files_fork,
    test_signal_timeout_cancel,
    test_upload_and_download_by_url,
    text,
)
from servers import Server

pytestmark = pytest.mark.timeout(900)  # the very first makes the user's images
PIDS = 60  # of a VM of the server that is ill-treated


@pytest.fixture
def boxwood_server(rootless_server: Server) -> Server:
    return rootless_server


@pytest.fixture
def vm(rootless_server: Server) -> Iterator[str]:
    made = fork(rootless_server)["vm_id"]
    yield made
    assert rootless_server.request("DELETE", f"/v1/vms/{made}")[0] in (200, 404)


@pytest.fixture(scope="module")
def ill_treated(rootless_home: Path) -> Iterator[rootless.RootlessServer]:
    server = rootless.RootlessServer(rootless_home, name=f"own-{os.urandom(4).hex()}", pids=PIDS)
    yield server
    server.down()


@pytest.fixture
def own(ill_treated: rootless.RootlessServer) -> rootless.RootlessServer:
    """A server for tests to ill-treat, one after the other: it runs, whatever the one before has done to it."""
    return ill_treated if ill_treated.runs else ill_treated.start()


def fork(server: Server, status: int = 200, **members: object) -> dict:
    got, made = server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu", **members})
    assert got == status, made
    return made


@pytest.fixture
def with_ids(rootless_home: Path) -> Iterator[rootless.RootlessServer]:
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed: apt install uidmap")
    name = f"ids-{os.urandom(4).hex()}"
    within = rootless.with_subordinate_ids(rootless_home / f"{name}-etc")
    server = rootless.RootlessServer(rootless_home, name=name, within=within).start()
    yield server
    if server.runs:  # else the test has put it down, and none could be started since
        server.down()


def test_subordinate_ids(with_ids: rootless.RootlessServer) -> None:
    """Users other than root, in a box and on disk; without them the directory is refused, not spoiled."""
    server = with_ids
    made = fork(server)["vm_id"]
    command = (
        "touch /f; chown 33:34 /f; stat -c %u:%g /f; su nobody -s /bin/sh -c 'id -u'; tail -n +2 /proc/self/uid_map"
    )
    done = text(run(server, made, command)).split()
    assert done[:2] == ["33:34", "65534"] and done[2:] == ["1", "1", "65535"]
    assert text(run(server, made, "id -un", user="nobody")) == "nobody\n"
    (file,) = server.data.glob("layers/*/upper/f")
    found = file.stat()
    assert (found.st_uid, found.st_gid) == (rootless.FIRST_SUBORDINATE + 32, rootless.FIRST_SUBORDINATE + 33)
    child = fork(server, source_vm_id=made, source_vm_name=None)["vm_id"]
    assert text(run(server, child, "stat -c %u:%g /f")) == "33:34\n"
    assert server.request("DELETE", f"/v1/vms/{made}")[0] == 200
    server.down()
    server.within = None
    with pytest.raises(AssertionError, match="give another data directory"):
        server.start()


def test_one_user_is_said_to_be_all(rootless_server: Server, vm: str) -> None:
    done = run(rootless_server, vm, "chown 33 /etc/hostname; id -un", user="root")
    assert done["stdout"] == "root\n" and "Invalid argument" in done["stderr"]
    refused = run(rootless_server, vm, "true", user="nobody")
    assert refused["exit_code"] != 0 and "Operation not permitted" in refused["stderr"]


def test_nobody_here_is_root(rootless_server: Server, vm: str) -> None:
    """Seen from outside: server, zygote and boxes have the user's ids, also for root inside."""
    assert text(run(rootless_server, vm, "id -u; id -g")) == "0\n0\n"
    pids = [rootless_server.pid, rootless_server.zygote_pid, *servers.guard.descendants(rootless_server.zygote_pid)]
    assert len(pids) > 3
    for pid in pids:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert {int(one) for name in ("Uid", "Gid") for one in status[name].split()} == {rootless.UID}, status["Name"]


def test_what_it_cannot_hold_it_refuses(rootless_server: Server) -> None:
    """This host has delegated no cgroups to the user."""
    for size, value in (("memory_mib", 512), ("vcpu", 1)):
        refused = fork(rootless_server, 422, resources={size: value})
        assert size in refused["error"]["message"] and "Delegate=yes" in refused["error"]["message"]


def test_processes_are_bounded_all_the_same(own: rootless.RootlessServer) -> None:
    made, other = fork(own)["vm_id"], fork(own)["vm_id"]
    source = (
        f"import os, signal\npids = []\ntry:\n  while len(pids) < {PIDS + 20}:\n    pid = os.fork()\n    pid or signal.pause()\n"
        f"    pids.append(pid)\nexcept BlockingIOError: print({PIDS - 20} < len(pids) < {PIDS})\n"
        "for pid in pids: os.kill(pid, 9)"
    )
    assert text(run(own, made, f"python3 -c '{source}'")) == "True\n"
    assert text(run(own, other, "echo unharmed")) == "unharmed\n"
    raised = run(own, made, "ulimit -Hu; ulimit -u 1000 2>&1 || echo no")
    assert text(raised).startswith(f"{PIDS}\n") and "no" in text(raised)


def test_a_busy_vm_is_not_forked_since_nothing_can_stand_still(rootless_server: Server, vm: str) -> None:
    busy = {"command": "echo x > /f; sleep 300", "time_to_background": 0}
    assert rootless_server.request("POST", f"/v1/vms/{vm}/runs", busy)[0] == 202
    servers.until(lambda: sync_status(rootless_server, vm, "/f") == 200)
    status, refused = rootless_server.request("POST", "/v1/fork", {"source_vm_id": vm})
    assert status == 422 and "stand still" in refused["error"]["message"], refused


def test_the_network_is_ones_own(rootless_server: Server, vm: str) -> None:
    """Its loopback, and a wire where pasta is to be had."""
    assert text(
        run(rootless_server, vm, "ls /sys/class/net 2>/dev/null; cut -d: -f1 /proc/net/dev | tail -n +3")
    ).split() == ["lo", *(["eth0"] if has_network(rootless_server) else [])]


def has_network(server: Server) -> bool:
    _, health = server.request("GET", "/v1/health")
    return bool(health["isolation"]["network of VMs"])


def test_boxes_live_on_and_are_adopted(own: rootless.RootlessServer) -> None:
    made = fork(own)["vm_id"]
    assert text(run(own, made, "cd /srv; echo kept > file; pwd"))
    before = sorted(own.box_pids())
    own.kill9()
    own.start()
    assert set(before) & set(own.box_pids())
    assert text(run(own, made, "pwd; cat file")) == "/srv\nkept\n"


def test_everything_dies_and_nothing_is_lost(own: rootless.RootlessServer) -> None:
    made = fork(own)["vm_id"]
    run(own, made, "rm -rf /usr/share/common-licenses; mkdir /usr/share/common-licenses; echo x > /root/file")
    own.kill9_all()
    own.start()
    assert text(run(own, made, "cat /root/file; ls /usr/share/common-licenses | wc -l")) == "x\n0\n"
    child = fork(own, source_vm_id=made, source_vm_name=None)["vm_id"]
    again = fork(own, source_vm_id=child, source_vm_name=None)["vm_id"]
    assert text(run(own, again, "cat /root/file")) == "x\n"


def test_down_leaves_nothing_and_root_does_not_touch_the_directory(own: rootless.RootlessServer) -> None:
    made = fork(own)["vm_id"]
    run(own, made, "echo x > /root/file")
    zygote = own.zygote_pid
    own.down()
    assert not servers.guard.alive(zygote)
    assert "boxwood-rootless" not in Path("/proc/self/mounts").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "boxwood.server", "--data", str(own.data), "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and f"without root, of uid {rootless.UID}" in done.stderr


def test_the_doctor_tries_it_without_root(rootless_home: Path) -> None:
    process = rootless.popen(
        [sys.executable, "-m", "boxwood.engine.doctor", "--json"], rootless_home, stdout=subprocess.PIPE
    )
    out, _ = process.communicate(timeout=60)
    said = json.loads(out)
    checks = {check["name"]: check for check in said["checks"]}
    assert process.returncode == 0 and said["ok"]
    active = {"kernel", "user namespace", "overlay", "kernel file systems", "seccomp", "process limit"}
    assert all(checks[name]["active"] for name in active)
    for name in ("subordinate ids", "cgroup memory", "uid ranges"):
        assert not checks[name]["active"] and not checks[name]["required"] and checks[name]["fix"], name


def test_boxes_die_with_their_zygote(own: rootless.RootlessServer) -> None:
    made = fork(own)["vm_id"]
    run(own, made, "echo kept > /root/file")
    zygote, boxes = own.zygote_pid, own.box_pids()
    assert boxes
    os.kill(zygote, signal.SIGKILL)
    servers.wait_gone(zygote, *boxes)
    # A run that comes before the server has heard of it goes down with its box.
    servers.until(lambda: run(own, made, "cat /root/file")["stdout"] == "kept\n")
    assert own.zygote_pid != zygote


def test_a_root_directory_that_its_owner_may_not_read(rootless_server: Server, vm: str) -> None:
    assert text(run(rootless_server, vm, "echo x > /root/file; chmod 000 /; echo done")) == "done\n"
    child = fork(rootless_server, source_vm_id=vm, source_vm_name=None)["vm_id"]
    try:
        assert text(run(rootless_server, child, "cat /root/file")) == "x\n"
    finally:
        rootless_server.request("DELETE", f"/v1/vms/{child}")


def test_the_image_is_the_users_own(rootless_server: Server) -> None:
    """A hard link to the host's file would belong to nobody in a box."""
    programs = list(rootless.IMAGES.glob("*/upper/usr/bin/env"))
    assert programs
    for program in programs:
        found = program.stat()
        assert (found.st_uid, found.st_nlink) == (rootless.UID, 1)


@pytest.mark.parametrize("packer", [*(pytest.param(name, marks=pytest.mark.full) for name in ("", "gzip")), "zstd"])
def test_root_file_systems_are_imported(rootless_home: Path, own: rootless.RootlessServer, packer: str) -> None:
    """Read in a namespace of the user's own; with zstd, by a program of its own beside it."""
    busybox = shutil.which("busybox")
    if busybox is None or (packer and shutil.which(packer) is None):
        pytest.skip(f"needs busybox and {packer or 'tar'}")
    made = rootless_home / f"rootfs-{os.urandom(4).hex()}"
    (made / "bin").mkdir(parents=True)
    shutil.copy(busybox, made / "bin/busybox")
    for name in ("sh", "cat", "id"):
        (made / "bin" / name).symlink_to("busybox")
    archive = made.with_suffix(".tar")
    subprocess.run(["tar", "-C", made, "-cf", archive, "."], check=True)
    if packer:
        subprocess.run([packer, "-q", archive], check=True)
        archive = next(one for one in rootless_home.glob(f"{archive.name}.*"))
    archive.chmod(0o644)
    name = f"busy-{packer or 'tar'}"
    try:
        status, said = own.request("POST", "/boxwood/images", {"name": name, "path": str(archive), "replace": False})
        assert status < 300, said
        box = fork(own, source_vm_name=name)["vm_id"]
        assert text(run(own, box, "id -u; echo x > /f; cat /f")) == "0\nx\n"
    finally:
        archive.unlink()
        shutil.rmtree(made)


def test_a_durable_vm(own: rootless.RootlessServer) -> None:
    with own.client() as client:
        source = client.fork("ubuntu")
        source.write_file("/srv/own", "the source's\n")
        vm = source.fork("durable", durable=True)
        vm.write_file("/srv/new/file", "kept\n")
        run = vm.run(
            "cd /srv; echo x >> tries; until [ -e stop ]; do sleep 0.02; done; cat own new/file tries", background=True
        )
        servers.until(lambda: vm.run("cat /srv/tries", session=1).stdout == "x\n")
    own.kill9_all()
    own.start()
    with own.client() as client:
        vm = client.get("durable")
        servers.until(lambda: vm.run("cat /srv/tries", session=1).stdout == "x\nx\n")
        vm.write_file("/srv/stop", "")
        run = vm.get_run(str(run.run_id)).wait(60)
        assert (run.retry_count, run.stdout) == (1, "the source's\nkept\nx\nx\n")


def test_files_stream_in_and_out(rootless_server: Server, vm: str, tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    with rootless_server.client() as client:
        mine = client.vm(vm)
        mine.write_file("/w/f", iter([data]), mode=0o750)
        assert b"".join(mine.read_stream("/w/f", start=7)) == data[7:]
        (tmp_path / "d").mkdir()
        for name in ("a", "d/b"):
            (tmp_path / name).write_text(name)
        assert mine.sync_dir(tmp_path, "/w").sent == 2
        assert mine.run("stat -c %a /w/f; cat /w/d/b; ls -A /w").stdout == "750\nd/ba\nd\nf\n"
