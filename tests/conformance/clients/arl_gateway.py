"""Cases for arl-env 0.2.0 to 0.27.0, run by an interpreter that has one: `arl_gateway.py VERSION CASE`.

The gateway is where ARL_GATEWAY_URL says, the key in ARL_API_KEY; clients that do not look there are told.
"""

import asyncio
import hashlib
import json
import os
import secrets
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import arl
from arl import SandboxSession, WarmPoolManager
from arl.gateway_client import GatewayClient, GatewayError

VERSION = tuple(int(part) for part in sys.argv[1].split("."))
URL, KEY = os.environ["ARL_GATEWAY_URL"], os.environ["ARL_API_KEY"]
IMAGE = "ubuntu"
BINARY = bytes(range(256)) * 5000


def step(*argv, name="step", **more):
    return {"name": name, "command": list(argv), **more}


def sh(text, **more):
    return step("sh", "-c", text, **more)


def output(session, text):
    """What a script puts out."""
    (result,) = session.execute([sh(text)]).results
    assert result.output.exit_code == 0, result
    return result.output.stdout


def refused(status, work, *texts):
    try:
        work()
    except GatewayError as error:
        assert error.status_code == status, (error.status_code, error)
        assert all(text in str(error) for text in texts), str(error)
        return error
    raise AssertionError("not refused")


@contextmanager
def client(**options):
    made = GatewayClient(URL, api_key=KEY, **options)
    try:
        yield made
    finally:
        made.close()


# 0.15 and later: sessions by image


def session():
    with SandboxSession(image=IMAGE, profile="default") as made:
        info = made.session_info
        assert (info.id, info.status, info.image) == (made.session_id, "active", "ubuntu:latest")
        assert info.created_at.tzinfo is not None
        done = made.execute(
            [
                step("pwd"),
                sh("echo out; echo err >&2; exit 3", name="fails"),
                step("printenv", "A", env={"A": 'it\'s "quoted" $HOME'}),
                step("pwd", workDir="/tmp"),
                step("no-such-program"),
                step("sleep", "60", timeoutSeconds=1),
                step("echo", "a b", "", "c\nd"),
            ],
            trace_id="t",
        )
        outputs = [result.output for result in done.results]
        assert outputs[0].stdout == "/workspace\n"
        assert (outputs[1].stdout, outputs[1].stderr, outputs[1].exit_code) == ("out\n", "err\n", 3)
        assert outputs[2].stdout == 'it\'s "quoted" $HOME\n'
        assert outputs[3].stdout == "/tmp\n"
        assert outputs[4].exit_code == 127 and "No such file" in outputs[4].stderr
        assert outputs[5].exit_code == 124 and "timed out" in outputs[5].stderr
        assert outputs[6].stdout == "a b  c\nd\n"
        assert [result.index for result in done.results] == list(range(7))
        assert [result.snapshot_id for result in done.results] == [str(at) for at in range(7)]
        assert done.results[1].name == "fails" and done.results[1].input["command"][0] == "sh"
        assert done.results[5].duration_ms >= 1000 and done.total_duration_ms >= 1000
        assert done.operation_id
        history = made.get_history()
        assert [one.index for one in history] == list(range(7)) and history[1].output == outputs[1]
        lines = [json.loads(line) for line in made.export_trajectory().splitlines()]
        assert [line["step"] for line in lines] == list(range(7))
        assert lines[1]["observation"] == {"stdout": "out\n", "stderr": "err\n", "exit_code": 3}
        name = made.session_id
    with client() as gateway:
        refused(410, lambda: gateway.get_session(name), "reason=deleted")
        refused(404, lambda: gateway.delete_session(name), "session not found")


