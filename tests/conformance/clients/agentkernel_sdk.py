"""Cases for agentkernel-sdk 0.4.0 to 0.21.0, run by an interpreter that has one: `agentkernel_sdk.py VERSION CASE`."""

import asyncio
import base64
import json
import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import agentkernel
from agentkernel import AgentKernel, AsyncAgentKernel

VERSION = tuple(int(part) for part in sys.argv[1].split("."))
client = AgentKernel()


def fresh(prefix="ak"):
    return prefix + "-" + secrets.token_hex(6)


@contextmanager
def sandbox(**options):
    name = fresh()
    client.create_sandbox(name, **options)
    try:
        yield name
    finally:
        client.remove_sandbox(name)


def refused(kind, step, *texts):
    """The class of the error, and what its text holds: all that this client lets its user see."""
    try:
        step()
    except agentkernel.AgentKernelError as error:
        assert type(error).__name__ == kind, (type(error), error)
        assert all(text in str(error) for text in texts), str(error)
        return error
    raise AssertionError("not refused")


def health():
    assert client.health() == "ok"
    with AgentKernel(api_key="wrong") as other:
        assert other.health() == "ok"


def run():
    assert client.run(["echo", "hello"]).output == "hello\n"
    assert client.run(["python3", "-c", "print(1 + 1)"]).output == "2\n"
    assert client.run(["echo", "x"], image="python:3.12-alpine", profile="moderate", fast=False).output == "x\n"
    assert client.run(["sh", "-c", "echo out; echo err >&2"]).output == "out\n\nerr\n"
    refused("ServerError", lambda: client.run(["sh", "-c", "echo x; exit 3"]), "exited with code 3", "x")
    refused("ServerError", lambda: client.run(["no-such-program"]), "127")
    refused("ValidationError", lambda: client.run([]), "empty")
    refused("ValidationError", lambda: client.run(["ls"], image="no/such:image"), "boxwood image import")
    refused("ServerError", lambda: client.run(["ls"], profile="restrictive"), "restrictive")


def argv_is_what_arrives():
    argv = [
        "a b",
        "",
        "'",
        '"',
        "\\",
        "$HOME",
        "`id`",
        "$(id)",
        ";|&<>",
        "*",
        "~",
        "#!",
        "\n",
        "\ttab",
        "ü€𝄞",
        "-n",
        "x" * 90_000,
    ]
    program = "import sys, json; print(json.dumps(sys.argv[1:]))"
    assert json.loads(client.run(["python3", "-c", program, *argv]).output) == argv
    with sandbox() as name:
        assert json.loads(client.exec_in_sandbox(name, ["python3", "-c", program, *argv]).output) == argv
        # neither a builtin nor a keyword of any shell
        assert client.exec_in_sandbox(name, ["echo", "--version"]).output.startswith("echo (GNU")
        for word in ("if", "cd", "exit", "export", ":", "!", "{"):
            refused("ServerError", lambda word=word: client.exec_in_sandbox(name, [word, "0"]), "127")


def runs_share_nothing():
    client.run(["sh", "-c", "echo left > /root/left; echo left > /tmp/left"])
    refused("ServerError", lambda: client.run(["cat", "/root/left"]), "No such file")
    refused("ServerError", lambda: client.run(["cat", "/tmp/left"]), "No such file")


def sandboxes():
    name = fresh()
    made = client.create_sandbox(name, image="python:3.12-alpine", vcpus=1, memory_mb=256, profile="moderate")
    assert (made.name, made.status, made.image) == (name, "running", "python:3.12-alpine")
    assert (made.vcpus, made.memory_mb) == (1, 256)
    assert client.get_sandbox(name).created_at
    assert name in [one.name for one in client.list_sandboxes()]
    refused("ServerError", lambda: client.create_sandbox(name), "already exists")
    refused("ValidationError", lambda: client.create_sandbox("not a name"), "name")
    refused("ValidationError", lambda: client.create_sandbox(fresh(), image="nope:1"), "Unknown image")
    assert (
        client.exec_in_sandbox(name, ["sh", "-c", "grep MemTotal /proc/meminfo >/dev/null; echo ok"]).output == "ok\n"
    )
    client.remove_sandbox(name)
    refused("NotFoundError", lambda: client.get_sandbox(name), "Sandbox not found")
    refused("NotFoundError", lambda: client.remove_sandbox(name))


