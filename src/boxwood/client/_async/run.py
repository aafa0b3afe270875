"""A run: one command in one session, ended or not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from math import inf
from time import monotonic

from boxwood.client import calls
from boxwood.client._async.following import follow
from boxwood.client._async.pause import sleep
from boxwood.client._async.transport import AsyncTransport
from boxwood.client.errors import BoxwoodError, CommandFailed, Timeout
from boxwood.client.events import Follower, RunEvent
from boxwood.client.fields import RunFields
from boxwood.client.models import Anything, Cancelled, RunRecord, StdinGiven

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds until another look at a run, where the server did not wait


class AsyncRun(RunFields):
    """A run and its output so far."""

    def __init__(self, transport: AsyncTransport, vm_id: str, record: RunRecord) -> None:
        self._transport = transport
        self._vm_id = vm_id
        self._record = record
        self._given: int | None = None  # bytes of its standard input; None: unknown

    async def refresh(self) -> AsyncRun:
        """Asks the server again; `stdout` and `stderr` grow while the command runs. Returns this run."""
        await self._look(0)
        return self

    async def _look(self, seconds: float) -> bool:
        """Asks for the run, which the server may take so long to answer if it goes on. Has it ended?"""
        call = calls.get_run(self._vm_id, self._known_id(), seconds)
        self._adopt(await self._transport.call(call, RunRecord))
        return self.ended

    async def wait(self, timeout: float | None = None) -> AsyncRun:
        """Waits for the end, at most `timeout` seconds (None: for ever). Returns this run.

        :raises Timeout: it has not ended; it goes on.
        """
        deadline = inf if timeout is None else monotonic() + timeout
        pause = FIRST_PAUSE
        if self.ended and self._record.stdout is not None:
            return self
        while True:
            asked = monotonic()
            seconds = min(max(0.0, deadline - asked), calls.WINDOW)
            if await self._look(seconds):
                return self
            now = monotonic()
            if now >= deadline:
                raise Timeout("timeout", f"run {self.run_id} has not ended within {timeout:g} s; it goes on")
            if now < asked + seconds:  # the server did not wait as long as it was to: it ends, or knows no waiting
                await sleep(min(pause, asked + seconds - now))
                pause = min(pause * 1.5, LONGEST_PAUSE)

    def events(self) -> AsyncGenerator[RunEvent, None]:
        """What it does, as it happens, from its beginning: `RunStarted`, `RunOutput`s, `RunExited`. Goes on by itself
        after a broken connection or a restart of the server, without loss or repetition.

        :raises ConnectionFailed, Timeout, Unavailable: the server was not there again in time; the run goes on.
        """
        call = calls.run_events(self._vm_id, self._known_id(), "0")
        return follow(self._transport, self._vm_id, call, Follower(self._known_id()))

    async def write_stdin(self, data: str | bytes) -> None:
        """Gives it more to read; it must have been started with `stdin_open`. Waits for room as long as it takes. One
        writer at a time: bytes are counted, so that none is lost or comes twice over a broken connection.

        :raises Conflict: nobody reads any more, or it was not started so; `InvalidState` if it has ended.
        """
        await self._give(data.encode() if isinstance(data, str) else data, eof=False)

    async def close_stdin(self) -> None:
        """End of file, behind what was written. Errors as of `write_stdin`."""
        await self._give(b"", eof=True)

    async def _give(self, data: bytes, eof: bool) -> None:
        if self._given is None:
            self._given = await self._give_piece(b"", None, False)
        while True:
            piece, rest = data[: calls.STDIN_PIECE], data[calls.STDIN_PIECE :]
            end = await self._give_piece(piece, self._given, eof and not rest)
            data = data[max(0, end - self._given) :]
            self._given = max(end, self._given)
            if not data:
                return

    async def _give_piece(self, piece: bytes, offset: int | None, eof: bool) -> int:
        """How much it has been given in all."""
        call = calls.write_stdin(self._vm_id, self._known_id(), piece, offset, eof)
        return (await self._transport.call(call, StdinGiven)).offset

    async def cancel(self) -> bool:
        """Kills all that the run started. False: it had already ended."""
        path = calls.vm_path(self._vm_id, "runs", self._known_id())
        return (await self._transport.call(calls.delete(path), Cancelled)).cancelled

    async def signal(self, name: str = "SIGINT") -> None:
        """Sends SIGINT, SIGTERM, SIGKILL or SIGHUP to the foreground of the run's session.

        :raises NotFound: nothing runs there.
        """
        await self._transport.call(calls.signal(self._vm_id, name, self.session_id), Anything)

    def check(self) -> AsyncRun:
        """Returns this run if it ended with exit code 0.

        :raises CommandFailed: it did not.
        """
        if not self.ok:
            raise CommandFailed(self)
        return self

    def _known_id(self) -> str:
        if self.run_id is None:
            raise BoxwoodError("bad_answer", "the server gave this run no id")
        return self.run_id
