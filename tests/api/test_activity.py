"""The log of the organisation: what was asked for, how long each phase took, who may see it, and for how long."""

from __future__ import annotations

import time

import pytest

import contract
from boxwood.core import activity
from boxwood.core.model import Caller
from boxwood.store import keys as key_rows
from fakes import release
from together import together


async def rows(api, **query):
    return (await api.ok("GET", "/runs", params=query))["rows"]


@pytest.fixture
async def vm(api):
    """One fork, one run in its shell that fails, one program, a file written and read, one run that is refused."""
    vm = await api.fork(name="named")
    await api.run(vm, "echo shell; exit 3")
    await api.ok("POST", f"/vms/{vm}/runs", {"argv": ["argv", "a b"]})
    chunk = {"path": "/srv/f", "size": 1, "upload_id": "u", "start": 0, "end": 1, "content": "eA=="}
    await api.ok("POST", "/vms/named/sync", {"op": "write", "writes": [chunk]})
    await api.ok("POST", f"/vms/{vm}/sync", {"op": "read", "path": "/srv/f"})
    await api("POST", f"/vms/{vm}/runs", {"command": "x", "session_id": "nope"})
    return vm


async def test_everything_that_was_asked_for_is_in_it(either, vm):
    api, began = either, time.time()
    answer = await api.ok("GET", "/runs")
    contract.check(answer, "ListOrgRunsResponse")
    assert answer["limit"] == 100 and answer["since"] < began <= answer["until"] + 1
    refused, read, wrote, program, shell, fork = answer["rows"]  # the newest first
    assert [row["endpoint"] for row in answer["rows"]] == ["run", "sync", "sync", "run", "run", "fork"]
    assert {row["vm_id"] for row in answer["rows"]} == {vm}
    assert (fork["method"], fork["status"], fork["run_id"], fork["exit_code"]) == ("POST", 200, "", None)
    assert (shell["command"], shell["executor_kind"], shell["exit_code"]) == ("echo shell; exit 3", "shell", 3)
    assert (program["command"], program["executor_kind"], program["exit_code"]) == ("argv 'a b'", "program", 0)
    assert (read["path"], wrote["path"], refused["status"]) == ("/srv/f", "/srv/f", 404)
    assert refused["command"] == "x" and "state" not in refused
    for row in answer["rows"]:
        assert api.key.startswith(row["api_key_prefix"]) and row["api_key_prefix"]
        assert abs(row["t_ms"] / 1000 - began) < 60 and row["total_ms"] > 0 and row["body_bytes_in"] > 0
        assert row["body_in"] == row["body_out"] == "" and row["body_bytes_out"] > 0
    shown = (await api.ok("GET", f"/vms/{vm}/runs"))["runs"]
    assert {run["run_id"] for run in shown} == {shell["run_id"], program["run_id"]}
    assert shell["session_id"] and shell["total_ms"] >= shell["executor_duration_ms"] and shell["queue_ms"] >= 0


async def test_a_run_that_goes_on_is_told_as_it_is_now(api, vm):
    await api.run(vm, "hang", background=True)
    second = (await api.run(vm, "exit 4", background=True))["run_id"]
    (row,) = await rows(api, search=second)
    assert (row["status"], row["state"], row["exit_code"]) == (202, "pending", None)
    release(api.machine, vm)
    await api.ok("GET", f"/vms/{vm}/runs/{second}?wait=60")
    (row,) = await rows(api, search=second.lower())
    assert (row["state"], row["exit_code"]) == ("completed", 4)


async def test_a_run_that_is_followed_is_in_it_once(api, vm):
    await api("POST", f"/vms/{vm}/runs", {"command": "echo followed"}, headers={"accept": "text/event-stream"})
    (row,) = await rows(api, search="followed")
    assert (row["status"], row["state"], row["exit_code"]) == (200, "completed", 0)


async def test_it_outlives_the_vm_and_the_server(api, vm):
    await api.ok("DELETE", f"/vms/{vm}")
    found = await rows(api, vm=vm)
    assert [row["exit_code"] for row in found if row["endpoint"] == "run"] == [None, 0, 3]
    assert found[0]["vm_vcpus"] == found[0]["vm_memory_mib"] == 0


