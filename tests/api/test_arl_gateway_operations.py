"""The protocol of ARL's gateway: operations with ids, what is told as it comes, and what outlives a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from boxwood.core.core import Core
from boxwood.dialects.arl_gateway import operations
from boxwood.dialects.arl_gateway.gateway import of_app
from boxwood.server.app import App
from fakes import fake_engine, release


def step(*argv: str, name: str = "a") -> dict[str, Any]:
    return {"name": name, "command": list(argv)}


async def hanging(arl) -> str:
    """The VM in which something hangs, once it does."""
    while True:
        for vm_id, box in arl.api.machine.boxes.items():
            if any(process.end is None and process.spec.argv == (b"hang",) for process in box.runs.values()):
                return vm_id
        await asyncio.sleep(0.001)


@pytest.fixture
def short_hold(arl):
    """A request is held for a moment."""
    core = arl.api.app.core
    core.config = replace(core.config, arl_hold_seconds=0.01)


async def test_the_same_id_is_the_same_operation(arl):
    path = await arl.session()
    body = {"steps": [step("echo", "a")], "operationID": "op-1"}
    first = await arl.ok("POST", f"{path}/execute", body)
    assert first["operationID"] == "op-1"
    assert await arl.ok("POST", f"{path}/execute", body) == first
    assert len(await arl.ok("GET", f"{path}/history")) == 1
    shown = await arl.ok("GET", f"{path}/operations/op-1")
    assert (shown["status"], shown["result"], shown["operationID"]) == ("done", first, "op-1")
    assert shown["sessionID"] == path.rpartition("/")[2]
    assert {"createdAt", "startedAt", "finishedAt"} <= shown.keys()


async def test_the_same_id_with_something_else(arl):
    path = await arl.session()
    await arl.ok("POST", f"{path}/execute", {"steps": [step("echo", "a")], "operationID": "op"})
    for method_body in (("execute", {"steps": [step("echo", "b")]}), ("restore", {"snapshotID": "0"})):
        route, body = method_body
        await arl.refused(
            409, "operation op already exists with different request", "POST", f"{path}/{route}", {**body, "operationID": "op"}
        )  # fmt: skip
    assert len(await arl.ok("GET", f"{path}/history")) == 1


async def test_ids_are_a_sessions_own(arl):
    one, other = await arl.session(), await arl.session()
    body = {"steps": [step("echo", "a")], "operationID": "op"}
    await arl.ok("POST", f"{one}/execute", body)
    await arl.ok("POST", f"{other}/execute", {**body, "steps": [step("echo", "b")]})


async def test_twice_at_once(arl):
    path = await arl.session()
    body = {"steps": [step("hang")], "operationID": "op"}
    both = [asyncio.create_task(arl.ok("POST", f"{path}/execute", body)) for _ in range(2)]
    release(arl.api.machine, await hanging(arl))
    one, other = await asyncio.gather(*both)
    assert one == other
    assert len(await arl.ok("GET", f"{path}/history")) == 1


async def test_what_takes_long_is_answered_with_202(arl, short_hold):
    path = await arl.session()
    body = {"steps": [step("hang")], "operationID": "op"}
    assert await arl.ok("POST", f"{path}/execute", body, 202) == {"operationID": "op", "status": "running"}
    shown = await arl.ok("GET", f"{path}/operations/op")
    assert shown["status"] == "running"
    assert "result" not in shown and "finishedAt" not in shown
    again = asyncio.create_task(arl.ok("POST", f"{path}/execute", body))
    release(arl.api.machine, await hanging(arl))
    result = await again  # 200, however long it takes
    while (shown := await arl.ok("GET", f"{path}/operations/op"))["status"] == "running":
        await asyncio.sleep(0.001)
    assert shown["result"] == result


async def test_a_question_is_held_until_it_is_done(arl):
    path = await arl.session()
    posted = asyncio.create_task(arl.ok("POST", f"{path}/execute", {"steps": [step("hang")], "operationID": "op"}))
    vm_id = await hanging(arl)
    asked = asyncio.create_task(arl.ok("GET", f"{path}/operations/op"))
    release(arl.api.machine, vm_id)
    assert (await asked)["result"] == await posted


async def test_what_was_asked_for_in_vain_is_not_answered_with_202(arl, short_hold):
    """Clients that lost the connection before the request came ask first, and read what answers the second request as
    the result."""
    path = await arl.session()
    told = await arl.refused(404, "operation op not found", "GET", f"{path}/operations/op")
    assert set(told) == {"error"}
    posted = asyncio.create_task(arl.ok("POST", f"{path}/execute", {"steps": [step("hang")], "operationID": "op"}))
    release(arl.api.machine, await hanging(arl))
    assert (await posted)["results"][0]["output"]["exit_code"] == 0


async def test_work_goes_on_without_its_client(arl):
    path = await arl.session()
    body = {"steps": [step("hang"), step("put", "f", "done")], "operationID": "op"}
    posted = asyncio.create_task(lost(arl, "POST", f"{path}/execute", body))
    vm_id = await hanging(arl)
    release(arl.api.machine, vm_id)
    shown = await arl.ok("GET", f"{path}/operations/op")
    assert [one["output"]["exit_code"] for one in shown["result"]["results"]] == [0, 0]
    await posted


async def lost(arl, method: str, path: str, body: Any) -> None:
    """A request whose client goes away as soon as it has been sent."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("there is nobody to answer")

    await arl.api.app(scope(arl, method, path), receive, send)


