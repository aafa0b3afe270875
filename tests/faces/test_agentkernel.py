"""agentkernel's surface over our client: what is asked of the server, what is handed out, what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest

from boxwood.client.models import VMRecord
from boxwood.faces.agentkernel import (
    AgentKernel,
    AgentKernelError,
    NetworkError,
    NotFoundError,
    ServerError,
    ValidationError,
)
from boxwood.faces.agentkernel.order import exec_text
from boxwood.faces.agentkernel.place import target
from boxwood.faces.agentkernel.slots import Slots
from faces.agentkernelstub import GOLDEN, GOLDENS, MINE, NODE, RUNS, SIZES, asked, body_of
from unit.client.stub import KEY, RUN, SESSION, VM, VM_ID, StubServer, error

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