def files():
    with SandboxSession(image=IMAGE) as made:
        digest = hashlib.sha256(BINARY).hexdigest()
        written = made.upload_file("/srv/deep/b.bin", BINARY, sha256=digest)
        assert (written.path, written.bytes_written, written.sha256) == ("/srv/deep/b.bin", len(BINARY), digest)
        assert output(made, "sha256sum < /srv/deep/b.bin; stat -c %a /srv/deep/b.bin").split()[::2] == [digest, "644"]
        assert made.download_file("/srv/deep/b.bin") == BINARY
        assert b"".join(made.iter_download("/srv/deep/b.bin", chunk_size=1000)) == BINARY
        assert made.upload_file("relative.txt", "ä").path == "/workspace/relative.txt"
        assert output(made, "cat relative.txt") == "ä"
        here = Path("here.bin")
        here.write_bytes(BINARY)
        assert made.upload_path(here, "/srv/p").bytes_written == len(BINARY)
        made.download_path("/srv/p", Path("back.bin"))
        assert Path("back.bin").read_bytes() == BINARY
        assert made.upload_file("empty", b"").bytes_written == 0 and made.download_file("empty") == b""
        refused(400, lambda: made.upload_file("/srv/p", b"other", sha256="0" * 64), "sha256")
        assert made.download_file("/srv/p") == BINARY
        refused(404, lambda: made.download_file("/no/such"), "not found")
        refused(400, lambda: made.download_file("/srv"))
        names = [one.name for one in made.get_history()]
        assert names.count("upload_file") == 4


def files_by_url():
    """Paths are below the workspace."""
    with SandboxSession(image=IMAGE) as made:
        digest = hashlib.sha256(BINARY).hexdigest()
        written = made.upload_file("deep/b c.bin", BINARY, sha256=digest)
        assert (written.path, written.bytes_written, written.sha256) == ("/workspace/deep/b c.bin", len(BINARY), digest)
        assert made.upload_file("pieces", iter([b"a", b"", b"bc"])).bytes_written == 3
        with open("here.bin", "wb") as file:
            file.write(BINARY)
        with open("here.bin", "rb") as file:
            assert made.upload_file("file", file).bytes_written == len(BINARY)
        assert made.download_file("deep/b c.bin") == made.download_file("file") == BINARY
        assert b"".join(made.iter_download("pieces")) == b"abc"
        refused(400, lambda: made.upload_file("file", b"other", sha256="0" * 64), "sha256")
        refused(404, lambda: made.download_file("no/such"), "not found")


def streams():
    with SandboxSession(image=IMAGE) as made:
        heard, when = [], []

        def on_output(out, err):
            heard.append((out, err))
            when.append(time.monotonic())

        done = made.execute(
            [sh("echo first; while [ ! -e go ]; do sleep 0.01; done; echo second; echo err >&2"), sh("exit 7")],
            on_output=lambda out, err: (on_output(out, err), out == "first\n" and go(made)),
        )
        assert "".join(out for out, _ in heard) == "first\nsecond\n" and "".join(err for _, err in heard) == "err\n"
        assert heard[0] == ("first\n", ""), "as it happened"
        assert [(one.index, one.output.exit_code) for one in done.results][-1][1] == 7
        assert done.results[-2].output.stdout == "first\nsecond\n"


def go(made):
    """From another thread: the client's own loop is where it is told of the output."""
    name = made.session_id

    def write():
        with client() as gateway:
            gateway.execute(name, [step("touch", "go")])

    threading.Thread(target=write).start()


def long_command():
    """Longer than the server holds a request: 202, then the client asks every two seconds."""
    with SandboxSession(image=IMAGE) as made:
        done = made.execute([sh("sleep 1.5; echo done")])
        assert done.results[0].output.stdout == "done\n" and done.session_id == made.session_id
        assert len(made.get_history()) == 1
        restored = made.restore("0", operation_id="op-restore")
        assert restored.snapshot_id == "0"


def recovery():
    """The client gives up after a second and asks what became of it."""
    with SandboxSession(image=IMAGE, timeout=1.0) as made:
        done = made.execute([sh("echo x >> counted; sleep 2; cat counted")])
        assert done.results[0].output.stdout == "x\n", "it was done once"
        assert [one.index for one in made.get_history()] == [0]
        with client() as gateway:
            operation = gateway.get_execute_operation(made.session_id, done.operation_id)
        assert operation.status == "done" and operation.result["results"][0]["index"] == 0


