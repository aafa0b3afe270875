"""agentkernel's surface over our client: what is asked of the server, what is handed out, what is refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boxwood.client.models import VMRecord
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
from boxwood.faces.agentkernel.order import exec_text
from boxwood.faces.agentkernel.place import target
from boxwood.faces.agentkernel.slots import Slots
from unit.client.stub import KEY, RUN, SESSION, VM, VM_ID, Request, StubServer, error

GOLDEN, NODE = "01KZ000000000000000000000G", "01KZ000000000000000000000N"
GOLDENS = [
    VM | {"vm_id": GOLDEN, "name": "ubuntu", "owner_org_id": "ArkerHQ", "public": True},
    VM | {"vm_id": NODE, "name": "node-22-alpine", "owner_org_id": "ArkerHQ", "public": True},
]
MINE = VM | {"name": "mine", "description": "agentkernel image=python:3.12-alpine", "root_source_vm_name": "ubuntu"}
RUNS = f"/v1/vms/{VM_ID}/runs"
SIZES = {"vcpu": 1, "memory_mib": 512}
RUNNING = {"run_id": "r1", "session_id": "s1", "state": "running"}


@pytest.fixture
def client(server: StubServer) -> Iterator[AgentKernel]:
    server.script("GET /v1/vms", (200, {"vms": GOLDENS, "next_cursor": None}))
    server.script("POST /v1/fork", (200, VM))
    server.script(f"POST {RUNS}", (200, RUN))
    server.script(f"DELETE /v1/vms/{VM_ID}", (200, {"deleted": True}))
    server.script("GET /v1/vms/mine", (200, MINE))
    with AgentKernel(server.url, KEY) as client:
        yield client


def asked(server: StubServer) -> list[str]:
    return [f"{request.method} {request.path}" for request in server.requests]


def body_of(server: StubServer, route: str) -> dict[str, object]:
    """Of the last request to a route."""
    found = [request.body for request in server.requests if f"{request.method} {request.path}" == route]
    return found[-1]  # type: ignore[no-any-return]


# --- finding the server


def test_arguments_then_environment_then_the_default(tmp_path: Path) -> None:
    env = {"AGENTKERNEL_BASE_URL": "http://127.0.0.1:2/", "AGENTKERNEL_API_KEY": "sk-env"}
    assert target("http://127.0.0.1:1", "sk-arg", env) == ("http://127.0.0.1:1", "sk-arg")
    assert target(None, None, env) == ("http://127.0.0.1:2", "sk-env")
    assert target("", "", env) == target(None, None, env)
    bare = {"BOXWOOD_DATA": str(tmp_path)}
    assert target(None, None, bare) == ("http://localhost:18888", "none")
    assert target(None, None, {**bare, "BOXWOOD_API_KEY": "k"}) == ("http://localhost:18888", "k")


def test_the_local_servers_key_goes_to_its_own_address(tmp_path: Path) -> None:
    (tmp_path / "root.key").write_text("bxw_local")
    said = {"url": "http://127.0.0.1:18888", "pid": os.getpid(), "started_at": 1e12}
    (tmp_path / "server.json").write_text(json.dumps(said))
    env = {"BOXWOOD_DATA": str(tmp_path)}
    assert target(None, None, env) == ("http://127.0.0.1:18888", "bxw_local")
    assert target("http://localhost:1", None, env) == ("http://localhost:1", "none")


def test_a_url_that_is_none() -> None:
    with pytest.raises(ValidationError):
        AgentKernel("ftp://x")


# --- commands


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["echo", "hello"], "exec 'echo' 'hello'"),
        (["python3", "-c", "print('a b')"], """exec 'python3' '-c' 'print('"'"'a b'"'"')'"""),
        (["A=b", "$HOME", "*", ""], "exec 'A=b' '$HOME' '*' ''"),
        (["-x"], "exec -- '-x'"),
    ],
)
def test_arguments_arrive_as_they_are(command: list[str], text: str) -> None:
    assert exec_text(command) == text


@pytest.mark.parametrize("command", [[], "echo hi", b"ls", ["ls", 1], ["a\0b"]])
def test_what_is_no_command(client: AgentKernel, server: StubServer, command: object) -> None:
    for act in (lambda: client.run(command), lambda: client.exec_in_sandbox("mine", command)):  # type: ignore[arg-type]
        with pytest.raises(ValidationError) as refused:
            act()
        assert refused.value.status == 400
    assert server.requests == []


def test_a_run_has_a_vm_of_its_own(client: AgentKernel, server: StubServer) -> None:
    assert client.run(["echo", "hi"]).output == "hi"
    assert body_of(server, "POST /v1/fork") == {"source_vm_id": GOLDEN, "resources": SIZES}
    assert body_of(server, f"POST {RUNS}") == {"command": "exec 'echo' 'hi'", "timeout": 30, "env": {}}
    assert asked(server) == ["GET /v1/vms", "POST /v1/fork", f"POST {RUNS}", f"DELETE /v1/vms/{VM_ID}"]
    client.run(["echo", "hi"], fast=False)
    assert asked(server)[4:] == ["POST /v1/fork", f"POST {RUNS}", f"DELETE /v1/vms/{VM_ID}"]


@pytest.mark.parametrize(
    ("stdout", "stderr", "output"), [("a\n", "", "a\n"), ("", "b\n", "b\n"), ("a\n", "b\n", "a\n\nb\n"), ("", "", "")]
)
def test_both_streams_are_one_output(
    client: AgentKernel, server: StubServer, stdout: str, stderr: str, output: str
) -> None:
    said = RUN | {"stdout": stdout, "stdout_encoding": "utf-8", "stderr": stderr}
    server.script(f"POST {RUNS}", (200, said))
    assert client.run(["x"]).output == output


def test_a_command_that_fails_is_an_error_with_all_that_is_known(client: AgentKernel, server: StubServer) -> None:
    said = {"exit_code": 127, "stdout": "", "stderr": "x: not found\n", "stdout_encoding": "utf-8"}
    server.script(f"POST {RUNS}", (200, RUN | said))
    with pytest.raises(AgentKernelError) as failed:
        client.run(["bad-command"])
    found = failed.value
    assert isinstance(found, ServerError)
    assert (found.status, found.exit_code, found.output) == (500, 127, "x: not found\n")
    assert found.message == str(found) == "Command exited with code 127: x: not found\n"
    copied = pickle.loads(pickle.dumps(found))
    assert (copied.status, copied.message, copied.exit_code) == (500, found.message, 127)
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"


def test_a_command_that_takes_too_long_is_stopped(client: AgentKernel, server: StubServer) -> None:
    said = {"exit_code": 124, "state": "failed", "fail_reason": "timed out after 30 s"}
    server.script(f"POST {RUNS}", (200, RUN | said))
    with pytest.raises(NetworkError, match="within 30 s"):
        client.run(["sleep", "99"])
    with (
        AgentKernel(server.url, KEY, timeout=None) as patient,
        pytest.raises(ServerError, match="timed out after 30 s"),
    ):
        patient.run(["sleep", "99"])
    assert "timeout" not in body_of(server, f"POST {RUNS}")


# --- images, profiles, sizes


def test_images(client: AgentKernel, server: StubServer) -> None:
    for image, source in (
        (None, GOLDEN),
        ("ubuntu", GOLDEN),
        ("python:3.12-alpine", GOLDEN),
        ("alpine:3.20", GOLDEN),
        ("node:22-alpine", NODE),
    ):
        client.run(["true"], image=image)
        assert body_of(server, "POST /v1/fork")["source_vm_id"] == source
    with AgentKernel(server.url, KEY, images={"rust:1": "node-22-alpine"}) as own:
        own.run(["true"], image="rust:1")
    assert body_of(server, "POST /v1/fork")["source_vm_id"] == NODE


def test_an_unknown_image_says_how_to_get_it(client: AgentKernel, server: StubServer) -> None:
    with pytest.raises(ValidationError, match=r"boxwood image import ghcr\.io-a-b-2 ") as refused:
        client.create_sandbox("x", image="ghcr.io/a/b:2")
    assert refused.value.status == 400 and "POST /v1/fork" not in asked(server)
    with pytest.raises(ValidationError, match="name of an image"):
        client.run(["true"], image="a b")


def test_a_golden_that_came_or_went_is_asked_for_again(client: AgentKernel, server: StubServer) -> None:
    newer = [VM | {"vm_id": NODE, "name": "ubuntu", "owner_org_id": "ArkerHQ"}]
    server.script(
        "GET /v1/vms", (200, {"vms": GOLDENS, "next_cursor": None}), (200, {"vms": newer, "next_cursor": None})
    )
    client.run(["true"])
    server.script("POST /v1/fork", (404, error("not_found", "no such VM")), (200, VM))
    client.run(["true"])
    assert body_of(server, "POST /v1/fork")["source_vm_id"] == NODE
    server.script("GET /v1/vms", (200, {"vms": GOLDENS, "next_cursor": None}))
    client.run(["true"], image="node:22-alpine")


def test_a_server_that_has_no_golden_yet_says_so_itself(client: AgentKernel, server: StubServer) -> None:
    server.script("GET /v1/vms", (200, {"vms": [], "next_cursor": None}))
    client.run(["true"])
    assert body_of(server, "POST /v1/fork")["source_vm_name"] == "ubuntu"


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({}, SIZES),
        ({"vcpus": 2, "memory_mb": 2048}, {"vcpu": 2, "memory_mib": 2048}),
        ({"vcpus": 2, "memory_mb": 2048, "profile": "moderate"}, SIZES),
        ({"memory_mb": 256, "profile": "Moderate"}, {"vcpu": 1, "memory_mib": 256}),
        ({"vcpus": 2, "profile": "permissive"}, {"vcpu": 2, "memory_mib": 512}),
    ],
)
def test_sizes_and_profiles(
    client: AgentKernel, server: StubServer, given: dict[str, object], sizes: dict[str, int]
) -> None:
    client.create_sandbox("mine", **given)  # type: ignore[arg-type]
    assert body_of(server, "POST /v1/fork") == {"source_vm_id": GOLDEN, "name": "mine", "resources": sizes}


def test_a_profile_that_cannot_be_enforced_is_refused(client: AgentKernel, server: StubServer) -> None:
    with pytest.raises(ServerError, match=r"restrictive.*coming") as refused:
        client.run(["npm", "test"], image="node:22-alpine", profile="restrictive", fast=False)
    assert refused.value.status == 422
    with pytest.raises(ValidationError, match="permissive, moderate, restrictive"):
        client.create_sandbox("x", profile="strict")
    with pytest.raises(ValidationError, match="memory_mb"):
        client.create_sandbox("x", memory_mb=0)
    assert server.requests == []


# --- sandboxes


@pytest.mark.parametrize("name", ["", "-a", "a-", "a--b", "a_-b", "a b", "a/b", "..", "x" * 64])
def test_names_of_sandboxes(client: AgentKernel, server: StubServer, name: str) -> None:
    for act in (client.create_sandbox, client.get_sandbox, client.remove_sandbox):
        with pytest.raises(ValidationError):
            act(name)
    assert server.requests == []


def test_a_sandbox_is_a_vm_with_a_name(client: AgentKernel, server: StubServer) -> None:
    server.script("POST /v1/fork", (200, MINE))
    made = client.create_sandbox("mine", image="python:3.12-alpine")
    assert body_of(server, "POST /v1/fork")["description"] == "agentkernel image=python:3.12-alpine"
    assert (made.name, made.status, made.backend, made.image) == ("mine", "running", "boxwood", "python:3.12-alpine")
    assert (made.vcpus, made.memory_mb, made.created_at) == (1, 512, "2026-01-01T00:00:00Z")
    assert client.get_sandbox("mine") == made
    others = [VM | {"name": None}, VM | {"name": "not.a.sandbox"}]
    server.script("GET /v1/vms", (200, {"vms": [MINE, *others], "next_cursor": None}))
    assert client.list_sandboxes() == [made]
    client.remove_sandbox("mine")
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"


def test_a_sandbox_that_is_not_there(client: AgentKernel, server: StubServer) -> None:
    server.script("GET /v1/vms/ubuntu", (200, GOLDENS[0]))
    for name in ("nobody", "ubuntu"):
        for act in (
            lambda name=name: client.get_sandbox(name),
            lambda name=name: client.remove_sandbox(name),
            lambda name=name: client.exec_in_sandbox(name, ["true"]),
        ):
            with pytest.raises(NotFoundError, match=name) as missing:
                act()
            assert missing.value.status == 404
    with pytest.raises(ValidationError, match="name of an image"):
        client.create_sandbox("ubuntu")


def test_a_name_that_is_taken(client: AgentKernel, server: StubServer) -> None:
    server.script("POST /v1/fork", (409, error("already_exists", "there is one", details={"resource": "vm"})))
    with pytest.raises(ServerError) as taken:
        client.create_sandbox("mine")
    assert taken.value.status == 409


def test_commands_in_a_sandbox(client: AgentKernel, server: StubServer) -> None:
    assert client.exec_in_sandbox("mine", ["ls"]).output == "hi"
    told = {"command": "exec 'ls'", "timeout": 30, "env": {}, "session_idx": 0}
    assert body_of(server, f"POST {RUNS}") == told
    client.exec_in_sandbox("mine", ["ls"], env=["A=b=c"], workdir="/srv")
    assert body_of(server, f"POST {RUNS}") == {**told, "env": {"A": "b=c"}, "cwd": "/srv"}
    client.exec_in_sandbox("mine", ["ls"], env={"A": "b"})
    assert body_of(server, f"POST {RUNS}") == {**told, "env": {"A": "b"}}
    with pytest.raises(ValidationError, match="NAME=value"):
        client.exec_in_sandbox("mine", ["ls"], env=["A"])


def test_a_busy_session_is_not_waited_for(client: AgentKernel, server: StubServer) -> None:
    busy = [SESSION | {"session_idx": at, "session_id": f"s{at}", "state": "running"} for at in (0, 2)]
    server.script("GET /v1/vms/mine", (200, MINE | {"sessions": busy}))
    client.exec_in_sandbox("mine", ["ls"])
    assert body_of(server, f"POST {RUNS}")["session_idx"] == 1


def test_places_are_used_once_at_a_time() -> None:
    slots, vm = Slots(), VMRecord(VM_ID)
    with slots.of(vm) as first, slots.of(vm) as second, slots.of(VMRecord("other")) as elsewhere:
        assert (first, second, elsewhere) == (0, 1, 0)
    with slots.of(vm) as again:
        assert again == 0


def test_a_session_removes_its_sandbox(client: AgentKernel, server: StubServer) -> None:
    server.script("POST /v1/fork", (200, MINE))
    with pytest.raises(RuntimeError, match="mine"), client.sandbox("mine", image="python:3.12-alpine") as sandbox:
        assert (sandbox.name, sandbox.info().name, sandbox.run(["x"]).output) == ("mine", "mine", "hi")
        raise RuntimeError("mine")
    assert asked(server)[-1] == f"DELETE /v1/vms/{VM_ID}"
    sandbox.remove()
    assert asked(server).count(f"DELETE /v1/vms/{VM_ID}") == 1
    server.script("GET /v1/vms/mine", (404, error("not_found", "gone")))
    client.sandbox("mine").remove()


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
