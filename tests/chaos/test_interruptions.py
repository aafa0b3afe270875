"""kill -9 of everything, again and again: runs of durable VMs that were under way are begun again, others have failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from amounts import amount
from boxwood import RunExited, RunOutput, RunStarted
from servers import Server, until

Make = Callable[..., Server]
TIMES = amount([1], [1, 2])  # that everything is killed
COUNTING = (
    "echo x >> /root/tries; pwd; echo $n; wc -l < /root/tries; until [ -e /root/stop ]; do sleep 0.02; done; echo over"
)


def test_it_is_begun_again_where_it_was(server: Server) -> None:
    with server.client() as box:
        vm, other = box.fork("ubuntu", "durable", durable=True), box.fork("ubuntu", "other")
        for one in (vm, other):
            one.run("cd /srv; n=set; f() { echo f; }")
        run, lost = vm.run(COUNTING, background=True), other.run(COUNTING, background=True)
        behind = vm.run("f; pwd", background=True)
        for one in (run, lost):
            until(lambda one=one: one.refresh().stdout == "/srv\nset\n1\n")
        done = vm.run("echo done; exit 4", session=1)
    for number in TIMES:
        server.kill9_all()
        server.start()
        with server.client() as box:
            vm = box.get("durable")
            run = vm.get_run(str(run.run_id))
            until(lambda run=run, tries=number + 1: run.refresh().stdout == f"/srv\nset\n{tries}\n")
            assert (run.state, run.retry_count) == ("running", number)
            assert vm.get_run(str(behind.run_id)).state == "pending"
            failed = box.get("other").get_run(str(lost.run_id))
            assert failed.state == "failed" and "lost" in str(failed.fail_reason)
    server.kill9()  # the server alone: no interruption
    server.start()
    with server.client() as box:
        vm = box.get("durable")
        vm.write_file("/root/stop", "")
        run = vm.get_run(str(run.run_id)).wait(60)
        assert (run.state, run.exit_code, run.stdout) == ("completed", 0, f"/srv\nset\n{TIMES[-1] + 1}\nover\n")
        assert run.retry_count == TIMES[-1]
        assert vm.get_run(str(behind.run_id)).wait(60).stdout == "f\n/srv\n"
        kept = vm.get_run(str(done.run_id))
        assert (kept.stdout, kept.exit_code, kept.retry_count) == ("done\n", 4, 0)


def test_a_stream_comes_back_to_the_new_try(server: Server) -> None:
    """… and has the output from its beginning once more, after a word that it begins anew."""
    command = "seq 30000; until [ -e /root/stop ]; do sleep 0.02; done; echo over >&2"
    told: list[RunStarted | RunOutput | RunExited] = []
    with server.client() as box:
        vm = box.fork("ubuntu", "durable", durable=True)
        listener = threading.Thread(target=lambda: told.extend(vm.run_stream(command)))
        listener.start()
        until(lambda: sum(len(event.data) for event in told if isinstance(event, RunOutput)) == len(_numbers()))
        server.kill9_all()
        server.start()
        until(lambda: [event.retry_count for event in told if isinstance(event, RunStarted)][-1] == 1)
        vm.write_file("/root/stop", "")
        listener.join(60)
    assert not listener.is_alive()
    again = max(at for at, event in enumerate(told) if isinstance(event, RunStarted) and not event.pending)
    first, second = told[:again], told[again:]
    assert _out(first, "stdout") == _out(second, "stdout") == _numbers()
    assert (_out(first, "stderr"), _out(second, "stderr")) == (b"", b"over\n")
    assert isinstance(told[-1], RunExited) and told[-1].exit_code == 0


def test_down_and_up_is_an_interruption_too(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu", "durable", durable=True)
        run = vm.run(COUNTING, background=True)
        until(lambda: run.refresh().stdout.endswith("1\n"))
    server.down()
    server.start()
    with server.client() as box:
        vm = box.get("durable")
        vm.write_file("/root/stop", "")
        run = vm.get_run(str(run.run_id)).wait(60)
        assert (run.state, run.retry_count, run.stdout) == ("completed", 1, "/root\n\n2\nover\n")


def test_many_at_once_and_each_once(server: Server) -> None:
    """Of several sessions in several VMs, killed twice in a row before they could begin."""
    runs: list[tuple[str, str]] = []
    with server.client() as box:
        for number in range(amount(2, 4)):
            vm = box.fork("ubuntu", f"vm-{number}", durable=True)
            for session in range(3):
                text = f"echo x >> /root/{session}; until [ -e /root/stop ]; do sleep 0.05; done; cat /root/{session}"
                runs.append((vm.id, str(vm.run(text, session=session, background=True).run_id)))
            until(lambda vm=vm: vm.run("ls /root", session=9).stdout.split() == ["0", "1", "2"])
    for _ in range(2):
        server.kill9_all()
        server.start()
    with server.client() as box:
        for vm_id in dict(runs):
            box.get(vm_id).write_file("/root/stop", "")
        for vm_id, run_id in runs:
            run = box.get(vm_id).get_run(run_id).wait(60)
            assert (run.state, run.retry_count) == ("completed", 2), run.fail_reason
            assert run.stdout in ("x\n" * 2, "x\n" * 3)  # the second kill may have come before it began again


def _out(events: list[RunStarted | RunOutput | RunExited], stream: str) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, RunOutput) and event.stream == stream)


def _numbers() -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, 30_001))
