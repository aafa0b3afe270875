"""An agent that has been taken over, and what it says of terminals: the server is not harmed and puts its box down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from boxwood.engine.api import BoxGone
from boxwood.engine.ptyapi import PtyEnd, PtySpec
from unit.hostile import OTHER, PTY, SESSION, Hostile, Screen

pytestmark = pytest.mark.anyio


async def look(hostile: Hostile) -> Screen:
    """A terminal with number 1; what comes before the answer has been heard counts."""
    screen = Screen()
    hostile.say({"re": 1, "pty": PTY})
    hostile.say({"ev": "pty.out", "pty": PTY, "view": 1, "at": 7}, b"early")
    assert await hostile.box.ptys.open(PtySpec(PTY, SESSION), screen) == PTY
    while not screen.shown:
        await screen.heard.wait()
    assert screen.shown == b"early"
    return screen


BAD_PTYS: dict[str, list[tuple[dict[str, Any], bytes]]] = {
    "output at another offset": [({"ev": "pty.out", "pty": PTY, "view": 1, "at": 13}, b"x")],
    "output beyond the window": [
        ({"ev": "pty.out", "pty": PTY, "view": 1, "at": 12 + at}, b"x" * 65536) for at in (0, 65536)
    ],
    "input taken that nobody typed": [({"ev": "pty.taken", "pty": PTY, "size": 6}, b"")],
    "a code that there is none": [({"ev": "pty.end", "pty": PTY, "view": 1, "code": 256, "reason": "exit"}, b"")],
    "no code": [({"ev": "pty.end", "pty": PTY, "view": 1, "reason": "exit"}, b"")],
    "a reason that there is none": [({"ev": "pty.end", "pty": PTY, "view": 1, "code": 0, "reason": "x"}, b"")],
    "an id that is none": [({"ev": "pty.taken", "pty": ["x"], "size": 0}, b"")],
    "a look that is none": [({"ev": "pty.out", "pty": PTY, "view": "1", "at": 0}, b"x")],
}


@pytest.mark.parametrize("what", BAD_PTYS)
async def test_terminals_that_make_no_sense(hostile: Hostile, what: str) -> None:
    await hostile.hello()
    await look(hostile)
    hostile.box.ptys.write(PTY, b"typed")
    for header, payload in BAD_PTYS[what]:
        hostile.say(header, payload)
    await hostile.put_down()


async def test_terminals_that_nobody_asked_for(hostile: Hostile) -> None:
    """Nothing comes of them."""
    await hostile.hello()
    screen = await look(hostile)
    hostile.say({"ev": "pty.out", "pty": OTHER, "view": 77, "at": 0}, b"x")
    hostile.say({"ev": "pty.taken", "pty": OTHER, "size": 1 << 40})
    hostile.say({"ev": "pty.end", "pty": OTHER, "view": 0, "code": 0, "reason": "exit"})
    hostile.box.ptys.write(PTY, b"typed")
    hostile.say({"ev": "pty.taken", "pty": PTY, "size": 5})
    hostile.say({"ev": "pty.end", "pty": PTY, "view": 1, "code": 3, "reason": "exit"})
    hostile.say({"ev": "pty.out", "pty": PTY, "view": 1, "at": 12}, b"from the dead")
    hostile.say({"ev": "pty.end", "pty": PTY, "view": 1, "code": 4, "reason": "exit"})
    while screen.end is None:
        await screen.heard.wait()
        screen.heard.clear()
    assert (screen.shown, screen.told, screen.end) == (b"early", [5], PtyEnd(3))
    assert not hostile.downs and not hostile.box.ptys.known


@pytest.mark.parametrize(
    "ptys", ["x", [1], [{"pty": 1, "sid": "x"}], [{"sid": "x"}], [{"pty": "x" * 99, "sid": "x"}], [{}] * 1001]
)
async def test_a_greeting_with_terminals_that_make_no_sense(hostile: Hostile, ptys: Any) -> None:
    hostile.say({"ev": "hello", "runs": [], "sessions": [], "ptys": ptys})
    with pytest.raises(BoxGone):
        await hostile.box.attach(hostile.sock)
    await hostile.put_down()


async def test_an_agent_that_says_it_has_read_what_it_has_not(hostile: Hostile) -> None:
    """What is typed is not piled up for it."""
    await hostile.hello()
    await look(hostile)
    with pytest.raises((BoxGone, BrokenPipeError)):
        for _ in range(10_000):
            hostile.box.ptys.write(PTY, bytes(16384))
            hostile.say({"ev": "pty.taken", "pty": PTY, "size": 16384})
            await asyncio.sleep(0)
    await hostile.put_down()
