"""An agent that falls silent while somebody waits for what it says on its own, and one that is only idle."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator

import pytest

from boxwood.engine.api import Asleep
from boxwood.engine.ptyapi import PtyEnd, PtySpec
from unit.hostile import PTY, RUN, SESSION, Hostile, start

pytestmark = pytest.mark.anyio
END = {"ev": "end", "rid": RUN, "code": 0, "reason": "exit", "out": 0, "err": 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwood.engine.pulse.SILENT_SECONDS", 0.02)
    monkeypatch.setattr("boxwood.engine.pulse.ANSWER_SECONDS", 0.5)


class Looker:
    def output(self, data: bytes) -> None: ...

    def taken(self, size: int) -> None: ...

    def ended(self, end: PtyEnd) -> None: ...


async def requests(hostile: Hostile) -> AsyncIterator[dict[str, object]]:
    """What the agent is asked, as it comes."""
    hostile.far.setblocking(False)
    loop, data = asyncio.get_running_loop(), b""
    while True:
        data += await loop.sock_recv(hostile.far, 1 << 16)
        while len(data) >= 8:
            header, payload = struct.unpack("<II", data[:8])
            yield json.loads(data[8 : 8 + header])
            data = data[8 + header + payload :]


async def until_asked(hostile: Hostile, op: str) -> int:
    """The number of the next request of this kind."""
    async for request in requests(hostile):
        if request["op"] == op:
            number = request.get("n", 0)
            assert isinstance(number, int)
            return number
    raise AssertionError


async def test_who_is_silent_during_a_run_is_replaced(hostile: Hostile) -> None:
    await hostile.hello()
    sink = await start(hostile)
    await hostile.put_down()
    assert sink.end is None
    assert hostile.box.gone.done()


async def test_who_is_silent_while_somebody_looks_at_a_terminal_is_replaced(hostile: Hostile) -> None:
    await hostile.hello()
    hostile.say({"re": 1, "pty": PTY})
    await hostile.box.ptys.open(PtySpec(PTY, SESSION), Looker())
    await hostile.put_down()


async def test_who_answers_goes_on(hostile: Hostile) -> None:
    """However long nothing else is said; and when nobody waits any more nothing is asked."""
    await hostile.hello()
    await start(hostile)
    for turn in range(3):
        number = await until_asked(hostile, "ping")
        if turn == 2:
            hostile.say(END)
        hostile.say({"re": number})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until_asked(hostile, "ping"), 0.2)
    assert not hostile.downs


async def test_nobody_waits_nothing_is_asked(hostile: Hostile) -> None:
    await hostile.hello()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until_asked(hostile, "ping"), 0.2)
    assert not hostile.downs


async def test_who_is_suspended_is_asked_nothing(hostile: Hostile) -> None:
    """What it has been asked before it answers first; afterwards somebody waits again."""
    hostile.say({"ev": "hello", "runs": [], "sessions": [], "sleeps": True})
    await hostile.box.attach(hostile.sock)
    await start(hostile)
    asked = asyncio.create_task(hostile.box.signal_run(RUN, 2))
    falling = asyncio.create_task(hostile.box.fall_asleep())
    number = await until_asked(hostile, "run.signal")
    assert not falling.done()
    hostile.say({"re": number, "delivered": True})
    await falling
    assert await asked
    hostile.box.about_to_stand_still()
    await until_asked(hostile, "sleeps")
    with pytest.raises(Asleep):
        await hostile.box.settle()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until_asked(hostile, "ping"), 0.2)
    hostile.box.about_to_wake()
    await until_asked(hostile, "slept")
    hostile.box.wake_up()
    hostile.say({"re": await until_asked(hostile, "ping")})
    assert not hostile.downs
