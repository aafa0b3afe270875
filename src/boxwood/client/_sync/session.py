# Made from ../_async/session.py by tools/unasync.py: change that one.
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
    from boxwood.client._sync.run import Run
    from boxwood.client._sync.vm import VM


class Session(SessionFields):
    """A shell of `vm`. As a context manager it is deleted at the end."""

    def __init__(self, vm: VM, record: SessionRecord) -> None:
        self.vm = vm
        self._record = record

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        stdin: str | bytes | None = None,
        background: bool = False,
        check: bool = False,
        idempotency_key: str | None = None,
    ) -> Run:
        """Runs a command in this shell: see `VM.run`."""
        return self.vm.run(
            command, timeout=timeout, stdin=stdin, background=background, session=self.id, check=check,
            idempotency_key=idempotency_key,
        )  # fmt: skip

    def refresh(self) -> Session:
        """Asks the server again. Returns this session."""
        path = calls.vm_path(self.vm.id, "sessions", self.id)
        self._record = self.vm._transport.call(calls.get(path), SessionRecord)
        return self

    def delete(self) -> None:
        """Ends the shell, its runs, and everything that it started."""
        self.vm._transport.call(calls.delete(calls.vm_path(self.vm.id, "sessions", self.id)), Anything)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(NotFound):  # it is gone already, perhaps with its VM
            self.delete()
