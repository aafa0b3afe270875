"""agentkernel: the output of a command while it runs."""

import asyncio
import time

from observing import Scenario

scenario = Scenario()
step = scenario.step
SCRIPT = ["sh", "-c", "echo a; sleep 1; echo b >&2; date +%s.%N; exit 5"]


@step(["StreamEvent", ["started", "output", "output", "output", "done"], "a\n", "b\n", True, [5, False]])
def as_it_comes(ak):
    with ak.AgentKernel() as client:
        seen = [(event, time.time()) for event in client.run_stream(SCRIPT)]
    kinds, data = [event.type for event, _ in seen], [event.data for event, _ in seen]
    told = {said["stream"]: said["data"] for said in data[2:-1]}
    before = seen[1][1] < float(told["stdout"])  # the first line was here before the command went on
    return [
        type(seen[0][0]).__name__,
        kinds,
        data[1]["data"],
        told["stderr"],
        before,
        [data[-1]["exit_code"], data[-1]["success"]],
    ]


@step(["error", True])
def an_image_that_is_not_there(ak):
    with ak.AgentKernel() as client:
        last = list(client.run_stream(["ls"], image="nope:1"))[-1]
        return [last.type, "nope:1" in last.data["message"]]


@step([["started", ["echo", "hi"], True], ["output", "hi\n", "stdout"], ["done", 0, True]])
def awaited(ak):
    async def go():
        async with ak.AsyncAgentKernel() as client:
            return [event async for event in await client.run_stream(["echo", "hi"])]

    started, output, done = asyncio.run(go())
    return [
        [started.type, started.data["command"], started.data["fast"]],
        [output.type, output.data["data"], output.data["stream"]],
        [done.type, done.data["exit_code"], done.data["success"]],
    ]


@step("hi\n")
def as_documented(ak):
    """Without an await before the iteration."""

    async def go():
        async with ak.AsyncAgentKernel() as client:
            events = [event async for event in client.run_stream(["echo", "hi"])]
            return "".join(event.data["data"] for event in events if event.type == "output")

    return asyncio.run(go())


BROKEN = "the release calls its own library for events wrongly, whatever a server answers"
AWAITED = "run_stream is a coroutine there, and has to be awaited first"
DIFFERENCES = {
    (version, name): ({"raised": "TypeError"}, BROKEN)
    for version in ("0.4.0", "0.18.1")
    for name in ("as_it_comes", "an_image_that_is_not_there", "awaited")
} | {(version, "as_documented"): ({"raised": "TypeError"}, AWAITED) for version in ("0.4.0", "0.18.1", "0.21.0")}

if __name__ == "__main__":
    scenario.play()
