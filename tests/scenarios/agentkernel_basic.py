"""agentkernel: commands in sandboxes of their own, and keys."""

import json
from concurrent.futures import ThreadPoolExecutor

from observing import Scenario, refusal

scenario = Scenario()
step = scenario.step
ARGV = [
    "a b", "", "'", '"', "\\", "$HOME", "`id`", "$(id)", ";|&<>", "*", "~", "#!", "\n", "\ttab", "ü€𝄞", "-n", "x" * 90_000,
]  # fmt: skip


@step(["ok", "ok"])
def health(ak):
    with ak.AgentKernel() as client, ak.AgentKernel(api_key="wrong") as stranger:
        return [client.health(), stranger.health()]


@step(["RunOutput", "hello\n", "2\n", "x\n", "out\n\nerr\n", ""])
def run(ak):
    with ak.AgentKernel() as client:
        said = client.run(["echo", "hello"])
        return [
            type(said).__name__,
            said.output,
            client.run(["python3", "-c", "print(1 + 1)"]).output,
            client.run(["echo", "x"], image="python:3.12-alpine", profile="moderate", fast=False).output,
            client.run(["sh", "-c", "echo out; echo err >&2"], image="alpine:3.20", profile="permissive").output,
            client.run(["true"]).output,
        ]


@step(True)
def argv_is_what_arrives(ak):
    with ak.AgentKernel() as client:
        program = "import sys, json; print(json.dumps(sys.argv[1:]))"
        return json.loads(client.run(["python3", "-c", program, *ARGV]).output) == ARGV


@step([["ServerError", 500, "exited with code 3", "x\n"], ["ServerError", 500, "code 127", "bad-command"]])
def a_command_that_fails(ak):
    with ak.AgentKernel() as client:
        return [
            refusal(lambda: client.run(["sh", "-c", "echo x; exit 3"]), "status", says=("exited with code 3", "x\n")),
            refusal(lambda: client.run(["bad-command"]), "status", says=("code 127", "bad-command")),
        ]


@step([["ValidationError", 400], ["ValidationError", 400, "boxwood image import"]])
def what_cannot_be_run(ak):
    with ak.AgentKernel() as client:
        return [
            refusal(lambda: client.run([]), "status"),
            refusal(lambda: client.run(["ls"], image="no/such:image"), "status", says=["boxwood image import"]),
        ]


@step(["ServerError", 500, "Read-only file system"])
def the_restrictive_profile(ak):
    says = ["Read-only file system", "coming"]
    with ak.AgentKernel() as client:
        return refusal(lambda: client.run(["touch", "/x"], profile="restrictive"), "status", says=says)


@step([["ServerError", "No such file"], ["ServerError", "No such file"]])
def runs_share_nothing(ak):
    with ak.AgentKernel() as client:
        client.run(["sh", "-c", "echo left > /root/left; echo left > /tmp/left"])
        return [
            refusal(lambda path=path: client.run(["cat", path]), says=["No such file"])
            for path in ("/root/left", "/tmp/left")
        ]


@step([["a\n", None, "c\n"], [None, True, None]])
def batch(ak):
    with ak.AgentKernel() as client:
        results = client.batch_run([["echo", "a"], ["sh", "-c", "exit 9"], ["echo", "c"]]).results
        return [[one.output for one in results], [one.error and "code 9" in one.error for one in results]]


@step([["AuthError", 401], ["AuthError", 401]])
def a_key_is_needed(ak):
    with ak.AgentKernel(api_key="wrong") as stranger:
        return [refusal(stranger.list_sandboxes, "status"), refusal(lambda: stranger.run(["ls"]), "status")]


@step([f"{n}\n" for n in range(20)])
def twenty_at_once(ak):
    with ak.AgentKernel() as client, ThreadPoolExecutor(20) as pool:
        return list(pool.map(lambda n: client.run(["echo", str(n)]).output, range(20)))


DIFFERENCES = {
    ("face", "the_restrictive_profile"): (
        ["ServerError", 422, "coming"],
        "a fork of the contract's cannot say that its VM is to be read-only",
    ),
}

if __name__ == "__main__":
    scenario.play()
