"""The protocol of ARL's gateway: files, what has happened in a session, and the ways back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from datetime import UTC, datetime

import pytest

from boxwood.core.errors import CapacityUnavailable, ResourceBusy
from boxwood.dialects.arl_gateway import execute, history, snapshots
from boxwood.dialects.arl_gateway.gateway import of_app


def session_of(arl, path: str):
    (found,) = [one for (_, name), one in of_app(arl.api.app).sessions.items() if name == path.rpartition("/")[2]]
    return found


# Files


async def upload(arl, path: str, name: str, data: bytes, **headers: str):
    return await arl("POST", f"{path}/upload-file", content=data, headers={"x-arl-path": name, **headers})


@pytest.mark.parametrize("size", [0, 10, 70_000, (1 << 20) + 1])
async def test_files_go_in_and_out(arl, size):
    path = await arl.session()
    data = bytes(at % 251 for at in range(size))
    digest = hashlib.sha256(data).hexdigest()
    answer = await upload(arl, path, "/srv/d/f.bin", data, **{"x-arl-sha256": digest.upper()})
    assert answer.json() == {"path": "/srv/d/f.bin", "bytesWritten": size, "sha256": digest}
    got = await arl("POST", f"{path}/download-file", {"path": "/srv/d/f.bin"})
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["content-disposition"] == 'attachment; filename="f.bin"'
    (recorded,) = await arl.ok("GET", f"{path}/history")
    assert (recorded["name"], recorded["index"]) == ("upload_file", 0)
    assert recorded["input"] == {"path": "/srv/d/f.bin", "sha256": digest, "size": size}
    assert recorded["output"] == {"stdout": "", "stderr": "", "exit_code": 0}


async def test_relative_paths_are_below_the_workspace(arl):
    path = await arl.session()
    assert (await upload(arl, path, "a/b", b"x")).json()["path"] == "/workspace/a/b"
    assert await arl.said(path, "cat", "/workspace/a/b") == "x"
    assert (await arl("POST", f"{path}/download-file", {"path": "a/b"})).content == b"x"


async def test_names_that_a_header_cannot_hold(arl):
    path = await arl.session()
    await upload(arl, path, "/workspace/q", b"x")
    await arl.execute(path, ["put", 'a"b', "x"])
    got = await arl("POST", f"{path}/download-file", {"path": 'a"b'})
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''a%22b"


@pytest.mark.parametrize("size", [10, (1 << 20) + 1])
async def test_files_with_another_digest_are_not_written(arl, size):
    path = await arl.session()
    await upload(arl, path, "f", b"old")
    answer = await upload(arl, path, "f", b"x" * size, **{"x-arl-sha256": "0" * 64})
    assert answer.status_code == 400 and "sha256 mismatch" in answer.json()["error"]
    assert await arl.said(path, "cat", "f") == "old"
    assert len(await arl.ok("GET", f"{path}/history")) == 2


async def test_files_that_are_refused(arl):
    path = await arl.session()
    await arl.refused(400, "X-ARL-Path header is required", "POST", f"{path}/upload-file", content=b"x")
    for name in ("/", "/a/", "/dir/..", "/a\tb/" * 2000):
        assert (await upload(arl, path, name, b"x")).status_code == 400
    assert (await upload(arl, path, "f", b"x", **{"x-arl-sha256": "zz"})).status_code == 400
    await arl.refused(400, "path is required", "POST", f"{path}/download-file", {})
    await arl.refused(404, "file not found: /workspace/none", "POST", f"{path}/download-file", {"path": "none"})
    await arl.refused(400, "", "POST", f"{path}/download-file", {"path": "a\0b"})
    most = arl.api.config.file_bytes
    headers = {"x-arl-path": "f", "content-length": str(most + 1)}
    await arl.refused(413, "at most", "POST", f"{path}/upload-file", content=b"", headers=headers)
    assert await arl.ok("GET", f"{path}/history") == []


async def test_files_as_older_clients_have_them(arl):
    path = await arl.session()
    text = await arl.ok("POST", f"{path}/files", {"path": "t", "content": "ä", "encoding": "text"})
    assert (text["path"], text["bytesWritten"]) == ("/workspace/t", 2)
    coded = base64.b64encode(b"\xff\0").decode()
    await arl.ok("POST", f"{path}/files", {"path": "sub/b", "content": coded, "encoding": "base64"})
    assert (await arl("GET", f"{path}/files/sub/b")).content == b"\xff\0"
    put = await arl("PUT", f"{path}/files/sub/a%20b", content=b"raw")
    assert put.json()["path"] == "/workspace/sub/a b"
    assert (await arl("GET", f"{path}/files/sub/a%20b")).content == b"raw"
    await arl.refused(
        400, "invalid content", "POST", f"{path}/files", {"path": "t", "content": "!", "encoding": "base64"}
    )
    await arl.refused(400, "encoding", "POST", f"{path}/files", {"path": "t", "content": "", "encoding": "rot13"})
    await arl.refused(404, "file not found", "GET", f"{path}/files/none")


# What has happened


async def test_history_and_trajectory(arl):
    path = await arl.session()
    results = await arl.execute(path, ["echo", "a"], ["sh", "-c", "err b ; exit 2"])
    assert await arl.ok("GET", f"{path}/history") == results
    answer = await arl("GET", f"{path}/trajectory")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[1] == {
        "session_id": path.rpartition("/")[2],
        "step": 1,
        "action": results[1]["input"],
        "observation": {"stdout": "", "stderr": "b\n", "exit_code": 2},
        "snapshot_id": "1",
        "timestamp": results[1]["timestamp"],
    }


async def test_a_long_history(arl):
    path = await arl.session()
    count = 3 * history.CHUNK_STEPS + 1
    await arl.execute(path, *(["echo", str(at)] for at in range(count)))
    shown = await arl.ok("GET", f"{path}/history")
    assert [(one["index"], one["output"]["stdout"]) for one in shown] == [(at, f"{at}\n") for at in range(count)]
    assert len(await arl.api.app.core.records.of_kind(history.KIND)) == 4
    await arl.ok("POST", f"{path}/restore", {"snapshotID": str(history.CHUNK_STEPS + 2)})
    await arl.execute(path, ["echo", "new"])
    shown = await arl.ok("GET", f"{path}/history")
    assert [one["index"] for one in shown] == list(range(history.CHUNK_STEPS + 4))
    assert shown[-1]["output"]["stdout"] == "new\n"


async def test_of_much_output_the_history_keeps_a_part(arl):
    path = await arl.session()
    size = history.HISTORY_BYTES + 10
    (result,) = await arl.execute(path, ["flood", str(size)])
    assert len(result["output"]["stdout"]) == size
    (kept,) = await arl.ok("GET", f"{path}/history")
    assert len(kept["output"]["stdout"]) == history.HISTORY_BYTES
    assert (kept["outputTruncated"], kept["outputBytes"]) == (True, size)


async def test_output_in_an_answer_is_bounded(arl, monkeypatch):
    monkeypatch.setattr(execute, "ANSWER_BYTES", 1000)
    path = await arl.session()
    results = await arl.execute(path, ["flood", "600"], ["flood", "600"], ["echo", "a"])
    assert [len(one["output"]["stdout"]) for one in results] == [600, 400, 0]
    assert [one.get("outputBytes") for one in results] == [None, 600, 2]
    assert [len(one["output"]["stdout"]) for one in await arl.ok("GET", f"{path}/history")] == [600, 600, 2]


async def test_the_oldest_steps_are_forgotten(arl, monkeypatch):
    monkeypatch.setattr(history, "MOST_STEPS", 20)
    path = await arl.session()
    await arl.execute(path, *(["echo", str(at)] for at in range(60)))
    shown = await arl.ok("GET", f"{path}/history")
    assert [one["index"] for one in shown] == list(range(16, 60)), "whole records of them"


async def test_a_history_that_cannot_be_kept_harms_nothing(arl, monkeypatch):
    path = await arl.session()

    async def full(*args, **more):
        raise CapacityUnavailable("full")

    monkeypatch.setattr(arl.api.app.core.records, "create", full)
    assert await arl.said(path, "echo", "a") == "a\n"
    assert await arl.ok("GET", f"{path}/history") == []


async def test_logs(arl):
    path = await arl.session()
    await arl.execute(path, ["echo"], ["nope"])
    lines = [json.loads(line) for line in (await arl("GET", f"{path}/logs?follow=false&tail=100")).text.splitlines()]
    assert [one["source"] for one in lines] == ["gateway", "executor", "executor"]
    assert [one["level"] for one in lines] == ["info", "info", "error"]
    assert lines[2]["message"].startswith("step 1 step 1: exit code 127 after ")
    assert all(set(one) == {"timestamp", "level", "message", "source"} for one in lines)
    assert len((await arl("GET", f"{path}/logs?tail=1")).text.splitlines()) == 1
    assert (await arl("GET", f"{path}/logs?tail=0")).text == ""
    await arl.refused(400, "tail", "GET", f"{path}/logs?tail=-1")


async def test_nobody_waits_for_what_is_not_said_to_him(arl):
    path = f"{await arl.session()}/logs?follow=true&tail=0"
    assert (await asyncio.wait_for(arl("HEAD", path), 10)).content == b""


async def test_logs_are_followed_until_the_end(arl):
    path = await arl.session()
    following = asyncio.create_task(arl("GET", f"{path}/logs?follow=true"))
    session = session_of(arl, path)
    while not session._listeners:
        await asyncio.sleep(0.001)
    await arl.execute(path, ["echo"])
    await arl.ok("DELETE", path, status=204)
    messages = [json.loads(line)["message"] for line in (await following).text.splitlines()]
    assert messages[0].startswith("session created") and messages[-1] == "session ended: deleted"
    assert messages[1].startswith("step 0 ")


# Back


async def test_restore(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "zero"], ["echo", "b"], ["put", "f", "two"], ["rm", "f"])
    was = await arl.ok("GET", f"{path}/history")
    name = (await arl.ok("GET", path))["podName"]
    assert await arl.ok("POST", f"{path}/restore", {"snapshotID": "2"}) == {"snapshotID": "2", "stepsReplayed": 3}
    assert await arl.ok("GET", f"{path}/history") == was[:3]
    shown = await arl.ok("GET", path)
    assert shown["podName"].startswith(f"{name}-r") and shown["id"] == name
    (next_one,) = await arl.execute(path, ["cat", "f"])
    assert (next_one["index"], next_one["output"]["stdout"]) == (3, "two")
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0", "operationID": "op"})
    assert await arl.said(path, "cat", "f") == "zero"
    assert len(arl.api.machine.called("start_run")) == 1 + 4 + 2, "nothing was done twice"


async def test_restore_of_the_step_that_was_last(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "a"])
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    assert await arl.said(path, "cat", "f") == "a"


async def test_steps_that_write_nothing_have_the_snapshot_of_the_one_before(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "a"], ["echo", "1"], ["cat", "f"], ["put", "f", "b"], ["echo", "4"])
    assert list(session_of(arl, path).snapshots) == [0, 3]
    runs = len(arl.api.machine.called("start_run"))
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "4"})
    assert await arl.said(path, "cat", "f") == "b"
    made = await arl.ok("POST", f"{path}/fork", {"step": 2}, 201)
    assert await arl.said(f"/v1/sessions/{made['session']['id']}", "cat", "f") == "a"
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "2"})
    assert await arl.said(path, "cat", "f") == "a"
    assert len(arl.api.machine.called("start_run")) == runs + 3, "nothing was done twice"
    await arl.execute(path, ["put", "f", "c"], ["echo", "5"])
    assert list(session_of(arl, path).snapshots) == [0, 4]
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "3"})
    assert await arl.said(path, "cat", "f") == "a"


async def test_a_step_without_a_snapshot_is_reached_from_the_one_before(arl, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_SNAPSHOTS", 1)
    path = await arl.session()
    steps = [["put", str(at), "x"] for at in range(4)]
    await arl.execute(path, *steps)
    runs = len(arl.api.machine.called("start_run"))
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "1"})
    assert len(arl.api.machine.called("start_run")) == runs + 3, "the directory and two steps"
    results = await arl.execute(path, ["cat", "0"], ["cat", "1"], ["cat", "2"])
    assert [one["output"]["exit_code"] for one in results] == [0, 0, 1]


async def test_uploads_are_done_again_too(arl, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_SNAPSHOTS", 1)
    path = await arl.session()
    await upload(arl, path, "f", b"uploaded")
    await arl.execute(path, ["put", "f", "a"], ["put", "f", "b"])
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    assert await arl.said(path, "cat", "f") == "uploaded"


async def there(arl) -> set[str]:
    """The VMs that there are."""
    return {vm["vm_id"] for vm in (await arl.api.ok("GET", "/vms"))["vms"]}


async def test_a_big_upload_without_a_snapshot_cannot_be_reached(arl, monkeypatch):
    monkeypatch.setattr(snapshots, "MOST_SNAPSHOTS", 0)
    path = await arl.session()
    await upload(arl, path, "f", b"x" * 300_000)
    await arl.execute(path, ["put", "g", "a"])
    vms = await there(arl)
    await arl.refused(409, "step 0 (upload_file) cannot be done again", "POST", f"{path}/restore", {"snapshotID": "0"})
    while await there(arl) != vms:
        await asyncio.sleep(0.001)
    assert len(await arl.ok("GET", f"{path}/history")) == 2


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "9" * 11, "²"])
async def test_snapshots_that_are_none(arl, text):
    path = await arl.session()
    await arl.refused(400, "snapshot", "POST", f"{path}/restore", {"snapshotID": text})
    await arl.refused(404, "snapshot 5 not found", "POST", f"{path}/restore", {"snapshotID": "5"})


async def test_what_runs_when_a_session_goes_back(arl):
    path = await arl.session()
    await arl.execute(path, ["echo", "a"])
    running = asyncio.create_task(arl.execute(path, ["hang"]))
    while not any(p.spec.argv == (b"hang",) for box in arl.api.machine.boxes.values() for p in box.runs.values()):
        await asyncio.sleep(0.001)
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    (result,) = await running
    assert result["output"]["exit_code"] == 1 and "executor error" in result["output"]["stderr"]
    assert len(await arl.ok("GET", f"{path}/history")) == 1


async def test_snapshots_go_with_the_session(arl):
    path = await arl.session()
    await arl.execute(path, *(["put", "f", str(at)] for at in range(4)))
    while len(session_of(arl, path).snapshots) < 4:
        await asyncio.sleep(0.001)
    taken = list(session_of(arl, path).snapshots.values())
    assert len((await arl.api.ok("GET", "/vms"))["vms"]) == 1, "they are in no list"
    await arl.ok("DELETE", path, status=204)
    for vm_id in taken:
        while (await arl.api("GET", f"/vms/{vm_id}")).status_code == 200:
            await asyncio.sleep(0.001)
    assert not await arl.api.app.core.records.of_kind(snapshots.KIND)


async def test_a_snapshot_that_was_being_taken_when_the_server_died(arl):
    """Its record was there first: a snapshot that nobody knows of is never left."""
    path = await arl.session()
    core, session = arl.api.app.core, session_of(arl, path)
    await core.records.create(session.caller, snapshots.KIND, session.id, f"{7:010d}", {}, ttl=60)
    await snapshots.sweep(of_app(arl.api.app))
    assert await core.records.of_kind(snapshots.KIND) == ()


async def test_a_snapshot_that_fails_leaves_no_record(arl, monkeypatch):
    path = await arl.session()
    core = arl.api.app.core

    async def refuse(*_: object) -> None:
        assert await core.records.of_kind(snapshots.KIND), "the record comes first"
        raise ResourceBusy("source", "not now")

    monkeypatch.setattr(core.vms, "fork", refuse)
    await arl.execute(path, ["put", "f", "a"], ["put", "f", "b"])
    assert await core.records.of_kind(snapshots.KIND) == ()
    assert session_of(arl, path).snapshots == {}


async def test_a_slow_snapshot_is_not_taken_too_often(arl, monkeypatch):
    monkeypatch.setattr(snapshots, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "SHARE", 1e9)
    path = await arl.session()
    await arl.execute(path, *(["put", str(at), "x"] for at in range(4)))
    assert list(session_of(arl, path).snapshots) == [0]
    last = await arl.ok("POST", f"{path}/fork", {"step": 3}, 201)
    assert list(session_of(arl, path).snapshots) == [0, 3], "what is asked for is taken"
    await arl.ok("DELETE", f"/v1/sessions/{last['session']['id']}", status=204)
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "2"})
    results = await arl.execute(path, ["cat", "2"], ["cat", "3"])
    assert [one["output"]["exit_code"] for one in results] == [0, 1]


# Forks


async def test_fork(arl):
    path = await arl.session(profile="p", idleTimeoutSeconds=900, configEnv={"vars": {"A": "b"}})
    await arl.execute(path, ["put", "f", "zero"], ["put", "f", "one"])
    made = await arl.ok("POST", f"{path}/fork", {"step": 0}, 201)
    parent = path.rpartition("/")[2]
    assert (made["parentId"], made["forkStep"]) == (parent, 0)
    child = made["session"]
    assert (child["parentSessionId"], child["forkStep"], child["profile"]) == (parent, 0, "p")
    assert child["id"] != parent
    new = f"/v1/sessions/{child['id']}"
    first, second = await arl.execute(new, ["cat", "f"], ["env", "A"])
    assert (first["index"], first["output"]["stdout"], second["output"]["stdout"]) == (0, "zero", "b\n")
    assert await arl.said(path, "cat", "f") == "one", "the source goes on"
    await arl.ok("DELETE", path, status=204)
    await arl.execute(new, ["put", "f", "child"])
    await arl.ok("POST", f"{new}/restore", {"snapshotID": "1"})
    assert await arl.said(new, "cat", "f") == "zero"
    grandchild = await arl.ok("POST", f"{new}/fork", {"step": 0}, 201)
    assert await arl.said(f"/v1/sessions/{grandchild['session']['id']}", "cat", "f") == "zero"


async def test_fork_of_the_last_step_and_of_none(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "a"])
    made = await arl.ok("POST", f"{path}/fork", {"step": 0}, 201)
    assert await arl.said(f"/v1/sessions/{made['session']['id']}", "cat", "f") == "a"
    await arl.refused(404, "snapshot 1 not found", "POST", f"{path}/fork", {"step": 1})
    await arl.refused(400, "step", "POST", f"{path}/fork", {"step": -1})
    await arl.refused(400, "step", "POST", f"{path}/fork", {})


async def test_fork_of_a_session_that_has_ended_does_its_steps_again(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "a"], ["put", "f", "b"])
    await arl.ok("DELETE", path, status=204)
    made = await arl.ok("POST", f"{path}/fork", {"step": 0, "image": "ubuntu"}, 201)
    assert await arl.said(f"/v1/sessions/{made['session']['id']}", "cat", "f") == "a"


async def test_a_fork_of_a_fork_that_has_ended(arl):
    path = await arl.session()
    await arl.execute(path, ["put", "f", "a"])
    child = await arl.ok("POST", f"{path}/fork", {"step": 0}, 201)
    child_path = f"/v1/sessions/{child['session']['id']}"
    await arl.execute(child_path, ["put", "g", "b"])
    base = session_of(arl, child_path).facts.base
    await arl.ok("DELETE", child_path, status=204)
    while (await arl.api("GET", f"/vms/{base}")).status_code == 200:  # its own beginning goes too
        await asyncio.sleep(0.001)
    await arl.refused(404, "snapshot 0 not found any more", "POST", f"{child_path}/fork", {"step": 0})


async def test_what_a_session_goes_on_in_is_idle_as_it_was(arl):
    path = await arl.session(idleTimeoutSeconds=600)
    await arl.execute(path, ["put", "f", "a"], ["put", "f", "b"])
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    child = await arl.ok("POST", f"{path}/fork", {"step": 0}, 201)
    core = arl.api.app.core
    for one in (session_of(arl, path), session_of(arl, child["session"]["id"])):
        vm = await core.vms.get(one.caller, one.facts.vm)
        assert 600 < (vm.expires_at - datetime.now(UTC)).total_seconds() < 640


# Replays


async def test_replay(arl):
    source, target = await arl.session(), await arl.session()
    await arl.execute(source, ["put", "f", "a"], ["sh", "-c", "exit 3"], ["put", "f", "b"])
    body = {"sourceSessionID": source.rpartition("/")[2], "upToStep": 1}
    assert await arl.ok("POST", f"{target}/replay", body) == {"stepsReplayed": 2, "errors": 0}
    assert await arl.ok("GET", f"{target}/history") == []
    assert await arl.said(target, "cat", "f") == "a"
    await arl.ok("DELETE", source, status=204)
    body = {"sourceSessionID": source.rpartition("/")[2], "operationID": "op"}
    assert await arl.ok("POST", f"{target}/replay", body) == {"stepsReplayed": 3, "errors": 0}
    assert await arl.said(target, "cat", "f") == "b"


async def test_replays_that_are_refused(arl, arl_user):
    path, other = await arl.session(), await arl_user.session()
    await arl.refused(400, "sourceSessionID is required", "POST", f"{path}/replay", {})
    await arl.refused(404, "session not found", "POST", f"{path}/replay", {"sourceSessionID": "none"})
    body = {"sourceSessionID": path.rpartition("/")[2]}
    await arl_user.refused(403, "access denied", "POST", f"{other}/replay", body)


async def test_what_cannot_be_replayed_is_counted(arl):
    source, target = await arl.session(), await arl.session()
    await upload(arl, source, "f", b"x" * 300_000)
    await arl.execute(source, ["echo", "a"])
    body = {"sourceSessionID": source.rpartition("/")[2]}
    assert await arl.ok("POST", f"{target}/replay", body) == {"stepsReplayed": 1, "errors": 1}
