"""What agentkernel's document shows, against a real server: each example, in our own words, and what can be seen of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import servers
from amounts import amount
from boxwood.faces.agentkernel import (
    AgentKernel,
    AgentKernelError,
    AsyncAgentKernel,
    NetworkError,
    NotFoundError,
    ServerError,
)

pytestmark = pytest.mark.root
PACKAGE = amount("six", "numpy")
COUNT = "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.3)"


@pytest.fixture
def client(real: servers.Server) -> Iterator[AgentKernel]:
    with AgentKernel() as client:
        yield client


def vms(real: servers.Server) -> set[str]:
    with real.client() as box:
        return {vm.id for vm in box.list()}


# --- running commands


def test_quick_start(real: servers.Server) -> None:
    with AgentKernel() as client:
        result = client.run(["echo", "hello"])
        assert result.output == "hello\n"


async def test_async_usage(real: servers.Server) -> None:
    async with AsyncAgentKernel() as client:
        result = await client.run(["echo", "hello"])
        assert result.output == "hello\n"


def test_configuration(real: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTKERNEL_BASE_URL")
    monkeypatch.delenv("AGENTKERNEL_API_KEY")
    client = AgentKernel(base_url=real.url, api_key=real.key, timeout=30.0)
    assert client.health() == "ok"
    assert client.run(["true"]).output == ""
    client.close()
    monkeypatch.setenv("BOXWOOD_DATA", str(real.data))
    with AgentKernel(f"http://localhost:{real.port}") as local:  # the local server's own key, for who may read it
        assert local.run(["true"]).output == ""


def test_basic_execution(client: AgentKernel, real: servers.Server) -> None:
    before = vms(real)
    assert client.run(["python3", "-c", "print(1 + 1)"]).output == "2\n"
    client.run(["sh", "-c", "echo used > /tmp/mark"])
    assert (
        client.run(["sh", "-c", "cat /tmp/mark || echo fresh"]).output
        == "fresh\n\ncat: /tmp/mark: No such file or directory\n"
    )
    servers.until(lambda: vms(real) <= before)


def test_options(client: AgentKernel) -> None:
    result = client.run(["uname"], image="python:3.12-alpine", profile="moderate", fast=False)
    assert result.output == "Linux\n"
    assert client.run(["uname"], image="alpine:3.20", profile="permissive").output == "Linux\n"
    with pytest.raises(AgentKernelError, match="coming"):
        client.run(["npm", "test"], image="node:22-alpine", profile="restrictive", fast=False)
    with pytest.raises(AgentKernelError, match="boxwood image import") as unknown:
        client.run(["npm", "test"], image="node:22-alpine", fast=False)
    assert unknown.value.status == 400


def test_an_own_table_of_images(real: servers.Server) -> None:
    with AgentKernel(images={"node:22-alpine": "ubuntu"}) as client:
        assert client.run(["echo", "test"], image="node:22-alpine", fast=False).output == "test\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["$HOME", "*", "a  b", "", "it's", '"', "\\", "a\nb", "`id`", "$(id)", ";", "grün", "-n"],
        ["x" * 120_000],
        ["\n".join(f"line {n} 'quoted' $n" for n in range(500))],
    ],
)
def test_arguments_arrive_byte_for_byte(client: AgentKernel, arguments: list[str]) -> None:
    program = "import sys; sys.stdout.write('|'.join(sys.argv[1:]))"
    assert client.run(["python3", "-c", program, *arguments]).output == "|".join(arguments)


@pytest.mark.parametrize("word", ["if", "cd", "A=b", "exit", ":", "{", "!", "[["])
def test_a_program_is_looked_for_and_nothing_of_a_shell(client: AgentKernel, word: str) -> None:
    with pytest.raises(ServerError) as missing:
        client.run([word, "/tmp"])
    assert missing.value.exit_code == 127


# --- streams


def test_sync_streaming(client: AgentKernel) -> None:
    printed, at, ended = "", [], None
    for event in client.run_stream(["python3", "-c", COUNT + "\nprint(time.time())"]):
        if event.type == "output":
            printed += event.data["data"]
            at.append(time.time())
        elif event.type == "done":
            ended = event.data["exit_code"]
        elif event.type == "error":
            pytest.fail(event.data["message"])
    *counted, last = printed.split()
    assert (counted, ended) == (["0", "1", "2"], 0)
    assert at[0] < float(last), "the output came while the command ran"


async def test_async_streaming(real: servers.Server) -> None:
    async with AsyncAgentKernel() as client:
        printed = ""
        async for event in client.run_stream(["python3", "-c", COUNT]):
            if event.type == "output":
                printed += event.data["data"]
        assert printed == "0\n1\n2\n"


def test_a_script_that_is_not_there(client: AgentKernel) -> None:
    events = list(client.run_stream(["python3", "script.py"]))
    assert [event.type for event in events] == ["started", "output", "done"]
    assert events[1].data["stream"] == "stderr" and "script.py" in events[1].data["data"]
    assert (events[2].data["exit_code"], events[2].data["success"]) == (2, False)


def test_leaving_a_stream_deletes_its_vm(client: AgentKernel, real: servers.Server) -> None:
    before = vms(real)
    for event in client.run_stream(["sleep", "60"]):
        assert event.type == "started"
        assert len(vms(real) - before) == 1
        break
    del event
    servers.until(lambda: vms(real) <= before)


# --- sandboxes


def test_create_and_execute(client: AgentKernel) -> None:
    sandbox = client.create_sandbox("my-project", image="python:3.12-alpine")
    assert (sandbox.name, sandbox.status, sandbox.image) == ("my-project", "running", "python:3.12-alpine")
    result = client.exec_in_sandbox("my-project", ["sh", "-c", "echo kept > /srv/note; cat /srv/note"])
    assert result.output == "kept\n"
    info = client.get_sandbox("my-project")
    assert info == sandbox and (info.vcpus, info.memory_mb, info.backend) == (1, 512, "boxwood")
    assert info in client.list_sandboxes()
    assert client.exec_in_sandbox("my-project", ["cat", "/srv/note"]).output == "kept\n"
    with pytest.raises(AgentKernelError) as taken:
        client.create_sandbox("my-project")
    assert taken.value.status == 409
    client.remove_sandbox("my-project")
    assert "my-project" not in [sandbox.name for sandbox in client.list_sandboxes()]
    for act in (client.get_sandbox, client.remove_sandbox):
        with pytest.raises(NotFoundError):
            act("my-project")


def test_sessions(client: AgentKernel) -> None:
    with client.sandbox("test", image="python:3.12-alpine") as sb:
        sb.run(["python3", "-m", "venv", "--without-pip", "/srv/v"])
        result = sb.run(["/srv/v/bin/python", "-c", "import sys; print(sys.prefix)"])
        assert result.output == "/srv/v\n"
        assert sb.info().name == "test"
    with pytest.raises(NotFoundError):
        client.get_sandbox("test")


async def test_async_sessions(real: servers.Server) -> None:
    async with AsyncAgentKernel() as client:
        async with client.sandbox("async-test", image="python:3.12-alpine") as sb:
            await sb.run(["touch", "/srv/a"])
            assert (await sb.run(["ls", "/srv"])).output == "a\n"
        with pytest.raises(NotFoundError):
            await client.get_sandbox("async-test")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_packages_are_installed(make_server: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over this machine's own mirror, which the operator allows."""
    from api.test_installs import exceptions

    allowed = ",".join(exceptions())
    server: servers.Server = make_server(network_allow=allowed, share_client_config="true")  # type: ignore[operator]
    with AgentKernel(server.url, server.key, timeout=240.0) as client:
        with client.sandbox("numpy", image="python:3.12-alpine") as sb:
            sb.run(["pip", "install", PACKAGE], env={"PIP_NO_COMPILE": "1"})  # which takes longer than all the rest
            result = sb.run(["python3", "-c", f"import {PACKAGE}; print({PACKAGE}.__version__)"])
            assert result.output.count(".") == 2
        assert client.list_sandboxes() == []


