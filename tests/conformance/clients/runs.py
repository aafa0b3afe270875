"""Runs with arker of five generations (0.5.1 to 1.3.0), run by an interpreter that has one of them: `runs.py VERSION`.

One script for all of them, which differ in how a source is named, in what output is made of, and in how a run is sent
to the background.
"""

import secrets
import sys
import time

import arker
from arker import Arker, ArkerError

VERSION = tuple(map(int, sys.argv[1].split(".")))
SOURCE = {"source": "ubuntu"} if VERSION < (1, 2) else {"source_vm_name": "ubuntu"}
BACKGROUND = {"background": True} if VERSION < (1, 2) else {"time_to_background": 0}
ABSENT = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
client = Arker()


def text(output):
    return output.decode() if isinstance(output, bytes) else output


def shown(run):
    return text(run.stdout), text(run.stderr), run.exit_code


def refused(step):
    try:
        step()
    except ArkerError as error:
        return error.code, error.status
    raise AssertionError("not refused")


def until(condition, seconds=60):
    """The client offers no event to wait for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


def ended(vm, run_id):
    """Polled, as these clients do."""
    until(lambda: vm.get_run(run_id).state not in ("pending", "running"))
    return vm.get_run(run_id)


def run(vm):
    done = vm.run("echo hello; echo oops >&2; exit 3")
    assert shown(done) == ("hello\n", "oops\n", 3), done
    assert done.state == "completed" and done.run_id, done
    kept = vm.get_run(done.run_id)
    assert (*shown(kept), kept.state) == ("hello\n", "oops\n", 3, "completed"), kept
    raw = vm.run("printf '\\377\\000x'")
    assert getattr(raw, "stdout_bytes", raw.stdout) == b"\xff\x00x", raw
    assert text(vm.run("cd /srv; export WORD=kept; plain=also; pwd").stdout) == "/srv\n"
    assert text(vm.run('echo "$PWD $WORD $plain"').stdout) == "/srv kept also\n"
    assert text(vm.run('echo "[$WORD]"', session_idx=3).stdout) == "[]\n"
    late = vm.run("echo begun; sleep 1000 & sleep 1000", timeout=1)
    assert text(late.stdout) == "begun\n" and late.exit_code, late
    key = "key-" + secrets.token_hex(8)
    count = "echo x >> /root/count; wc -l < /root/count"
    assert vm.run(count, idempotency_key=key).run_id == vm.run(count, idempotency_key=key).run_id
    assert text(vm.run("wc -l < /root/count").stdout) == "1\n"
    assert refused(lambda: vm.run("true", session_id=ABSENT)) == ("not_found", 404)
    assert refused(lambda: vm.get_run(ABSENT)) == ("not_found", 404)


def background(vm):
    vm.run("mkfifo /root/go")
    begun = vm.run("echo one; cat /root/go; exit 7", **BACKGROUND)
    assert begun.state in ("pending", "running") and not getattr(begun, "stdout", ""), begun
    until(lambda: text(vm.get_run(begun.run_id).stdout) == "one\n")  # it grows while it runs
    assert vm.get_run(begun.run_id).exit_code is None
    behind = vm.run("echo behind", **BACKGROUND)  # in the same session: it waits
    vm.run("echo two > /root/go", session_idx=1)
    done = ended(vm, begun.run_id)
    assert (*shown(done), done.state) == ("one\ntwo\n", "", 7, "completed"), done
    assert shown(ended(vm, behind.run_id)) == ("behind\n", "", 0)
    if (0, 8, 4) <= VERSION < (1, 2):  # unless they are told that it is for the background, they wait for the end
        assert shown(vm.run("sleep 0.2; echo late; exit 4", time_to_background=0)) == ("late\n", "", 4)
    listed = {one.run_id: one.state for one in vm.list_runs(limit=1000).runs}
    assert listed[begun.run_id] == listed[behind.run_id] == "completed", listed
    assert begun.run_id not in {one.run_id for one in vm.list_runs(state="running").runs}


def cancel(vm):
    stuck = vm.run("echo begun; sleep 1000 & sleep 1000", **BACKGROUND)
    until(lambda: text(vm.get_run(stuck.run_id).stdout) == "begun\n")
    waiting = vm.run("echo never", **BACKGROUND)
    assert vm.cancel_run(waiting.run_id).cancelled is True
    assert vm.cancel_run(stuck.run_id).cancelled is True
    done = vm.get_run(stuck.run_id)
    assert (done.state, text(done.stdout)) == ("cancelled", "begun\n"), done
    assert vm.get_run(waiting.run_id).state == "cancelled"
    assert vm.cancel_run(stuck.run_id).cancelled is False
    assert text(vm.run("ps -eo comm= | grep -c '^sleep$'; echo usable").stdout) == "0\nusable\n"


def signal(vm):
    stuck = vm.run("trap 'echo caught; exit 5' INT; echo set; while :; do sleep 0.05; done", **BACKGROUND)
    until(lambda: text(vm.get_run(stuck.run_id).stdout) == "set\n")
    told = vm.run(None, signal="SIGINT")
    assert shown(told)[:2] == ("", "") and not told.run_id, told
    assert shown(ended(vm, stuck.run_id))[::2] == ("set\ncaught\n", 5)
    for name, code in (("SIGTERM", 143), ("SIGKILL", 137), ("SIGHUP", 129)):
        stuck = vm.run("echo on; sleep 1000; echo code $?", session_idx=1, **BACKGROUND)
        until(lambda run=stuck: text(vm.get_run(run.run_id).stdout) == "on\n")
        vm.run(None, signal=name, session_idx=1)
        assert text(ended(vm, stuck.run_id).stdout) == f"on\ncode {code}\n", name
    assert refused(lambda: vm.run(None, signal="SIGINT")) == ("not_found", 404)


def sessions(vm):
    made = vm.create_session(env={"COLOUR": "green"}, cwd="/tmp")
    assert text(vm.run("echo $COLOUR; pwd", session_id=made.session_id).stdout) == "green\n/tmp\n"
    stuck = vm.run("sleep 1000", session_id=made.session_id, **BACKGROUND)
    until(lambda: vm.get_session(made.session_id).state == "running")
    assert vm.delete_session(made.session_id).deleted is True
    assert vm.get_run(stuck.run_id).state == "cancelled"
    assert refused(lambda: vm.run("true", session_id=made.session_id)) == ("not_found", 404)
    assert made.session_id not in {one.session_id for one in vm.list_sessions().sessions}


def main():
    installed = getattr(arker, "__version__", sys.argv[1])
    assert installed == sys.argv[1], installed
    vm = client.fork(**SOURCE, name="runs-" + secrets.token_hex(6))
    try:
        for case in (run, background, cancel, signal, sessions):
            case(vm)
        assert (VERSION < (0, 6)) is not hasattr(vm, "connect_pty"), "clients before 0.6 know no terminals"
    finally:
        vm.delete()


if __name__ == "__main__":
    main()
