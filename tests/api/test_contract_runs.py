"""Sentences of the contract on runs and sessions (wire 2.7 to 2.9) that no other test holds; on a fake engine."""

from __future__ import annotations

import asyncio

import contract
from boxwood.engine.api import GuestError
from fakes import release

FIVE = {"stdout", "stdout_encoding", "stderr", "stderr_encoding", "exit_code"}


async def until_runs(api, vm, count=1):
    while len(api.machine.called("start_run")) < count:
        await asyncio.sleep(0)


async def test_who_waits_for_a_run_that_is_cancelled_is_told_with_its_output(api):
    """200: recorded output, no exit code."""
    vm = await api.fork()
    waiting = asyncio.ensure_future(api("POST", f"/vms/{vm}/runs", {"command": "echo begun; hang"}))
    while not (runs := (await api.ok("GET", f"/vms/{vm}/runs"))["runs"]):
        await asyncio.sleep(0)
    url = f"/vms/{vm}/runs/{runs[0]['run_id']}"
    while (await api.ok("GET", url))["stdout"] != "begun\n":
        await asyncio.sleep(0)
    assert await api.ok("DELETE", url) == {"cancelled": True}
    answer = await waiting
    done = answer.json()
    contract.check(done, "CompletedRunResponse", "duration_ms", "truncated", "fail_reason")
    assert answer.status_code == 200 and set(done) >= FIVE
    assert (done["state"], done["stdout"], done["exit_code"]) == ("cancelled", "begun\n", None)


async def test_what_waited_too_long_to_begin_is_unavailable_and_never_begins(api):
    vm = await api.fork()
    url = f"/vms/{vm}/runs"
    await api("POST", url, {"command": "hang", "time_to_background": 0})
    error = await api.refused(503, "unavailable", "POST", url, {"command": "put /x 1", "queueing_timeout": 1})
    assert error["recovery"] == {"work": "not_started"}
    release(api.machine, vm)
    assert (await api.run(vm, "cat /x"))["exit_code"] == 1


async def test_selectors_that_are_left_out_mean_the_default_session(api):
    vm = await api.fork()
    default = (await api.ok("GET", f"/vms/{vm}/sessions"))["sessions"][0]
    assert default["session_idx"] == 0
    for selectors in ({}, {"session_idx": 0}, {"session_id": default["session_id"]}, {"session_id": None, "session_idx": None}):  # fmt: skip
        assert (await api.run(vm, "pwd", **selectors))["session_id"] == default["session_id"]


async def test_sessions_run_side_by_side_and_one_run_at_a_time_each(api):
    vm = await api.fork()
    url = f"/vms/{vm}/runs"
    for index in (0, 0, 1, 2):
        await api("POST", url, {"command": "hang", "session_idx": index, "time_to_background": 0})
    await until_runs(api, vm, 3)
    states = sorted(run["state"] for run in (await api.ok("GET", url))["runs"])
    assert states == ["pending", "running", "running", "running"]
    for state, count in (("running", 3), ("pending", 1), ("completed", 0)):
        assert len((await api.ok("GET", f"{url}?state={state}"))["runs"]) == count
    for state, indexes in (("running", [0, 1, 2]), ("idle", [])):
        listed = (await api.ok("GET", f"/vms/{vm}/sessions?state={state}"))["sessions"]
        assert [one["session_idx"] for one in listed] == indexes


async def test_a_session_that_is_deleted_takes_its_runs_with_it(api):
    """Those that wait too; what names it from then on is refused, and so is its index until it is gone."""
    vm = await api.fork()
    url = f"/vms/{vm}/runs"
    session = (await api.ok("POST", f"/vms/{vm}/sessions", {}))["session_id"]
    made = [
        (await api("POST", url, {"command": "hang", "session_id": session, "time_to_background": 0})).json()["run_id"]
        for _ in range(3)
    ]
    await until_runs(api, vm)
    assert await api.ok("DELETE", f"/vms/{vm}/sessions/{session}") == {"deleted": True}
    for run in made:
        ended = await api.ok("GET", f"{url}/{run}")
        assert (ended["state"], ended["exit_code"]) == ("cancelled", None)
    error = await api.refused(404, "not_found", "POST", url, {"command": "pwd", "session_id": session})
    assert error["details"] == {"resource": "session"}


async def test_a_deletion_that_does_not_come_to_its_end_is_to_be_retried(api):
    """503; meanwhile nobody sees the session, and its index is refused."""
    vm = await api.fork()
    place = f"/vms/{vm}/sessions"
    session = (await api.ok("POST", place, {}))["session_id"]
    await api.run(vm, "pwd", session_id=session)
    api.machine.fail["close_session"] = [GuestError(16, "still busy")]
    error = await api.refused(503, "unavailable", "DELETE", f"{place}/{session}")
    assert "delete it again" in error["message"] and "recovery" not in error
    assert session not in {one["session_id"] for one in (await api.ok("GET", place))["sessions"]}
    await api.refused(404, "not_found", "GET", f"{place}/{session}")
    await api.refused(404, "not_found", "POST", f"/vms/{vm}/runs", {"command": "pwd", "session_id": session})
    await api.refused(503, "unavailable", "POST", f"/vms/{vm}/runs", {"command": "pwd", "session_idx": 1})
    assert await api.ok("DELETE", f"{place}/{session}") == {"deleted": True}
    await api.refused(404, "not_found", "DELETE", f"{place}/{session}")
    assert (await api.run(vm, "pwd", session_idx=1))["session_id"] != session


async def test_what_fails_for_another_reason_than_the_command_is_a_result(api):
    """No error of HTTP: `failed`, with a reason, also where the request waited."""
    vm = await api.fork()
    waiting = asyncio.ensure_future(api("POST", f"/vms/{vm}/runs", {"command": "echo a; hang"}))
    await until_runs(api, vm)
    api.machine.boxes[vm].die("killed by the kernel")
    answer = await waiting
    assert answer.status_code == 200
    assert answer.json()["state"] == "failed" and "killed by the kernel" in answer.json()["fail_reason"]
    assert answer.json()["exit_code"] is None
