"""ARL's first generation: pools, sandboxes and tasks as objects of Kubernetes, as its document shows them.

Each step has a namespace of its own: published clients name a sandbox by the second in which it is made.
"""

from contextlib import contextmanager, redirect_stdout
from io import StringIO

from observing import Scenario, fresh

scenario = Scenario()
step = scenario.step
IMAGE = "ubuntu"


@contextmanager
def pooled(arl):
    """A namespace with a pool `p`, of one sandbox, which is ready; published clients print what they wait for."""
    with redirect_stdout(StringIO()):
        namespace = fresh("ns")
        manager = arl.WarmPoolManager(namespace=namespace)
        manager.create_warmpool("p", IMAGE, "arl-sidecar:latest", replicas=1)
        manager.wait_for_warmpool_ready("p", poll_interval=0.05)
        try:
            yield namespace
        finally:
            manager.delete_warmpool("p")


@contextmanager
def session(arl, **options):
    with pooled(arl) as namespace, arl.SandboxSession(pool_ref="p", namespace=namespace, **options) as made:
        yield made


def command(*argv, name="run", **more):
    return {"name": name, "type": "Command", "command": list(argv), **more}


def refused(step):
    """The class that is documented, if it is one of that, and the status."""
    try:
        step()
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        return ["ApiException" if "ApiException" in names else names[0], getattr(error, "status", None)]
    raise AssertionError("not refused")


def status(task):
    told = task["status"]
    return [told["state"], told.get("stdout", ""), told.get("stderr", ""), told.get("exitCode", 0)]


# --- pools


@step(["WarmPool", True, 1, IMAGE, [1, 0], ["ApiException", 409], None, ["ApiException", 404], ["ApiException", 404]])
def pools(arl):
    with redirect_stdout(StringIO()):
        manager = arl.WarmPoolManager(namespace=fresh("ns"))
        made = manager.create_warmpool(name="p", image=IMAGE, sidecar_image="arl-sidecar:latest", replicas=1)
        manager.wait_for_warmpool_ready("p", poll_interval=0.05)
        found = manager.get_warmpool("p")
        containers = {one["name"]: one for one in found["spec"]["template"]["spec"]["containers"]}
        again = refused(lambda: manager.create_warmpool("p", IMAGE, "arl-sidecar:latest"))
        deleted = manager.delete_warmpool("p")
        return [
            made["kind"],
            made["metadata"]["name"] == found["metadata"]["name"] == "p",
            found["spec"]["replicas"],
            containers["executor"]["image"],
            [found["status"]["readyReplicas"], found["status"]["allocatedReplicas"]],
            again,
            deleted,
            refused(lambda: manager.get_warmpool("p")),
            refused(lambda: manager.delete_warmpool("p")),
        ]


@step([True, "ValueError"])
def a_pool_that_is_not_there(arl):
    with redirect_stdout(StringIO()):
        try:
            arl.SandboxSession(pool_ref="none", namespace=fresh("ns")).create_sandbox()
        except Exception as error:
            return [isinstance(error, ValueError), type(error).__name__]


@step(["ApiException", 404])
def a_pool_that_is_not_there_as_documented(arl):
    with redirect_stdout(StringIO()):
        return refused(arl.SandboxSession(pool_ref="none", namespace=fresh("ns")).create_sandbox)


@step({"total": 1, "allocated": 1})
def what_a_pool_has(arl):
    with session(arl) as made:
        found = made.get_pool_status()
        return {name: found[name] for name in ("total", "allocated")}


# --- tasks


@step(["Task", "Succeeded", "Hello, World!\n", "", 0])
def hello(arl):
    with session(arl) as made:
        result = made.execute([command("echo", "Hello, World!", name="hello")])
        return [result["kind"], *status(result)]


@step(["Sandbox", ["Succeeded", "", "", 0], ["Succeeded", "kept\n", "", 0], None, None])
def one_sandbox_for_many_tasks(arl):
    with pooled(arl) as namespace:
        made = arl.SandboxSession(pool_ref="p", namespace=namespace, keep_alive=True)
        sandbox = made.create_sandbox()
        tasks = [made.execute([command(*argv)]) for argv in (("sh", "-c", "echo kept > /workspace/f"), ("cat", "f"))]
        return [sandbox["kind"], *(status(task) for task in tasks), made.delete_sandbox(), made.delete_sandbox()]


@step(["Succeeded", "/srv true x y\n", "done\n", 0])
def a_commands_surroundings(arl):
    script = "echo $PWD $DEBUG $WORDS; echo done >&2"
    with session(arl) as made:
        return status(
            made.execute([command("sh", "-c", script, workDir="/srv", env={"DEBUG": "true", "WORDS": "x y"})])
        )


