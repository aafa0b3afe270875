"""Whose rules hold at an address, in whatever order it is heard of boxes, of policies, and of their ends."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.network import policing as module
from boxwood.engine.network.ledger import Ledger
from boxwood.engine.network.netfilter import Connection
from boxwood.engine.network.pins import Pins
from boxwood.engine.network.policing import Crowded, Policing
from boxwood.engine.network.ruleset import made_of
from boxwood.engine.network.table import NftError

X = "198.18.0.7"
FORBIDDEN = Connection(X, "93.184.215.14", 80, "tcp", False)


def rules(**match: Any) -> policies.Policies:
    return policies.parse({"no": {"type": "outbound", "priority": 1, "action": "deny", "match": match}})


A, B, NAMED = rules(ports=[1]), rules(ips=["93.184.215.14"]), rules(hosts=["one.test"])


class FakeTable:
    """What nft would have: the names of sets, and the lines of the policy's chain. As nft it refuses as a whole a
    change that deletes what is not there. `hold`: changes wait for it; `before`, `after`: what is done on the loop, once,
    before a worker's change is made, or then and before the loop hears of that."""

    name, proxy, crowded = "boxwood_9", "198.19.9.1:8008", False

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.begun = threading.Semaphore(0)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.before: list[Callable[[], None]] = []
        self.after: list[Callable[[], None]] = []
        self.chain: list[str] | None = None
        self.sets: set[str] = set()

    def policed(self) -> dict[str, list[str]]:
        return {} if self.chain is None else {X: sorted(self.sets)}

    def change(self, script: str) -> None:
        self.begun.release()
        assert self.hold.wait(20)
        if threading.current_thread() is threading.main_thread():
            self._make(script)
            return
        self._meanwhile(self.before)
        self._make(script)
        self._meanwhile(self.after)

    def _meanwhile(self, works: list[Callable[[], None]]) -> None:
        while works:
            assert self.loop is not None
            asyncio.run_coroutine_threadsafe(_done(works.pop(0)), self.loop).result(20)

    def _make(self, script: str) -> None:
        chain, sets = self.chain, set(self.sets)
        for line in script.splitlines():
            match line.split():
                case ["add", "chain", _, _, name] if name.startswith("policy_"):
                    chain = chain or []
                case ["flush", "chain", _, _, name] if name.startswith("policy_") and chain is not None:
                    chain = []
                case ["add", "set", _, _, name, *_]:
                    sets.add(name)
                case ["add", "rule", _, _, name, *rule] if name.startswith("policy_"):
                    assert chain is not None
                    chain.append(" ".join(rule))
                case ["delete", "set", _, _, name]:
                    if name not in sets:
                        raise NftError("No such file or directory")
                    sets.remove(name)
                case ["delete", "chain", _, _, name] if name.startswith("policy_"):
                    if chain is None:
                        raise NftError("No such file or directory")
                    chain = None
        if not _named(chain) <= sets:
            raise NftError("No such file or directory")
        self.chain, self.sets = chain, sets

    async def is_at_work(self) -> None:
        """Until one more change has begun."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=20)

    def has(self, found: policies.Policies) -> bool:
        """Are these in force?"""
        return self.chain == (["meta l4proto @ported th dport 1 goto barred", "goto opened"]
                              if found is A else ["ip daddr 93.184.215.14/32 goto barred", "goto opened"])  # fmt: skip

    def is_exactly(self, found: policies.Policies) -> bool:
        """Are these in force, and is nothing there that is of others?"""
        if not found.outbound:
            return self.chain is None and not self.sets
        wanted = made_of(X, found, self.proxy).rules
        return _plain(self.chain) == _plain(wanted) and _named(self.chain) == self.sets


def _named(chain: Iterable[str] | None) -> set[str]:
    return {word[1:] for rule in chain or () for word in rule.split() if word.startswith("@hosts_")}


def _plain(chain: Iterable[str] | None) -> list[str]:
    """Without names of sets, which no two have in common."""
    return [re.sub(r"@hosts_\w+", "@hosts", rule) for rule in chain or ()]


async def _done(work: Callable[[], None]) -> None:
    work()


@pytest.fixture
def table() -> FakeTable:
    return FakeTable()


@pytest.fixture
def policing(table: FakeTable) -> Iterator[Policing]:
    made = Policing(table, Pins(lambda: 0.0), lambda which, address: None)  # type: ignore[arg-type]
    made.look()
    yield made
    table.hold.set()
    made.close()


@pytest.mark.anyio
async def test_rules_that_come_while_those_of_the_one_before_are_removed(policing: Policing, table: FakeTable) -> None:
    await policing.police(X, "vm-a", NAMED)
    assert len(table.sets) == 1
    table.hold.clear()
    await table.is_at_work()
    removing = asyncio.create_task(policing.belongs(X, "vm-b"))
    await table.is_at_work()
    second = asyncio.create_task(policing.police(X, "vm-b", A))
    third = asyncio.create_task(policing.police(X, "vm-b", B))
    await asyncio.sleep(0)
    table.hold.set()
    await asyncio.gather(removing, second, third)
    assert table.has(B) and not table.sets and policing.is_closed(X, FORBIDDEN)


@pytest.mark.anyio
async def test_what_was_acknowledged_last_holds(policing: Policing, table: FakeTable) -> None:
    """Changes that come while another is made, and one before them is taken away, one after the other and together."""
    for changes in ([A, B], [B, policies.Policies(), B], [A, policies.Policies(), NAMED, B], [NAMED, B, A, B]):
        table.hold.clear()
        coming = [asyncio.create_task(policing.police(X, "vm", one)) for one in changes]
        await asyncio.sleep(0)
        table.hold.set()
        await asyncio.gather(*coming)
        assert table.has(B) and not table.sets and policing.is_closed(X, FORBIDDEN)


@pytest.mark.anyio
async def test_an_address_is_cleaned_once(policing: Policing, table: FakeTable, caplog: Any) -> None:
    await policing.police(X, "vm", NAMED)
    await asyncio.gather(policing.forget((X,)), policing.forget((X,)), policing.belongs(X, "other"))
    assert table.chain is None and not table.sets and not caplog.records
    assert not policing.is_closed(X, FORBIDDEN)


@pytest.mark.anyio
async def test_rules_that_could_not_be_put_in_force_leave_those_before(policing: Policing, table: FakeTable) -> None:
    await policing.police(X, "vm", B)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "change", lambda script: (_ for _ in ()).throw(NftError("no memory")))
        with pytest.raises(NftError):
            await policing.police(X, "vm", A)
    assert table.has(B) and policing.is_closed(X, FORBIDDEN)
    await policing.police(X, "vm", A)
    assert table.has(A)


@pytest.mark.anyio
async def test_rules_are_for_the_vm_that_has_the_address() -> None:
    """Those that come before it is known whose it is wait for that; those of whoever had it before are for nobody."""
    ledger = Ledger()
    asking = {vm: asyncio.create_task(ledger.has(X, vm, 20)) for vm in ("before", "now")}
    await asyncio.sleep(0)
    assert not any(task.done() for task in asking.values())
    ledger.belongs("198.18.0.8", "before")
    ledger.belongs(X, "now")
    assert not await asking["before"] and await asking["now"]
    assert await ledger.has(X, "now", 20) and not await ledger.has(X, "before", 20)
    ledger.close([X])
    assert not await ledger.has(X, "now", 0)  # it is nobody's


@pytest.mark.anyio
async def test_a_table_that_was_removed_bars_whoever_has_rules_first(policing: Policing, table: FakeTable) -> None:
    await policing.police(X, "vm", NAMED)
    table.chain, table.sets = None, set()
    table.change(policing.barring())
    assert table.chain == ["goto barred"] and not table.sets
    table.change(policing.script())
    assert table.chain[-1] == "goto opened" and len(table.sets) == 1
    await policing.police(X, "vm", B)
    assert table.has(B) and not table.sets


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "around", "after", "twice"])
@pytest.mark.parametrize("old", [policies.Policies(), A, B, NAMED])
@pytest.mark.parametrize("new", [A, B, rules(hosts=["two.test"]), policies.Policies()])
async def test_a_table_that_is_removed_while_rules_are_on_their_way(
    policing: Policing, table: FakeTable, when: str, old: policies.Policies, new: policies.Policies
) -> None:
    """What was said to be in force is; and the address is good for what comes later."""
    await policing.police(X, "vm", old)

    def remove() -> None:
        table.chain, table.sets = None, set()
        table.change(policing.barring())

    def put_up() -> None:
        table.change(policing.script())

    table.loop = asyncio.get_running_loop()
    table.before = {"before": [remove, put_up], "around": [remove]}.get(when, [])
    table.after = {"around": [put_up], "after": [remove, put_up], "twice": [remove, put_up] * 2}.get(when, [])
    at_all = bool(old.outbound or new.outbound)
    await policing.police(X, "vm", new)
    assert bool(table.before or table.after) != at_all
    assert table.is_exactly(new) and policing.is_closed(X, FORBIDDEN) == (new is B)
    await policing.police(X, "vm", NAMED)
    assert table.is_exactly(NAMED)
    table.after = [remove, put_up]
    await policing.forget((X,))
    assert table.is_exactly(policies.Policies())


@pytest.mark.anyio
async def test_rules_that_are_not_known_yet_bar_when_the_table_was_removed(table: FakeTable) -> None:
    table.chain, table.sets = ["goto barred"], {"hosts_0007_1_0"}  # what an earlier router has left
    policing = Policing(table, Pins(lambda: 0.0), lambda which, address: None)  # type: ignore[arg-type]
    policing.look()
    table.chain, table.sets = None, set()
    table.change(policing.barring() + policing.script())
    assert table.chain == ["goto barred"]
    await policing.police(X, "vm", A)
    assert table.has(A)
    policing.close()


def of_hosts(count: int, first: str = "h", last: str = "allow") -> policies.Policies:
    """As many sets: every second rule does something else."""
    made = {
        f"r{number}": {
            "type": "outbound", "priority": number, "action": "deny" if number % 2 else last,
            "match": {"hosts": [f"{first}{number}.test"]},
        }
        for number in range(count)
    }  # fmt: skip
    return policies.parse(made)


@pytest.mark.anyio
async def test_a_table_bears_so_many_sets(
    policing: Policing, table: FakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SETS", 80)
    with pytest.raises(Crowded, match=r"the room of 21 sets .* have 0 of 80"):
        await policing.police(X, "vm", of_hosts(19))
    assert table.chain is None and not policing.is_closed(X, FORBIDDEN)
    await policing.police(X, "vm", of_hosts(18))
    with pytest.raises(Crowded, match="have 20 of 80"):  # LEAST_SETS of what is left
        await policing.police("198.18.0.8", "other", of_hosts(16))
    with pytest.raises(Crowded):
        await policing.police(X, "vm", of_hosts(30))
    assert len(table.sets) == 18  # those before
    await policing.police(X, "vm", of_hosts(250, last="deny"))
    assert len(table.sets) == 1  # rules that do the same share a set


@pytest.mark.anyio
async def test_what_a_box_has_it_keeps(policing: Policing, table: FakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server, and a router, that come back say all again, when others have taken of what was left; and who has much
    may forbid more with less."""
    monkeypatch.setattr(module, "MOST_SETS", 80)
    await policing.police(X, "vm", of_hosts(18))
    await policing.police("198.18.0.8", "other", of_hosts(14))
    for count in (18, 17):
        await policing.police(X, "vm", of_hosts(count))
    with pytest.raises(Crowded, match="have 15 of 80"):
        await policing.police(X, "vm", of_hosts(18))
    again = Policing(table, Pins(lambda: 0.0), lambda which, address: None)  # type: ignore[arg-type]
    again.look()
    await again.police("198.18.0.8", "other", of_hosts(14))
    await again.police(X, "vm", of_hosts(17))
    with pytest.raises(Crowded):
        await again.police(X, "vm", of_hosts(18))
    again.close()


@pytest.mark.anyio
async def test_statements_take_room_too(policing: Policing, table: FakeTable) -> None:
    """A policy of none but these can have thousands, and each of them is put up again where a table was removed."""
    match = {"ips": [f"10.0.{number}.0/24" for number in (1, 3, 5, 7)], "ports": [1, 3, 5, 7]}
    many = {
        f"r{number}": {
            "type": "outbound", "priority": number, "action": "deny" if number % 2 else {"rewrite": {"headers": {"a": "b"}}},
            "match": match,
        }
        for number in range(256)
    }  # fmt: skip
    for number in range(1, 20):
        try:
            await policing.police(f"198.18.1.{number}", "vm", policies.parse(many))
        except Crowded:
            break
    assert 2 <= number < 8
    await policing.police(X, "vm", of_hosts(100))
