"""The router's table as nft and the kernel have it, as root in a network of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from amounts import amount

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

WORDS = """
import asyncio, contextlib, subprocess
from boxwood.engine import policies
from boxwood.engine.network import ruleset
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.netfilter import Removals
from boxwood.engine.network.pins import Pins
from boxwood.engine.network.policing import Policing
from boxwood.engine.network.restoring import Restoring
from boxwood.engine.network.table import Table, listed, nft
X, Y = '198.18.0.7', '198.18.0.8'
def of_hosts(count):
    return policies.parse({f'r{n}': {'type': 'outbound', 'priority': n, 'action': 'deny' if n % 2 else 'allow',
                                     'match': {'hosts': [f'h{n}.test']}} for n in range(count)})
def flush():
    subprocess.run(['nft', 'flush', 'ruleset'], check=True)
def rules():
    return [item for item in listed('table', 'inet', table.name) if 'rule' in item]
table = Table(9)
table.put_up()
"""


def probe(text: str) -> str:
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", WORDS + text], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_what_a_box_had_goes_whether_it_is_there_or_not() -> None:
    assert probe(
        """
before, after = (ruleset.made_of(X, of_hosts(3), table.proxy) for _ in range(2))
table.change(ruleset.removal(table.name, X, list(before.sets)))
print(table.policed())
table.change(after.script(table.name, {}, list(before.sets)))
print(table.policed() == {X: sorted(after.sets)})
table.change(before.script(table.name, {}, list(after.sets)))
print(table.policed() == {X: sorted(before.sets)})
table.change(ruleset.removal(table.name, X, [*after.sets, *before.sets]))
print(table.policed())
"""
    ).split("\n") == ["{}", "True", "True", "{}", ""]


def test_a_change_with_many_sets_is_no_removal() -> None:
    """Its events are more than a socket has room for. What comes after is heard again."""
    assert probe(
        """
removals, handle = Removals(), table.handle()
table.change(ruleset.made_of(X, of_hosts(250), table.proxy).script(table.name, {}, ()))
print(removals.read(), table.handle() == handle, removals.read())
flush()
print(table.name in removals.read(), table.handle())
table.put_up()
print(table.handle() not in (0, handle))
"""
    ).split("\n") == ["{'*'} True set()", "True 0", "True", ""]


def test_a_table_that_is_removed_again_and_again() -> None:
    """Also by somebody who has saved the host's rules, and brings an older state of the table back; while policies
    change. In the end what was said last holds, and nothing else is there."""
    counts = amount((30, 0, 17), (5, 60, 0, 30, 17))
    assert probe(
        f"COUNTS, REST = {counts}, {amount(0.03, 0)}"
        """
async def main():
    policing = Policing(table, Pins(lambda: 0.0), lambda which, address: None)
    policing.look()
    restoring = Restoring(table, policing, Exceptions.parse([]), (), lambda: None)
    restoring.open()
    await policing.police(X, 'vm', of_hosts(20))
    saved = subprocess.run(['nft', 'list', 'ruleset'], capture_output=True, text=True, check=True).stdout
    over = False
    async def disturb():
        while not over:
            await asyncio.to_thread(flush)
            await asyncio.to_thread(nft, 'flush ruleset\\n' + saved)
            await asyncio.sleep(REST)
    disturbing = asyncio.create_task(disturb())
    done = 0
    for count in COUNTS:
        for address in (X, Y):
            while True:  # a change that finds no table is refused, and then the one before holds
                try:
                    await policing.police(address, 'vm', of_hosts(count))
                except RuntimeError:
                    continue
                break
            done += 1
    over = True
    await disturbing
    wanted = {address: set(policing._boxes[address].rules.sets) for address in (X, Y)}
    while True:
        with contextlib.suppress(RuntimeError):  # it is being put up
            if {address: set(sets) for address, sets in table.policed().items()} == wanted:
                break
        await asyncio.sleep(0.01)
    chains = [item['rule']['chain'] for item in rules() if item['rule']['chain'].startswith('policy_')]
    print(done, len(wanted[X]), len(wanted[Y]), len(chains))
    await policing.forget((X, Y))
    print(table.policed())
    restoring.close()
asyncio.run(main())
"""
    ).split("\n") == [f"{2 * len(counts)} 17 17 36", "{}", ""]


def test_what_cannot_be_counted_goes_nowhere() -> None:
    """A set that has no room stands for a kernel that has no memory."""
    assert probe(
        """
import os, socket
from boxwood.engine import kernel as k
from boxwood.engine.network import table as module
from boxwood.engine.network.netlink import Netlink, add_address, bring_up
from boxwood.engine.network.wire import GATEWAY, Plug, Wire
lo = socket.if_nametoindex('lo')
Netlink().ask(bring_up(lo), add_address(lo, GATEWAY))
def send():
    plug = Plug()
    k.unshare(k.NEWNET)
    plug.settle(Wire(X, 9))
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (GATEWAY, 99))
def heard():
    if not (pid := os.fork()):
        try:
            send()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    count = table.counted().get(X)
    return count and (count.sent > 0, count.refused)
print(heard())
module.nft = lambda script: nft(script.replace('sent { type ipv4_addr; size 65536', 'sent { type ipv4_addr; size 1'))
table.put_up(anew=True)
nft(f'add element inet {table.name} sent {{ {Y} }}')
print(heard())
"""
    ).split("\n") == ["(True, 1)", "None", ""]
