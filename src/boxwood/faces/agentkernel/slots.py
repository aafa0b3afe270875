"""Places for commands in a sandbox: a session runs one at a time, and commands of a sandbox run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock

from boxwood.client.models import VMRecord


class Slots:
    """Which sessions of which VMs this client uses at this moment."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._used: set[tuple[str, int]] = set()

    @contextmanager
    def of(self, vm: VMRecord) -> Iterator[int]:
        """The number of a session that is idle, as far as `vm` knows, and that no other thread or task uses here."""
        busy = {session.session_idx for session in vm.sessions if session.state != "idle"}
        with self._lock:
            index = next(at for at in count() if at not in busy and (vm.vm_id, at) not in self._used)
            self._used.add((vm.vm_id, index))
        try:
            yield index
        finally:
            with self._lock:
                self._used.discard((vm.vm_id, index))
