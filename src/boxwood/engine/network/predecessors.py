"""What routers have left that were killed: tables, locks, connections, and boxes that are dying."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from pathlib import Path

from boxwood.engine.network import netlink, wire
from boxwood.engine.network.netfilter import Connections
from boxwood.engine.network.table import Table, tables
from boxwood.engine.uidrange import CHUNK, lock

LAST_WIRES_SECONDS = 10.0


def sweep(locks: Path, own: int) -> None:
    """Tables of routers that were killed, with their zygotes."""
    for number in tables():
        if number != own and not links_of(number):
            held: list[int] = []
            try:
                held.append(lock(locks / f"uids-{number}"))
                held.append(lock(locks / f"router-{number}"))
                Table(number).remove()
            except BlockingIOError:
                pass  # one of them lives
            finally:
                for fd in held:
                    os.close(fd)


async def begin_anew(number: int) -> bool:
    """A router and its zygote were killed: neither counts nor connections of theirs are the next boxes'. Their boxes
    are dying; the rules hold until their wires are gone. False: there still is one, and what goes by it before there
    are rules again nobody counts."""
    until = time.monotonic() + LAST_WIRES_SECONDS
    while left := cut(number):
        if time.monotonic() > until:
            break
        await asyncio.sleep(0.01)
    Table(number).remove()
    own = {wire.address_of(uids) for uids in range(number * CHUNK, (number + 1) * CHUNK)}
    connections = Connections()
    connections.end(lambda connection: connection.source in own)
    connections.close()
    return not left


def cut(number: int) -> list[netlink.Link]:
    """Remove the wires of a router's boxes whose zygote is gone, and they with it. What is there still.

    The kernel removes a wire with the network it leads to, which a connection that nobody answers any more keeps for
    minutes after its box: it goes on asking whether the last bytes have come."""
    asking = netlink.Netlink()
    try:
        asking.ask(netlink.delete_links(wire.group_of(number)))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        asking.close()
    return links_of(number)


def links_of(number: int) -> list[netlink.Link]:
    """The host's ends of the wires of a router's boxes."""
    asking = netlink.Netlink()
    try:
        found = netlink.links(asking.ask(netlink.list_links()))
    finally:
        asking.close()
    return [link for link in found if link.group == wire.group_of(number)]


async def take_over(locks: Path, number: int) -> int:
    """Wait for the router before, whose zygote was killed: its boxes are dying, and it takes its rules down when they
    have. A descriptor that keeps the next one waiting."""
    async with asyncio.timeout(LAST_WIRES_SECONDS + 2):
        while True:
            with contextlib.suppress(BlockingIOError):
                return lock(locks / f"router-{number}")
            await asyncio.sleep(0.01)
