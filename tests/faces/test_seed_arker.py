"""What Arker's documents show, against a real server: each example, in our own words, and what can be seen of it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

import servers
from boxwood.faces.arker import Arker, ArkerError

pytestmark = pytest.mark.root


@pytest.fixture
def arker(real: servers.Server) -> Iterator[Arker]:
    with Arker(api_key=real.key) as arker:
        yield arker


# --- the first generation


def test_quickstart(arker: Arker) -> None:
    vm = arker.vm("arkuntu").fork(name="quickstart")
    result = vm.run("python3 -c 'print(2+2)'")
    assert result.stdout.decode() == "4\n"
    assert (result.stderr, result.exit_code, result.cwd) == (b"", 0, "/root")
    assert result.duration_ms > 0 and result.session_id

    vm.sync.write_file("/home/user/data.csv", b"a,b\n1,2\n")
    assert vm.sync.read_file("/home/user/data.csv") == b"a,b\n1,2\n"

    child = vm.fork(name="quickstart-branch")
    assert child.sync.read_file("/home/user/data.csv") == b"a,b\n1,2\n"
    child.delete()
    assert vm.run("cat /home/user/data.csv").stdout == b"a,b\n1,2\n"
    vm.delete()


def test_list(arker: Arker) -> None:
    made = [arker.vm("arkuntu").fork(name=f"listed-{number}") for number in range(3)]
    page = arker.list(limit=10, sort="-created_at")
    assert page.total >= 3 and len(page) == len(page.items) <= 10
    newest = list(page)[:3]
    assert [summary.vm_id for summary in newest] == [vm.id for vm in reversed(made)]
    assert [summary.name for summary in newest] == ["listed-2", "listed-1", "listed-0"]
    assert {(summary.base_image, summary.region) for summary in newest} == {("arkuntu", "local")}
    assert all(summary.created_at.endswith("Z") for summary in newest)
    assert [summary.name for summary in arker.list(q="listed-", limit=1, offset=1)] == ["listed-1"]
    for vm in made:
        vm.delete()
    assert arker.list(q="listed-").total == 0


def test_errors(arker: Arker) -> None:
    vm = arker.vm("arkuntu").fork()
    try:
        vm.sync.read_file("/home/user/missing")
    except ArkerError as err:
        assert (err.code, err.message, err.status) == ("not_found", "file not found: /home/user/missing", 404)
    else:
        pytest.fail("there is such a file")
    for path in ("/etc/hostname", "/home/user/../x"):
        with pytest.raises(ArkerError) as refused:
            vm.sync.read_file(path)
        assert (refused.value.code, refused.value.status) == ("bad_request", 400)
    vm.delete()
    with pytest.raises(ArkerError) as gone:
        vm.run("true")
    assert (gone.value.code, gone.value.status) == ("not_found", 404)


def test_names_are_taken_once(arker: Arker) -> None:
    vm = arker.vm("arkuntu").fork(name="once")
    with pytest.raises(ArkerError) as taken:
        arker.vm("arkuntu").fork(name="once")
    assert (taken.value.code, taken.value.status) == ("conflict", 409)
    vm.delete()


def test_a_key_is_needed(real: servers.Server) -> None:
    with Arker(api_key="ark_live_nobody") as stranger, pytest.raises(ArkerError) as refused:
        stranger.list()
    assert (refused.value.code, refused.value.status) == ("unauthorized", 401)


def test_large_files(arker: Arker) -> None:
    vm, data = arker.vm("arkuntu").fork(), os.urandom(9 << 20)
    vm.sync.write_file("/home/user/deep/large", data)
    assert vm.sync.read_file("/home/user/deep/large") == data
    vm.sync.write_file("/home/user/text", "grün\n")
    assert vm.run("cat /home/user/text").stdout.decode() == "grün\n"
    vm.delete()


def test_a_session_keeps_its_shell(arker: Arker) -> None:
    vm = arker.vm("arkuntu").fork()
    first = vm.run("cd /tmp && COLOUR=green")
    assert first.cwd == "/tmp"
    assert vm.run("echo $COLOUR $PWD", session_id=first.session_id).stdout == b"green /tmp\n"
    other = vm.run("echo $COLOUR $PWD", session_id=1)
    assert (other.stdout, other.session_id != first.session_id) == (b"/root\n", True)
    assert vm.run("exit 3").exit_code == 3
    assert vm.run("sleep 30", timeout=0.2).exit_code == 124
    vm.delete()


def test_the_smoke_test(real: servers.Server) -> None:
    environment = {"ARKER_BASE_URL": real.url, "ARKER_API_KEY": real.key, "PATH": os.environ["PATH"]}
    demo = [sys.executable, "-m", "boxwood.faces.arker.demo"]
    done = subprocess.run(demo, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for call in ("fork", "run", "sync.read_file", "list", "delete", "POST /v1/fork", "not_found 404"):
        assert call in done.stdout


# --- the later one


def test_later_quickstart(real: servers.Server) -> None:
    with Arker(region="us-west-2") as ar:
        vm = ar.fork("ubuntu-full")
        run = vm.run("python3 -c 'print(2 + 2)'")
        assert run.type == "completed" and run.stdout == b"4\n"
        vm.sync("/tmp/data.txt", "hello\n")
        assert vm.sync("/tmp/data.txt") == b"hello\n"
        vm.delete()


def test_later_core(arker: Arker) -> None:
    vm = arker.fork("ubuntu-full")
    vm.sync("/srv/a", "1")
    child = arker.fork(vm, name="later-child")
    assert child.sync("/srv/a") == b"1"
    named = arker.fork(source_vm_name="ubuntu-full", source_org_id="ArkerHQ", name="later-named")
    assert arker.vm("later-named").run("echo ok").stdout == b"ok\n"
    listed = {computer.id: computer.name for computer in arker.list_vms()}
    assert {child.id: "later-child", named.id: "later-named", vm.id: None}.items() <= listed.items()
    assert vm.id in [computer.id for computer in arker.list_vms(state="idle")]
    assert vm.id not in [computer.id for computer in arker.list_vms(state="running")]
    arker.vm(vm.id).resize(vcpu_count=1, memory_mib=512)
    assert vm.run("nproc; cat /srv/a").exit_code == 0
    for computer in (vm, child, named):
        arker.vm(computer.id).delete()


def test_background_runs_happen_once(arker: Arker) -> None:
    vm, key = arker.fork("ubuntu-full"), str(uuid.uuid4())
    begun = [vm.run("echo once >> /srv/log", background=True, idempotency_key=key) for _ in range(2)]
    assert begun[0].type == "background" and begun[0].run_id == begun[1].run_id
    servers.until(lambda: vm.run("cat /srv/log 2>/dev/null").stdout)
    assert vm.sync("/srv/log") == b"once\n"
    vm.delete()


def test_a_durable_computer(arker: Arker) -> None:
    vm = arker.fork("ubuntu-full", durable=True)
    vm.sync("/srv/kept", b"kept")
    assert vm.run("cat /srv/kept").stdout == b"kept"
    vm.delete()
