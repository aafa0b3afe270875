"""Groups of boxes that have ended, which can be removed only when the kernel has let go of the last process."""

from __future__ import annotations

import traceback

from boxwood.engine.cgroups.cgroups import Cgroups


class Removals:
    """`cgroups`: as soon as there are any. Its length: how many groups are to be tried again."""

    def __init__(self) -> None:
        self.cgroups: Cgroups | None = None
        self._busy: set[str] = set()

    def __len__(self) -> int:
        return len(self._busy)

    def remove(self, group: str) -> None:
        """At once, or with one of the next tries."""
        if not self._removed(group):
            self._busy.add(group)

    def try_again(self) -> None:
        self._busy = {group for group in self._busy if not self._removed(group)}

    def _removed(self, group: str) -> bool:
        try:
            return self.cgroups is None or self.cgroups.remove(group)
        except OSError:
            if group not in self._busy:  # it is tried again and again, and told of once
                traceback.print_exc()
            return False