@together(
    ("query", "endpoints"),
    [
        ({"endpoint": "fork"}, "fork"),
        ({"actions": "fork,sync"}, "sync sync fork"),
        ({"endpoint": "run", "status": "2xx"}, "run run"),
        ({"status": "404,5xx"}, "run"),
        ({"status_min": "400"}, "run"),
        ({"status_max": "399", "endpoint": "run"}, "run run"),
        ({"runtime": "program"}, "run"),
        ({"search": "SHELL"}, "run"),
        ({"search": "/srv/"}, "sync sync"),
        ({"search": "%"}, ""),
        ({"vm": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, ""),
        ({"until": "1"}, ""),
        ({"since": "9999999999"}, ""),
        ({"limit": "2"}, "run sync"),
        ({"limit": "2", "offset": "1"}, "sync sync"),
        ({"dir": "asc", "limit": "1"}, "fork"),
        ({"sort": "status", "limit": "1"}, "run"),
        ({"sort": "path", "limit": "2"}, "sync sync"),
        ({"lite": "True", "limit": "20000"}, "run sync sync run run fork"),
    ],
)
async def test_filters(api, vm, query, endpoints):
    assert [row["endpoint"] for row in await rows(api, **query)] == endpoints.split()


async def test_every_column_can_be_sorted_by(api, vm):
    members = {
        "when": "t_ms", "status": "status", "path": "path", "total": "total_ms", "queue": "queue_ms",
        "your_code": "executor_duration_ms", "runtime": "executor_kind",
    }  # fmt: skip
    for sort, member in members.items():
        for direction in ("asc", "desc"):
            found = [row[member] for row in await rows(api, sort=sort, dir=direction)]
            assert found == sorted(found, reverse=direction == "desc") and len(found) == 6
    both = f"{vm}, 01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert len(await rows(api, vms=both)) == 6


@together(
    "query",
    ["limit=0", "limit=20001", "offset=-1", "endpoint=x", "actions=run,x", "status=abc", "status=٤٠٤", "sort=x", "dir=up",
     "since=-1", "since=x", "lite=maybe", "more=1", "search=%00", "status_min=x"],
)  # fmt: skip
async def test_nonsense_is_refused(api, query):
    await api.refused(400, "bad_request", "GET", f"/runs?{query}")


async def test_pages_are_bounded_and_say_so(api):
    assert (await api.ok("GET", "/runs?limit=20000"))["limit"] == 200
    assert (await api.ok("GET", "/runs?limit=20000&lite=1"))["limit"] == 20_000


async def test_old_clients_find_the_members_that_they_demand(api, vm):
    told = await api.ok("GET", "/runs", agent="Python-urllib/3.11")
    for row in told["rows"]:
        assert {"source", "lambda_call_ms", "lambda_duration_ms", "lambda_cpu_ms", "lambda_mem_mb"} <= row.keys()


async def test_the_first_generation_is_in_it(api):
    forked = await api.ok("POST", "//api/v1/vms/fork", {"from": "ubuntu"}, agent="Python-urllib/3.11")
    await api.ok("POST", f"//api/v1/vms/{forked['vm_id']}/run", {"command": "exit 5"}, agent="Python-urllib/3.11")
    run, fork = await rows(api, vm=forked["vm_id"])
    assert (fork["endpoint"], run["endpoint"], run["exit_code"], run["command"]) == ("fork", "run", 5, "exit 5")


async def test_others_see_nothing_of_it(api, vm):
    core = api.app.core
    await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
    stranger = {"authorization": f"Bearer {made.key}"}
    assert (await api.ok("GET", f"/runs?vm={vm}", headers=stranger))["rows"] == []
    await api("POST", f"/vms/{vm}/runs", {"command": "echo theirs"}, headers=stranger)  # refused
    assert await rows(api, search="theirs") == []
    assert [row["status"] for row in (await api.ok("GET", "/runs", headers=stranger))["rows"]] == [404]


async def test_it_is_bounded(api, vm, monkeypatch):
    monkeypatch.setattr(activity, "MOST_KEPT", 2)
    monkeypatch.setattr(activity, "MOST_WAITING", 1)
    await api.run(vm, "echo " + "x" * 10_000)
    (newest, *_) = await rows(api)
    assert len(newest["command"]) == activity.COMMAND_CHARACTERS
    await api.app.core.activity.forget(3600)
    assert len(await rows(api)) == 2
    await api.app.core.activity.forget(-3600)
    assert await rows(api) == []
