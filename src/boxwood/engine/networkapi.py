"""What the core asks of an engine about the networks of boxes: policies, secrets, ports, and what was used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the zygote imports this module, and must stay small
    import socket
    from collections.abc import Mapping

    from boxwood.engine.api import Box, Usage
    from boxwood.engine.policies import Policies
    from boxwood.engine.proxy.questions import Question

Secrets = Callable[[], "Mapping[str, str]"]  # what their names stand for at that moment; EngineError


class BoxNetworks(Protocol):
    """Of one host."""

    @property
    def sees_requests(self) -> bool:
        """Can rules be enforced here that a connection alone cannot be judged by?"""

    async def authority(self) -> str:
        """The certificate of the authority that ends TLS in requests that are seen, in PEM. OSError."""

    async def police(self, box: Box, policies: Policies, secrets: Secrets = dict) -> None:
        """Let a live box go by these from now on, on open connections too. When it returns they are in force; when it
        fails, those before still are. A box without a network has nothing to go by. EngineError."""

    async def renew_secrets(self, concerned: Callable[[str], bool]) -> None:
        """Ask again what the names of secrets stand for in those VMs with policies for which this holds. When it
        returns, that is what requests get. EngineError."""

    async def ask_gate(self, question: Question) -> str:
        """Ask a gate about what wants to come in, by the way that boxes' connections go. Empty: it lets through; else
        why not. OSError; EngineError: nobody could ask it."""

    async def dial(self, box: Box, port: int) -> socket.socket:
        """A TCP connection to what listens on a port of a live box's loopback, not blocking; the caller's to close,
        and to be closed when the box has gone. GuestError: ECONNREFUSED, ETIMEDOUT; BoxGone."""

    async def usage(self, vm_id: str) -> Usage:
        """What the VM's live box has moved so far; nothing if it has none."""

    def account(self, sink: Callable[[str, Usage], None]) -> None:
        """From now on, for every box that has ended: its VM, and what it had moved in all. On the event loop."""
