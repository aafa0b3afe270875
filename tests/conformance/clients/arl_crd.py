"""Cases for arl-env 0.1.3 to 0.1.5, which speak to a kube-apiserver: `arl_crd.py VERSION CASE…`, with KUBECONFIG set.

They need a server whose image is known as IMAGE.
"""

import contextlib
import io
import os
import secrets
import sys
import threading
import time
from contextlib import contextmanager

import arl.session
import kubernetes
from arl import SandboxSession, WarmPoolManager

VERSION = sys.argv[1]
IMAGE = os.environ.get("ARL_IMAGE", "python:3.12-slim")
assert kubernetes.__version__ == os.environ.get("KUBERNETES_VERSION", kubernetes.__version__)


def fresh(prefix):
    return f"{prefix}-{secrets.token_hex(4)}"


def command(*argv, **members):
    return {"name": "step", "type": "Command", "command": list(argv), **members}


def patch(path, content):
    return {"name": "step", "type": "FilePatch", "path": path, "content": content}


@contextmanager
def pooled(replicas=1, **options):
    """A manager and the name of a pool that is ready."""
    manager = WarmPoolManager(namespace=fresh("ns"))
    name = fresh("pool")
    manager.create_warmpool(name, IMAGE, "arl-sidecar:latest", replicas=replicas, **options)
    try:
        manager.wait_for_warmpool_ready(name)
        yield manager, name
    finally:
        manager.delete_warmpool(name)


@contextmanager
def session(**options):
    with pooled() as (manager, name), SandboxSession(pool_ref=name, namespace=manager.namespace, **options) as made:
        yield made


@contextmanager
def counted():
    """How often objects were asked for."""
    asked = []
    original = kubernetes.client.CustomObjectsApi.get_namespaced_custom_object

    def get(self, *args, **more):
        asked.append(more.get("plural") or args[3])
        return original(self, *args, **more)

    kubernetes.client.CustomObjectsApi.get_namespaced_custom_object = get
    try:
        yield asked
    finally:
        kubernetes.client.CustomObjectsApi.get_namespaced_custom_object = original


def refused(step, kind=kubernetes.client.ApiException):
    try:
        step()
    except kind as error:
        return error
    raise AssertionError("nothing was refused")


class Seconds:
    """The time as sessions see it, who name their sandboxes after its seconds: each thread has its own."""

    def __init__(self):
        self.ahead = threading.local()

    def time(self):
        return time.time() + getattr(self.ahead, "seconds", 0)

    def __getattr__(self, name):
        return getattr(time, name)


# Cases


def pools():
    with pooled(2) as (manager, name):
        pool = manager.get_warmpool(name)
        assert pool["spec"]["replicas"] == 2 and pool["status"]["readyReplicas"] == 2
        again = refused(lambda: manager.create_warmpool(name, IMAGE, "s"))
        assert (again.status, again.reason) == (409, "Conflict"), again
    gone = refused(lambda: manager.get_warmpool(name))
    assert (gone.status, gone.reason) == (404, "Not Found")
    assert refused(lambda: manager.delete_warmpool(name)).status == 404


def unknown_image():
    manager = WarmPoolManager(namespace=fresh("ns"))
    error = refused(lambda: manager.create_warmpool("p", "nowhere.example/nope:1", "s"))
    assert (error.status, error.reason) == (422, "Unprocessable Entity")
    assert "boxwood image import" in str(error), "the user sees how to put it right"


def unknown_pool():
    made = SandboxSession(pool_ref="nope", namespace=fresh("ns"), timeout=1)
    kind = RuntimeError if VERSION == "0.1.3" else ValueError
    error = refused(made.create_sandbox, kind)
    if VERSION != "0.1.3":
        assert "nope" in str(error)
    made.delete_sandbox()


def session_without_keep_alive():
    with session() as made:
        first = made.execute([command("sh", "-c", "pwd; echo kept > f")])
        second = made.execute([command("cat", "f")])
    assert first["status"]["stdout"] == "/workspace\n" and second["status"]["stdout"] == "kept\n"
    assert first["status"]["state"] == second["status"]["state"] == "Succeeded"
    assert first["status"]["exitCode"] == 0 and first["status"]["stderr"] == ""


def session_with_keep_alive():
    with pooled() as (manager, name):
        made = SandboxSession(pool_ref=name, namespace=manager.namespace, keep_alive=True)
        made.create_sandbox()
        try:
            for number in range(5):
                done = made.execute([command("sh", "-c", f"echo {number} >> f; cat f")])
                assert done["status"]["stdout"].split() == [str(n) for n in range(number + 1)]
            pool = manager.get_warmpool(name)
            assert pool["status"]["allocatedReplicas"] == 1
        finally:
            made.delete_sandbox()
            made.delete_sandbox()  # the second time it swallows the 404
        left = manager.get_warmpool(name)["status"]["allocatedReplicas"]
        assert left == 0, left