@step(["Succeeded", "File created: /workspace/script.py\nFile created: sub/note\nHello!\nnoted", "", 0])
def files(arl):
    with session(arl) as made:
        write = {"name": "write", "type": "FilePatch", "path": "/workspace/script.py", "content": "print('Hello!')"}
        note = {"name": "note", "type": "FilePatch", "path": "sub/note", "content": "noted"}
        run = [command("python3", "script.py"), command("cat", "/workspace/sub/note")]
        return status(made.execute([write, note, *run]))


@step(["Failed", "one\ntwo\n", "oops\n", 3])
def the_first_that_fails_is_the_last(arl):
    with session(arl) as made:
        steps = [
            command("echo", "one"),
            command("sh", "-c", "echo two; echo oops >&2; exit 3"),
            command("echo", "never"),
        ]
        return status(made.execute(steps))


@step([["Failed", "", 1, True], ["Failed", "", 1, True], ["Succeeded", "$HOME * a  b\n", 0, False]])
def what_is_started(arl):
    with session(arl, keep_alive=True) as made:
        tasks = [made.execute([command(*argv)]) for argv in (("no-such-program",), (), ("echo", "$HOME", "*", "a  b"))]
        made.delete_sandbox()
        told = [status(task) for task in tasks]
        return [[state, stdout, code, bool(stderr)] for state, stdout, stderr, code in told]


@step(["complete Failed", "failure 4", "complete Succeeded", "success out\n", "complete Succeeded"])
def callbacks(arl):
    heard = []
    with session(arl, keep_alive=True) as made:
        made.register_callback("on_task_complete", lambda task: heard.append(f"complete {task['status']['state']}"))
        made.register_callback("on_task_success", lambda task: heard.append(f"success {task['status']['stdout']}"))
        made.register_callback("on_task_failure", lambda task: heard.append(f"failure {task['status']['exitCode']}"))
        made.execute([command("sh", "-c", "exit 4")])
        made.execute([command("echo", "out")])
        made.unregister_callback("on_task_success")
        made.execute([command("true")])
        made.delete_sandbox()
    return heard


@step([["Succeeded", "File created: /workspace/after.sh\n", "", 0], ["Succeeded", "after\n", "", 0]])
def a_script_afterwards(arl):
    with session(arl, keep_alive=True) as made:
        write = {"name": "w", "type": "FilePatch", "path": "/workspace/after.sh", "content": "echo after"}
        result = made.execute_with_callback([write], callback_script="/workspace/after.sh")
        made.delete_sandbox()
        return [status(result), status(result["callback_result"])]


@step(["RuntimeError", True])
def a_session_without_a_sandbox(arl):
    with redirect_stdout(StringIO()):
        try:
            arl.SandboxSession(pool_ref="p").execute([command("true")])
        except Exception as error:
            return [
                "RuntimeError" if isinstance(error, RuntimeError) else type(error).__name__,
                "create_sandbox" in str(error),
            ]


# --- what the document promises, and published clients do otherwise


@step(["Succeeded", "in time\n", "", 0])
def durations_as_text(arl):
    with session(arl, timeout="30s") as made:
        return status(made.execute([command("echo", "in time")], timeout="5m"))


@step(["TimeoutError", True])
def a_timeout(arl):
    with session(arl, keep_alive=True) as made:
        try:
            made.execute([command("sleep", "60")], timeout="1s")
        except TimeoutError as error:
            return ["TimeoutError", isinstance(error, RuntimeError)]
        finally:
            made.delete_sandbox()


TYPE_ERROR = {"raised": "TypeError"}
PUBLISHED = ("0.1.4", "0.1.5")
DIFFERENCES = {
    ("0.1.4", "what_a_pool_has"): ({"raised": "AttributeError"}, "get_pool_status came with 0.1.5"),
    ("face", "a_pool_that_is_not_there"): (
        [True, "WarmPoolNotFound"],
        "an ApiException, as documented, and the ValueError of the published clients in one",
    ),
    **{
        (version, "a_pool_that_is_not_there_as_documented"): (["ValueError", None], "without a status there")
        for version in PUBLISHED
    },
    **{
        (version, "durations_as_text"): (TYPE_ERROR, "the timeout is a number of seconds there, of the client alone")
        for version in PUBLISHED
    },
    **{(version, "a_timeout"): (TYPE_ERROR, "execute has no timeout there") for version in PUBLISHED},
}

if __name__ == "__main__":
    scenario.play()
