"""Boxes whose VMs are deleted: nothing runs in them any more, and they are ended when nobody waits for a box.

To take a box apart costs the kernel as much as to make one, and who deletes a VM has often the next one in mind.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MOST = 8  # at once: they keep their memory
QUIET = 0.02  # seconds without a request after which one is ended
_LONGEST = 1.0  # seconds that one may stay


class Dismissed:
    """`end` sends SIGKILL to all that is in a box, by its id. Its length: how many have still to be ended."""

    def __init__(self, end: Callable[[str], None]) -> None:
        self._end = end
        self._since: dict[str, float] = {}  # the one that has been here longest first

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, box: str) -> bool:
        return box in self._since

    def add(self, box: str) -> None:
        self._since[box] = time.monotonic()
        self.end_overdue()

    def gone(self, box: str) -> None:
        """It has ended, whyever."""
        self._since.pop(box, None)

    def end_one(self) -> None:
        """Nobody waits: the first, if there is one."""
        for box in self._since:
            self._end_now(box)
            break

    def end_overdue(self) -> None:
        """Those that are too many, or have been here too long."""
        late = time.monotonic() - _LONGEST
        for at, (box, since) in enumerate(list(self._since.items())):
            if since < late or at < len(self._since) - MOST:
                self._end_now(box)

    def end_all(self) -> None:
        for box in list(self._since):
            self._end_now(box)

    def _end_now(self, box: str) -> None:
        del self._since[box]
        self._end(box)
