"""`boxwood run`: bytes through and through, and the command's exit code."""

from __future__ import annotations

import base64
import json
import random
import threading

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
    for option in ("--json", "--background"):
        done = boxwood("run", "n", option, "cat", stdin=b"x" * 3_000_001)
        assert done.returncode == 2
        assert b"boxwood cp" in done.stdout + done.stderr


class Reader:
    """A run that reads what it is given; its events end once that has ended."""

    def __init__(self, server: StubServer) -> None:
        self.given = bytearray()
        self.ended = threading.Event()
        server.script(f"POST {RUNS}", self._begin)
        server.script(f"POST {RUNS}/r1/stdin", self._take)
        server.script(f"GET {RUNS}/r1/events", self._tell)

    def _begin(self, request):
        self.given += base64.b64decode(request.body.get("stdin", ""))
        return 202, {"run_id": "r1", "session_id": "s1", "state": "running"}

    def _take(self, request):
        at = int(request.query.get("offset", [len(self.given)])[0])
        assert at == len(self.given)
        taken = (request.body or b"")[:40_000]  # there is no more room at once
        self.given += taken
        closed = "eof" in request.query and len(taken) == len(request.body or b"")
        if closed:
            self.ended.set()
        return 200, {"offset": len(self.given), "taken": len(taken), "closed": closed}

    def _tell(self, request):
        self.ended.wait(30)
        return 200, told(STARTED, put_out("stdout", bytes(self.given[-5:])), exited(exit_code=4))


@pytest.mark.parametrize(("options", "size"), [(["-i"], 0), (["-i"], 200_000), ([], 3_200_000)])
def test_input_without_a_bound_is_handed_on_as_it_comes(server: StubServer, boxwood, options, size) -> None:
    reader, data = Reader(server), random.Random(1).randbytes(size)
    done = boxwood("run", *options, "n", "cat", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (4, data[-5:], b"")
    assert reader.given == data
    begun = next(request for request in server.requests if request.path == RUNS)
    assert begun.body["stdin_open"] is True and begun.body["time_to_background"] == 0


def test_a_run_that_reads_no_more_is_followed_to_its_end(server: StubServer, boxwood) -> None:
    reader = Reader(server)
    server.script(
        f"POST {RUNS}/r1/stdin", (200, {"offset": 0}),
        lambda request: reader.ended.set() or (409, error("conflict", "closed", details={"resource": "run"})),
    )  # fmt: skip
    done = boxwood("run", "-i", "n", "head -c 0", stdin=b"x")
    assert (done.returncode, done.stderr) == (4, b"")


def test_interactive_is_for_whoever_listens(boxwood) -> None:
    assert boxwood("run", "-i", "--json", "n", "x").returncode == 2
    assert boxwood("run", "-i", "--background", "n", "x").returncode == 2


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