def session():
    with client.sandbox(fresh(), image="python:3.12-alpine") as box:
        box.run(["sh", "-c", "echo kept > /root/f"])
        assert box.run(["cat", "/root/f"]).output == "kept\n"
        assert box.info().status == "running"
        name = box.name
    refused("NotFoundError", lambda: client.get_sandbox(name))


def execs():
    with sandbox() as name:
        assert client.exec_in_sandbox(name, ["pwd"]).output == "/root\n"
        error = refused(
            "ServerError", lambda: client.exec_in_sandbox(name, ["sh", "-c", "echo o; echo e >&2; exit 42"]), "42"
        )
        assert "o\n\ne\n" in str(error)
        refused("ValidationError", lambda: client.exec_in_sandbox(name, []))
        with ThreadPoolExecutor(8) as pool:
            outputs = list(
                pool.map(lambda n: client.exec_in_sandbox(name, ["sh", "-c", f"sleep 0.2; echo {n}"]).output, range(8))
            )
        assert outputs == [f"{n}\n" for n in range(8)]
    refused("NotFoundError", lambda: client.exec_in_sandbox(fresh(), ["pwd"]), "Sandbox not found")


def exec_options():
    with sandbox() as name:
        done = client.exec_in_sandbox(name, ["sh", "-c", 'echo "$A|$B"; pwd'], env=["A=x y", "B=1=2"], workdir="/tmp")
        assert done.output == "x y|1=2\n/tmp\n"
        refused("ServerError", lambda: client.exec_in_sandbox(name, ["id"], sudo=True), "sudo")
        refused("ValidationError", lambda: client.exec_in_sandbox(name, ["id"], env=["novalue"]))


def files():
    with sandbox() as name:
        assert client.write_file(name, "/tmp/a/f.txt", "grüße\n") == "Wrote 8 bytes to /tmp/a/f.txt"
        found = client.read_file(name, "/tmp/a/f.txt")
        assert (found.content, found.encoding, found.size) == ("grüße\n", "utf8", 8)
        raw = bytes(range(256)) * 1000
        client.write_file(name, "/root/raw", base64.b64encode(raw).decode(), encoding="base64")
        found = client.read_file(name, "/root/raw")
        assert (base64.b64decode(found.content), found.encoding, found.size) == (raw, "base64", len(raw))
        assert client.exec_in_sandbox(name, ["wc", "-c", "/root/raw"]).output == "256000 /root/raw\n"
        assert client.delete_file(name, "/root/raw") == "Deleted /root/raw"
        client.delete_file(name, "/root/raw")
        refused("NotFoundError", lambda: client.read_file(name, "/root/raw"))
        refused("ValidationError", lambda: client.read_file(name, "/etc/shadow"))
        refused("ValidationError", lambda: client.write_file(name, "/tmp/f", "*", encoding="base64"))


def bulk_files():
    with sandbox() as name:
        assert client.write_files(name, {"/srv/a": "1", "/srv/b/c": "2"}).written == 2
        assert client.exec_in_sandbox(name, ["cat", "/srv/a", "/srv/b/c"]).output == "12"
        refused("ValidationError", lambda: client.write_files(name, {"relative": "x"}))


def logs():
    with sandbox() as name:
        client.exec_in_sandbox(name, ["echo", "hi there"])
        entries = client.get_sandbox_logs(name)
        assert [entry["type"] for entry in entries] == ["sandbox_created", "command_executed"]
        assert (entries[1]["command"], entries[1]["exit_code"]) == (["echo", "hi there"], 0)


def batch():
    results = client.batch_run([["echo", "a"], ["sh", "-c", "exit 9"], ["echo", "c"]]).results
    assert [one.output for one in results] == ["a\n", None, "c\n"]
    assert "code 9" in results[1].error and results[0].error is None


