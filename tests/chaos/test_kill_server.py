"""kill -9 of the server in the middle of things: boxes live on, and the next server finds all that was promised."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import pytest

from amounts import amount
from boxwood import BoxwoodError, ConnectionFailed
from servers import PREPARED, Server, until

LINES = amount(120, 400)
LARGE = amount(8, 24) << 20
Make = Callable[..., Server]


def test_a_run_goes_on_and_its_output_is_complete(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        run = vm.run(f"for i in $(seq {LINES}); do echo line $i; sleep 0.005; done; exit 7", background=True)
        until(lambda: "line 20\n" in run.refresh().stdout)
    server.kill9()
    server.start()
    with server.client() as box:
        run = box.get(vm.id).get_run(str(run.run_id)).wait(60)
        assert run.stdout == "".join(f"line {i}\n" for i in range(1, LINES + 1))
        assert (run.exit_code, run.state) == (7, "completed")


def test_output_that_nobody_took_meanwhile_is_complete(server: Server) -> None:
    """More than the box keeps: it stops the writer, and goes on when there is a server again."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("mkfifo /root/go")
        run = vm.run("echo begun; read x < /root/go; seq 600000; seq 300000 >&2", background=True)
        later = vm.run("echo begun; sleep 0.5; echo > /root/go", session=1, background=True)
        until(lambda: run.refresh().stdout == later.refresh().stdout == "begun\n")
    server.kill9()
    server.start()
    with server.client() as box:
        run = box.get(vm.id).get_run(str(run.run_id)).wait(60)
        assert run.exit_code == 0
        assert run.stdout_bytes == b"begun\n" + _numbers(600_000)
        assert run.stderr_bytes == _numbers(300_000)


def test_a_run_that_has_said_more_than_is_kept_goes_on(make_server: Make) -> None:
    """What was dropped is in no file, and the box has it no longer either."""
    server = make_server(output_bytes=256 << 10)
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("mkfifo /root/go /root/there")
        run = vm.run("seq 600000; echo said > /root/there; read x < /root/go; seq 10; exit 5", background=True)
        vm.run("cat /root/there", session=1)
        until(lambda: run.refresh().truncated > 0)
    server.kill9()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        run = vm.get_run(str(run.run_id))
        assert run.state == "running"
        vm.run("echo > /root/go", session=1)
        assert run.wait(60).exit_code == 5 and run.state == "completed"
        assert _numbers(600_000).startswith(run.stdout_bytes) and len(run.stdout_bytes) == 256 << 10


def test_a_run_that_ended_meanwhile_is_recorded(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("mkfifo /root/go")
        run = vm.run("cat /root/go; exit 9", background=True)
    server.kill9()
    pids = server.box_pids()
    assert pids, "the box should have outlived the server"
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        vm.run("echo gone on > /root/go", session=1)
        run = vm.get_run(str(run.run_id)).wait(60)
        assert (run.stdout, run.exit_code) == ("gone on\n", 9)


def test_finished_runs_and_sessions_are_as_they_were(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu", name="kept", description="told")
        vm.run("export WORD=kept; cd /srv; plain=also")
        ended = vm.run("echo out; echo err >&2; head -c 200000 /dev/zero | tr '\\0' z; exit 4")
    server.kill9()
    server.start()
    with server.client() as box:
        again = box.get("kept")
        assert (again.id, again.description) == (vm.id, "told")
        run = again.get_run(str(ended.run_id))
        assert (run.stdout, run.stderr, run.exit_code) == (ended.stdout, "err\n", 4)
        assert again.run('echo "$PWD $WORD $plain"').stdout == "/srv kept also\n"


@pytest.mark.parametrize("delay", [0.1, pytest.param(0.4, marks=pytest.mark.full)])
def test_every_acknowledged_fork_and_file_is_there(make_server: Make, delay: float) -> None:
    server = make_server(
        network=amount("none", "internet"), ready_boxes=0
    )  # so that what is there at the end is left over
    acknowledged: dict[str, str] = {}
    threads = [threading.Thread(target=_work_until_killed, args=(server, n, acknowledged)) for n in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(acknowledged) >= 2)
    threading.Event().wait(delay)  # anywhere in the middle of what they do
    server.kill9()
    for thread in threads:
        thread.join(60)
    server.start()
    with server.client() as box:
        for vm_id, text in acknowledged.items():
            vm = box.get(vm_id)
            assert vm.read_text("/root/promised") == text
            assert vm.run("cat /root/promised").stdout == text
        for vm in box.list():  # those that were being made are whole or not there
            assert vm.run("echo usable").stdout == "usable\n"
            vm.delete()
        assert not list(box.list())
    until(lambda: not any((server.data / "layers").iterdir()))
    until(lambda: len(server.boxes()) <= PREPARED)


def test_an_upload_is_whole_or_not_there(server: Server) -> None:
    data = secrets.token_bytes(LARGE)
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.write_file("/root/large", b"old")
        sending = threading.Thread(target=_quietly, args=(lambda: vm.write_file("/root/large", data),))
        sending.start()
        until(lambda: any((server.data / "uploads").iterdir()) or not sending.is_alive())
        server.kill9()
        sending.join(60)
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        assert vm.read_file("/root/large") in (b"old", data)
        vm.write_file("/root/large", data)
        assert vm.read_file("/root/large") == data


def test_many_restarts_in_a_row(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        run = vm.run("n=0; while [ ! -e /root/stop ]; do n=$((n+1)); echo $n; sleep 0.01; done", background=True)
        until(lambda: run.refresh().stdout)
    for _ in range(amount(2, 8)):
        server.kill9()
        server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        vm.write_file("/root/stop", b"")
        run = vm.get_run(str(run.run_id)).wait(60)
        numbers = [int(line) for line in run.stdout.split()]
        assert numbers == list(range(1, len(numbers) + 1)) and run.exit_code == 0


def _work_until_killed(server: Server, number: int, acknowledged: dict[str, str]) -> None:
    with server.client() as box:
        try:
            source = box.fork("ubuntu")
            while True:
                vm = source.fork()
                text = f"{number} {vm.id} {secrets.token_hex(4)}\n"
                vm.write_file("/root/promised", text)
                acknowledged[vm.id] = text
                vm.run("echo mine > /root/own; sync /root/own")
                source = vm
        except BoxwoodError as error:
            assert isinstance(error, ConnectionFailed), error


def _quietly(step: Callable[[], None]) -> None:
    try:
        step()
    except BoxwoodError:
        pass  # the server is killed meanwhile


def _numbers(last: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, last + 1))
