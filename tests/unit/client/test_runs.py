"""Running commands: what is sent, what comes back, waiting, cancelling."""

from __future__ import annotations

import base64

import pytest

from boxwood import VM as BoxVM
from boxwood import BadRequest, Boxwood, CommandFailed, NotFound, Run, ServerError, Timeout
from unit.client.stub import KEY, RUN, SESSION, VM, VM_ID, StubServer, error

RUNS = f"/v1/vms/{VM_ID}/runs"
RUNNING = {"run_id": "r1", "session_id": "s1", "state": "running"}


@pytest.fixture
def vm(server: StubServer):
    server.script(f"GET /v1/vms/{VM_ID}", (200, VM))
    server.script(f"POST {RUNS}", (200, RUN))
    with Boxwood(server.url, KEY) as box:
        yield box.get(VM_ID)


def test_a_finished_run_has_its_output_as_bytes_and_as_text(server: StubServer, vm: BoxVM) -> None:
    run = vm.run("echo hi")
    assert (run.stdout, run.stdout_bytes, run.stderr, run.exit_code, run.state) == ("hi", b"hi", "", 0, "completed")
    assert (run.ok, run.ended, run.run_id, run.session_id, run.duration_ms) == (True, True, "r1", "s1", 1.5)
    assert server.last.body == {"command": "echo hi"}
    assert server.last.headers["authorization"] == f"Bearer {KEY}"
    assert server.last.headers["user-agent"].startswith("boxwood/")


def test_output_that_is_not_text_survives_as_bytes(server: StubServer, vm: BoxVM) -> None:
    raw = bytes(range(256))
    server.script(f"POST {RUNS}", (200, RUN | {"stdout": base64.b64encode(raw).decode()}))
    run = vm.run("cat")
    assert run.stdout_bytes == raw
    assert run.stdout == raw.decode("utf-8", "replace")


def test_text_output_is_taken_as_it_is(server: StubServer, vm: BoxVM) -> None:
    server.script(f"POST {RUNS}", (200, RUN | {"stdout": "grüß\n", "stdout_encoding": "utf-8"}))
    run = vm.run("cat")
    assert (run.stdout, run.stdout_bytes) == ("grüß\n", "grüß\n".encode())


def test_broken_base64_is_the_servers_fault(server: StubServer, vm: BoxVM) -> None:
    server.script(f"POST {RUNS}", (200, RUN | {"stdout": "a"}))
    with pytest.raises(ServerError):
        _ = vm.run("cat").stdout


def test_a_sequence_of_arguments_is_quoted(server: StubServer, vm: BoxVM) -> None:
    vm.run(["printf", "%s\n", "a b", "$HOME", "it's"])
    assert server.last.body == {"command": "printf '%s\n' 'a b' '$HOME' 'it'\"'\"'s'"}


@pytest.mark.parametrize("command", [[], [b"ls"], b"ls", ["ls", 1]])
def test_what_is_no_command_is_refused_here(server: StubServer, vm: BoxVM, command: object) -> None:
    before = len(server.requests)
    with pytest.raises(BadRequest):
        vm.run(command)  # type: ignore[arg-type]
    assert len(server.requests) == before


def test_all_options_reach_the_server(server: StubServer, vm: BoxVM) -> None:
    vm.run("id", timeout=2, env={"A": "b"}, cwd="/tmp", user="user", stdin="x\n", session=3)
    assert server.last.body == {
        "command": "id", "timeout": 2, "env": {"A": "b"}, "cwd": "/tmp", "user": "user", "stdin": "x\n",
        "stdin_encoding": "utf-8", "session_idx": 3,
    }  # fmt: skip
    vm.run("id", timeout=1.5, stdin=b"\xff\0", session="s1", idempotency_key="k")
    assert server.last.body == {
        "command": "id", "timeout": 1.5, "stdin": "/wA=", "stdin_encoding": "base64", "session_id": "s1",
    }  # fmt: skip
    assert server.last.headers["idempotency-key"] == "k"


def test_a_run_that_outlives_the_servers_window_is_polled_to_its_end(server: StubServer, vm: BoxVM, quick) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    server.script(f"GET {RUNS}/r1", (200, RUN | {"state": "running", "exit_code": None}), (200, RUN))
    run = vm.run("sleep 301")
    assert (run.ok, run.stdout) == (True, "hi")
    assert len(quick) == 1


def test_a_background_run_is_handed_back_at_once(server: StubServer, vm: BoxVM, quick) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    run = vm.run("make", background=True)
    assert server.last.body == {"command": "make", "time_to_background": 0}
    assert (run.state, run.ended, run.ok, run.exit_code, run.stdout) == ("running", False, False, None, "")
    grown = RUN | {"state": "running", "exit_code": None, "stdout": "h", "stdout_encoding": "utf-8"}
    server.script(f"GET {RUNS}/r1", (200, grown), (200, RUN))
    assert run.refresh().stdout == "h"
    assert run.wait() is run
    assert (run.stdout, run.exit_code) == ("hi", 0)


