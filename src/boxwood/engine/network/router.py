"""The router: one process per zygote that gives boxes the internet, and nothing else, and says what they used.

It owns the firewall (table.py), answers questions for names (resolver.py), hears of wires that come and go, and keeps
the accounts (ledger.py). Wires are made by the boxes themselves, before they are anybody's (wire.py), so no fork waits
for the router. An address is free again when its wire is gone and the host has forgotten its connections: the zygote is
told then, and uses it no sooner.

It has no secrets, and after its start no privileges but CAP_NET_ADMIN and CAP_NET_RAW; its uid is still root's. When
the zygote goes, it ends; the rules stay until the last wire is gone.
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
import traceback
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwood.engine import kernel as k
from boxwood.engine.api import Usage
from boxwood.engine.network import forwarding, names, netlink, wire
from boxwood.engine.network.addresses import is_public
from boxwood.engine.network.desk import Desk
from boxwood.engine.network.exceptions import Exceptions
from boxwood.engine.network.ledger import Ledger
from boxwood.engine.network.netfilter import Connections, Refused, Removals
from boxwood.engine.network.resolver import Resolver
from boxwood.engine.network.table import NftError, Table, tables
from boxwood.engine.network.upstream import Upstream
from boxwood.engine.uidrange import CHUNK, lock

_REFRESH_SECONDS = 30.0
_GATHERING, _AGAIN = 0.01, 0.5  # seconds in which wires that go are dealt with together; until that is tried again
_LAST_WIRES_SECONDS = 10.0
_PACKET = 1 << 16
_NAMES_PORT = 53  # whatever server was meant, ours was asked
log = logging.getLogger("boxwood.router")


class Router:
    def __init__(
        self, number: int, exceptions: Exceptions, upstream: Upstream, zygote: socket.socket, guarded: Sequence[str]
    ) -> None:
        self._number = number
        self._group = wire.group_of(number)
        self._exceptions = exceptions
        self._zygote = zygote
        self._guarded = guarded
        self._table = Table(number)
        self._ledger = Ledger(self._table.counted)
        self._connections = Connections()
        self._links = netlink.Netlink(0, netlink.LINK_EVENTS)
        self._asking = netlink.Netlink()
        self._denials = Refused(self._table.log_group)
        self._removals = Removals()
        self._resolver = Resolver(exceptions, upstream, self._ledger.denied)
        self._desk = Desk(self._usage)
        self._ended: set[str] = set()  # addresses whose boxes have ended
        self._settling: asyncio.TimerHandle | None = None
        self._one_at_a_time = asyncio.Lock()  # of what changes the table, or goes by it
        self._over, self._empty = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- its life

    async def serve(self, sockets: tuple[socket.socket, socket.socket], mtu: int) -> bool:
        """Until the zygote is gone, and the last wire with it. False: there still is one."""
        loop = asyncio.get_running_loop()
        self._links.sock.setblocking(False)
        self._look()
        loop.add_reader(self._removals.fileno(), self._on_removals)
        loop.add_reader(self._links.sock.fileno(), self._on_links)
        loop.add_reader(self._denials.fileno(), self._on_denials)
        loop.add_reader(self._zygote.fileno(), self._on_zygote)
        tasks = [loop.create_task(self._resolver.serve(*sockets)), loop.create_task(self._keep_fresh())]
        await self._desk.open()
        note = await asyncio.to_thread(forwarding.pass_firewall)
        self._say({"ready": True, "mtu": mtu, "note": note})
        over = loop.create_task(self._over.wait())
        done, _ = await asyncio.wait((over, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in (over, *tasks):
            task.cancel()
        await asyncio.gather(over, *tasks, return_exceptions=True)
        if over not in done:
            raise RuntimeError("the router's work has stopped") from next(iter(done)).exception()
        self._settle_soon()
        with contextlib.suppress(TimeoutError):
            # Boxes die with the zygote; until they have, the rules hold.
            await asyncio.wait_for(self._empty.wait(), _LAST_WIRES_SECONDS)
        await self._desk.close()
        loop.remove_reader(self._removals.fileno())
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
                found = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
            except OSError as error:
                log.warning("%s is excepted but not known: %s", name, error)
                continue
            self._exceptions.set_addresses(name, sorted({str(entry[4][0]) for entry in found}))
        try:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._table.allow, self._exceptions.places())
            note = await asyncio.to_thread(forwarding.pass_firewall)
        except NftError as error:
            log.warning("%s", error)
        else:
            self._say({"note": note})

    async def _go_by_others(self) -> None:
        """There are other exceptions: what is open to where nobody may go any more is ended."""
        await self._refresh()
        self._end_connections()

    def _on_removals(self) -> None:
        """Somebody has removed the table, with all others most likely: boxes reach whatever the host does, until it is
        there again."""
        if not {self._table.name, "*"}.isdisjoint(self._removals.read()):
            log.warning("the table %s was removed by somebody: it is put up again", self._table.name)
            try:
                self._table.put_up(self._guarded)
                self._table.allow(self._exceptions.places())
            except NftError as error:
                log.error("%s", error)
            self._end_connections()

    def _end_connections(self) -> None:
        """Those to where nobody may go."""
        try:
            self._connections.end(self._is_closed)
        except OSError as error:
            log.error("connections that are open to forbidden places could not be ended: %s", error)

    def _is_closed(self, box: str, address: str, port: int) -> bool:
        """May this box of ours not go there?"""
        found = ipaddress.ip_address(address)
        if not self._ledger.knows(box) or is_public(found) or port == _NAMES_PORT:
            return False
        return not self._exceptions.open(found, port)

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
            self._settle_soon()
        else:
            if any(netlink.parse_link(body).group == self._group for body in gone):
                self._settle_soon()

    def _settle_soon(self, seconds: float = _GATHERING) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(seconds, lambda: self._begin(self._settle()))

    async def _settle(self) -> None:
        """Close the accounts of boxes that have ended and whose wires are gone, and give their addresses back."""
        self._settling = None
        try:
            async with self._one_at_a_time:
                await self._settle_now()
        except OSError as error:  # netlink was overrun, or the host is short of something
            log.warning("wires that have gone are looked at again: %s", error)
            self._settle_soon(_AGAIN)

    async def _settle_now(self) -> None:
        current = self._current()
        if self._over.is_set() and not current:
            self._empty.set()
        free = sorted(self._ended - {wire.address_in(link.name) for link in current})
        if not free:
            return
        self._connections.forget(free)
        self._on_denials()
        await self._close_accounts(free)
        for address in free:
            self._resolver.forget(address)
            self._ended.discard(address)
            self._say({"clean": address})

    async def _close_accounts(self, addresses: list[str]) -> None:
        """Told and closed at once: who asks in between would count them twice."""
        try:
            final = await asyncio.to_thread(self._ledger.usage, addresses)
        except NftError as error:
            log.warning("%s", error)
            final = {}
        for vm, usage in final.items():
            self._desk.tell({"ended": vm, "usage": usage})
        self._ledger.close(addresses)
        try:
            await asyncio.to_thread(self._table.forget, addresses)
        except NftError as error:
            log.warning("%s", error)

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
        elif "ended" in said:
            if said["of"]:  # whoever was told of it at the time may have died
                self._ledger.belongs(said["ended"], said["of"])
            self._ended.add(said["ended"])
            self._settle_soon()

    def _say(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._zygote.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)

    def _on_denials(self) -> None:
        for address, denial in self._denials.read():
            name = self._resolver.name_of(address, denial.address)
            self._ledger.denied(address, replace(denial, name=name))

    async def _usage(self, vm: str) -> Usage:
        address = self._ledger.address_of(vm)
        if not address:
            return Usage()
        self._on_denials()  # what was logged up to now
        return (await asyncio.to_thread(self._ledger.usage, (address,))).get(vm, Usage())

    # --- the end

    def remove(self) -> None:
        """Nothing of ours stays with the host."""
        self._table.remove()
        self._connections.end(lambda source, target, port: self._ledger.knows(source))


def _drop_privileges() -> None:
    k.limit_bounding_set(k.capability_mask("net_admin", "net_raw"), k.last_capability())
    k.no_new_privileges()
    k.set_capabilities(k.capability_mask("net_admin", "net_raw"))


def _sweep(locks: Path, own: int) -> None:
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


def _begin_anew(number: int) -> None:
    """A router and its zygote were killed: neither counts nor connections of theirs are the next boxes'."""
    Table(number).remove()
    own = {wire.address_of(uids) for uids in range(number * CHUNK, (number + 1) * CHUNK)}
    connections = Connections()
    connections.end(lambda source, target, port: source in own)
    connections.close()


