"""agentkernel's protocol: commands in sandboxes of their own, and their output while it comes."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import pytest

from boxwood.core.errors import Unavailable
from boxwood.dialects.agentkernel import runs, stream
from boxwood.server import events
from fakes import release
from together import together


async def gone(machine, boxes: int = 0) -> None:
    """Wait until so many boxes are left."""
    while len(machine.boxes) > boxes:
        await asyncio.sleep(0.001)


async def begun(machine, count: int = 1) -> None:
    while len(machine.called("start_run")) < count:
        await asyncio.sleep(0.001)


def parse(text: str) -> list[tuple[str, dict]]:
    """Strictly: as the client reads it that reads lines."""
    assert text.endswith("\n\n")
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        first, second = block.split("\n")
        assert first.startswith("event: ") and second.startswith("data: ")
        assert len(second.encode()) < 60_000
        found.append((first.removeprefix("event: "), json.loads(second.removeprefix("data: "))))
    return found


async def streamed(ak, *argv: str, **members) -> list[tuple[str, dict]]:
    answer = await ak("POST", "/run/stream", {"command": list(argv), **members})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and "content-length" not in answer.headers
    return parse(answer.text)


class Watched:
    """A request whose answer is looked at while it comes."""

    def __init__(self, ak, body, path: str = "/run/stream") -> None:
        self._sent: asyncio.Queue[dict] = asyncio.Queue()
        self._parts: asyncio.Queue[dict] = asyncio.Queue()
        headers = {"host": "localhost", "authorization": f"Bearer {ak.key}"}
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "scheme": "http",
            "query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        self._sent.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.task = asyncio.create_task(ak.api.app(scope, self._sent.get, self._parts.put))

    async def part(self) -> bytes:
        """The next piece of the body; nothing at its end."""
        message = await self._parts.get()
        return await self.part() if message["type"] == "http.response.start" else message["body"]

    async def event(self) -> tuple[str, dict]:
        (found,) = parse((await self.part()).decode())
        return found

    def leave(self) -> None:
        self._sent.put_nowait({"type": "http.disconnect"})


# /run


async def test_run(ak):
    assert await ak.ok("POST", "/run", {"command": ["echo", "hello"]}) == {"output": "hello\n"}
    body = {"command": ["echo", "a  b"], "image": None, "profile": None, "fast": None}
    assert await ak.ok("POST", "/run", body) == {"output": "a  b\n"}
    await gone(ak.api.machine)
    assert await ak.ok("GET", "/sandboxes") == []
    while (await ak.api.ok("GET", "/vms"))["vms"]:
        await asyncio.sleep(0.001)


async def test_every_run_has_a_sandbox_of_its_own(ak):
    await ak.ok("POST", "/run", {"command": ["put", "/f", "left"]})
    await ak.refused(409, "no such file", "POST", "/run", {"command": ["cat", "/f"]})
    await gone(ak.api.machine)
    tops = [box.stack.top for box in ak.api.machine.called("boot")]
    assert len(set(tops)) == len(tops) == 2


async def test_run_has_limits(ak):
    for fast in (True, False):
        await ak.ok("POST", "/run", {"command": ["pwd"], "fast": fast, "image": "ubuntu", "profile": "permissive"})
        limits = ak.api.machine.called("boot")[-1].limits
        assert (limits.vcpu, limits.memory_mib) == (1, 512)
    for fast in (True, False):
        body = {"command": ["pwd"], "profile": "restrictive", "fast": fast}
        assert await ak.ok("POST", "/run", body) == {"output": "/root\n"}
        box = ak.api.machine.called("boot")[-1]
        assert (box.limits.vcpu, box.limits.memory_mib, box.network, box.read_only) == (0.5, 256, False, True)
        await ak.refused(400, "profile", "POST", "/run", {"command": ["pwd"], "profile": "x", "fast": fast})
        await ak.refused(
            400, "boxwood image import", "POST", "/run", {"command": ["pwd"], "image": "php:8", "fast": fast}
        )


async def test_images_are_guessed(ak, monkeypatch):
    asked = []
    real = runs.images.source

    def source(exchange, image):
        asked.append(image)
        return real(exchange, image)

    monkeypatch.setattr(runs.images, "source", source)
    for program in ("python3", "/usr/bin/pip", "sh", "node", ""):
        await ak("POST", "/run", {"command": [program]})
    assert asked == ["python:3.12-alpine", "python:3.12-alpine", "alpine:3.20", "alpine:3.20", "alpine:3.20"]


async def test_a_failing_run(ak):
    told = await ak.refused(
        409, "Command exited with code 2: x\n", "POST", "/run", {"command": ["sh", "-c", "echo x; exit 2"]}
    )
    assert (told["exit_code"], told["output"]) == (2, "x\n")
    await gone(ak.api.machine)


@together("wrong", [{}, {"command": []}, {"command": "ls"}, {"command": None}, {"command": [1]}, {"command": ["a\0"]},
                                   {"command": ["ls"], "fast": "yes"}, [], "x"])  # fmt: skip
async def test_runs_that_are_none(ak, wrong):
    await ak.refused(400, "", "POST", "/run", wrong)
    assert not ak.api.machine.called("boot")


async def test_not_json(ak):
    for content in (b"{", b"\xff", b'{"command":["\\ud800"]}', b"[" * 100_000):
        for route in ("/run", "/run/stream", "/batch/run", "/sandboxes"):
            await ak.refused(400, "Invalid JSON: ", "POST", route, content=content)


async def test_many_at_once(ak):
    wanted = [{"command": ["echo", str(number)]} for number in range(30)]
    answers = await asyncio.gather(*(ak.ok("POST", "/run", body) for body in wanted))
    assert [answer["output"] for answer in answers] == [f"{number}\n" for number in range(30)]
    await gone(ak.api.machine)


@pytest.mark.parametrize("path", ["/run", "/run/stream", "/batch/run"])
async def test_a_run_ends_with_its_client(ak, path):
    waiting = Watched(ak, {"command": ["hang"], "commands": [{"command": ["hang"]}]}, path)
    await begun(ak.api.machine)
    waiting.leave()
    await waiting.task
    await gone(ak.api.machine)


async def test_a_sandbox_whose_server_died_does_not_stay(ak, monkeypatch):
    """Its time is short, and is made longer as long as its command goes on."""
    monkeypatch.setattr(runs, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(runs, "RENEWED_AFTER", 0.02)
    waiting = Watched(ak, {"command": ["hang"]})
    await begun(ak.api.machine)
    first = None
    while True:
        (vm,) = (await ak.api.app.core.vms.list(await ak.api.app.core.keys.authenticate(ak.key))).items
        first = first or vm.expires_at
        if vm.expires_at > first:
            break
        await asyncio.sleep(0.005)

    async def dead(*_):
        raise Unavailable("dead")

    monkeypatch.setattr(ak.api.app.core.vms, "extend", dead)
    monkeypatch.setattr(ak.api.app.core.vms, "discard", lambda caller, vm: None)
    await gone(ak.api.machine)
    while (await waiting.part()) != b"":
        pass
    await waiting.task


# /batch/run


async def test_batch(ak):
    commands = [["echo", "a"], ["sh", "-c", "err b; exit 1"], [], ["nosuch"], ["echo", "c"]]
    answer = await ak.ok("POST", "/batch/run", {"commands": [{"command": one} for one in commands]})
    assert answer["results"] == [
        {"output": "a\n", "error": None},
        {"output": None, "error": "Command exited with code 1: b\n"},
        {"output": None, "error": "Command cannot be empty"},
        {"output": None, "error": "Command exited with code 127: nosuch: No such file or directory\n"},
        {"output": "c\n", "error": None},
    ]
    await gone(ak.api.machine)


async def test_a_batch_is_bounded(ak, monkeypatch):
    monkeypatch.setattr(runs, "MOST_COMMANDS", 40)
    waiting = asyncio.create_task(ak.ok("POST", "/batch/run", {"commands": [{"command": ["hang"]}] * 40}))
    await begun(ak.api.machine, runs.AT_ONCE)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(ak.api.machine.boxes) <= runs.AT_ONCE
    while not waiting.done():
        for vm in list(ak.api.machine.boxes):
            release(ak.api.machine, vm)
        await asyncio.sleep(0.001)
    assert (await waiting)["results"] == [{"output": "", "error": None}] * 40
    for wrong in ([], [{"command": ["pwd"]}] * 41):
        await ak.refused(400, "commands: 1 to 40", "POST", "/batch/run", {"commands": wrong})
    for wrong in ({}, {"commands": None}, {"commands": [["a"]]}, {"commands": [{"command": "a"}]}):
        await ak.refused(400, "Invalid JSON", "POST", "/batch/run", wrong)


# /run/stream


async def test_stream(ak):
    told = await streamed(ak, "sh", "-c", "echo a; err b; echo c")
    assert told[0][0] == "started" and told[-1] == ("done", {"exit_code": 0, "success": True})
    assert set(told[0][1]) == {"command", "fast", "timestamp"} and told[0][1]["fast"] is True
    assert datetime.fromisoformat(told[0][1]["timestamp"]).tzinfo is not None
    for name, expected in (("stdout", "a\nc\n"), ("stderr", "b\n")):
        assert "".join(data["data"] for kind, data in told if kind == "output" and data["stream"] == name) == expected
    await gone(ak.api.machine)


async def test_stream_of_what_is_not_fast(ak):
    told = await streamed(ak, "echo", "a", fast=False, image=None, profile=None)
    assert [kind for kind, _ in told] == ["started", "progress", "progress", "output", "done"]
    assert told[1][1]["stage"] == "sandbox_created" and told[1][1]["sandbox"].startswith("api-stream-")
    assert told[2][1] == {"stage": "sandbox_started"}


async def test_stream_of_a_failing_command(ak):
    told = await streamed(ak, "sh", "-c", "echo a; exit 7")
    assert told[1:] == [
        ("output", {"data": "a\n", "stream": "stdout"}),
        ("done", {"exit_code": 7, "success": False, "output": "a\n"}),
    ]


async def test_what_cannot_be_run_is_told_in_the_stream(ak):
    for body, text in (
        ({"command": []}, "empty"),
        ({"command": ["a"], "image": "php:8"}, "import"),
        ({"command": ["a"], "profile": "lax"}, "restrictive"),
    ):
        answer = await ak("POST", "/run/stream", body)
        ((kind, data),) = parse(answer.text)
        assert answer.status_code == 200 and kind == "error" and text in data["message"]
    await ak.refused(400, "Invalid JSON", "POST", "/run/stream", {"command": "ls"})
    assert not ak.api.machine.called("boot")


async def test_events_come_as_they_happen(ak):
    watched = Watched(ak, {"command": ["sh", "-c", "echo early; hang; echo late"]})
    assert (await watched.event())[0] == "started"
    assert await watched.event() == ("output", {"data": "early\n", "stream": "stdout"})
    assert not watched.task.done(), "the command goes on"
    (box,) = ak.api.machine.boxes
    release(ak.api.machine, box)
    assert await watched.event() == ("output", {"data": "late\n", "stream": "stdout"})
    assert await watched.event() == ("done", {"exit_code": 0, "success": True})
    assert await watched.part() == b""
    await watched.task
    await gone(ak.api.machine)


async def test_silence_is_filled(ak, monkeypatch):
    monkeypatch.setattr(events, "BEAT_SECONDS", 0.01)
    watched = Watched(ak, {"command": ["hang"]})
    assert (await watched.event())[0] == "started"
    for _ in range(3):
        assert await watched.part() == stream.BEAT
    watched.leave()
    await watched.task
    await gone(ak.api.machine)


async def test_long_output_comes_in_short_lines(ak):
    told = await streamed(ak, "flood", "3000000")
    assert sum(len(data["data"]) for kind, data in told if kind == "output") == 3_000_000
    told = await streamed(ak, "bytes", "01" * 100_000)
    assert "".join(data["data"] for kind, data in told if kind == "output") == "\x01" * 100_000
    told = await streamed(ak, "argv", *["\x01" * 20] * 5_000)
    assert told[0][1]["command"][:2] == ["argv", "\x01" * 20]
    told = await streamed(ak, "sh", "-c", "flood 200000; exit 1")
    assert told[-1][1]["exit_code"] == 1


async def test_no_character_is_cut_in_two(ak):
    monster = "a" + "€" * 50_000
    told = await streamed(ak, "bytes", monster.encode().hex())
    assert "".join(data["data"] for kind, data in told if kind == "output") == monster
    told = await streamed(ak, "bytes", "e282")
    assert [data["data"] for kind, data in told if kind == "output"] == ["�"]


async def test_the_end_of_the_server_ends_the_stream(ak):
    watched = Watched(ak, {"command": ["hang"]})
    assert (await watched.event())[0] == "started"
    await begun(ak.api.machine)
    ak.api.app.stopping.set()
    assert await watched.event() == ("error", {"message": "the server is stopping"})
    assert await watched.part() == b""
    await watched.task
    ak.api.app.stopping.clear()
    await gone(ak.api.machine)


async def test_an_error_of_ours_is_told_without_its_text(ak, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(ak.api.app.core.vms, "fork", broken)
    ((kind, data),) = await streamed(ak, "pwd")
    assert kind == "error" and "secret" not in str(data)
    assert "secret" in caplog.text
    told = await ak.refused(500, "", "POST", "/run", {"command": ["pwd"]})
    assert "secret" not in str(told)
