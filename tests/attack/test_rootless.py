"""Boxes of a server without root: the same attacks, run by an unprivileged pytest; and what is another matter there.

Not among them: what asks for the host's root itself (device nodes in layers, owners of the data directory), for other
users in a box, or for a busy VM's fork.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import guard
import rootless
from servers import Server, until

pytestmark = pytest.mark.timeout(900)

SAME = {
    "test_escape.py": (
        "test_forbidden_calls", "test_the_32_bit_door_is_shut",
        "test_setuid_gains_nothing", "test_proc_and_sys_are_masked", "test_chroot_leads_nowhere",
        "test_the_agent_cannot_be_touched", "test_nothing_is_inherited",
        "test_files_that_programs_load_do_not_reach_the_agent",
    ),
    "test_read_only.py": (
        "test_nothing_of_the_disk_can_be_written", "test_it_cannot_be_made_writable", "test_files_over_the_api",
        "test_a_place_that_is_no_directory", "test_what_is_in_memory_keeps_the_box", "test_ready_boxes_are_of_one_kind",
    ),
    "test_links.py": (
        "test_a_link_is_followed_inside_the_vm_only", "test_absolute_links_mean_the_vms_own_files",
        "test_manifests_do_not_follow_links",
    ),
    "test_file_work.py": (
        "test_nothing_leads_out_while_all_is_swapped", "test_a_tree_that_changes_while_it_is_deleted",
        "test_what_is_unpacked_runs_as_nobody_else", "test_archives_that_are_none", "test_a_client_that_goes_in_the_middle",
        "test_special_files_hold_nobody_up",
    ),
    "test_volumes.py": (
        "test_a_link_as_the_place_or_on_the_way_is_refused", "test_a_place_that_changes_while_it_is_looked_for",
        "test_nothing_but_the_volume_can_be_reached", "test_a_mount_is_not_the_boxs_to_change",
        "test_what_the_host_mounts_in_a_volume_stays_there",
    ),
    "test_shares.py": (
        "test_terminals_of_the_host_cannot_be_used_up", "test_asynchronous_io_of_the_host_cannot_be_used_up",
        "test_the_payload_dies_before_the_agent", "test_no_disk_of_the_host_is_named",
        "test_a_tree_deeper_than_any_path",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "file", [pytest.param(file, marks=[] if file == "test_escape.py" else [pytest.mark.full]) for file in SAME]
)
def test_the_same_attacks(rootless_home: Path, file: str) -> None:
    nodes = [f"tests/attack/{file}::{name}" for name in SAME[file]]
    environment = {rootless.ENVIRONMENT: "1", guard.ENVIRONMENT: "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "120", *nodes]
    process = rootless.popen(command, rootless_home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 0, out[-4000:]
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None and int(passed[1]) >= len(nodes) and "skipped" not in out, out[-500:]


@pytest.fixture
def vm(rootless_server: Server) -> Iterator[str]:
    _, made = rootless_server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu"})
    yield made["vm_id"]
    rootless_server.request("DELETE", f"/v1/vms/{made['vm_id']}")


def said(server: Server, vm: str, command: str) -> str:
    status, done = server.request("POST", f"/v1/vms/{vm}/runs", {"command": command})
    assert status == 200, done
    return str(done["stdout"])


def test_root_inside_has_nothing_of_its_user(rootless_server: Server, rootless_home: Path, vm: str) -> None:
    """It has the user's id outside, so what it must not have is a way there: his files, his processes, his power."""
    secret = rootless_home / "secret"
    secret.write_text("for the user alone")
    os.chown(secret, rootless.UID, rootless.UID)
    probe = rootless.popen(["cat", str(secret)], rootless_home, stdout=subprocess.PIPE)
    assert probe.communicate()[0] == b"for the user alone"  # what the same id may where nothing is in the way
    victim = rootless.popen(["sleep", "600"], rootless_home)
    try:
        looks = (
            f"cat {secret} {rootless_server.data}/root.key 2>&1 | grep -c 'No such file'; "
            f"kill -9 {victim.pid} 2>&1 | grep -c 'No such process'; "
            "grep -l sleep /proc/[0-9]*/comm | wc -l; "
            "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' ' | sort -u; "
            "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr '\t' ' '"
        )
        found = said(rootless_server, vm, looks).splitlines()
        assert [line.strip() for line in found[:4]] == ["2", "1", "0", "0 0 1"], found
        assert victim.poll() is None
        assert not int(found[4].split()[1], 16) & (1 << 21), "CAP_SYS_ADMIN"
        assert found[5:] == ["NoNewPrivs: 1", "Seccomp: 2"]
    finally:
        victim.kill()
        victim.wait()


