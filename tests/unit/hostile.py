"""The far end of a box's link, in the hands of an agent that has been taken over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from boxwood.engine.api import RunEnd, RunSpec
from boxwood.engine.frames import pack
from boxwood.engine.hostbox import HostBox
from boxwood.engine.ptyapi import PtyEnd

RUN, SESSION = "01JD0000000000000000000000", "01JD0000000000000000000001"
PTY, OTHER = "01JD0000000000000000000005", "01JD0000000000000000000006"


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[int, int, bytes]] = []
        self.end: RunEnd | None = None
        self.heard = asyncio.Event()

    def output(self, stream: int, offset: int, data: bytes) -> None:
        self.got.append((stream, offset, data))
        self.heard.set()

    def finished(self, end: RunEnd) -> None:
        self.end = end


class Hostile:
    """The far end of a box's link, under our control."""

    def __init__(self) -> None:
        ours, self.far = socket.socketpair()
        self.downs: list[str] = []
        self.box = HostBox(
            "01JD0000000000000000000002", "01JD0000000000000000000003", "01JD0000000000000000000004", self._down
        )
        self.sock = ours
        self.down = asyncio.Event()

    async def _down(self, box_id: str) -> None:
        self.downs.append(box_id)
        self.down.set()
        self.box.died("put down")

    async def hello(self) -> HostBox:
        self.say({"ev": "hello", "runs": [], "sessions": []})
        await self.box.attach(self.sock)
        return self.box

    def say(self, header: dict[str, Any], payload: bytes = b"", fds: list[int] | None = None) -> None:
        data = pack({**header, "fds": len(fds)} if fds else header, payload)
        socket.send_fds(self.far, [data], fds or [])

    async def put_down(self) -> None:
        async with asyncio.timeout(10):
            await self.down.wait()
        assert self.downs == [self.box.box_id]


class Screen:
    def __init__(self) -> None:
        self.shown = b""
        self.told: list[int] = []
        self.end: PtyEnd | None = None
        self.heard = asyncio.Event()

    def output(self, data: bytes) -> None:
        self.shown += data
        self.heard.set()

    def taken(self, size: int) -> None:
        self.told.append(size)
        self.heard.set()

    def ended(self, end: PtyEnd) -> None:
        self.end = end
        self.heard.set()


@pytest.fixture
async def hostile() -> AsyncIterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.box.died("the test is over")
    hostile.far.close()
    hostile.sock.close()


async def start(hostile: Hostile) -> Sink:
    sink = Sink()
    hostile.say({"re": 1})
    await hostile.box.start_run(RunSpec(RUN, SESSION, b"true"), sink)
    return sink
