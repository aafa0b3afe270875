"""The agent's time, which stands still while its box does."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from boxwood.engine.agent import loop as module
from boxwood.engine.agent.loop import IN, Loop
from boxwood.engine.agent.main import Agent
from boxwood.engine.frames import Outgoing


def test_what_was_to_come_comes_so_much_later(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears that it has slept before it does what seems to be overdue, though that was due when it began to wait."""
    now, said, reader_writer = [1000.0], [], os.pipe()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    loop.at(1060.0, lambda: said.append("timeout"))
    loop.soon(lambda: said.append("soon"))

    def slept(events: int) -> None:
        os.read(reader_writer[0], 1)
        loop.slept(1030.0, 4630.0)
        loop.at(4632.0, lambda: said.append("made since"))

    def stood_still(events: int) -> None:  # in the middle of something else
        os.read(other[0], 1)
        now[0] = 4631.0
        os.write(reader_writer[1], b"x")

    loop.watch(reader_writer[0], IN, slept)
    other = os.pipe()
    loop.watch(other[0], IN, stood_still)
    os.write(other[1], b"x")
    loop.step(0)
    assert said == ["soon"]
    for now[0], expected in ((4632.0, "made since"), (4659.0, None), (4660.0, "timeout")):
        before = len(said)
        loop.step(0)
        assert said[before:] == [expected] * (expected is not None)
    for fd in (*reader_writer, *other):
        os.close(fd)


def test_a_server_that_ends_wakes_what_it_has_suspended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And it cannot say so: it has said before that it would."""
    now, said = [1000.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    hook, _hook = socket.socketpair()
    ours, theirs = socket.socketpair()
    agent = Agent(os.fsencode(tmp_path), hook)
    loop = agent._loop
    agent._take_link(ours)
    loop.at(1060.0, lambda: said.append("timeout"))
    server = Outgoing(theirs)
    server.put({"op": "sleeps", "from": 1030.0})
    server.flush()
    loop.step(0)
    theirs.close()
    for now[0], expected in ((4630.0, []), (4659.0, []), (4660.0, ["timeout"])):
        loop.step(0)
        assert said == expected
    loop.close()
    hook.close()
    _hook.close()