def test_one_box_does_not_see_another(rootless_server: Server, vm: str) -> None:
    """Both have the same id outside: processes, files, sockets and shared memory are apart all the same."""
    _, made = rootless_server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu"})
    other = made["vm_id"]
    try:
        victim = "echo mine > /tmp/mine; echo mine > /dev/shm/mine; exec -a victim sleep 600"
        assert rootless_server.request("POST", f"/v1/vms/{vm}/runs", {"command": victim, "background": True})[0] == 202
        there = {"command": "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx '[v]ictim'", "session_idx": 1}
        path = f"/v1/vms/{vm}/runs"
        until(lambda: rootless_server.request("POST", path, there)[1]["stdout"] == "1\n")
        namespaces = (
            "readlink /proc/self/ns/user /proc/self/ns/pid /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/mnt"
        )
        _, done = rootless_server.request("POST", path, {**there, "command": namespaces})
        here, elsewhere = done["stdout"].split(), said(rootless_server, other, namespaces).split()
        assert len(here) == len(elsewhere) == 5 and not set(here) & set(elsewhere)
        looks = "ls /tmp/mine /dev/shm/mine 2>&1 | grep -c 'No such'; ls -d /proc/[0-9]* | wc -l; " + there["command"]
        files, processes, victims = said(rootless_server, other, looks).split()
        assert (files, victims) == ("2", "0") and int(processes) < 12
    finally:
        rootless_server.request("DELETE", f"/v1/vms/{other}")


def test_one_box_does_not_starve_another_of_watches(rootless_server: Server, vm: str) -> None:
    """The kernel counts inotify for each user, and both boxes are the same one outside."""
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    take = "import ctypes\nlibc = ctypes.CDLL(None)\nn = 0\nwhile n < 9999 and libc.inotify_init() >= 0: n += 1\nprint(n, flush=True)\n"
    hold = {"command": f"python3 -c '{take}import time; time.sleep(300)' > /tmp/n", "time_to_background": 0}
    _, made = rootless_server.request("POST", "/v1/fork", {"source_vm_name": "arkuntu"})
    other = made["vm_id"]
    try:
        assert rootless_server.request("POST", f"/v1/vms/{vm}/runs", hold)[0] == 202
        read = {"op": "read", "path": "/tmp/n"}
        until(lambda: rootless_server.request("POST", f"/v1/vms/{vm}/sync", read)[1].get("content"))
        taken = base64.b64decode(rootless_server.request("POST", f"/v1/vms/{vm}/sync", read)[1]["content"])
        assert 0 < int(taken) <= most // 2
        assert int(said(rootless_server, other, f"ulimit -n 4096; python3 -c '{take}'")) > 0
    finally:
        rootless_server.request("DELETE", f"/v1/vms/{other}")


def test_devices_are_the_harmless_ones(rootless_server: Server, vm: str) -> None:
    """They are the host's own, bound: nobody here may change them, nor put others beside them."""
    nodes = "for n in $(ls /dev); do [ -L /dev/$n ] && continue; [ -c /dev/$n ] && echo $n; [ -b /dev/$n ] && echo BLOCK; done"
    found = set(said(rootless_server, vm, nodes).split())
    assert found == {"null", "zero", "full", "random", "urandom", "tty"}
    tries = "chmod 600 /dev/null; chown 0:0 /dev/null; touch -d 1990-01-01 /dev/null; rm -f /dev/null; touch /dev/x; mknod /tmp/n c 1 3"
    before = os.stat("/dev/null")
    refused = said(rootless_server, vm, f"for t in 1; do {tries}; done 2>&1 | wc -l; echo x > /dev/null && echo works")
    assert refused.split() == ["6", "works"]
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
