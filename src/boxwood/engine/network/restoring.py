"""That the router's table is there: where somebody has removed it, with all others most likely (`nft flush ruleset`
begins most configurations of nftables), it is put up again at once, and tried again until that holds.

Until it is there boxes reach whatever the host does. Who has rules goes nowhere before all of them are there again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.netfilter import Removals
from boxwood.engine.network.policing import Policing
from boxwood.engine.network.table import NftError, Table

_FIRST_SECONDS, _MOST_SECONDS = 0.05, 16.0  # until it is tried again
log = logging.getLogger("boxwood.router")


class Restoring:
    def __init__(
        self,
        table: Table,
        policing: Policing,
        exceptions: Exceptions,
        guarded: Sequence[str],
        on_restored: Callable[[], None],
    ) -> None:
        """`on_restored`: meanwhile boxes may have gone where nobody may."""
        self._table = table
        self._policing = policing
        self._exceptions = exceptions
        self._guarded = guarded
        self._on_restored = on_restored
        self._removals = Removals()
        self._handle = 0  # of the table that has all that belongs into it; 0: none has
        self._again: asyncio.TimerHandle | None = None
        self._seconds = _FIRST_SECONDS

    def open(self) -> None:
        """The table has been put up; what was removed before this was heard of by nobody. NftError."""
        asyncio.get_running_loop().add_reader(self._removals.fileno(), self._on_removals)
        self._handle = self._table.handle()
        if not self._handle:
            self._restore()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._removals.fileno())
        if self._again is not None:
            self._again.cancel()
        self._removals.close()

    def _on_removals(self) -> None:
        names = self._removals.read()
        if self._table.name in names:
            self._restore()
        elif "*" in names:  # a policy with many sets is enough for that
            self.look()

    def look(self) -> None:
        """Put it up unless it is there, and the same one."""
        try:
            if self._handle and self._table.handle() == self._handle:
                return
        except NftError as error:
            self._try_again(error)
        else:
            self._restore()

    def _restore(self) -> None:
        log.warning("the table %s was removed by somebody: it is put up again", self._table.name)
        self._handle = 0
        try:
            self._table.put_up(self._guarded, self._policing.barring(), anew=True)
            self._removals.read()  # what that has removed; had somebody else again, what follows would fail
            self._table.allow(self._exceptions.places())
            self._table.change(self._policing.script())
            self._handle = self._table.handle()
            if not self._handle:
                raise NftError("somebody has removed it again")
        except NftError as error:
            self._try_again(error)
        else:
            self._seconds = _FIRST_SECONDS
        self._on_restored()

    def _try_again(self, error: NftError) -> None:
        log.error("the table %s, tried again in %s s: %s", self._table.name, self._seconds, error)
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(self._seconds, self.look)
        self._seconds = min(2 * self._seconds, _MOST_SECONDS)
