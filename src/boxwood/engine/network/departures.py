"""Boxes that have ended and whose wires are gone: their accounts are closed, the host forgets their connections, and
then their addresses are free again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from boxwood.engine.network import wire
from boxwood.engine.network.ledger import Ledger
from boxwood.engine.network.netfilter import Connections
from boxwood.engine.network.policing import Policing
from boxwood.engine.network.predecessors import cut, links_of
from boxwood.engine.network.table import Count, NftError, Table

# Wires that go are dealt with together: nft is asked once. Seconds without another; at most; when the zygote has gone.
_GATHERING, _LONGEST, _LAST = 0.1, 1.0, 0.01
_AGAIN = 0.5  # seconds until what failed is tried again
log = logging.getLogger("boxwood.router")


class Departures:
    """Of the boxes of router `number`. `begin` starts a task; `let_go` is told of addresses of which nothing is left.
    `counts_all`: whatever a living box has sent, the table has counted."""

    def __init__(
        self, number: int, table: Table, ledger: Ledger, connections: Connections, policing: Policing,
        turn: asyncio.Lock, *,
        begin: Callable[[Coroutine[Any, Any, None]], None], hear_denials: Callable[[], None],
        tell: Callable[[dict[str, Any]], None], let_go: Callable[[Sequence[str]], None],
        counts_all: bool,
    ) -> None:  # fmt: skip
        self.counts_all = counts_all
        self._number = number
        self._table = table
        self._ledger = ledger
        self._connections = connections
        self._policing = policing
        self._turn = turn
        self._begin = begin
        self._hear_denials = hear_denials
        self._tell = tell
        self._let_go = let_go
        self._ended: set[str] = set()  # addresses
        self._settling: asyncio.TimerHandle | None = None
        self._unsettled_since: float | None = None
        self._last = False
        self._empty = asyncio.Event()

    def __contains__(self, address: str) -> bool:
        return address in self._ended

    def ended(self, address: str) -> None:
        """The box that had this is no more; its wire may be there for a moment."""
        self._ended.add(address)
        self.settle_soon()

    def settle_soon(self, seconds: float = _GATHERING) -> None:
        """When no other wire has gone for so long."""
        loop = asyncio.get_running_loop()
        if self._settling is not None:
            self._settling.cancel()
        if self._unsettled_since is None:
            self._unsettled_since = loop.time()
        at = min(loop.time() + seconds, self._unsettled_since + (_LAST if self._last else _LONGEST))
        self._settling = loop.call_at(at, lambda: self._begin(self._settle()))

    async def last(self) -> None:
        """The zygote has gone, and its boxes with it: until there is no wire any more."""
        self._last = True
        self.settle_soon(_LAST)
        await self._empty.wait()

    async def _settle(self) -> None:
        self._settling = self._unsettled_since = None
        try:
            async with self._turn:
                await self._settle_now()
        except OSError as error:  # netlink was overrun, or the host is short of something
            log.warning("wires that have gone are looked at again: %s", error)
            self.settle_soon(_AGAIN)

    async def _settle_now(self) -> None:
        current = cut(self._number) if self._last else links_of(self._number)
        if self._last and not current:
            self._empty.set()
        free = sorted(self._ended - {wire.address_in(link.name) for link in current})
        if not free:
            return
        counted = await self._counted()
        # A packet is counted before it comes to anything else: of who has sent none there is nothing to be forgotten.
        spoke = free if counted is None or not self.counts_all else [one for one in free if one in counted]
        self._connections.forget(spoke)
        self._hear_denials()
        self._close_accounts(free, counted or {})
        await self._forget(spoke)
        await self._policing.forget(free)
        self._ended.difference_update(free)
        self._let_go(free)

    async def _counted(self) -> dict[str, Count] | None:
        """Of all boxes. None: nft does not say."""
        try:
            return await asyncio.to_thread(self._table.counted)
        except NftError as error:
            log.warning("%s", error)
            return None

    def _close_accounts(self, addresses: Sequence[str], counted: dict[str, Count]) -> None:
        """Told and closed at once: who asks in between would count them twice."""
        for vm, usage in self._ledger.usage(addresses, counted).items():
            self._tell({"ended": vm, "usage": usage})
        self._ledger.close(addresses)

    async def _forget(self, addresses: Sequence[str]) -> None:
        try:
            await asyncio.to_thread(self._table.forget, addresses)
        except NftError as error:
            log.warning("%s", error)
