"""Something of which there is so much for all VMs: whoever asks first may not take what others need."""

from __future__ import annotations

from collections import Counter


class Shares:
    """`of_vm`: that one has at most, and never more than a quarter of what is left of `of_all`; `least`: that it may
    have all the same, while there is some."""

    def __init__(self, *, of_vm: int, least: int, of_all: int) -> None:
        self._of_vm, self._least, self._of_all = of_vm, least, of_all
        self._taken: Counter[str] = Counter()
        self._total = 0

    def take(self, vm_id: str, amount: int) -> bool:
        """False: there is no room for so much more."""
        left = self._of_all - self._total
        if amount > left or self._taken[vm_id] + amount > min(self._of_vm, max(self._least, left // 4)):
            if not self._taken[vm_id]:
                del self._taken[vm_id]
            return False
        self._taken[vm_id] += amount
        self._total += amount
        return True

    def give(self, vm_id: str, amount: int) -> None:
        """Back what was taken."""
        self._taken[vm_id] -= amount
        self._total -= amount
        if not self._taken[vm_id]:
            del self._taken[vm_id]
