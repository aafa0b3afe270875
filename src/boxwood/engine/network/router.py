"""The router: one process per zygote that gives boxes the internet, and nothing else, and says what they used.

It owns the firewall (table.py), answers questions for names (resolver.py), hears of wires that come and go, and keeps
the accounts (ledger.py). Wires are made by the boxes themselves, before they are anybody's (wire.py), so no fork waits
for the router. An address is free again when its wire is gone and the host has forgotten its connections: the zygote is
told then, and uses it no sooner.

It has no secrets, and after its start no privileges but CAP_NET_ADMIN and CAP_NET_RAW. Its uid is still root's, for
nft and iptables want that; where the kernel has Landlock it changes no file of root's all the same. When the zygote
goes, it ends; the rules stay until the last wire is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwood.engine import kernel as k
from boxwood.engine import landlock, policies
from boxwood.engine.api import Usage
from boxwood.engine.network import behind, forwarding, keeper, names, netlink, predecessors, wire
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.departures import Departures
from boxwood.engine.network.desk import DIRECTORY, Desk
from boxwood.engine.network.door import Door
from boxwood.engine.network.envoy import SOCKET
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.ledger import Ledger
from boxwood.engine.network.names import Sockets
from boxwood.engine.network.netfilter import Connection, Connections, Refused
from boxwood.engine.network.pins import Pins
from boxwood.engine.network.policing import Policing
from boxwood.engine.network.predecessors import LAST_WIRES_SECONDS, links_of
from boxwood.engine.network.resolver import Resolver
from boxwood.engine.network.restoring import Restoring
from boxwood.engine.network.table import NftError, Table
from boxwood.engine.network.upstream import Upstream
from boxwood.engine.network.ways import Here, Through, Way

_REFRESH_SECONDS = 30.0
_TENANT_SECONDS = 5.0  # until the zygote has said whose a box is that the server has rules for
_PACKET = 1 << 16
_NAMES_PORT = 53  # whatever server was meant, ours was asked
log = logging.getLogger("boxwood.router")


class Router:
    def __init__(
        self,
        number: int,
        exceptions: Exceptions,
        upstream: Upstream,
        zygote: socket.socket,
        guarded: Sequence[str],
        kept: socket.socket,
        through: Through | None = None,
        *,
        counts_all: bool,
    ) -> None:
        """`counts_all`: the table has been there for as long as any box that lives."""
        self._number = number
        self._group = wire.group_of(number)
        self._exceptions = exceptions
        self._zygote = zygote
        self._guarded = guarded
        self._way: Way = through or Here()
        self._through = through
        self._table = Table(number, through.own if through else None)
        self._ledger = Ledger()
        self._connections = Connections()
        self._links = netlink.Netlink(0, netlink.LINK_EVENTS)
        self._asking = netlink.Netlink()
        self._denials = Refused(self._table.log_group)
        pins = Pins(time.monotonic)
        self._policing = Policing(self._table, pins, self._end_of)
        self._restoring = Restoring(self._table, self._policing, exceptions, guarded, self._on_restored)
        self._resolver = Resolver(exceptions, upstream, self._ledger.denied, pins=pins, policing=self._policing)
        self._desk = Desk(self._usage, self._police)
        self._door = Door(
            kept, before=self._destination, vm_of=self._ledger.vm_of, names=pins.names,
            resolve=self._resolver.addresses, denied=self._ledger.denied,
        )  # fmt: skip
        self._one_at_a_time = asyncio.Lock()  # of what changes the table, or goes by it
        self._over = asyncio.Event()
        self._departures = Departures(
            number, self._table, self._ledger, self._connections, self._policing, self._one_at_a_time,
            begin=self._begin, hear_denials=self._on_denials, tell=self._desk.tell, let_go=self._let_go,
            counts_all=counts_all,
        )  # fmt: skip
        self._tasks: set[asyncio.Task[None]] = set()

    # --- its life

    async def serve(self, sockets: Sockets, mtu: int) -> bool:
        """Until the zygote is gone, and the last wire with it. False: there still is one."""
        loop = asyncio.get_running_loop()
        self._links.sock.setblocking(False)
        self._look()
        self._policing.look()
        self._restoring.open()
        loop.add_reader(self._links.sock.fileno(), self._on_links)
        loop.add_reader(self._denials.fileno(), self._on_denials)
        loop.add_reader(self._zygote.fileno(), self._on_zygote)
        tasks = [loop.create_task(self._resolver.serve(sockets.udp, sockets.tcp)), loop.create_task(self._keep_fresh())]
        if self._through is not None:
            tasks.append(loop.create_task(self._go_by_porter(self._through)))
        await self._desk.open()
        self._door.open()
        note = await asyncio.to_thread(forwarding.pass_firewall)
        self._say({"ready": True, "mtu": mtu, "note": note})
        over = loop.create_task(self._over.wait())
        done, _ = await asyncio.wait((over, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in (over, *tasks):
            task.cancel()
        await asyncio.gather(over, *tasks, return_exceptions=True)
        if over not in done:
            raise RuntimeError("the router's work has stopped") from next(iter(done)).exception()
        with contextlib.suppress(TimeoutError):
            # Boxes die with the zygote; until their wires are gone, the rules hold.
            await asyncio.wait_for(self._departures.last(), LAST_WIRES_SECONDS)
        await self._desk.close()
        self._door.close()
        self._restoring.close()
        return not self._current()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the router failed", exc_info=task.exception())

    async def _keep_fresh(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _refresh(self) -> None:
        """What changes by itself: addresses of excepted names, and other firewalls."""
        for name in self._exceptions.names:
            try:
                found = await self._way.addresses(name)
            except OSError as error:
                log.warning("%s is excepted but not known: %s", name, error)
                continue
            self._exceptions.set_addresses(name, found)
        try:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._table.allow, self._exceptions.places())
            note = await asyncio.to_thread(forwarding.pass_firewall)
        except NftError as error:
            log.warning("%s", error)
            self._restoring.look()
        else:
            self._say({"note": note})

    async def _go_by_porter(self, through: Through) -> None:
        """What is the host's own is closed as soon as it is. Without a porter there is no network."""
        async for own in through.changes():
            async with self._one_at_a_time:
                await asyncio.to_thread(self._table.close, own)

    async def _go_by_others(self) -> None:
        """There are other exceptions: what is open to where nobody may go any more is ended."""
        await self._refresh()
        self._end_connections()

    def _on_restored(self) -> None:
        self._departures.counts_all = False  # what went by while there was no table, nobody has counted
        self._end_connections()

    def _end_connections(self) -> None:
        """Those to where nobody may go."""
        try:
            self._connections.end(self._is_closed)
        except OSError as error:
            log.error("connections that are open to forbidden places could not be ended: %s", error)

    def _end_of(self, ends: Callable[[Connection], bool], address: str) -> None:
        try:
            self._connections.end_of(address, ends)
        except OSError as error:
            log.error("connections of %s that its policy forbids could not be ended: %s", address, error)

    def _is_closed(self, connection: Connection) -> bool:
        """May this box of ours not go there?"""
        found = ipaddress.ip_address(connection.target)
        if not self._ledger.knows(connection.source) or connection.port == _NAMES_PORT:
            return False
        if not is_public(found) and not self._exceptions.open(found, connection.port):
            return True
        return self._policing.is_closed(connection.source, connection)

    def _destination(self, source: tuple[str, int], at: tuple[str, int]) -> tuple[str, int] | None:
        """Of a connection that has come to the proxy; None where nobody may go."""
        try:
            found = self._connections.origin(source, at)
        except OSError as error:
            log.warning("where a connection to the proxy was going: %s", error)
            return None
        if found is None or not found.translated:
            return None
        address = ipaddress.ip_address(found.target)
        is_open = is_public(address) or self._exceptions.open(address, found.port)
        return (found.target, found.port) if is_open else None

    # --- wires

    def _current(self) -> list[netlink.Link]:
        return links_of(self._number)

    def _look(self) -> None:
        """The routes of wires that are there go with the gateway's address when a router is killed."""
        for link in self._current():
            address = wire.address_in(link.name)
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self._asking.ask(netlink.add_route(link.index, address, wire.GATEWAY))

    def _on_links(self) -> None:
        try:
            gone = [body for kind, _, body in self._links.receive() if kind == netlink.DELLINK]
        except BlockingIOError:
            return
        except netlink.Overrun:
            self._departures.settle_soon()
        else:
            if any(netlink.parse_link(body).group == self._group for body in gone):
                self._departures.settle_soon()

    def _let_go(self, addresses: Sequence[str]) -> None:
        """Nothing is left of who had these."""
        for address in addresses:
            self._door.gone([address])
            self._resolver.forget(address)
            self._say({"clean": address})

    # --- what others say

    def _on_zygote(self) -> None:
        """`vm` has the box at `address`; the box at `ended` is no more."""
        try:
            packet = self._zygote.recv(_PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            asyncio.get_running_loop().remove_reader(self._zygote.fileno())
            self._over.set()
            return
        said = json.loads(packet)
        if "allow" in said:
            self._exceptions.replace(Exceptions.parse(said["allow"]))
            self._begin(self._go_by_others())
        elif "vm" in said:
            self._ledger.belongs(said["address"], said["vm"])
            self._begin(self._policing.belongs(said["address"], said["vm"]))
        elif "ended" in said:
            if said["of"]:  # whoever was told of it at the time may have died
                self._ledger.belongs(said["ended"], said["of"])
            self._departures.ended(said["ended"])

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._zygote.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)

    def _on_denials(self) -> None:
        for address, denial in self._denials.read():
            name = self._resolver.name_of(address, denial.address)
            self._ledger.denied(address, replace(denial, name=name))

    async def _usage(self, vm: str) -> Usage:
        addresses = self._ledger.addresses_of(vm)
        if not addresses:
            return Usage()
        self._on_denials()  # what was logged up to now
        counted = await asyncio.to_thread(self._table.counted)
        return self._ledger.usage(addresses, counted).get(vm, Usage())

    async def _police(self, address: str, vm: str, rules: dict[str, Any]) -> None:
        """RuntimeError: they are not in force. What comes too late must not hold for whoever has the address next."""
        if not await self._ledger.has(address, vm, _TENANT_SECONDS) or address in self._departures:
            raise RuntimeError("the box is gone")
        try:
            await self._policing.police(address, vm, policies.parse(rules))
        except policies.Malformed as error:
            raise RuntimeError(str(error)) from None

    # --- the end

    def remove(self) -> None:
        """Nothing of ours stays with the host."""
        self._table.remove()
        self._connections.end(lambda connection: self._ledger.knows(connection.source))


