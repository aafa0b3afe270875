"""agentkernel: the awaitable client, which has what the other one has."""

import asyncio

from observing import Scenario, fresh, raised

scenario = Scenario()
step = scenario.step


def play(ak, body, **options):
    async def go():
        async with ak.AsyncAgentKernel(**options) as client:
            return await body(client)

    return asyncio.run(go())


async def refusal(awaitable):
    try:
        await awaitable
    except Exception as error:
        return [type(error).__name__, getattr(error, "status", None)]
    raise AssertionError("not refused")


@step(["ok", "hello\n", ["ServerError", 500], ["ValidationError", 400], ["a\n", None]])
def commands(ak):
    async def body(client):
        batch = await client.batch_run([["echo", "a"], ["false"]])
        return [
            await client.health(),
            (await client.run(["echo", "hello"])).output,
            await refusal(client.run(["false"])),
            await refusal(client.run([])),
            [one.output for one in batch.results],
        ]

    return play(ak, body)


@step([[f"{n}\n" for n in range(20)]])
def many_at_once(ak):
    async def body(client):
        runs = await asyncio.gather(*(client.run(["echo", str(n)]) for n in range(20)))
        return [[run.output for run in runs]]

    return play(ak, body)


@step([True, True, "/root\n", "x", "Deleted /tmp/f", None, ["NotFoundError", 404]])
def sandboxes(ak):
    async def body(client):
        name = fresh("ak")
        made = await client.create_sandbox(name, image="python:3.12-alpine")
        listed = name in [one.name for one in await client.list_sandboxes()]
        where = (await client.exec_in_sandbox(name, ["pwd"])).output
        await client.write_file(name, "/tmp/f", "x")
        kept = (await client.read_file(name, "/tmp/f")).content
        said = await client.delete_file(name, "/tmp/f")
        removed = await client.remove_sandbox(name)
        return [made.name == name, listed, where, kept, said, removed, await refusal(client.get_sandbox(name))]

    return play(ak, body)


@step([[f"{n}\n" for n in range(5)], "running", ["NotFoundError", 404]])
def session(ak):
    async def body(client):
        async with await client.sandbox(fresh("ak")) as box:
            runs = await asyncio.gather(*(box.run(["echo", str(n)]) for n in range(5)))
            status = (await box.info()).status
        return [[run.output for run in runs], status, await refusal(client.get_sandbox(box.name))]

    return play(ak, body)


@step("in\n")
def a_session_as_documented(ak):
    """Without an await before the block."""

    async def body(client):
        name = fresh("ak")
        try:
            async with client.sandbox(name) as box:
                return (await box.run(["echo", "in"])).output
        except TypeError as error:
            return raised(error)

    return play(ak, body)


@step(["AuthError", 401])
def a_key_is_needed(ak):
    return play(ak, lambda client: refusal(client.list_sandboxes()), api_key="wrong")


DIFFERENCES = {
    (version, "a_session_as_documented"): (
        {"raised": "TypeError"},
        "sandbox is a coroutine there, and has to be awaited first",
    )
    for version in ("0.4.0", "0.18.1", "0.21.0")
}

if __name__ == "__main__":
    scenario.play()
