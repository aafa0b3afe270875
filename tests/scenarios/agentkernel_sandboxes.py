"""agentkernel: sandboxes that stay, commands in them, and sandboxes for the length of a block."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from observing import Scenario, fresh, refusal

scenario = Scenario()
step = scenario.step


@contextmanager
def made(ak, **options):
    """A client and the name of a sandbox of its own."""
    with ak.AgentKernel() as client:
        name = fresh("ak")
        client.create_sandbox(name, **options)
        try:
            yield client, name
        finally:
            client.remove_sandbox(name)


@step(["SandboxInfo", True, "running", "python:3.12-alpine", 1, 256, True, True])
def create(ak):
    with ak.AgentKernel() as client:
        name = fresh("ak")
        info = client.create_sandbox(name, image="python:3.12-alpine", vcpus=1, memory_mb=256, profile="moderate")
        told = client.get_sandbox(name)
        listed = name in [one.name for one in client.list_sandboxes()]
        client.remove_sandbox(name)
        same = (told.name, told.image, bool(told.created_at)) == (name, info.image, True)
        return [
            type(info).__name__,
            info.name == name,
            info.status,
            info.image,
            info.vcpus,
            info.memory_mb,
            same,
            listed,
        ]


@step([["NotFoundError", 404, "Sandbox not found"]] * 3)
def a_sandbox_that_is_not_there(ak):
    with ak.AgentKernel() as client:
        name = fresh("ak")
        steps = (client.get_sandbox, client.remove_sandbox, lambda name: client.exec_in_sandbox(name, ["pwd"]))
        return [refusal(lambda act=act: act(name), "status", says=["Sandbox not found"]) for act in steps]


@step([None, ["NotFoundError"], False])
def remove(ak):
    with ak.AgentKernel() as client:
        name = fresh("ak")
        client.create_sandbox(name)
        got = client.remove_sandbox(name)
        return [got, refusal(lambda: client.get_sandbox(name)), name in [one.name for one in client.list_sandboxes()]]


@step([["ValidationError", 400], ["ValidationError", 400, "nope:1"]])
def a_sandbox_that_cannot_be(ak):
    with ak.AgentKernel() as client:
        return [
            refusal(lambda: client.create_sandbox("not a name"), "status"),
            refusal(lambda: client.create_sandbox(fresh("ak"), image="nope:1"), "status", says=["nope:1"]),
        ]


@step(["ServerError", 500])
def a_name_that_is_taken(ak):
    with made(ak) as (client, name):
        return refusal(lambda: client.create_sandbox(name), "status")


@step(["/root\n", "kept\n", "echo (GNU"])
def execute(ak):
    with made(ak) as (client, name):
        client.exec_in_sandbox(name, ["sh", "-c", "echo kept > /srv/note"])
        return [
            client.exec_in_sandbox(name, ["pwd"]).output,
            client.exec_in_sandbox(name, ["cat", "/srv/note"]).output,
            client.exec_in_sandbox(name, ["echo", "--version"]).output[:9],  # a program, not the builtin of a shell
        ]


@step([["ServerError", "code 42", "o\n\ne\n"], ["ValidationError"]])
def a_command_that_fails(ak):
    with made(ak) as (client, name):
        script = ["sh", "-c", "echo o; echo e >&2; exit 42"]
        return [
            refusal(lambda: client.exec_in_sandbox(name, script), says=("code 42", "o\n\ne\n")),
            refusal(lambda: client.exec_in_sandbox(name, [])),
        ]


@step([["ServerError", "127"]] * 7)
def no_word_is_a_shells(ak):
    with made(ak) as (client, name):
        words = ("if", "cd", "exit", "export", ":", "!", "{")
        return [refusal(lambda w=word: client.exec_in_sandbox(name, [w, "0"]), says=["127"]) for word in words]


@step("x y|1=2\n/tmp\n")
def environment_and_directory(ak):
    with made(ak) as (client, name):
        script = ["sh", "-c", 'echo "$A|$B"; pwd']
        return client.exec_in_sandbox(name, script, env=["A=x y", "B=1=2"], workdir="/tmp").output


@step([f"{n}\n" for n in range(8)])
def side_by_side(ak):
    """Each waits for all the others: one after the other they would never end."""
    with made(ak) as (client, name), ThreadPoolExecutor(8) as pool:
        script = "mkdir -p /tmp/all; touch /tmp/all/{0}; until test $(ls /tmp/all | wc -l) = 8; do sleep 0.02; done; echo {0}"
        return list(pool.map(lambda n: client.exec_in_sandbox(name, ["sh", "-c", script.format(n)]).output, range(8)))


@step(["kept\n", "json\n", "running", True, ["NotFoundError"]])
def session(ak):
    with ak.AgentKernel() as client:
        with client.sandbox(fresh("ak"), image="python:3.12-alpine") as box:
            box.run(["sh", "-c", "echo kept > /root/f"])
            kept = box.run(["cat", "/root/f"]).output
            python = box.run(["python3", "-c", "import json; print(json.__name__)"]).output
            info = box.info()
        return [kept, python, info.status, info.name == box.name, refusal(lambda: client.get_sandbox(box.name))]


@step(["gone", None])
def a_session_is_removed_once(ak):
    with ak.AgentKernel() as client:
        box = client.sandbox(fresh("ak"))
        box.remove()
        gone = "there" if box.name in [one.name for one in client.list_sandboxes()] else "gone"
        return [gone, box.remove()]


DIFFERENCES = {
    ("face", "a_name_that_is_taken"): (
        ["ServerError", 409],
        "the published clients' ServerError has the status 500, whatever the server answered",
    ),
    ("0.4.0", "environment_and_directory"): ({"raised": "TypeError"}, "this release has neither `env` nor `workdir`"),
}

if __name__ == "__main__":
    scenario.play()
