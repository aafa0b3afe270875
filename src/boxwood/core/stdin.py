"""What a run's standard input is given while it runs."""

from __future__ import annotations

import asyncio
import errno

from boxwood.core.errors import Conflict, InvalidState, ResourceBusy
from boxwood.core.liverun import LiveRun
from boxwood.core.model import Given
from boxwood.core.refusals import of_engine
from boxwood.engine.api import BoxGone, EngineError, GuestError

PIECE_BYTES = 64 << 10  # that a box is given at once
ROOM_SECONDS = 10.0  # for which somebody who writes waits for room
INPUT_SECONDS = 30.0  # … and for others that do


async def give(run: LiveRun, data: bytes, at: int | None, eof: bool) -> Given:
    """See `Runs.write_stdin`. InvalidState, Conflict, ResourceBusy, BadRequest."""
    if not data and not eof:
        return await _give(run, data, at, eof)  # whoever only asks how much it has had waits for no writer
    try:
        async with asyncio.timeout(INPUT_SECONDS):
            await run.typing.acquire()
    except TimeoutError:
        raise ResourceBusy("run", "somebody else writes to the run's standard input", retry_after=1) from None
    try:
        return await _give(run, data, at, eof)
    finally:
        run.typing.release()


async def _give(run: LiveRun, data: bytes, at: int | None, eof: bool) -> Given:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ROOM_SECONDS
    box = await run.handed_over(ROOM_SECONDS)
    if box is None:
        if run.over:
            raise InvalidState("run", "running", "the run has ended", run.id)
        raise ResourceBusy("run", "the run is pending: it has no standard input yet", retry_after=1)
    try:
        if at is None:
            at = await box.write_stdin(run.id, None, b"", False)
        taken = 0
        while True:
            piece = data[taken : taken + PIECE_BYTES]
            last = taken + len(piece) == len(data)
            end = await box.write_stdin(run.id, at + taken, piece, eof and last)
            before, taken = taken, min(max(taken, end - at), len(data))
            if last and taken == len(data):
                return Given(max(end, at), taken, eof)
            late = loop.time() - deadline
            if late >= (0 if taken == before else INPUT_SECONDS):
                return Given(at + taken, taken, False)
    except GuestError as error:
        if error.errno in (errno.EPIPE, errno.ENOENT):
            raise Conflict("run", "the run's standard input is closed: nobody reads it any more") from None
        raise of_engine(error, "run") from error
    except BoxGone:
        raise InvalidState("run", "running", "the run has ended: its box died", run.id) from None
    except EngineError as error:
        raise of_engine(error, "run") from error
