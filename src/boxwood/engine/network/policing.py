"""Policies of boxes in force: rules in the router's table, names that are not resolved, connections that are ended.

An address that a box is given for a name is in the sets of the rules about that name before the box hears of it, so its
first packet finds them. A box whose rules are there but not known (its router was killed) is told of no names until the
server has said them again: the sets could not be kept.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

from boxwood.engine.network import ruleset
from boxwood.engine.network.addresses import Address
from boxwood.engine.network.netfilter import Connection, Elements
from boxwood.engine.network.pins import Pins
from boxwood.engine.network.ruleset import Ruleset
from boxwood.engine.network.table import NftError, Table
from boxwood.engine.policies import Malformed, Outcome, Policies, canonical, connection_verdict, name_verdict

GRACE_SECONDS = 60.0  # for which an address is good beyond its TTL: programs keep them a little longer
MOST_SETS, LEAST_SETS = 8192, 16  # of all boxes together, which a table bears; of a box, if there is room at all
_NAMES_PORT = 53
log = logging.getLogger("boxwood.router")


class Crowded(NftError):
    """The table would bear no more of it. The text says what takes less room."""


class _Policed:
    """A box that has rules. `policies` is None until the server has said which."""

    def __init__(self, sets: list[str], *, there: bool) -> None:
        self.there = there  # the table may have rules of it
        self.policies: Policies | None = None
        self.vm = ""
        self.rules: Ruleset | None = None
        self.sets = sets  # that the table may have
        self.changing = asyncio.Lock()

    @property
    def weight(self) -> int:
        return len(self.sets) if self.rules is None else self.rules.weight


class Policing:
    def __init__(self, table: Table, pins: Pins, end: Callable[[Callable[[Connection], bool], str], None]) -> None:
        """`end(which, address)`: end connections that the box at an address has opened."""
        self._table = table
        self._pins = pins
        self._end = end
        self._elements = Elements(table.name)
        self._boxes: dict[str, _Policed] = {}
        self._removals = 0  # how often somebody has removed the table

    def look(self) -> None:
        """At the start: whose rules an earlier router has left. NftError."""
        self._boxes = {address: _Policed(sets, there=True) for address, sets in self._table.policed().items()}
        self._table.crowded = bool(self._boxes)

    # --- rules

    async def police(self, address: str, vm: str, policies: Policies) -> None:
        """Put other rules in force for the VM's box at this address, also for what it has open. NftError: those before
        are."""
        while not await self._policed(address, vm, policies):
            pass
        self._end(lambda connection: self.is_closed(address, connection), address)

    async def _policed(self, address: str, vm: str, policies: Policies) -> bool:
        """False: what is known of the address was forgotten while its turn was waited for. Whoever comes later may have
        begun anew, so nobody goes on with what is not known any more."""
        box = self._boxes.get(address)
        if box is None:
            if not policies.outbound:
                return True
            box = self._boxes[address] = _Policed([], there=False)
            self._table.crowded = True
        box.vm = vm
        async with box.changing:
            if self._boxes.get(address) is not box:
                return False
            if policies.outbound:
                await self._replace(box, address, policies)
            else:
                await self._remove(box, address)
        return True

    async def _replace(self, box: _Policed, address: str, policies: Policies) -> None:
        made = ruleset.made_of(address, policies, self._table.proxy)

        def script() -> str:
            gone = [one for one in box.sets if one not in made.sets]
            return made.script(self._table.name, self._known(made), gone)

        removals = self._removals
        try:
            self._check_room(box, made)
            await self._change(script)
        except NftError:
            if not box.there:
                del self._boxes[address]
            elif removals != self._removals:
                box.sets = [*box.sets, *made.sets]
            raise
        box.policies, box.rules, box.sets, box.there = policies, made, list(made.sets), True

    async def _change(self, script: Callable[[], str]) -> None:
        """Until nobody has removed the table meanwhile: what it was put up again with are the rules from before, and
        nobody knows which of the two came first. NftError."""
        while True:
            removals = self._removals
            try:
                await asyncio.to_thread(self._table.change, script())
            except NftError:
                if removals == self._removals:
                    raise
            else:
                if removals == self._removals:
                    return

    def _check_room(self, box: _Policed, made: Ruleset) -> None:
        """The kernel looks for each set among all of a table's. Nobody takes so much more that others have none. What a
        box has is its own: it is said again by every server and to every router that comes. Crowded."""
        if box.there and (box.rules is None or made.weight <= box.weight):
            return
        room = MOST_SETS - sum(other.weight for other in self._boxes.values() if other is not box)
        if made.weight > min(room, max(LEAST_SETS, room // 4)):
            raise Crowded(
                f"these rules need the room of {made.weight} sets of hosts, addresses or ports, and policies of VMs "
                f"that run have {MOST_SETS - room} of {MOST_SETS} already: put rules with the same action and ports "
                "next to each other, they share one, and name more than four networks or ports in a rule, or ranges"
            )

    async def _remove(self, box: _Policed, address: str) -> None:
        if self._boxes.get(address) is not box:
            return  # somebody else has
        await self._change(lambda: ruleset.removal(self._table.name, address, box.sets))
        del self._boxes[address]
        self._table.crowded = bool(self._boxes)

    async def belongs(self, address: str, vm: str) -> None:
        """A VM has the box at this address: what was meant for one before it, and came too late, is not for this."""
        box = self._boxes.get(address)
        if box is not None and box.vm not in ("", vm):
            await self.forget((address,))

    async def forget(self, addresses: Iterable[str]) -> None:
        """Boxes that are gone."""
        for address in addresses:
            box = self._boxes.get(address)
            if box is not None:
                async with box.changing:
                    try:
                        await self._remove(box, address)
                    except NftError as error:
                        log.warning("the rules of %s: %s", address, error)

    def barring(self) -> str:
        """For a table that somebody has removed: who has rules goes nowhere until they are there (`script`), which may
        take long; and nowhere before they are known."""
        found = []
        self._removals += 1
        for address, box in self._boxes.items():
            box.sets, box.there = [], True
            found.append(ruleset.barred(address).script(self._table.name, {}, ()))
        return "".join(found)

    def script(self) -> str:
        """Everything that is known once more, behind `barring`."""
        found = []
        for box in self._boxes.values():
            if box.rules is not None:
                found.append(box.rules.script(self._table.name, self._known(box.rules), box.sets))
                box.sets = list(box.rules.sets)
        return "".join(found)

    def _known(self, rules: Ruleset) -> dict[str, dict[str, int]]:
        """What the box has been told before, for as long as it holds: milliseconds by address, for each set."""
        given: dict[str, dict[str, int]] = defaultdict(dict)
        for address, name, seconds in self._pins.all(rules.address):
            left = int((seconds + GRACE_SECONDS) * 1e3)
            if left > 0 and ":" not in address:
                for one in rules.sets_of(name):
                    given[one][address] = max(left, given[one].get(address, 0))
        return given

    # --- names

    def may_ask(self, address: str, name: str) -> bool:
        """OSError: that is not known yet."""
        box = self._boxes.get(address)
        if box is None:
            return True
        if box.policies is None:
            raise OSError("the rules of this box are not known yet")
        plain = _plain(name)
        return plain is not None and name_verdict(box.policies, plain).outcome is not Outcome.DENY

    def forbids(self, address: str, name: str) -> bool:
        """Does a rule refuse this name, where it is not asked for but led to? That none allows it is no reason."""
        box = self._boxes.get(address)
        plain = _plain(name)
        if box is None or box.policies is None or plain is None:
            return False
        verdict = name_verdict(box.policies, plain)
        return verdict.outcome is Outcome.DENY and verdict.rule != ""

    async def given(self, address: str, name: str, found: Iterable[tuple[Address, int]]) -> None:
        """A box is about to be told these addresses, each with its TTL. OSError: it must not be."""
        found = [(place, ttl) for place, ttl in found if not place.is_loopback]
        box = self._boxes.get(address)
        if box is None:
            self._pins.add(address, name, found)
            return
        async with box.changing:
            plain = _plain(name)
            if box.rules is not None and plain is not None:
                for one in box.rules.sets_of(plain):
                    for place, ttl in found:
                        if place.version == 4:
                            self._elements.put(one, place.packed, int((ttl + GRACE_SECONDS) * 1e3))
            self._pins.add(address, name, found)

    # --- connections

    def is_closed(self, address: str, connection: Connection) -> bool:
        """May the box at this address not have this connection? One that goes through no proxy though its requests are
        to be seen must be opened again."""
        box = self._boxes.get(address)
        if box is None or box.policies is None or connection.port == _NAMES_PORT:
            return False
        names = self._pins.names(address, connection.target)
        target = ipaddress.ip_address(connection.target)
        verdict = connection_verdict(box.policies, names, target, connection.port, connection.protocol)
        return verdict.outcome is Outcome.DENY or (verdict.outcome is Outcome.PROXY and not connection.translated)

    def close(self) -> None:
        self._elements.close()


def _plain(name: str) -> str | None:
    """As rules have names; None of one that no rule can be about (it has labels that hosts do not have)."""
    try:
        return canonical("name", name)
    except Malformed:
        return None