def idempotent():
    with SandboxSession(image=IMAGE) as made:
        first = made.execute([sh("date +%N")], operation_id="same")
        again = made.execute([sh("date +%N")], operation_id="same")
        assert first == again
        refused(409, lambda: made.execute([sh("date")], operation_id="same"), "already exists with different request")
        refused(404, lambda: made.get_execute_operation("none"), "operation none not found")


def back():
    with SandboxSession(image=IMAGE) as made:
        made.execute([sh("echo 0 > f"), sh("echo 1 > f; mkdir d; echo x > d/x"), sh("rm -r f d"), sh("date +%N > f")])
        noise = output(made, "cat f")
        history = made.get_history()
        restored = made.restore(history[1].snapshot_id)
        if VERSION >= (0, 20):  # others hear nothing
            assert (restored.snapshot_id, restored.steps_replayed) == ("1", 2)
        assert output(made, "cat f d/x") == "1\nx\n"
        assert [one.index for one in made.get_history()] == [0, 1, 2]
        made.execute([sh("date +%N > g")])
        exact = output(made, "cat g")
        made.restore("3")
        assert output(made, "cat g") == exact != noise, "as it was, not done again"
        refused(404, lambda: made.restore("99"), "snapshot 99 not found")
        refused(400, lambda: made.restore("x"), "snapshot")
        with SandboxSession(image=IMAGE) as other:
            replayed = other.replay_from(made.session_id, up_to_step=1)
            assert (replayed.steps_replayed, replayed.errors) == (2, 0)
            assert output(other, "cat f d/x") == "1\nx\n"
            assert [one.index for one in other.get_history()] == [0]


def forks():
    with SandboxSession(image=IMAGE, profile="p") as made, client() as gateway:
        made.execute([sh("echo 0 > f"), sh("echo 1 > f")])
        forked = gateway.fork_session(made.session_id, 0)
        assert (forked.parent_id, forked.fork_step) == (made.session_id, 0)
        assert forked.session.parent_session_id == made.session_id and forked.session.profile == "p"
        child = SandboxSession.attach(forked.session.id)
        assert output(child, "cat f; echo 2 > f") == "0\n" and output(made, "cat f") == "1\n"
        child.delete_sandbox()
        child.close()
        refused(404, lambda: gateway.fork_session(made.session_id, 9), "snapshot 9 not found")


def attached():
    made = SandboxSession(image=IMAGE, idle_timeout_seconds=300)
    name = made.create_sandbox().id
    made.execute([sh("echo kept > f")])
    made.close()
    with SandboxSession.attach(name) as again:
        assert output(again, "cat f") == "kept\n" and len(again.get_history()) == 2
        again.suspend()
        refused(409, lambda: again.execute([step("true")]), "suspended")
        again.resume()
        assert output(again, "cat f") == "kept\n"
    with client() as gateway:
        assert gateway.get_session(name).status == "active", "an attached session outlives its context"
        listed = gateway.list_sessions(profile="default", status="active")
        assert name in [one.id for one in listed]
        gateway.delete_session(name)
        assert name not in [one.id for one in gateway.list_sessions()]


def logs():
    with SandboxSession(image=IMAGE) as made:
        made.execute([step("true", name="first")])
        lines = made.get_logs(tail=10)
        assert lines[0].message.startswith("session created") and "first" in lines[1].message
        assert lines[0].timestamp and lines[0].level == "info" and lines[0].source
        assert len(list(made.iter_logs(tail=1))) == 1


