"""What a Python context reports waits for output that is older than it, and for no other."""

from __future__ import annotations

import os

import pytest

from boxwood.engine.agent.run import FRAME, WINDOW, Run, Source


@pytest.fixture
def pipes(loop):
    """Reading and writing ends of three streams, both of which do not block."""
    made = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(3)]
    yield made
    for reading, writing in made:
        loop.unwatch(reading)
        os.close(reading)
        os.close(writing)


def fill(writing):
    try:
        while True:
            os.write(writing, bytes(FRAME))
    except BlockingIOError:
        pass


@pytest.mark.parametrize("frames", [1, 2, 4, 8, 15, 16])
def test_a_report_overtakes_what_goes_on_for_ever(loop, pipes, frames):
    """Something writes without end, and is acknowledged some frames at a time: there is never room for all of it."""
    said = []
    run = Run("run", "session", lambda header, payload=b"": said.append((header["stream"], len(payload))), reports=True)
    sources = [Source(loop, reading, stream) for stream, (reading, _) in enumerate(pipes[:2], 1)]
    sources.append(Source(loop, pipes[2][0], 3, after=tuple(sources)))
    for source in sources:
        source.flow(run)
    out = run.outputs[0]
    fill(pipes[0][1])
    while not out.full:
        loop.step(0)
        fill(pipes[0][1])
    os.write(pipes[2][1], b'{"result": 1}\n')
    for _ in range(100):
        if any(stream == 3 for stream, _ in said):
            break
        run.ack(out.base + frames * FRAME, 0, 0)
        fill(pipes[0][1])
        loop.step(0)
    told = next(at for at, (stream, _) in enumerate(said) if stream == 3)
    assert sum(size for _, size in said[:told]) >= 2 * WINDOW, "what was in the window, and in the pipe"
    for source in sources:
        source.stop()
