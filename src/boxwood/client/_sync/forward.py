"""A port of a VM on this machine, in a thread of its own. Written by hand: the counterpart of ../_async/forward.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from boxwood.client.errors import BoxwoodError
from boxwood.client.forwarding import Forwarder


class Forward:
    """TCP connections to `address`, `port` of this machine reach `vm_port` in the VM. As a context manager it is closed
    at the end, with all connections. `on_error` is called in its thread."""

    def __init__(self, forwarder: Forwarder, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        self._forwarder = forwarder
        self._loop = loop
        self._thread = thread
        self.address, self.port, self.vm_port = "", 0, 0

    @classmethod
    def open(
        cls, target: tuple[str, Mapping[str, str]], vm_port: int, address: str, port: int,
        on_error: Callable[[BoxwoodError], object] | None,
    ) -> Forward:  # fmt: skip
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="boxwood-forward", daemon=True)
        made = cls(Forwarder(*target, on_error), loop, thread)
        thread.start()
        try:
            made.address, made.port = asyncio.run_coroutine_threadsafe(
                made._forwarder.start(address, port), loop
            ).result()  # fmt: skip
        except BaseException:
            made._end()
            raise
        made.vm_port = vm_port
        return made

    def close(self) -> None:
        """Ends all connections, and takes no more."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._forwarder.stop(), self._loop).result()
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Forward:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