def detached():
    with sandbox() as name:
        made = client.exec_detached(name, ["sh", "-c", "echo out; echo err >&2; sleep 600"])
        assert (made.status, made.exit_code, made.sandbox) == ("running", None, name)
        while not client.detached_logs(name, made.id, stream="stderr").stderr:
            time.sleep(0.02)
        assert client.detached_logs(name, made.id).stdout == "out\n"
        assert client.exec_in_sandbox(name, ["echo", "beside"]).output == "beside\n"
        assert client.detached_kill(name, made.id) == "Command killed"
        assert client.detached_status(name, made.id).status == "failed"
        quick = client.exec_detached(name, ["true"])
        while client.detached_status(name, quick.id).status == "running":
            time.sleep(0.02)
        ended = client.detached_status(name, quick.id)
        assert (ended.status, ended.exit_code, ended.command) == ("completed", 0, ["true"])
        assert [one.id for one in client.detached_list(name)] == [made.id, quick.id]
        refused("NotFoundError", lambda: client.detached_status(name, "00000000"))


def ttl():
    with sandbox() as name:
        assert client.extend_ttl(name, by="1h").endswith("Z")
        refused("ValidationError", lambda: client.extend_ttl(name, by="soon"))
    name = fresh()
    client.create_sandbox(name)
    client.extend_ttl(name, by="1s")
    while name in [one.name for one in client.list_sandboxes()]:
        time.sleep(0.05)


def by_uuid():
    with sandbox() as name:
        uuid = client.get_sandbox(name).uuid
        assert client.get_sandbox_by_uuid(uuid).name == name
        refused("ValidationError", lambda: client.get_sandbox_by_uuid("x"))
        refused("NotFoundError", lambda: client.get_sandbox_by_uuid("00000000-0000-0000-0000-000000000000"))


def streams():
    script = "echo a; sleep 2; echo b >&2; date +%s.%N; exit 5"
    seen = [(event.type, event.data, time.time()) for event in client.run_stream(["sh", "-c", script])]
    assert (seen[0][0], seen[-1][0]) == ("started", "done"), seen
    assert seen[1][:2] == ("output", {"data": "a\n", "stream": "stdout"})
    told = {data["stream"]: data["data"] for kind, data, _ in seen[2:] if kind == "output"}
    assert told["stderr"] == "b\n"
    assert seen[1][2] < float(told["stdout"]), "it came before the command went on"
    assert (seen[-1][1]["exit_code"], seen[-1][1]["success"]) == (5, False)
    (last,) = list(client.run_stream(["ls"], image="nope:1"))
    assert last.type == "error" and "Unknown image" in last.data["message"]

    async def asynchronously():
        async with AsyncAgentKernel() as other:
            return [event.data async for event in await other.run_stream(["echo", "hi"]) if event.type == "output"]

    assert asyncio.run(asynchronously()) == [{"data": "hi\n", "stream": "stdout"}]


def streams_are_broken_there():
    """These releases call their own library wrongly, whatever the server says."""
    try:
        list(client.run_stream(["echo", "a"]))
    except TypeError:
        return
    raise AssertionError("it works: docs/compatibility.md says otherwise")


def asynchronous():
    async def both():
        async with AsyncAgentKernel() as other:
            assert (await other.run(["echo", "hello"])).output == "hello\n"
            async with await other.sandbox(fresh()) as box:
                outputs = await asyncio.gather(*(box.run(["echo", str(n)]) for n in range(5)))
                assert [one.output for one in outputs] == [f"{n}\n" for n in range(5)]

    asyncio.run(both())


def keys():
    with AgentKernel(api_key="wrong") as other:
        refused("AuthError", other.list_sandboxes, "Invalid API key")
        refused("AuthError", lambda: other.run(["ls"]), "Invalid API key")
    os.environ.pop("AGENTKERNEL_API_KEY")
    with AgentKernel() as other:
        refused("AuthError", other.list_sandboxes, "Missing Authorization header")


def twenty_at_once():
    with ThreadPoolExecutor(20) as pool:
        outputs = list(pool.map(lambda n: client.run(["echo", str(n)]).output, range(20)))
    assert outputs == [f"{n}\n" for n in range(20)]


