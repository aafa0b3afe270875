"""Cases for agentkernel-sdk 0.4.0 to 0.21.0, run by an interpreter that has one: `agentkernel_sdk.py VERSION CASE`.

What our face has too is in `tests/scenarios`; here is what only the published clients have.
"""

import asyncio
import os
import secrets
import sys
import time
from contextlib import contextmanager, suppress

import agentkernel
from agentkernel import AgentKernel, AsyncAgentKernel

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


def exec_options():
    with sandbox() as name:
        refused("ServerError", lambda: client.exec_in_sandbox(name, ["id"], sudo=True), "sudo")
        refused("ValidationError", lambda: client.exec_in_sandbox(name, ["id"], env=["novalue"]))


def bulk_files():
    with sandbox() as name:
        assert client.write_files(name, {"/srv/a": "1", "/srv/b/c": "2"}).written == 2
        assert client.exec_in_sandbox(name, ["cat", "/srv/a", "/srv/b/c"]).output == "12"
        assert agentkernel.SandboxSession(name, client).write_files({"/srv/a": "3"}).written == 1
        assert client.read_file(name, "/srv/a").content == "3"
        refused("ValidationError", lambda: client.write_files(name, {"relative": "x"}))


def logs():
    with sandbox() as name:
        client.exec_in_sandbox(name, ["echo", "hi there"])
        entries = client.get_sandbox_logs(name)
        assert [entry["type"] for entry in entries] == ["sandbox_created", "command_executed"]
        assert (entries[1]["command"], entries[1]["exit_code"]) == (["echo", "hi there"], 0)


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


def ttl_is_kept():
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


def keys():
    with AgentKernel(api_key="wrong") as other:
        refused("AuthError", other.list_sandboxes, "Invalid API key")
        refused("AuthError", lambda: other.run(["ls"]), "Invalid API key")
    os.environ.pop("AGENTKERNEL_API_KEY")
    with AgentKernel() as other:
        refused("AuthError", other.list_sandboxes, "Missing Authorization header")


def surface():
    """Every public method, of both forms: what becomes of it is noted by tests/scenarios/recorder.py."""

    async def awaitable():
        async with AsyncAgentKernel() as other:
            name, calls = prepared()
            for method, (given, named) in of(other, calls):
                with suppress(agentkernel.AgentKernelError, TypeError):
                    got = await getattr(other, method)(*given, **named)
                    if hasattr(got, "__anext__"):
                        _ = [event async for event in got]
            await other.remove_sandbox((await other.create_sandbox(name + "z")).name)
            box = agentkernel.AsyncSandboxSession(name, other)
            if hasattr(box, "write_files"):
                await box.write_files({"/srv/a": "3"})
            return name

    name, calls = prepared()
    for method, (given, named) in of(client, calls):
        with suppress(agentkernel.AgentKernelError, TypeError):
            got = getattr(client, method)(*given, **named)
            if hasattr(got, "__next__"):
                list(got)
    for left in (name, asyncio.run(awaitable())):
        for made in (left, left + "x", left + "y"):
            client.remove_sandbox(made)


def of(some, calls):
    """The calls of those methods that this release has. A call for a method that none has would be told of."""
    public = {method for method in dir(some) if not method.startswith("_") and callable(getattr(some, method))}
    forgotten = public - calls.keys() - {"browser", "close", "remove_sandbox"}
    assert not forgotten, f"never called: {forgotten}"
    return [(method, call) for method, call in calls.items() if method in public]


def prepared():
    """A sandbox with a file and a detached command; method → arguments, positional and by name."""
    name = fresh()
    client.create_sandbox(name)
    client.write_file(name, "/tmp/f", "x")
    uuid = getattr(client.get_sandbox(name), "uuid", None)
    command = client.exec_detached(name, ["sleep", "600"]).id if hasattr(client, "exec_detached") else None
    positional = {
        "health": (), "run": (["true"],), "run_stream": (["true"],), "batch_run": ([["true"]],), "list_sandboxes": (),
        "create_sandbox": (name + "x",), "get_sandbox": (name,), "exec_in_sandbox": (name, ["true"]),
        "sandbox": (name + "y",), "read_file": (name, "/tmp/f"), "write_file": (name, "/tmp/g", "x"),
        "delete_file": (name, "/tmp/g"), "get_sandbox_logs": (name,), "write_files": (name, {"/tmp/h": "x"}),
        "get_sandbox_by_uuid": (uuid,), "detached_list": (name,), "exec_detached": (name, ["true"]),
        "detached_status": (name, command), "detached_logs": (name, command), "detached_kill": (name, command),
        "get_backends": (), "list_snapshots": (), "take_snapshot": (name,), "get_snapshot": ("x",),
        "delete_snapshot": ("x",), "restore_snapshot": ("x",), "list_orchestrations": (),
        "create_orchestration": ({"name": "x"},), "get_orchestration": ("x",),
        "signal_orchestration": ("x", {"name": "x"}), "terminate_orchestration": ("x",),
        "list_orchestration_definitions": (), "upsert_orchestration_definition": ({"name": "x"},),
        "get_orchestration_definition": ("x",), "delete_orchestration_definition": ("x",), "list_objects": (),
        "create_object": ({"class": "x", "object_id": "y"},), "get_object": ("x",), "call_object": ("x", "y", "z"),
        "delete_object": ("x",), "patch_object": ("x",), "list_schedules": (),
        "create_schedule": ({"name": "x", "method": "y"},), "get_schedule": ("x",), "delete_schedule": ("x",),
        "list_stores": (), "create_store": ({"name": "x", "kind": "sqlite"},), "get_store": ("x",),
        "delete_store": ("x",), "query_store": ("x", {"sql": "x"}), "execute_store": ("x", {"sql": "x"}),
        "command_store": ("x", {"command": ["x"]}),
    }  # fmt: skip
    return name, {method: (given, {}) for method, given in positional.items()} | {"extend_ttl": ((name,), {"by": "1h"})}


globals()[sys.argv[2]]()
client.close()
