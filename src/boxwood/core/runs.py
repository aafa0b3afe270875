"""Runs: commands in sessions. One at a time in each session; those behind it are pending, in order of arrival."""

from __future__ import annotations

from boxwood.core.model import Caller, Page, Run, RunFilter, RunRequest


class Runs:
    async def start(self, caller: Caller, vm: str, request: RunRequest, idempotency_key: str | None = None) -> Run:
        """Start a run and wait `request.wait` seconds for its end (0: not at all; None: `config.wait_seconds`).

        Without a session: the default one (index 0); an unknown index is made. The answer may still be pending or
        running. What goes wrong with the box is told by the run (`failed`, `fail_reason`), not raised.
        BadRequest, NotFound (vm, session), Forbidden (a public VM of others), InvalidState (immutable),
        PayloadTooLarge (command over 4 MiB), IdempotencyConflict,
        Unavailable (not started within `queueing_timeout`; the session is being deleted), CapacityUnavailable.
        """
        raise NotImplementedError

    async def resume(
        self,
        caller: Caller,
        vm: str,
        session_id: str | None = None,
        session_index: int | None = None,
        wait: float | None = None,
    ) -> Run:
        """The entirely empty run request: wait for the run that has been pending longest.
        BadRequest if none is (a command is needed then)."""
        raise NotImplementedError

    async def get(self, caller: Caller, vm: str, run_id: str) -> Run:
        """With the output so far. NotFound."""
        raise NotImplementedError

    async def wait(self, caller: Caller, vm: str, run_id: str, seconds: float | None = None) -> Run:
        """`get`, once the run has ended or `seconds` (at most `config.wait_seconds`) have passed. NotFound."""
        raise NotImplementedError

    async def list(
        self, caller: Caller, vm: str, where: RunFilter | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Run]:
        """Newest first, without output. `limit`: 1 to 1000. BadRequest, NotFound."""
        raise NotImplementedError

    async def cancel(self, caller: Caller, vm: str, run_id: str) -> bool:
        """End a run as cancelled: a pending one never starts, of a running one everything it started is killed.
        False: it had ended already. NotFound."""
        raise NotImplementedError

    async def signal(
        self,
        caller: Caller,
        vm: str,
        signum: int,
        session_id: str | None = None,
        session_index: int | None = None,
    ) -> None:
        """Send a signal to the foreground process group of a session (default: index 0).
        NotFound (session; run: nothing runs in it), InvalidState (the VM is not running)."""
        raise NotImplementedError
