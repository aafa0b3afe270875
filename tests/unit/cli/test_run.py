"""`boxwood run`: bytes through and through, and the command's exit code."""

from __future__ import annotations

import base64
import json

import pytest

from unit.client.stub import RUN, STARTED, StubServer, error, exited, put_out, told

DONE = told(STARTED, exited())
RUNS = "/v1/vms/n/runs"


def test_output_goes_through_byte_for_byte(server: StubServer, boxwood) -> None:
    out, err = bytes(range(256)), b"\xff\r\n\0"
    events = STARTED, put_out("stdout", out[:100]), put_out("stderr", err), put_out("stdout", out[100:], 100)
    server.script(f"POST {RUNS}", (200, told(*events, exited(exit_code=7))))
    done = boxwood("run", "n", "cat data")
    assert (done.returncode, done.stdout, done.stderr) == (7, out, err)


def test_one_word_is_shell_text_and_more_are_arguments(server: StubServer, boxwood) -> None:
    server.script(f"POST {RUNS}", (200, DONE))
    boxwood("run", "n", "cd /tmp; ls *")
    assert server.last.body["command"] == "cd /tmp; ls *"
    boxwood("run", "n", "--", "ls", "-l", "a b", "$HOME")
    assert server.last.body["command"] == "ls -l 'a b' '$HOME'"
    boxwood("run", "n", "--timeout", "5", "--", "grep", "--json", "--timeout", "9")
    assert (server.last.body["command"], server.last.body["timeout"]) == ("grep --json --timeout 9", 5)


def test_options(server: StubServer, boxwood) -> None:
    server.script(f"POST {RUNS}", (200, DONE))
    args = ["-e", "A=b=c", "--env", "D=", "--cwd", "/tmp", "--user", "user", "--session", "2", "--no-stdin"]
    boxwood("run", *args, "n", "id")
    assert server.last.body == {
        "command": "id", "env": {"A": "b=c", "D": ""}, "cwd": "/tmp", "user": "user", "session_idx": 2,
    }  # fmt: skip
    boxwood("run", "--session", "01KZ0000000000000000000009", "n", "id")
    assert server.last.body["session_id"] == "01KZ0000000000000000000009"
    assert boxwood("run", "-e", "A", "n", "id").returncode == 2


def test_standard_input_is_handed_on(server: StubServer, boxwood) -> None:
    server.script(f"POST {RUNS}", (200, DONE))
    boxwood("run", "n", "cat", stdin=b"\0\xff\n")
    assert base64.b64decode(server.last.body["stdin"]) == b"\0\xff\n"
    done = boxwood("run", "n", "cat", stdin=b"x" * 3_000_001)
    assert done.returncode == 2
    assert b"boxwood cp" in done.stderr


def test_background_and_json(server: StubServer, boxwood) -> None:
    server.script(f"POST {RUNS}", (202, {"run_id": "r1", "session_id": "s1", "state": "running"}))
    done = boxwood("run", "n", "--background", "sleep 9")
    assert (done.returncode, done.stdout) == (0, b"r1\n")
    assert server.last.body["time_to_background"] == 0
    server.script(f"POST {RUNS}", (200, RUN | {"exit_code": 3}))
    done = boxwood("run", "n", "--json", "x")
    assert done.returncode == 3
    said = json.loads(done.stdout)
    assert (said["stdout"], said["exit_code"], said["state"], said["run_id"]) == ("hi", 3, "completed", "r1")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"state": "failed", "fail_reason": "timeout", "exit_code": 137}, 137),
        ({"state": "failed", "fail_reason": "the box died", "exit_code": None}, 1),
        ({"state": "cancelled", "exit_code": None}, 1),
        ({"state": "completed", "exit_code": None}, 0),
    ],
)
def test_a_run_that_did_not_end_by_itself_says_so(server: StubServer, boxwood, answer, code) -> None:
    server.script(f"POST {RUNS}", (200, told(STARTED, exited(**answer))))
    done = boxwood("run", "n", "x")
    assert done.returncode == code
    if answer["state"] != "completed":
        assert answer["state"].encode() in done.stderr


def test_a_missing_vm(server: StubServer, boxwood) -> None:
    server.script(f"POST {RUNS}", (404, error("not_found", "no such VM")))
    done = boxwood("run", "n", "x")
    assert (done.returncode, done.stderr) == (1, b"boxwood: no such VM\n")