def test_waiting_can_be_bounded(server: StubServer, vm: BoxVM, quick) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    server.script(f"GET {RUNS}/r1", (200, RUN | {"state": "running", "exit_code": None}))
    run = vm.run("sleep 9", background=True)
    with pytest.raises(Timeout, match="it goes on"):
        run.wait(timeout=0)
    with pytest.raises(TimeoutError):
        run.wait(timeout=0)
    server.script(f"GET {RUNS}/r1", (200, RUN))
    assert run.wait(timeout=0).exit_code == 0, "it has ended meanwhile"


def test_the_server_is_asked_to_wait(server: StubServer, vm: BoxVM, quick) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    server.script(f"GET {RUNS}/r1", (200, RUN | {"state": "running", "exit_code": None}), (200, RUN))
    run = vm.run("sleep 9", background=True)
    assert run.refresh().ended is False
    assert server.last.query == {}
    run.wait()
    assert server.last.query == {"wait": ["300.0"]}
    assert quick == [], "the server has waited: there is no need to pause"


def test_cancel_and_signal(server: StubServer, vm: BoxVM) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    run = vm.run("sleep 9", background=True)
    server.script(f"DELETE {RUNS}/r1", (200, {"cancelled": True}))
    assert run.cancel() is True
    server.script(f"POST {RUNS}", (200, {"stdout": "", "stderr": "", "exit_code": None}))
    run.signal("SIGTERM")
    assert server.last.body == {"signal": "SIGTERM", "session_id": "s1"}
    with pytest.raises(BadRequest, match="SIGHUP"):
        run.signal("SIGSTOP")


def test_check_raises_with_the_run(server: StubServer, vm: BoxVM) -> None:
    failed = RUN | {"exit_code": 3, "stderr": "no such thing\n"}
    server.script(f"POST {RUNS}", (200, failed))
    assert vm.run("false").ok is False
    with pytest.raises(CommandFailed, match="exit code 3: no such thing") as caught:
        vm.run("false", check=True)
    assert caught.value.run.exit_code == 3


def test_a_failed_run_is_not_ok_whatever_its_exit_code(server: StubServer, vm: BoxVM) -> None:
    server.script(f"POST {RUNS}", (200, RUN | {"state": "failed", "fail_reason": "timeout"}))
    run = vm.run("sleep 9", timeout=1)
    assert (run.ok, run.fail_reason) == (False, "timeout")


def test_runs_are_listed_page_by_page(server: StubServer, vm: BoxVM) -> None:
    summary = {"run_id": "r1", "state": "completed", "exit_code": 0, "started_at": "2026-01-01T00:00:00Z"}
    server.script(
        f"GET {RUNS}",
        (200, {"runs": [summary], "next_cursor": "c"}),
        (200, {"runs": [summary | {"run_id": "r2"}], "next_cursor": None}),
    )
    assert [run.run_id for run in vm.runs(state="completed", page_size=1)] == ["r1", "r2"]
    assert server.last.query == {"cursor": ["c"], "limit": ["1"], "state": ["completed"]}
    server.script(f"GET {RUNS}/r1", (200, RUN))
    assert isinstance(vm.get_run("r1"), Run)


def test_sessions(server: StubServer, vm: BoxVM) -> None:
    path = f"/v1/vms/{VM_ID}/sessions"
    server.script(f"POST {path}", (200, SESSION))
    server.script(f"GET {path}", (200, {"sessions": [SESSION], "next_cursor": None}))
    server.script(f"GET {path}/s1", (200, SESSION | {"cwd": "/tmp"}))
    server.script(f"DELETE {path}/s1", (200, {"deleted": True}), (404, error("not_found")))
    with vm.session(env={"A": "b"}, cwd="/root") as session:
        assert server.last.body == {"env": {"A": "b"}, "cwd": "/root"}
        assert (session.id, session.index, session.state, session.cwd, session.env) == ("s1", 1, "idle", "/root", {})
        session.run("pwd")
        assert server.last.body == {"command": "pwd", "session_id": "s1"}
        assert session.refresh().cwd == "/tmp"
    assert server.last.method == "DELETE"
    assert [found.id for found in vm.sessions()] == ["s1"]
    with vm.get_session("s1"):
        pass  # somebody else deleted it: no error
    with pytest.raises(NotFound):
        session.delete()


def test_a_program_without_a_shell(server: StubServer, vm: BoxVM) -> None:
    run = vm.exec(["printf", "%s", "$HOME"], env={"K": "V"}, cwd="/srv", user="nobody", stdin="in", timeout=5)
    assert run.stdout == "hi"
    assert server.last.body == {
        "argv": ["printf", "%s", "$HOME"], "env": {"K": "V"}, "cwd": "/srv", "user": "nobody", "timeout": 5,
        "stdin": "in", "stdin_encoding": "utf-8",
    }  # fmt: skip
    server.script(f"POST {RUNS}", (200, RUN | {"exit_code": 126}))
    with pytest.raises(CommandFailed):
        vm.exec(["x"], check=True, idempotency_key="k")
    assert server.last.headers["idempotency-key"] == "k"
    server.script(f"POST {RUNS}", (202, RUNNING))
    assert not vm.exec(["x"], background=True).ended
    assert server.last.body == {"argv": ["x"], "time_to_background": 0}
    for wrong in ("ls", [], [1]):
        with pytest.raises(BadRequest):
            vm.exec(wrong)
