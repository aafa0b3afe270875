"""What each box has used of the network: counted by the kernel, gathered here, for the VM that the box is of."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from boxwood.engine.api import MOST_DENIALS, Denial, Usage
from boxwood.engine.network.table import Count


@dataclass(slots=True)
class _Account:
    vm: str = ""  # the box may have none yet
    names_refused: int = 0
    denials: deque[Denial] = field(default_factory=lambda: deque(maxlen=MOST_DENIALS))


class Ledger:
    """By addresses."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._news = asyncio.Event()

    def belongs(self, address: str, vm: str) -> None:
        self._account(address).vm = vm
        self._news.set()
        self._news = asyncio.Event()

    async def has(self, address: str, vm: str, seconds: float) -> bool:
        """Is the address this VM's? Whose it is may come some time later than who asks."""
        try:
            async with asyncio.timeout(seconds):
                while not self.vm_of(address):
                    await self._news.wait()
        except TimeoutError:
            return False
        return self.vm_of(address) == vm

    def knows(self, address: str) -> bool:
        return address in self._accounts

    def vm_of(self, address: str) -> str:
        """Empty: none that we were told of."""
        account = self._accounts.get(address)
        return "" if account is None else account.vm

    def denied(self, address: str, denial: Denial) -> None:
        account = self._account(address)
        account.denials.append(denial)
        account.names_refused += denial.protocol in ("dns", "http")  # the kernel counts all others

    def addresses_of(self, vm: str) -> list[str]:
        """More than one where a box of the VM has ended, and its account is not closed yet."""
        return [address for address, account in self._accounts.items() if account.vm == vm]

    def usage(self, addresses: Iterable[str], counted: Mapping[str, Count]) -> dict[str, Usage]:
        """Of the VMs that have these. `counted`: what the kernel has counted of each."""
        found: dict[str, Usage] = {}
        for address in addresses:
            account = self._accounts.get(address)
            if account is not None and account.vm:
                count = counted.get(address, Count())
                refused = count.refused + account.names_refused
                usage = Usage(count.sent, count.received, count.opened, refused, tuple(account.denials))
                found[account.vm] = found.get(account.vm, Usage()) + usage
        return found

    def close(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._accounts.pop(address, None)

    def _account(self, address: str) -> _Account:
        return self._accounts.setdefault(address, _Account())


def packed(usage: Usage) -> dict[str, Any]:
    return asdict(usage)


def unpacked(fields: dict[str, Any]) -> Usage:
    denials = tuple(Denial(**denial) for denial in fields["denials"])
    return Usage(fields["sent"], fields["received"], fields["connections"], fields["denied"], denials)
