"""Every public method of arl-env 0.1.5's shell and of 0.27.0: `arl_surface.py VERSION CASE`.

What becomes of each call is noted by tests/scenarios/recorder.py, and told in docs/compatibility.md.
"""

import asyncio
import inspect
import io
import os
import secrets
import sys
from contextlib import redirect_stdout
from pathlib import Path

import arl

IMAGE = "ubuntu"
ECHO = [{"name": "echo", "command": ["echo", "hi"]}]


def fresh(prefix):
    return prefix + "-" + secrets.token_hex(6)


async def ask(some, method, *given, **named):
    """What the method gives in the end, of either form; None where the call is refused."""
    try:
        got = getattr(some, method)(*given, **named)
        if inspect.isawaitable(got):
            got = await got
        if hasattr(got, "__anext__"):
            return [item async for item in got]
        return list(got) if hasattr(got, "__next__") else got
    except Exception as error:
        print(f"{type(some).__name__}.{method}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


async def play(some, calls):
    """Those that this class has."""
    for method, given in calls.items():
        if hasattr(some, method):
            positional, named = (given[:-1], given[-1]) if given and isinstance(given[-1], dict) else (given, {})
            await ask(some, method, *positional, **named)


async def session(kind, **options):
    """A session from beginning to end, and another one that repeats it."""
    made = kind(image=IMAGE, **options)
    told = await ask(made, "create_sandbox")
    assert told is not None, "no session"
    Path("local").write_text("local")
    await ask(made, "execute", ECHO, operation_id="first")
    done = await ask(made, "execute", ECHO)
    calls = {
        "get_execute_operation": ("first",), "execute_container": ("x", ECHO), "upload_file": ("/workspace/f", "x"),
        "upload_path": ("local", "/workspace/g"), "download_file": ("/workspace/f",), "iter_download": ("/workspace/f",),
        "download_path": ("/workspace/f", "copy"), "get_history": (), "export_trajectory": (), "get_logs": (),
        "iter_logs": (), "restore": (done.results[0].snapshot_id,), "suspend": (), "resume": (),
        "tunnel_forward": (), "tunnel_list": (), "tunnel_stop": (1,),
    }  # fmt: skip
    await play(made, calls)
    attached = await ask(kind, "attach", told.id)
    if attached is not None:
        await play(attached, {"close": (), "aclose": ()})
    other = kind(image=IMAGE, **options)
    await ask(other, "create_sandbox")
    await ask(other, "replay_from", told.id)
    for one in (other, made):
        await play(one, {"delete_sandbox": (), "close": (), "aclose": ()})


async def gateway(client, pools):
    """Sessions, pools and experiments, as the client of the routes has them."""
    pool, experiment = fresh("pool"), fresh("experiment")
    one = (await ask(client, "create_session", IMAGE)).id
    other = (await ask(client, "create_session", IMAGE)).id
    Path("local").write_text("local")
    done = await ask(client, "execute", one, ECHO, operation_id="first")
    forked = await ask(client, "fork_session", one, 0)
    calls = {
        "health": (), "get_session": (one,), "list_sessions": (), "get_execute_operation": (one, "first"),
        "execute_container": (one, "x", ECHO), "upload_file": (one, "/workspace/f", "x"),
        "upload_path": (one, "local", "/workspace/g"), "download_file": (one, "/workspace/f"),
        "iter_download_file": (one, "/workspace/f"), "download_path": (one, "/workspace/f", "copy"),
        "get_history": (one,), "get_trajectory": (one,), "list_session_logs": (one,), "iter_session_logs": (one,),
        "restore": (one, done.results[0].snapshot_id), "replay_from": (other, one), "suspend_session": (one,),
        "resume_session": (one,), "update_network_policy": (one, {"allow_internet": False}),
        "send_stdin": (one, "handle", "x"), "get_iroh_addr": (one,), "build_image": ("x:1", io.BytesIO(b"")),
        "summary": (), "create_pool": (pool, IMAGE, 1), "get_pool": (pool,), "list_pools": (), "scale_pool": (pool, 2),
        "list_pool_logs": (pool,), "iter_pool_logs": (pool,), "create_managed_session": (IMAGE, experiment),
        "list_experiments": (), "list_experiment_sessions": (experiment,), "delete_experiment_info": (experiment,),
        "delete_experiment": (experiment,), "delete_pool": (pool,), "destroy_pool": (pool,),
    }  # fmt: skip
    await play(client, calls)
    for left in (one, other, *([forked.id] if hasattr(forked, "id") else [])):
        await ask(client, "delete_session", left)
    await play(client, {"close": (), "aclose": ()})
    pool = fresh("pool")
    calls = {
        "create_warmpool": (pool, IMAGE, 1), "wait_for_ready": (pool, {"poll_interval": 0.05}), "get_warmpool": (pool,),
        "list_warmpools": (), "get_logs": (pool,), "iter_logs": (pool,), "scale_warmpool": (pool, 2),
        "drain_warmpool": (pool,), "delete_warmpool": (pool,), "destroy_warmpool": (pool,), "close": (), "aclose": (),
    }  # fmt: skip
    await play(pools, calls)


async def sessions():
    await session(arl.SandboxSession)
    await session(arl.AsyncSandboxSession)
    await session(arl.ManagedSession, experiment_id=fresh("experiment"))
    await session(arl.AsyncManagedSession, experiment_id=fresh("experiment"))
    await session(arl.DevboxSession)
    await session(arl.AsyncDevboxSession)


async def routes():
    url, key = os.environ["ARL_GATEWAY_URL"], os.environ["ARL_API_KEY"]
    await gateway(arl.GatewayClient(), arl.WarmPoolManager(url, api_key=key))
    await gateway(arl.AsyncGatewayClient(), None)


async def terminal():
    """Of 0.27.0, with the package `websockets` beside it: a shell in a session."""
    url, key = os.environ["ARL_GATEWAY_URL"], os.environ["ARL_API_KEY"]
    with arl.SandboxSession(image=IMAGE) as made:
        client = arl.InteractiveShellClient(url, key)
        assert not client.is_open()
        client.connect(made.session_id)
        assert client.is_open()
        client.send_resize(101, 33)
        client.send_input("stty size; pwd; echo $TERM grü''ße\n")
        shown = until(client, "grüße\r\n")
        assert "33 101\r\n/\r\nxterm-256color" in shown.replace("\x1b[?2004l\r", ""), shown
        client.send_input("sleep 1000\n")
        until(client, "sleep 1000\r\n")
        while "sleep" not in made.execute([{"name": "ps", "command": ["ps", "-e"]}]).results[0].output.stdout:
            pass
        client.send_signal("SIGINT")
        client.send_input("echo code $?\n")
        until(client, "code 130\r\n")
        client.send_input("exit 7\n")
        while (message := client.read_message(30)).type != "exit":
            pass
        assert message.exit_code == 7
        client.close()
        assert not client.is_open()


def until(client, text):
    shown = ""
    while text not in shown:
        more = client.read_output(30)
        assert more, shown
        shown += more
    return shown


async def shell():
    """Of 0.1.5: a shell in a sandbox's pod."""
    with redirect_stdout(io.StringIO()):
        namespace = fresh("ns")
        manager = arl.WarmPoolManager(namespace=namespace)
        manager.create_warmpool("p", IMAGE, "arl-sidecar:latest", replicas=1)
        manager.wait_for_warmpool_ready("p", poll_interval=0.05)
        with arl.SandboxSession("p", namespace=namespace) as made:
            await ask(made, "create_interactive_shell")
            found = made.custom_api.get_namespaced_custom_object(
                "arl.infra.io", "v1alpha1", namespace, "sandboxes", made.sandbox_name
            )
            client = arl.InteractiveShellClient()
            pod = found["status"]["podName"]
            await play(client, {"connect": (namespace, pod), "connect_sync": (namespace, pod)})
        manager.delete_warmpool("p")


asyncio.run(globals()[sys.argv[2]]())