def test_commands_of_a_sandbox_run_side_by_side(client: AgentKernel) -> None:
    with client.sandbox("parallel") as sb, AgentKernel() as other, ThreadPoolExecutor(8) as pool:
        sb.run(["true"])
        began = time.monotonic()
        waiting = pool.submit(sb.run, ["sh", "-c", "until test -e /tmp/go; do sleep 0.05; done; echo went"])
        time.sleep(0.3)
        quick = [pool.submit(sb.run, ["sh", "-c", f"cd /tmp; echo {n}"]) for n in range(5)]
        assert [one.result().output for one in quick] == [f"{n}\n" for n in range(5)]
        assert other.exec_in_sandbox("parallel", ["pwd"]).output == "/root\n"
        other.exec_in_sandbox("parallel", ["touch", "/tmp/go"])
        assert waiting.result().output == "went\n"
        assert time.monotonic() - began < 20


def test_environment_and_directory(client: AgentKernel) -> None:
    with client.sandbox("env") as sb:
        assert (
            sb.run(["sh", "-c", "echo $COLOUR $PWD"], env={"COLOUR": "green"}, workdir="/srv").output == "green /srv\n"
        )
        assert sb.run(["sh", "-c", "echo $COLOUR $PWD"]).output == "/root\n"


def test_files(client: AgentKernel) -> None:
    with client.sandbox("files") as sb:
        data = os.urandom(1000)
        client.write_file("files", "/srv/deep/a.txt", "grün\n")
        assert client.read_file("files", "/srv/deep/a.txt").content == "grün\n"
        sb.run(["python3", "-c", f"open('/srv/b', 'wb').write(bytes.fromhex('{data.hex()}'))"])
        assert (client.read_file("files", "srv/b").encoding, client.read_file("files", "srv/b").size) == (
            "base64",
            1000,
        )
        client.delete_file("files", "/srv/b")
        client.delete_file("files", "/srv/b")
        with pytest.raises(NotFoundError):
            client.read_file("files", "/srv/b")