def links_of(number: int) -> list[netlink.Link]:
    """The host's ends of the wires of a router's boxes."""
    asking = netlink.Netlink()
    try:
        found = netlink.links(asking.ask(netlink.list_links()))
    finally:
        asking.close()
    return [link for link in found if link.group == wire.group_of(number)]


async def _take_over(locks: Path, number: int) -> int:
    """Wait for the router before, whose zygote was killed: its boxes are dying, and it takes its rules down when they
    have. A descriptor that keeps the next one waiting."""
    async with asyncio.timeout(_LAST_WIRES_SECONDS + 2):
        while True:
            with contextlib.suppress(BlockingIOError):
                return lock(locks / f"router-{number}")
            await asyncio.sleep(0.01)


async def _run(options: argparse.Namespace, zygote: socket.socket) -> None:
    exceptions = Exceptions.parse(json.loads(options.allow))
    turn = await _take_over(options.locks, options.number)
    forward = forwarding.Forwarding(options.locks / "forwarding")
    try:
        links = forwarding.uplinks()
        _sweep(options.locks, options.number)
        if options.fresh:
            _begin_anew(options.number)
        Table(options.number).put_up(forward.guarded)
        sockets = names.open_sockets(options.number)
        router = Router(options.number, exceptions, Upstream(options.resolv), zygote, forward.guarded)
        _drop_privileges()
        alone = await router.serve(sockets, forwarding.mtu_of(links))
        for sock in sockets:
            sock.close()
        if alone:
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
