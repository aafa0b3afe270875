"""A port of a VM on this machine, awaitable. Written by hand: the counterpart of ../_sync/forward.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from boxwood.client.errors import BoxwoodError
from boxwood.client.forwarding import Forwarder


class AsyncForward:
    """TCP connections to `address`, `port` of this machine reach `vm_port` in the VM. As a context manager it is closed
    at the end, with all connections."""

    def __init__(self, forwarder: Forwarder, address: str, port: int, vm_port: int) -> None:
        self._forwarder = forwarder
        self.address = address
        self.port = port
        self.vm_port = vm_port

    @classmethod
    async def open(
        cls, target: tuple[str, Mapping[str, str]], vm_port: int, address: str, port: int,
        on_error: Callable[[BoxwoodError], object] | None,
    ) -> AsyncForward:  # fmt: skip
        forwarder = Forwarder(*target, on_error)
        return cls(forwarder, *await forwarder.start(address, port), vm_port)

    async def aclose(self) -> None:
        """Ends all connections, and takes no more."""
        await self._forwarder.stop()

    async def __aenter__(self) -> AsyncForward:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
