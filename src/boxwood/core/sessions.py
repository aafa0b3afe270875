"""Sessions: shells that keep directory, environment and variables between runs, forks and boxes."""

from __future__ import annotations

from collections.abc import Mapping

from boxwood.core.model import Caller, Page, Session


class Sessions:
    async def create(
        self, caller: Caller, vm: str, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Session:
        """A new session with the next free index (from 1 on). Its shell starts with its first run.
        BadRequest (env names and values, cwd not absolute), NotFound, Forbidden, InvalidState (immutable)."""
        raise NotImplementedError

    async def find_or_create(self, caller: Caller, vm: str, index: int) -> Session:
        """The session of an index, made if there is none. Unavailable while that one is being deleted."""
        raise NotImplementedError

    async def get(self, caller: Caller, vm: str, session_id: str) -> Session:
        """NotFound (vm, session)."""
        raise NotImplementedError

    async def list(
        self, caller: Caller, vm: str, state: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Session]:
        """By index. `state`: idle, pending or running. BadRequest, NotFound."""
        raise NotImplementedError

    async def delete(self, caller: Caller, vm: str, session_id: str) -> None:
        """End all its runs as cancelled and kill what they started. NotFound, also the second time."""
        raise NotImplementedError