def scope(arl, method: str, path: str, **headers: str) -> dict[str, Any]:
    given = {"host": "127.0.0.1", "authorization": f"Bearer {arl.key}", **headers}
    raw = f"/arl{path}".encode()
    return {
        "type": "http", "method": method, "path": raw.decode(), "raw_path": raw, "query_string": b"", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip


async def test_results_in_memory_are_bounded(arl, monkeypatch):
    monkeypatch.setattr(operations, "KEPT_BYTES", 1000)
    path = await arl.session()
    bodies = [{"steps": [step("flood", "600", name=str(at))], "operationID": f"op-{at}"} for at in range(3)]
    answers = [await arl.ok("POST", f"{path}/execute", body) for body in bodies]
    assert [await arl.ok("POST", f"{path}/execute", body) for body in bodies] == answers
    assert (await arl.ok("GET", f"{path}/operations/op-0"))["result"] == answers[0]


async def test_operations_in_memory_are_bounded(arl, monkeypatch):
    """Those before are known from their records."""
    monkeypatch.setattr(operations, "MOST_KNOWN", 1)
    path = await arl.session()
    bodies = [{"steps": [step("echo", name)], "operationID": name} for name in ("a", "b", "c")]
    answers = [await arl.ok("POST", f"{path}/execute", body) for body in bodies]
    assert len(of_app(arl.api.app).operations._known) == 1
    while (await arl.ok("GET", f"{path}/operations/b"))["status"] == "running":
        await asyncio.sleep(0.001)
    assert [await arl.ok("POST", f"{path}/execute", body) for body in bodies] == answers


async def test_what_cannot_be_put_on_record_is_not_done(arl, monkeypatch):
    """Else it would be done twice, should the server die."""
    path = await arl.session()
    monkeypatch.setattr("boxwood.core.records.MOST", 1)
    body = {"steps": [step("echo", "a")], "operationID": "op"}
    await arl.refused(503, "objects already", "POST", f"{path}/execute", body)
    assert await arl.ok("GET", f"{path}/history") == []


async def test_operations_are_forgotten(arl, monkeypatch):
    monkeypatch.setattr(operations, "KEPT_SECONDS", 0.01)
    path = await arl.session()
    await arl.ok("POST", f"{path}/execute", {"steps": [step("echo")], "operationID": "op"})
    while (await arl("GET", f"{path}/operations/op")).status_code == 200:
        await of_app(arl.api.app).sweep()
        await asyncio.sleep(0.005)
    await arl.refused(404, "operation op not found", "GET", f"{path}/operations/op")


async def test_an_operation_that_fails(arl):
    path = await arl.session()
    body = {"snapshotID": "7", "operationID": "op"}
    await arl.refused(404, "snapshot 7 not found", "POST", f"{path}/restore", body)
    shown = await arl.ok("GET", f"{path}/operations/op")
    assert (shown["status"], shown["error"]) == ("error", "snapshot 7 not found")


# As it comes


def events(text: str) -> list[tuple[str, Any]]:
    """As clients read them."""
    found, kind = [], ""
    for line in text.split("\n"):
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


STREAM = {"accept": "text/event-stream"}


async def test_events(arl):
    path = await arl.session()
    body = {"steps": [step("sh", "-c", "echo a ; err b ; exit 4"), step("nope")]}
    answer = await arl("POST", f"{path}/execute", body, headers=STREAM)
    assert answer.headers["content-type"] == "text/event-stream"
    told = events(answer.text)
    results = [data for kind, data in told if kind == "result"]
    assert [one["index"] for one in results] == [0, 1]
    assert results[0]["output"] == {"stdout": "a\n", "stderr": "b\n", "exit_code": 4}
    assert results[1]["output"]["exit_code"] == 127
    first = [data for kind, data in told[: told.index(("result", results[0]))]]
    assert "".join(one["stdout"] for one in first) == "a\n"
    assert "".join(one["stderr"] for one in first) == "b\n"
    assert await arl.ok("GET", f"{path}/history") == results


async def test_events_are_asked_for_exactly_so(arl):
    path = await arl.session()
    for headers, more in (({"accept": "text/event-stream, application/json"}, {}), (STREAM, {"operationID": "op"})):
        answer = await arl("POST", f"{path}/execute", {"steps": [step("echo")], **more}, headers=headers)
        assert answer.headers["content-type"] == "application/json"


async def test_no_character_is_cut_in_two(arl):
    path = await arl.session()
    body = {"steps": [step("sh", "-c", "bytes c3 ; bytes a4 ; bytes ff")]}
    told = events((await arl("POST", f"{path}/execute", body, headers=STREAM)).text)
    assert "".join(data["stdout"] for kind, data in told if kind == "output") == "ä\N{REPLACEMENT CHARACTER}"


async def test_events_come_when_they_happen_and_all_is_done_without_a_listener(arl):
    path = await arl.session()
    steps = [step("sh", "-c", "echo begun ; hang"), step("put", "f", "done")]
    sent: asyncio.Queue[Any] = asyncio.Queue()
    gone = asyncio.Event()
    body = [{"type": "http.request", "body": json.dumps({"steps": steps}).encode()}]

    async def receive() -> Any:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    request = asyncio.create_task(arl.api.app(scope(arl, "POST", f"{path}/execute", **STREAM), receive, sent.put))
    assert (await sent.get())["type"] == "http.response.start"
    assert events((await sent.get())["body"].decode()) == [("output", {"stdout": "begun\n", "stderr": ""})]
    gone.set()
    await request
    (vm_id,) = [one for one, box in arl.api.machine.boxes.items() if any(p.end is None for p in box.runs.values())]
    release(arl.api.machine, vm_id)
    while len(await arl.ok("GET", f"{path}/history")) < 2:
        await asyncio.sleep(0.001)
    assert await arl.said(path, "cat", "f") == "done"


async def test_a_stream_that_is_refused(arl):
    await arl.refused(
        404, "session not found", "POST", "/v1/sessions/x/execute", {"steps": [step("echo")]}, headers=STREAM
    )


# Another server


async def restarted(arl) -> None:
    """The next server on the same data."""
    api = arl.api
    api.app.stopping.set()
    await api.app.core.close()
    core = await Core.open(api.config, fake_engine.FakeEngine(api.machine))
    api.app = App(core)
    await api.app.start()
    api.http = httpx2.AsyncClient(transport=httpx2.ASGITransport(api.app), base_url="http://127.0.0.1:18888")


async def test_what_outlives_a_server(arl):
    path = await arl.session(profile="p", configEnv={"vars": {"A": "b"}})
    await arl.execute(path, ["put", "f", "0"], ["put", "f", "1"], operationID="op")
    result = (await arl.ok("GET", f"{path}/operations/op"))["result"]
    was = await arl.ok("GET", path)
    ended = await arl.session()
    await arl.ok("DELETE", ended, status=204)
    await restarted(arl)
    now = await arl.ok("GET", path)
    assert now | {"podIP": ""} == was | {"podIP": ""}, "its box may be another one"
    assert await arl.ok("GET", f"{path}/history") == result["results"]
    assert (await arl.ok("GET", f"{path}/operations/op"))["result"] == result
    body = {"steps": [step("put", "f", "0", name="step 0"), step("put", "f", "1", name="step 1")], "operationID": "op"}
    assert await arl.ok("POST", f"{path}/execute", body) == result
    (later,) = await arl.execute(path, ["env", "A"])
    assert (later["index"], later["output"]["stdout"]) == (2, "b\n")
    await arl.ok("POST", f"{path}/restore", {"snapshotID": "0"})
    assert await arl.said(path, "cat", "f") == "0"
    await arl.refused(410, "has ended", "GET", ended)
    await arl.api.app.core.close()
    arl.api.app.stopping.set()


async def test_an_operation_that_the_server_did_not_survive(arl):
    path = await arl.session()
    body = {"steps": [step("hang")], "operationID": "op"}
    posted = asyncio.create_task(arl("POST", f"{path}/execute", body))
    await hanging(arl)
    records = arl.api.app.core.records
    while not await records.of_kind(operations.KIND):
        await asyncio.sleep(0.001)
    await restarted(arl)
    assert (await posted).status_code == 202
    shown = await arl.ok("GET", f"{path}/operations/op")
    assert shown["status"] == "error" and "the server was restarted" in shown["error"]
    await arl.refused(500, "the server was restarted", "POST", f"{path}/execute", body)
    assert await arl.ok("GET", f"{path}/history") == [], "nothing is done twice"
    await arl.api.app.core.close()
    arl.api.app.stopping.set()
