# Made from ../_async/session.py by tools/unasync.py: change that one.
"""A session: a shell, or an interpreter, that keeps its directory, environment and variables between runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from boxwood.client import calls
from boxwood.client.errors import NotFound
from boxwood.client.events import RunEvent
from boxwood.client.fields import SessionFields
from boxwood.client.models import Anything, SessionRecord

if TYPE_CHECKING:
    from boxwood.client._sync.pty import Pty
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
        stdin_open: bool = False,
        background: bool = False,
        check: bool = False,
        idempotency_key: str | None = None,
    ) -> Run:
        """Runs a command in this shell, or source in this Python context: see `VM.run` and `VM.python`."""
        return self.vm.run(
            command, timeout=timeout, stdin=stdin, stdin_open=stdin_open, background=background, session=self.id,
            check=check, idempotency_key=idempotency_key,
        )  # fmt: skip

    def run_stream(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        stdin: str | bytes | None = None,
        idempotency_key: str | None = None,
    ) -> Generator[RunEvent, None, None]:
        """Runs it and iterates over what happens, as it does: see `VM.run_stream`."""
        return self.vm.run_stream(
            command, timeout=timeout, stdin=stdin, session=self.id, idempotency_key=idempotency_key
        )  # fmt: skip

    def interrupt(self) -> None:
        """What Ctrl-C does to the run that goes on here: KeyboardInterrupt in a Python context, which lives on.

        :raises NotFound: nothing runs.
        """
        self.vm._transport.call(calls.signal(self.vm.id, "SIGINT", self.id), Anything)

    def pty(
        self,
        command: str | Sequence[str] | None = None,
        *,
        columns: int = 80,
        rows: int = 24,
        persist: bool = True,
        idle_timeout: float | None = None,
        term: str | None = None,
    ) -> Pty:
        """Looks at this session's terminal, made if there is none; in its directory, with its environment, beside its
        shell. One that is there already shows what it has shown last, whatever else is given here but the size.

        :param command: what runs on it: text for the shell, or a program and its arguments; None: a login shell.
        :param persist: it goes on when nobody looks, until it is killed or its session deleted.
        :param idle_timeout: seconds without input and output until it is killed; None: never.
        :param term: what kind of terminal its programs see, for a session that does not say so itself; None:
            xterm-256color.
        :raises ResourceBusy: somebody looks at it.
        :raises RateLimited: there are too many.
        """
        return self._look(
            command, columns=columns, rows=rows, persist=persist, idle_timeout=idle_timeout, term=term
        )  # fmt: skip

    def _look(
        self,
        command: str | Sequence[str] | None,
        *,
        columns: int,
        rows: int,
        persist: bool,
        idle_timeout: float | None,
        term: str | None,
        ours: bool = False,
    ) -> Pty:
        """`ours`: the session goes with the look."""
        from boxwood.client._sync.pty import Pty

        path = calls.pty_path(
            self.vm.id, self.id, columns=columns, rows=rows, command=command, persist=persist,
            idle_timeout=idle_timeout, term=term,
        )  # fmt: skip
        return Pty(self.vm._transport.open_socket(path), self.id, self.delete if ours else None)

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
