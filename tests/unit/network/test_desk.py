"""Whoever tells a router, or a proxy, what holds: a server that has died says nothing later than the one after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from boxwood.engine.api import Usage
from boxwood.engine.network import desk
from boxwood.engine.network.desk import Desk, Visitor
from boxwood.engine.proxy.control import Control
from boxwood.engine.proxy.standing import Standings

NEWER, OLDER = {"said": "last"}, {"said": "before"}


async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(desk._NAME)


def line(number: int, rules: Any) -> bytes:
    return json.dumps({"n": number, "vm": "vm", "address": "198.18.0.7", "rules": rules}).encode() + b"\n"


@asynccontextmanager
async def opened(place: Path, police: Any) -> AsyncIterator[Desk]:
    async def usage(vm: str) -> Usage:
        return Usage()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / desk.DIRECTORY).mkdir()
        made = Desk(usage, police)
        await made.open()
        try:
            yield made
        finally:
            await made.close()


@pytest.mark.anyio
async def test_what_an_earlier_server_has_said_holds_no_later_than_what_the_newer_one_says(tmp_path: Path) -> None:
    """It was killed while the router was busy with the first of its changes: the others lie there unread."""
    held: list[Any] = []
    begun, go = asyncio.Event(), asyncio.Event()

    async def police(address: str, vm: str, rules: dict[str, Any]) -> None:
        begun.set()
        await go.wait()
        held.append(rules)

    async with opened(tmp_path, police):
        answers, old = await connected()
        old.write(line(1, {"said": "first"}) + line(2, OLDER) + line(3, OLDER))
        await begun.wait()
        reader, new = await connected()
        new.write(line(4, NEWER))
        with contextlib.suppress(ConnectionResetError):
            assert await answers.read() == b""  # the newer one has been let in
        go.set()
        assert json.loads(await reader.readline()) == {"n": 4, "in_force": True}
        new.write(line(5, NEWER))
        assert json.loads(await reader.readline()) == {"n": 5, "in_force": True}
        assert held == [{"said": "first"}, NEWER, NEWER]
        for writer in (old, new):
            writer.close()


@pytest.mark.anyio
async def test_the_proxy_hears_the_newest_server_alone() -> None:
    """What an earlier one has sent, and lies there unread."""
    standings = Standings()
    control = Control(standings, None, None)  # type: ignore[arg-type]
    rules = {"no": {"type": "outbound", "priority": 1, "action": "deny", "match": {"ports": [1]}}}

    class Writer:
        def __init__(self) -> None:
            self.answered = asyncio.Event()
            self.go = asyncio.Event()

        def write(self, data: bytes) -> None:
            self.answered.set()

        async def drain(self) -> None:
            await self.go.wait()

        def close(self) -> None:
            self.go.set()

    def told(*values: str) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        for value in values:
            reader.feed_data(
                json.dumps({"n": 1, "vm": "vm", "policies": rules, "secrets": {"KEY": value}}).encode() + b"\n"
            )
        return reader

    old, new = Writer(), Writer()
    first = asyncio.create_task(control.serve(told("one", "older"), old))  # type: ignore[arg-type]
    await old.answered.wait()
    second = asyncio.create_task(control.serve(told("newer"), new))  # type: ignore[arg-type]
    await new.answered.wait()
    await first
    standing = await standings.of("vm", 0)
    assert standing is not None and standing.secret("KEY") == "newer"
    second.cancel()
    await asyncio.wait({second})


@pytest.mark.anyio
@pytest.mark.parametrize(
    "said", [b"[" * 50_000, b"[]", b"1", b'{"n": [1]}', b'{"ended": "vm"}', b'{"ended": "vm", "usage": 1}']
)
async def test_a_router_that_makes_no_sense_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(desk, "_AGAIN", 0.001)
    senseless = asyncio.Event()

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            writer.write(said + b"\n")
            senseless.set()
            await reader.read(1)

    async def police(address: str, vm: str, rules: dict[str, Any]) -> None:
        pass

    visitor = Visitor(tmp_path, lambda vm, usage: None, lambda: None)
    (tmp_path / desk.DIRECTORY).mkdir()
    async with await asyncio.start_unix_server(babble, tmp_path / desk._NAME):
        visitor.open()
        await asyncio.wait_for(senseless.wait(), 20)
    (tmp_path / desk._NAME).unlink(missing_ok=True)
    (tmp_path / desk.DIRECTORY).rmdir()
    async with opened(tmp_path, police):
        assert await asyncio.wait_for(visitor.usage("vm"), 20) == Usage()
        await visitor.close()