def drop_privileges() -> None:
    """Its working directory is the data directory."""
    k.limit_bounding_set(k.capability_mask("net_admin", "net_raw"), k.last_capability())
    k.no_new_privileges()
    Path(DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    landlock.confine({Path(DIRECTORY): landlock.MAKE_SOCKET | landlock.REMOVE, **forwarding.written()})
    k.set_capabilities(k.capability_mask("net_admin", "net_raw"))


def envoys() -> socket.socket:
    """Where the server speaks to the proxy. Its working directory is the data directory."""
    Path(DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    Path(SOCKET).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(SOCKET)
    os.chmod(SOCKET, 0o600)
    sock.listen(8)
    return sock


async def _run(options: argparse.Namespace, zygote: socket.socket) -> None:
    exceptions = Exceptions.parse(json.loads(options.allow))
    turn = await predecessors.take_over(options.locks, options.number)
    forward = forwarding.Forwarding(options.locks / "forwarding")
    try:
        links = forwarding.uplinks()
        predecessors.sweep(options.locks, options.number)
        alone = options.fresh and await predecessors.begin_anew(options.number)
        through = None
        if options.porter is not None:
            through = Through(socket.socket(fileno=options.porter))
            await through.open(LAST_WIRES_SECONDS)
        Table(options.number, through.own if through else None).put_up(forward.guarded)
        sockets = names.open_sockets(options.number)
        kept = keeper.start(options.number, keeper.Places(sockets.guests, envoys(), sockets.namespace))
        upstream = Upstream(options.resolv, way=through)
        router = Router(
            options.number, exceptions, upstream, zygote, forward.guarded, kept, through,
            counts_all=alone,
        )  # fmt: skip
        drop_privileges()
        is_last = await router.serve(sockets, behind.MTU if through else forwarding.mtu_of(links))
        sockets.close()
        if is_last:
            router.remove()
    finally:
        if forward.close():
            forwarding.unpass_firewall()
        os.close(turn)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--locks", type=Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--allow", required=True, help="the operator's exceptions, as JSON")
    parser.add_argument("--fresh", action="store_true", help="the zygote is new: what was there is nobody's")
    parser.add_argument("--resolv", type=Path, required=True)
    parser.add_argument("--zygote", type=int, required=True, help="descriptor of a socket")
    parser.add_argument("--porter", type=int, help="descriptor of a socket, where pasta is the way out")
    options = parser.parse_args()
    os.umask(0o077)
    os.chdir(options.data)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    zygote = socket.socket(fileno=options.zygote)
    zygote.setblocking(True)
    try:
        asyncio.run(_run(options, zygote))
    except Exception as error:
        traceback.print_exc()
        said = json.dumps({"error": (str(error) or type(error).__name__)[:1000]})
        with contextlib.suppress(OSError):
            zygote.send(said.encode(), socket.MSG_NOSIGNAL)
        sys.exit(1)


if __name__ == "__main__":
    main()
