"""The pipe over which a job of the zygote's answers: read to its end, closed once, whatever loop the server runs on."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
import uvloop

from boxwood.engine import pipes


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_descriptors_of_others_are_left_alone(new_loop: type[asyncio.AbstractEventLoop]) -> None:
    """A descriptor that is closed twice is, the second time, often another thread's file."""
    failures: list[OSError] = []
    over = threading.Event()

    def other() -> None:
        while not over.is_set():
            try:
                fd = os.open("/dev/null", os.O_RDONLY)
                os.fstat(fd)
                os.close(fd)
            except OSError as error:
                failures.append(error)

    async def answers() -> None:
        for number in range(500):
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            os.write(writing, b"%d" % number)
            os.close(writing)
            assert await pipes.read_to_end(reading, 10) == b"%d" % number
            await asyncio.sleep(0)

    others = [threading.Thread(target=other) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(answers())
    finally:
        over.set()
        for thread in others:
            thread.join()
    assert failures == []


def test_an_answer_that_never_ends_is_cut_off() -> None:
    async def answer() -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with pytest.raises(TimeoutError):
            await pipes.read_to_end(reading, 0.01)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)
        os.close(writing)

    asyncio.run(answer())
