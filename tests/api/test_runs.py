"""Runs over HTTP: the two answers, the window, signals, cancelling, lists; and sessions."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

import contract
from fakes import release
from together import together

OURS = ("duration_ms", "truncated", "fail_reason")
FIVE = {"stdout", "stdout_encoding", "stderr", "stderr_encoding", "exit_code"}


async def test_a_run_that_ends_is_answered_with_its_output(either):
    vm = await either.fork()
    done = await either.run(vm, "echo hello; err oops; exit 3")
    contract.check(done, "CompletedRunResponse", *OURS)
    assert (done["stdout"], done["stderr"], done["exit_code"], done["state"]) == ("hello\n", "oops\n", 3, "completed")
    assert done["duration_ms"] >= 0
    shown = await either.ok("GET", f"/vms/{vm}/runs/{done['run_id']}")
    contract.check(shown, "Run", "duration_ms", "truncated")
    assert shown["stdout"] == "hello\n"
    assert shown["command"] == "echo hello; err oops; exit 3"


async def test_output_that_is_no_text_comes_in_base64(api):
    vm = await api.fork()
    for raw in (b"\xff\x00", b"\xc3", b"plain \xf0\x9f\x8c\xb3\x00"):
        stdin = {"stdin": base64.b64encode(raw).decode(), "stdin_encoding": "base64"}
        done = await api.run(vm, "stdin", **stdin)
        text = done["stdout"]
        got = base64.b64decode(text) if done["stdout_encoding"] == "base64" else text.encode()
        assert got == raw
    assert done["stdout_encoding"] == "utf-8"


async def test_members_of_our_own(api):
    vm = await api.fork()
    done = await api.run(vm, "env A; pwd; stdin", env={"A": "1"}, cwd="/opt", user="nobody", stdin="in ü")
    assert done["stdout"] == "1\n/opt\nin ü"
    assert (await api.run(vm, "env A; pwd"))["stdout"] == "\n/root\n"
    await api.refused(
        400, "bad_request", "POST", f"/vms/{vm}/runs", {"command": "pwd", "stdin": "!", "stdin_encoding": "base64"}
    )
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"command": "pwd", "env": {"A=B": "1"}})
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"command": "pwd\0"})


async def test_a_run_that_goes_on_is_answered_without_output(either):
    vm = await either.fork()
    for window in ({"time_to_background": 0}, {"background": True}):
        response = await either("POST", f"/vms/{vm}/runs", {"command": "echo early; hang", **window})
        assert response.status_code == 202
        begun = response.json()
        contract.check(begun, "BackgroundRunResponse")
        assert not FIVE & set(begun)
        assert begun["state"] == "running"
        assert (await either.ok("DELETE", f"/vms/{vm}/runs/{begun['run_id']}")) == {"cancelled": True}
        ended = await either.ok("GET", f"/vms/{vm}/runs/{begun['run_id']}")
        assert (ended["state"], ended["exit_code"]) == ("cancelled", None)
        assert ended["stdout"] in ("", "early\n")
        assert (await either.ok("DELETE", f"/vms/{vm}/runs/{begun['run_id']}")) == {"cancelled": False}


async def test_a_run_that_outlasts_its_window_goes_on(api):
    vm = await api.fork()
    response = await api("POST", f"/vms/{vm}/runs", {"command": "echo a; hang; echo b", "time_to_background": 0.05})
    assert response.status_code == 202
    run = response.json()["run_id"]
    during = await api.ok("GET", f"/vms/{vm}/runs/{run}")
    assert (during["state"], during["stdout"], during["exit_code"]) == ("running", "a\n", None)
    queued = (await api("POST", f"/vms/{vm}/runs", {"command": "echo c", "time_to_background": 0})).json()
    assert queued["state"] == "running"
    pending = await api.ok("GET", f"/vms/{vm}/runs/{queued['run_id']}")
    assert pending["state"] == "pending"
    assert pending["started_at"] is not None
    waiting = asyncio.ensure_future(api.ok("POST", f"/vms/{vm}/runs", {}))
    release(api.machine, vm)
    assert (await waiting)["stdout"] == "c\n"
    assert (await api.ok("GET", f"/vms/{vm}/runs/{run}"))["stdout"] == "a\nb\n"


async def test_nothing_at_all_needs_something_pending(api):
    vm = await api.fork()
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {})
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", {"env": {"A": "1"}})


async def test_a_window_ends_early_when_the_server_does(api):
    vm = await api.fork()
    waiting = asyncio.ensure_future(api("POST", f"/vms/{vm}/runs", {"command": "hang"}))
    while not (await api.ok("GET", f"/vms/{vm}/runs"))["runs"]:
        await asyncio.sleep(0)
    api.app.stopping.set()
    response = await waiting
    assert (response.status_code, set(response.json())) == (202, {"run_id", "session_id", "state"})
    error = await api.refused(503, "unavailable", "POST", f"/vms/{vm}/runs", {"command": "pwd"})
    assert error["recovery"] == {"work": "not_started"}
    assert (await api("GET", "/health")).status_code == 503
    api.app.stopping.clear()


async def test_a_run_can_be_waited_for(either):
    vm = await either.fork()
    begun = (await either("POST", f"/vms/{vm}/runs", {"command": "echo early; hang", "background": True})).json()
    path = f"/vms/{vm}/runs/{begun['run_id']}"
    assert (await either.ok("GET", path))["state"] == "running"
    assert (await either.ok("GET", path + "?wait=0.01"))["state"] == "running"
    waiting = asyncio.create_task(either.ok("GET", path + "?wait=300"))
    while not waiting.done():  # the command may not have come so far yet
        release(either.machine, vm)
        await asyncio.sleep(0.01)
    done = await waiting
    assert (done["state"], done["stdout"]) == ("completed", "early\n")
    assert (await either.ok("GET", path + "?wait=300"))["state"] == "completed"
    for seconds in ("301", "-1", "nan", "soon"):
        await either.refused(400, "bad_request", "GET", f"{path}?wait={seconds}")


async def test_timeout(api):
    vm = await api.fork()
    done = await api.run(vm, "hang", timeout=1)
    assert done["state"] == "failed"
    assert "timed out" in done["fail_reason"]
    assert (await api.run(vm, "echo on", timeout=0))["stdout"] == "on\n"


async def test_a_prompt_ends_a_run_without_exit_code(api):
    vm = await api.fork()
    assert (await api.run(vm, "prompt"))["exit_code"] is None
    assert (await api.run(vm, "prompt", end_symbol="none"))["state"] == "completed"
    # releases up to 0.6 crash on null
    for agent, code in (("Python-urllib/3.12", 0), ("python-httpx/0.28.1", None)):
        done = await api.ok("POST", f"/vms/{vm}/runs", {"command": "prompt"}, agent=agent)
        assert done["exit_code"] is code or done["exit_code"] == code
    await api.run(vm, "pwd", end_symbol="EOF>")
    spec = api.machine.called("start_run")[-1]
    assert (spec.prompt, spec.marker) == ("none", "EOF>")
    for wrong in ("", "x" * 257, "\u20ac" * 100, "a\0"):
        error = await api.refused(
            400, "bad_request", "POST", f"/vms/{vm}/runs", {"command": "pwd", "end_symbol": wrong}
        )
        assert "end_symbol" in error["message"]


async def test_signals(api):
    vm = await api.fork()
    url = f"/vms/{vm}/runs"
    error = await api.refused(409, "invalid_state", "POST", url, {"signal": "SIGINT"})
    assert error["details"]["requirement"] == "running"
    run = (await api("POST", url, {"command": "hang", "time_to_background": 0})).json()["run_id"]
    while not api.machine.called("start_run"):
        await asyncio.sleep(0)
    said = await api.ok("POST", url, {"signal": "SIGTERM"})
    contract.check(said, "CompletedRunResponse")
    assert set(said) == {*FIVE, "state"}
    while (ended := await api.ok("GET", f"{url}/{run}"))["state"] == "running":
        await asyncio.sleep(0)
    assert ended["exit_code"] == 128 + 15
    await api.refused(404, "not_found", "POST", url, {"signal": "SIGTERM"})
    for wrong in ({"signal": "SIGSTOP"}, {"signal": "SIGINT", "command": "pwd"}, {"signal": "SIGINT", "timeout": 1},
                  {"signal": "SIGINT", "time_to_background": 0}):  # fmt: skip
        await api.refused(400, "bad_request", "POST", url, wrong)


async def test_runs_with_an_idempotency_key(api):
    vm = await api.fork()
    url, key = f"/vms/{vm}/runs", {"headers": {"idempotency-key": "k"}}
    first = await api.ok("POST", url, {"command": "echo x", "queueing_timeout": 9}, **key)
    again = await api.ok("POST", url, {"command": "echo x", "queueing_timeout": 7}, **key)
    assert first == again
    await api.refused(409, "idempotency_conflict", "POST", url, {"command": "echo y"}, **key)


@together(
    "member, ok",
    [
        ({"timeout": -1}, False), ({"time_to_background": 301}, False), ({"time_to_background": 300}, True),
        ({"session_idx": -1}, False), ({"session_idx": 1 << 32}, False), ({"commnad": "x"}, False),
        ({"background": True, "time_to_background": 1}, False), ({"policies": {}}, True),
        ({"acquire": "gpu", "release": "gpu", "vcpu_count": 2, "memory_mib": 1, "network": True}, True),
        ({"timeout": None, "session_id": None, "signal": None, "env": None, "stdin": None}, True),
        ({"env": {"A": 1}}, False), ({"command": 5}, False),
    ],
)  # fmt: skip
async def test_members_of_a_run(api, member, ok):
    vm = await api.fork()
    response = await api("POST", f"/vms/{vm}/runs", {"command": "pwd", **member})
    assert response.status_code == (200 if ok else 400), response.text


async def test_policies_of_a_run_are_the_vms_from_then_on(api):
    vm = await api.fork()
    await api.run(vm, "pwd", policies={"policies": [{"type": "outbound", "action": "deny"}]})
    assert (await api.ok("GET", f"/vms/{vm}"))["policies"]["rules"]["rule-0"]["action"] == "deny"
    body = {"command": "echo x > /ran", "policies": {"rules": {"rule-0": {"type": "outbound"}}}}
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", body)
    assert (await api.run(vm, "test -e /ran"))["exit_code"]


async def test_list_runs(either):
    vm = await either.fork()
    made = [(await either.run(vm, f"echo {number}; exit {number}"))["run_id"] for number in range(5)]
    listed = await either.ok("GET", f"/vms/{vm}/runs?limit=3")
    contract.check(listed, "ListRunsResponse", "duration_ms")
    assert [run["run_id"] for run in listed["runs"]] == made[:1:-1]
    assert not any({"stdout", "retry_count"} & set(run) for run in listed["runs"])
    rest = await either.ok("GET", f"/vms/{vm}/runs", params={"cursor": listed["next_cursor"]})
    assert [run["run_id"] for run in rest["runs"]] == made[1::-1]
    assert (await either.ok("GET", f"/vms/{vm}/runs?state=failed"))["runs"] == []
    last = (await either.ok("GET", f"/vms/{vm}/runs/{made[4]}"))["started_at"]
    for name, count in (("started_after", 1), ("started_before", 5), ("completed_after", 1)):
        assert len((await either.ok("GET", f"/vms/{vm}/runs", params={name: last}))["runs"]) == count
    await either.refused(400, "bad_request", "GET", f"/vms/{vm}/runs?state=lost")
    await either.refused(404, "not_found", "GET", f"/vms/{vm}/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    await either.refused(404, "not_found", "DELETE", f"/vms/{vm}/runs/nope")


async def test_runs_of_other_vms_are_not_found(api):
    one, other = await api.fork(), await api.fork()
    run = (await api.run(one, "pwd"))["run_id"]
    await api.refused(404, "not_found", "GET", f"/vms/{other}/runs/{run}")


async def test_sessions(either):
    vm = await either.fork()
    made = await either.ok("POST", f"/vms/{vm}/sessions", {"env": {"A": "b"}, "cwd": "/opt", "cols": 80, "pty": True})
    contract.check(made, "Session")
    assert (made["session_idx"], made["cwd"], made["env"], made["state"]) == (1, "/opt", {"A": "b"}, "idle")
    sid = made["session_id"]
    assert (await either.run(vm, "pwd; env A", session_id=sid))["stdout"] == "/opt\nb\n"
    assert (await either.ok("GET", f"/vms/{vm}/sessions/{sid}"))["started_at"] is not None
    at_seven = await either.run(vm, "cd /srv", session_idx=7)
    assert (await either.run(vm, "pwd", session_idx=7))["stdout"] == "/srv\n"
    # session_id goes before session_idx
    assert (await either.run(vm, "pwd", session_id=sid, session_idx=7))["session_id"] == sid
    listed = await either.ok("GET", f"/vms/{vm}/sessions")
    contract.check(listed, "ListSessionsResponse")
    assert [session["session_idx"] for session in listed["sessions"]] == [0, 1, 7]
    assert at_seven["session_id"] == listed["sessions"][2]["session_id"]
    assert len((await either.ok("GET", f"/vms/{vm}/sessions?limit=2"))["sessions"]) == 2
    assert len((await either.ok("GET", f"/vms/{vm}/sessions?state=running"))["sessions"]) == 0
    assert await either.ok("DELETE", f"/vms/{vm}/sessions/{sid}") == {"deleted": True}
    for method in ("DELETE", "GET"):
        error = await either.refused(404, "not_found", method, f"/vms/{vm}/sessions/{sid}")
        assert error["details"] == {"resource": "session"}
    await either.refused(404, "not_found", "POST", f"/vms/{vm}/runs", {"command": "pwd", "session_id": sid})


async def test_a_session_without_a_body(api):
    vm = await api.fork()
    assert (await api.ok("POST", f"/vms/{vm}/sessions"))["session_idx"] == 1
    assert (await api.ok("POST", f"/vms/{vm}/sessions", {"env": None, "cwd": None}))["session_idx"] == 2
    for wrong in ({"cwd": "relative"}, {"env": {"": "x"}}, {"env": []}, {"shell": "zsh"}, {"cols": 0}):
        await api.refused(400, "bad_request", "POST", f"/vms/{vm}/sessions", wrong)


async def test_commands_are_bounded(api):
    vm = await api.fork()
    url = f"/vms/{vm}/runs"
    most = 4 * 1024 * 1024
    error = await api.refused(413, "payload_too_large", "POST", url, {"command": "x" * most})
    assert error["details"]["maximum_bytes"] == most
    assert error["details"]["request_bytes"] > most
    done = await api.run(vm, "echo " + "y" * (most - 100))
    assert len(done["stdout"]) == most - 99


async def test_a_program_without_a_shell(api):
    vm = await api.fork()
    run = await api.ok("POST", f"/vms/{vm}/runs", {"argv": ["argv", "two words", "$HOME", "'"]})
    assert (json.loads(run["stdout"]), run["exit_code"]) == (["two words", "$HOME", "'"], 0)
    missing = await api.ok("POST", f"/vms/{vm}/runs", {"argv": ["no-such-program"]})
    assert (missing["exit_code"], missing["state"]) == (127, "completed")
    listed = (await api.ok("GET", f"/vms/{vm}/runs"))["runs"]
    assert [one["command"] for one in listed] == ["no-such-program", """argv 'two words' '$HOME' ''"'"''"""]
    assert len((await api.ok("GET", f"/vms/{vm}/sessions"))["sessions"]) == 1, "it is in no session"


@together(
    "body",
    [
        {"argv": []},
        {"argv": "ls"},
        {"argv": ["a\0b"]},
        {"argv": ["ls"], "command": "ls"},
        {"argv": ["ls"], "session_idx": 0},
        {"argv": ["ls"], "end_symbol": "none"},
        {"argv": ["ls"], "queueing_timeout": 1},
        {"argv": ["ls"], "signal": "SIGINT"},
    ],
)
async def test_programs_that_are_none(api, body):
    vm = await api.fork()
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/runs", body)
    assert not api.machine.called("boot")


@pytest.mark.parametrize(("query", "field"), [("=&=", "query"), ("=x", "query"), ("a=1&a=2", "a"), ("nope=1", "nope")])
async def test_queries_that_make_no_sense(api, query, field):
    error = await api.refused(400, "bad_request", "GET", f"/vms/{await api.fork()}/runs?{query}")
    assert error["message"].startswith(f"{field}: ")
    assert [one["field"] for one in error["details"]["violations"]] == [field]