def nothing_is_left_for_the_next():
    """0.1.3's operator gave a pod back with its files."""
    seconds = arl.session.time = Seconds()
    with pooled() as (manager, name):
        for number in range(2):
            seconds.ahead.seconds = 1000 * number
            made = SandboxSession(pool_ref=name, namespace=manager.namespace)
            made.create_sandbox()
            done = made.execute([command("sh", "-c", "ls /workspace; echo x > /workspace/x")])
            assert done["status"]["stdout"] == "", done
            made.delete_sandbox()


def failure_in_the_middle():
    with session(keep_alive=True) as made:
        done = made.execute([command("echo", "one"), command("sh", "-c", "echo two >&2; exit 7"), command("echo", "3")])
        assert done["status"]["state"] == "Failed" and done["status"]["exitCode"] == 7
        assert (done["status"]["stdout"], done["status"]["stderr"]) == ("one\n", "two\n")
        gone = made.execute([command("no-such-program"), command("echo", "never")])
        assert gone["status"]["exitCode"] == 1 and gone["status"]["stdout"] == ""
        assert gone["status"]["stderr"].startswith("failed to start command: "), gone
        astray = made.execute([command("pwd", workDir="/no/such/place")])
        assert astray["status"]["stderr"].startswith("failed to start command: "), astray


def file_patches():
    with session(keep_alive=True) as made:
        done = made.execute(
            [
                patch("sub/relative", "one\n"),
                patch("/workspace/absolute", "zwei ü\n"),
                patch("/etc/elsewhere", "three\n"),
                command("cat", "sub/relative", "/workspace/absolute", "/etc/elsewhere"),
            ]
        )
        told = "File created: sub/relative\nFile created: /workspace/absolute\nFile created: /etc/elsewhere\n"
        assert done["status"]["stdout"] == told + "one\nzwei ü\nthree\n", done
        nothing = made.execute([{"name": "x", "type": "FilePatch", "content": "y"}])
        assert nothing["status"]["stderr"] == "FilePatch step requires 'path' field\n"
        assert made.execute([patch("/proc/x", "y")])["status"]["stderr"].startswith("File update failed: ")


def env_and_directory():
    with session() as made:
        done = made.execute(
            [command("sh", "-c", "echo $K; pwd", env={"K": "a b"}, workDir="/tmp"), command("printenv", "K")]
        )
    assert (done["status"]["stdout"], done["status"]["exitCode"]) == ("a b\n/tmp\n", 1), done


def arguments_arrive_as_they_are():
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    with session() as made:
        done = made.execute([command("python3", "-c", script, "a b", "$HOME", "'\"", "", "*", "ü")])
    assert done["status"]["stdout"] == '["a b", "$HOME", "\'\\"", "", "*", "\\u00fc"]\n'


def callbacks():
    heard = []
    with session(keep_alive=True) as made:
        for event in ("on_task_complete", "on_task_success", "on_task_failure"):
            made.register_callback(event, lambda result, event=event: heard.append((event, result["status"]["state"])))
        made.execute([command("true")])
        made.execute([command("false")])
        made.execute([patch("script.sh", "echo called back\n")])
        done = made.execute_with_callback([command("echo", "main")], callback_script="/workspace/script.sh")
    assert heard[:4] == [
        ("on_task_complete", "Succeeded"),
        ("on_task_success", "Succeeded"),
        ("on_task_complete", "Failed"),
        ("on_task_failure", "Failed"),
    ], heard
    assert done["status"]["stdout"] == "main\n"
    assert done["callback_result"]["status"]["stdout"] == "called back\n", done


def names_collide():
    """Two sessions of the same second have the same name."""
    seconds = arl.session.time = Seconds()
    seconds.time = lambda: 1795227623.0
    with pooled() as (manager, name):
        one, other = (SandboxSession(pool_ref=name, namespace=manager.namespace) for _ in range(2))
        one.create_sandbox()
        error = refused(other.create_sandbox, Exception)
        assert "Conflict" in str(error), error
        one.delete_sandbox()


def pool_status():
    with session() as made:
        status = made.get_pool_status()
    assert "1" in str(status) and status, status


def answers_are_held():
    """Each wait of the client's is one question: the answer comes when there is one."""
    with counted() as asked, session(keep_alive=True) as made:
        before = len(asked)
        assert asked.count("sandboxes") <= 2, asked
        made.execute([command("sleep", "1.2")])
        assert asked[before:] == ["tasks"], asked


def many_tasks_at_once():
    from concurrent.futures import ThreadPoolExecutor

    seconds = arl.session.time = Seconds()
    with pooled(2) as (manager, name):

        def one(number):
            seconds.ahead.seconds = 1000 * number
            with SandboxSession(pool_ref=name, namespace=manager.namespace) as made:
                return made.execute([command("echo", str(number))])["status"]["stdout"]

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(one, range(16))) == [f"{number}\n" for number in range(16)]


for case in sys.argv[2:]:
    arl.session.time = time
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # later releases tell how far they are
            globals()[case]()
    except BaseException:
        print(f"in {case}:", file=sys.stderr)
        raise