def documented():
    """The examples of its documentation that need no package from the internet; what the client has not is left out."""
    with AgentKernel() as sync:
        assert sync.run(["echo", "hello"]).output == "hello\n"
        assert sync.run(["python3", "-c", "print(1 + 1)"]).output == "2\n"
    name = fresh("my-project")
    assert client.create_sandbox(name, image="python:3.12-alpine").name == name
    assert client.exec_in_sandbox(name, ["pip", "--version"]).output.startswith("pip ")
    assert client.get_sandbox(name).status == "running"
    assert name in [one.name for one in client.list_sandboxes()]
    assert client.remove_sandbox(name) is None
    with AgentKernel() as sync:
        with sync.sandbox(fresh("test"), image="python:3.12-alpine") as box:
            assert box.run(["python3", "-c", "import json; print(json.__name__)"]).output == "json\n"
        try:
            sync.run(["bad-command"])
        except agentkernel.AgentKernelError as error:
            assert error.status == 500 and "bad-command" in str(error)
        else:
            raise AssertionError("it ran")


def surface():
    """What becomes of every public method: printed as JSON."""
    name = fresh()
    client.create_sandbox(name)
    client.write_file(name, "/tmp/f", "x")
    calls = {
        "health": (), "run": (["true"],), "run_stream": (["true"],), "batch_run": ([["true"]],), "list_sandboxes": (),
        "create_sandbox": (name + "x",), "get_sandbox": (name,), "exec_in_sandbox": (name, ["true"]),
        "sandbox": (name + "y",), "read_file": (name, "/tmp/f"), "write_file": (name, "/tmp/g", "x"),
        "delete_file": (name, "/tmp/g"), "get_sandbox_logs": (name,), "write_files": (name, {"/tmp/h": "x"}),
        "detached_list": (name,), "exec_detached": (name, ["true"]), "get_backends": (), "list_snapshots": (),
        "take_snapshot": (name,), "get_snapshot": ("x",), "delete_snapshot": ("x",), "restore_snapshot": ("x",),
        "list_orchestrations": (), "create_orchestration": ({"name": "x"},), "get_orchestration": ("x",),
        "signal_orchestration": ("x", {"name": "x"}), "terminate_orchestration": ("x",),
        "list_orchestration_definitions": (), "upsert_orchestration_definition": ({"name": "x"},),
        "get_orchestration_definition": ("x",), "delete_orchestration_definition": ("x",), "list_objects": (),
        "create_object": ({"class": "x", "object_id": "y"},), "get_object": ("x",), "call_object": ("x", "y", "z"),
        "delete_object": ("x",), "patch_object": ("x",), "list_schedules": (),
        "create_schedule": ({"name": "x", "method": "y"},), "get_schedule": ("x",), "delete_schedule": ("x",),
        "list_stores": (), "create_store": ({"name": "x", "kind": "sqlite"},), "get_store": ("x",),
        "delete_store": ("x",), "query_store": ("x", {"sql": "x"}), "execute_store": ("x", {"sql": "x"}),
        "command_store": ("x", {"command": ["x"]}), "browser": (name + "z",),
    }  # fmt: skip
    named = {"extend_ttl": {"by": "1h"}}
    calls["extend_ttl"] = (name,)
    calls["get_sandbox_by_uuid"] = (getattr(client.get_sandbox(name), "uuid", "") or "",)
    known = None
    if hasattr(client, "exec_detached"):
        known = client.exec_detached(name, ["sleep", "600"]).id
    for method in ("detached_status", "detached_logs", "detached_kill"):
        calls[method] = (name, known)
    calls["remove_sandbox"] = (name,)
    found = {}
    public = [method for method in dir(client) if not method.startswith("_") and callable(getattr(client, method))]
    for method in sorted(public, key=lambda method: method == "remove_sandbox"):
        if method not in ("close", "browser"):  # a browser is installed from the internet: not asked for here
            found[method] = outcome(lambda m=method: getattr(client, m)(*calls[m], **named.get(m, {})))
    for left in (name + "x", name + "y"):
        outcome(lambda left=left: client.remove_sandbox(left))
    print(json.dumps(found))


def outcome(step):
    try:
        got = step()
        if hasattr(got, "__next__"):
            list(got)
    except agentkernel.AgentKernelError as error:
        return "refused" if "not supported" in str(error) else f"failed: {error}"
    except TypeError:
        return "broken"
    return "works"


globals()[sys.argv[2]]()
client.close()
