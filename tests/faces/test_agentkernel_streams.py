"""agentkernel's surface over our client: files, streams of output, health, and the awaitable form."""

from __future__ import annotations

import asyncio
import base64
import gc
import time
from collections.abc import Callable

import pytest

from boxwood.faces.agentkernel import (
    AgentKernel,
    AgentKernelError,
    AsyncAgentKernel,
    AuthError,
    NetworkError,
    NotFoundError,
    ServerError,
    StreamEvent,
    ValidationError,
)
from faces.agentkernelstub import MINE, RUNNING, RUNS, asked, body_of
from unit.client.stub import KEY, RUN, VM_ID, Request, StubServer, error

# --- files


def test_files(client: AgentKernel, server: StubServer) -> None:
    sync = f"POST /v1/vms/{VM_ID}/sync"
    server.script(sync, (200, {"ok": True, "op": "write", "results": [{"complete": True, "written": True}]}))
    assert client.write_file("mine", "tmp/a", "grün") == "Wrote 5 bytes to /tmp/a"
    assert client.write_file("mine", "/tmp/a", "aGk=", encoding="base64") == "Wrote 2 bytes to /tmp/a"
    assert body_of(server, sync)["writes"][0]["content"] == "aGk="  # type: ignore[index]
    with pytest.raises(ValidationError, match="base64"):
        client.write_file("mine", "/tmp/a", "?", encoding="base64")
    for data, shown in ((b"hi", ("hi", "utf8", 2)), (b"\xff", ("/w==", "base64", 1))):
        content = base64.b64encode(data).decode()
        server.script(
            sync, (200, {"ok": True, "op": "read", "path": "/", "size": 1, "content": content, "encoding": "base64"})
        )
        read = client.read_file("mine", "/tmp/a")
        assert (read.content, read.encoding, read.size) == shown
    server.script(sync, (404, error("not_found", "no such file", details={"resource": "file"})))
    with pytest.raises(NotFoundError):
        client.read_file("mine", "/tmp/b")
    with pytest.raises(ValidationError):
        client.read_file("mine", "/tmp/../etc")
    assert client.delete_file("mine", "/tmp/a") == "Deleted /tmp/a"
    assert body_of(server, f"POST {RUNS}")["command"] == "exec 'rm' '-f' '--' '/tmp/a'"


def test_a_batch(client: AgentKernel, server: StubServer) -> None:
    server.script(f"POST {RUNS}", (200, RUN), (200, RUN | {"exit_code": 1}))
    results = client.batch_run([["a"], ["b"], []]).results
    assert [(one.output, one.error and one.error[:26]) for one in results] == [
        ("hi", None), (None, "Command exited with code 1"), (None, "a command is a list of arg"),
    ]  # fmt: skip
    with pytest.raises(ValidationError):
        client.batch_run([])


# --- streams


def grown(stdout: bytes, stderr: str = "", **more: object) -> Callable[[Request], tuple[int, object]]:
    """The run and its output so far; one that goes on is held back as long as the request asks for."""
    shown = base64.b64encode(stdout).decode()
    said = {**RUN, **RUNNING, "stdout": shown, "stderr": stderr, "exit_code": None, "duration_ms": None, **more}

    def answer(request: Request) -> tuple[int, object]:
        if said["state"] == "running":
            time.sleep(float(request.query["wait"][0]))
        return 200, said

    return answer


ENDED = {"state": "completed", "exit_code": 0}


def test_output_comes_while_the_command_runs(client: AgentKernel, server: StubServer) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    half = "1\nü".encode()
    server.script(
        f"GET {RUNS}/r1", grown(b""), grown(half[:3]), grown(half, "e\n"), grown(half + b"\xff", "e\n", **ENDED)
    )
    events = client.run_stream(["x"], fast=False)
    assert server.requests == []
    seen = [(event.type, event.data) for event in events]
    assert seen[0][0] == "started" and seen[0][1]["command"] == ["x"] and seen[0][1]["timestamp"].endswith("Z")
    assert seen[1:] == [
        ("progress", {"stage": "sandbox_created", "sandbox": VM_ID}),
        ("progress", {"stage": "sandbox_started"}),
        ("output", {"data": "1\n", "stream": "stdout"}),
        ("output", {"data": "ü", "stream": "stdout"}),
        ("output", {"data": "e\n", "stream": "stderr"}),
        ("output", {"data": "\ufffd", "stream": "stdout"}),
        ("done", {"exit_code": 0, "success": True}),
    ]
    looks = [request for request in server.requests if request.path == f"{RUNS}/r1"]
    assert all(float(request.query["wait"][0]) > 0.01 for request in looks), "the server holds each look back"
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"