def pools():
    name = "pool-" + secrets.token_hex(4)
    with WarmPoolManager(URL, api_key=KEY) as manager:
        manager.create_warmpool(name, IMAGE, replicas=2, profile=name, resources=small())
        began = time.monotonic()
        ready = manager.wait_for_ready(name, min_ready=2, poll_interval=0.05)
        assert (ready.name, ready.state, ready.image, ready.replicas) == (name, "running", "ubuntu:latest", 2)
        assert time.monotonic() - began < 60 and not ready.conditions
        assert name in [pool.name for pool in manager.list_warmpools()]
        with SandboxSession(image=IMAGE, profile=name) as made:
            assert output(made, "pwd") == "/workspace\n"
            assert manager.get_warmpool(name).allocated_replicas == 1
            assert manager.scale_warmpool(name, 1).replicas == 1
            assert manager.get_logs(name)[0].pod_name == name
            refused(409, lambda: manager.create_warmpool(name, IMAGE), "already exists")
        made = SandboxSession(profile=name)
        made.create_sandbox()
        manager.drain_warmpool(name)
        refused(410, lambda: made.execute([step("true")]), "pool_deleted")
        made.close()
        assert manager.get_warmpool(name).state == "stopped"
        manager.destroy_warmpool(name)
        refused(404, lambda: manager.get_warmpool(name), "not found")
        manager.delete_warmpool(name)
        refused(400, lambda: manager.create_warmpool("x" + name, "no/such:image"), "boxwood image import")


def small():
    return arl.ResourceRequirements(requests={"cpu": "250m", "memory": "128Mi"}, limits={"cpu": "1", "memory": "512Mi"})


def experiments():
    name = "exp-" + secrets.token_hex(4)
    env = arl.ConfigEnvSpec(vars={"A": "of the session"})
    with (
        arl.ManagedSession(image=IMAGE, experiment_id=name, config_env=env, resources=small()) as made,
        client() as gateway,
    ):
        assert made.experiment_id == name and made.session_info.managed
        assert output(made, "echo $A") == "of the session\n"
        assert [one.id for one in gateway.list_experiment_sessions(name)] == [made.session_id]
        assert [one.session_count for one in gateway.list_experiments() if one.experiment_id == name] == [1]
        summary = gateway.summary()
        assert summary.managed_sessions >= 1 and summary.sessions >= summary.managed_sessions
        other = gateway.create_managed_session(IMAGE, name)
        assert other.experiment_id == name
        gateway.delete_session(other.id)
    with client() as gateway:
        left = gateway.create_managed_session(IMAGE, name)
        assert gateway.delete_experiment(name) == 1 and gateway.delete_experiment_info(name).deleted == 0
        refused(410, lambda: gateway.get_session(left.id))


def devbox():
    with arl.DevboxSession(image=IMAGE, devbox=arl.DevboxConfig(ports=[arl.DevboxPort(port=8080)])) as made:
        info = made.session_info
        assert info.mode == "devbox" and info.connection_info.ports[0].container_port == 8080
        assert info.connection_info.shell.endswith("/shell") and info.connection_info.ssh is None
        assert output(made, "echo a") == "a\n"


def network():
    with SandboxSession(image=IMAGE, allow_internet=False) as made, client() as gateway:
        assert made.allow_internet is False
        output(made, "echo kept > f")
        routes = "tail -n +2 /proc/net/route | wc -l"
        assert output(made, routes) == "0\n"
        gateway.update_network_policy(made.session_id, allow_internet=True)
        assert output(made, "cat f") == "kept\n"
        gateway.update_network_policy(made.session_id, allow_internet=False)
        assert output(made, f"{routes}; cat f") == "0\nkept\n"
        refused(
            501,
            lambda: gateway.update_network_policy(made.session_id, allow_internet=False, egress_cidrs=["10.0.0.0/8"]),
            "egressCIDRs",
        )


def not_there():
    """What this server has not says so."""
    with SandboxSession(image=IMAGE) as made, client() as gateway:
        assert gateway.health() is True
        refused(501, lambda: made.execute_container("grader", [step("true")]), "not supported")
        refused(501, lambda: gateway.build_image("x", b"context"), "not supported")
        refused(501, lambda: gateway.send_stdin(made.session_id, "h", "x"), "not supported")
        assert gateway.get_iroh_addr(made.session_id) == ""
        container = arl.PrivateContainerSpec(name="grader", image=IMAGE)
        refused(501, lambda: gateway.create_session(IMAGE, private_containers=[container]), "privateContainers")
    refused(400, SandboxSession(image="no/such:image").create_sandbox, "boxwood image import")