# --- errors


def test_error_handling(client: AgentKernel) -> None:
    try:
        client.run(["bad-command"])
    except AgentKernelError as e:
        assert e.status == 500
        assert e.message.startswith("Command exited with code 127: ") and "bad-command" in e.message
    else:
        pytest.fail("there is such a command")


def test_statuses(client: AgentKernel, real: servers.Server) -> None:
    found = {}
    with AgentKernel(api_key="sk-nobody") as stranger:
        for name, act in (
            ("validation", lambda: client.run([])),
            ("authentication", lambda: stranger.run(["true"])),
            ("missing", lambda: client.get_sandbox("nobody")),
            ("server", lambda: client.run(["false"])),
        ):
            with pytest.raises(AgentKernelError) as failed:
                act()
            found[name] = failed.value.status
        assert stranger.health() == "ok"
    assert found == {"validation": 400, "authentication": 401, "missing": 404, "server": 500}


def test_a_command_that_takes_too_long(client: AgentKernel, real: servers.Server) -> None:
    before = vms(real)
    with AgentKernel(timeout=1.0) as hurried, client.sandbox("hurried") as sb:
        began = time.monotonic()
        with pytest.raises(NetworkError, match="within 1 s"):
            hurried.run(["sleep", "60"])
        assert time.monotonic() - began < 15
        with pytest.raises(NetworkError):
            hurried.exec_in_sandbox("hurried", ["sleep", "61"])
        assert sb.run(["sh", "-c", "ps -e -o args= | grep -c '^sleep' || true"]).output == "0\n"
        assert [event.type for event in hurried.run_stream(["sleep", "1.5"])] == ["started", "done"]
    servers.until(lambda: vms(real) <= before)


def test_many_at_once(real: servers.Server) -> None:
    before = vms(real)

    async def go() -> list[str]:
        async with AsyncAgentKernel() as client:
            runs = await asyncio.gather(*(client.run(["echo", str(n)]) for n in range(30)))
            return [run.output for run in runs]

    assert asyncio.run(go()) == [f"{n}\n" for n in range(30)]
    servers.until(lambda: vms(real) <= before)