def test_looks_become_rarer_while_nothing_happens(client: AgentKernel, server: StubServer, quick: list[float]) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    server.script(f"GET {RUNS}/r1", *[grown(b"")] * 8, grown(b"", **ENDED))
    list(client.run_stream(["x"]))
    waits = [float(request.query["wait"][0]) for request in server.requests if request.path == f"{RUNS}/r1"]
    assert max(waits) > 0.1


def test_a_stream_ends_with_what_became_of_the_command(client: AgentKernel, server: StubServer) -> None:
    def last(answer: object) -> StreamEvent:
        server.script(f"POST {RUNS}", (202, RUNNING))
        server.script(f"GET {RUNS}/r1", answer)  # type: ignore[arg-type]
        return list(client.run_stream(["x"]))[-1]

    failed = {"state": "completed", "exit_code": 2}
    assert last(grown(b"no\n", **failed)) == StreamEvent("done", {"exit_code": 2, "success": False, "output": "no\n"})
    lost = last(grown(b"", state="failed", fail_reason="the box is gone"))
    assert lost == StreamEvent("error", {"message": "the command failed: the box is gone"})
    broken = last((404, error("not_found", "the run has gone")))
    assert broken == StreamEvent("error", {"message": "the run has gone"})


def test_what_is_refused_is_an_event_and_no_key_an_exception(client: AgentKernel, server: StubServer) -> None:
    assert [event.type for event in client.run_stream([])] == ["error"]
    assert [event.type for event in client.run_stream(["x"], profile="restrictive")] == ["error"]
    events = list(client.run_stream(["x"], image="nothing"))
    assert [event.type for event in events] == ["started", "error"] and "nothing" in events[1].data["message"]
    server.script("POST /v1/fork", (401, error("unauthorized", "who are you?")))
    with pytest.raises(AuthError) as refused:
        next(client.run_stream(["x"]))
    assert (refused.value.status, refused.value.message) == (401, "who are you?")


def test_a_stream_that_is_left_ends_the_command(client: AgentKernel, server: StubServer) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))
    server.script(f"GET {RUNS}/r1", grown(b"1\n"))
    for event in client.run_stream(["yes"]):
        if event.type == "output":
            break
    gc.collect()
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"
    events = client.run_stream(["yes"])
    next(events)
    events.close()
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"


# --- health and no answer


def test_health(client: AgentKernel, server: StubServer) -> None:
    server.script("GET /v1/health", (200, {"status": "ok"}), (503, {"status": "unavailable", "problem": "no disk"}))
    assert client.health() == "ok"
    with pytest.raises(ServerError, match="no disk") as ill:
        client.health()
    assert ill.value.status == 503


def test_no_server_and_no_answer(server: StubServer, quick: list[float]) -> None:
    with AgentKernel("http://127.0.0.1:1", "k") as nobody, pytest.raises(NetworkError) as missing:
        nobody.run(["true"])
    assert missing.value.status == 0 and isinstance(missing.value, AgentKernelError)

    def slow(_: Request) -> tuple[int, object]:
        time.sleep(0.3)
        return 0, None

    server.script("GET /v1/health", slow)
    with AgentKernel(server.url, KEY, timeout=0.05) as hasty, pytest.raises(NetworkError):
        hasty.health()


# --- the awaitable form


def test_the_awaitable_form_does_the_same(client: AgentKernel, server: StubServer) -> None:
    server.script("POST /v1/fork", (200, MINE))

    async def go() -> None:
        async with AsyncAgentKernel(server.url, KEY) as own:
            assert (await own.run(["echo", "hi"])).output == "hi"
            assert [info.name for info in await own.list_sandboxes()] == ["ubuntu", "node-22-alpine"]
            async with own.sandbox("mine", image="python:3.12-alpine") as sandbox:
                assert (await sandbox.run(["x"])).output == "hi"
                assert (await sandbox.info()).name == "mine"
            async with await own.sandbox("mine") as sandbox:
                assert (await sandbox.run(["x"])).output == "hi"
            started = own.sandbox("mine")
            assert (await started.run(["x"])).output == "hi"
            await started.remove()

    asyncio.run(go())
    assert asked(server).count("POST /v1/fork") == asked(server).count(f"DELETE /v1/vms/{VM_ID}") == 4


def test_events_with_and_without_await(client: AgentKernel, server: StubServer) -> None:
    server.script(f"POST {RUNS}", (202, RUNNING))

    async def go() -> None:
        async with AsyncAgentKernel(server.url, KEY) as own:
            for awaited in (False, True):
                server.script(f"GET {RUNS}/r1", grown(b"1\n"), grown(b"1\n", **ENDED))
                events = own.run_stream(["x"])
                seen = [event.type async for event in (await events if awaited else events)]
                assert seen == ["started", "output", "done"]
            left = own.run_stream(["x"])
            await anext(left)
            await left.aclose()

    asyncio.run(go())
    assert asked(server).count(f"DELETE /v1/vms/{VM_ID}") == 3