def keys():
    for key, text in (("wrong", "invalid API key"),):
        with GatewayClient(URL, api_key=key) as gateway:
            refused(401, lambda: gateway.create_session(IMAGE), text)
            refused(401, lambda: gateway.get_session("x"), text)
            refused(401, gateway.list_pools, text)


def asynchronous():
    async def work():
        async with arl.AsyncSandboxSession(image=IMAGE) as made:
            heard = []
            done = await made.execute([sh("echo a; exit 2")], on_output=lambda out, err: heard.append(out))
            assert done.results[0].output.exit_code == 2 and "".join(heard) == "a\n"
            await made.upload_file("f", BINARY)
            assert await made.download_file("f") == BINARY
            assert b"".join([piece async for piece in made.iter_download("f")]) == BINARY
            first, second = await asyncio.gather(*(made.execute([step("echo", text)]) for text in "ab"))
            assert {one.results[0].output.stdout for one in (first, second)} == {"a\n", "b\n"}
            assert (await made.restore("0")).snapshot_id == "0"
            assert len(await made.get_history()) == 1 and await made.export_trajectory()
            assert await made.get_logs()
            await made.suspend()
            await made.resume()
            name = made.session_id
            async with arl.AsyncGatewayClient() as gateway:
                forked = await gateway.fork_session(name, 0, image=IMAGE, profile="default")
                await gateway.delete_session(forked.session.id)
                assert await gateway.health()
        async with arl.AsyncManagedSession(image=IMAGE, experiment_id="async") as managed:
            replayed = await managed.replay_from(name)
            assert (replayed.steps_replayed, replayed.errors) == (1, 0)
        async with arl.AsyncDevboxSession(image=IMAGE) as made:
            assert (await made.execute([step("pwd")])).results[0].output.stdout == "/workspace\n"

    asyncio.run(work())


def twenty_at_once():
    def one(at):
        with SandboxSession(image=IMAGE) as made:
            said[at] = output(made, f"echo {at} > f; cat f")

    said = {}
    threads = [threading.Thread(target=one, args=(at,)) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {at: f"{at}\n" for at in range(20)}


# Before 0.15: sessions by pool


def by_pool():
    name = "pool-" + secrets.token_hex(4)
    manager = WarmPoolManager(namespace="old", gateway_url=URL)
    made = SandboxSession(name, namespace="old", gateway_url=URL)
    if VERSION < (0, 4, 1):  # they send no key: somebody in front of the server has to
        for each in (manager, made):
            each._client._client.headers["Authorization"] = f"Bearer {KEY}"
    manager.create_warmpool(name, IMAGE, replicas=1)
    ready = manager.wait_for_ready(name, poll_interval=0.05)
    assert (ready.name, ready.ready_replicas >= 1) == (name, True)
    try:
        info = made.create_sandbox()
        assert (info.pool_ref, info.namespace) == (name, "old")
        done = made.execute([step("pwd"), sh("echo 1 > f; exit 3"), sh("cat f; rm f")])
        assert [one.output.exit_code for one in done.results] == [0, 3, 0]
        assert done.results[0].output.stdout == "/workspace\n" and done.results[2].output.stdout == "1\n"
        made.restore(done.results[1].snapshot_id)
        assert output(made, "cat f") == "1\n"
        assert [one.index for one in made.get_history()] == [0, 1, 2]
        assert len(made.export_trajectory().splitlines()) == 3
        if VERSION >= (0, 4, 1):
            assert made.upload_file("sub/t", "text").bytes_written == 4
            assert made.upload_file("sub/b", b"\xff\0").bytes_written == 2
            assert output(made, "od -An -tx1 sub/t sub/b").split() == ["74", "65", "78", "74", "ff", "00"]
        if VERSION >= (0, 10):
            assert made._client.download_file(made.session_id, "sub/b") in (b"\xff\0", "\xff\0")
        made.delete_sandbox()
    finally:
        manager.delete_warmpool(name)


globals()[sys.argv[2]]()
