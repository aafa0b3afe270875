# Made from ../_async/session.py by tools/unasync.py: change that one.
"""A sandbox for the length of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from boxwood.faces.agentkernel._sync.forms import Starts
from boxwood.faces.agentkernel.errors import NotFoundError
from boxwood.faces.agentkernel.models import RunOutput, SandboxInfo

if TYPE_CHECKING:
    from boxwood.faces.agentkernel._sync.client import AgentKernel


class SandboxSession(Starts):
    """What `client.sandbox(…)` gives. As a context manager the sandbox is removed at the end."""

    def __init__(self, client: AgentKernel, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self._client = client
        self._options = dict(options)
        self._made = False

    def start(self) -> Self:
        """Creates the sandbox, if that has not been done. Returns this session."""
        if not self._made:
            self._client.create_sandbox(self.name, **self._options)
            self._made = True
        return self

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | Sequence[str] | None = None,
        workdir: str | None = None,
    ) -> RunOutput:
        """Runs a command in the sandbox: see `exec_in_sandbox` of the client."""
        self.start()
        return self._client.exec_in_sandbox(self.name, command, env=env, workdir=workdir)

    def info(self) -> SandboxInfo:
        """What the server tells of the sandbox."""
        self.start()
        return self._client.get_sandbox(self.name)

    def remove(self) -> None:
        """Removes the sandbox; nothing happens if it has gone already."""
        if self._made:
            self._made = False
            with suppress(NotFoundError):
                self._client.remove_sandbox(self.name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
