"""A session: a shell that keeps its directory, environment and variables between runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from boxwood.client import calls
from boxwood.client.errors import NotFound
from boxwood.client.fields import SessionFields
from boxwood.client.models import Anything, SessionRecord

if TYPE_CHECKING:
    from boxwood.client._async.run import AsyncRun
    from boxwood.client._async.vm import AsyncVM


class AsyncSession(SessionFields):
    """A shell of `vm`. As a context manager it is deleted at the end."""

    def __init__(self, vm: AsyncVM, record: SessionRecord) -> None:
        self.vm = vm
        self._record = record

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        stdin: str | bytes | None = None,
        background: bool = False,
        check: bool = False,
        idempotency_key: str | None = None,
    ) -> AsyncRun:
        """Runs a command in this shell: see `VM.run`."""
        return await self.vm.run(
            command, timeout=timeout, stdin=stdin, background=background, session=self.id, check=check,
            idempotency_key=idempotency_key,
        )  # fmt: skip

    async def refresh(self) -> AsyncSession:
        """Asks the server again. Returns this session."""
        path = calls.vm_path(self.vm.id, "sessions", self.id)
        self._record = await self.vm._transport.call(calls.get(path), SessionRecord)
        return self

    async def delete(self) -> None:
        """Ends the shell, its runs, and everything that it started."""
        await self.vm._transport.call(calls.delete(calls.vm_path(self.vm.id, "sessions", self.id)), Anything)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(NotFound):  # it is gone already, perhaps with its VM
            await self.delete()
