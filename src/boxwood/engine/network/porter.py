"""The porter: one small process per zygote without root, which stays in the host's network when the zygote leaves it.

The zygote, its router and all boxes' wires are in a network of their own then, where they are root and have all the
rules that root's have. `pasta` (Debian's package passt) connects that network to the host: a program without
privileges that reads packets and opens sockets of the host for them. The porter starts it, again if it ends, and tells
routers when it is there; gives them sockets to the host's name servers; looks names up; and tells which addresses are
the host's own, for those must be refused (behind.py).

It is the first process of a process namespace, so pasta ends with it however it ends; and it ends with the zygote.
Nobody can put another in its place: a zygote that has lost its porter has left the host's network for good.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from boxwood.engine import kernel as k
from boxwood.engine.network import nameservers, netlink, ways
from boxwood.engine.network.behind import ADDRESS, GATEWAY, MTU, PATH, PREFIX, UPLINK

_CHANGES = 0x10 | 0x40  # multicast groups of netlink, as a mask: addresses and routes of IPv4
_GET_ROUTES, _NEW_ROUTE = 26, 24
_ROUTE = 12  # bytes of struct rtmsg
_OWN_KINDS = {2, 3, 4}  # local, broadcast, anycast
_DESTINATION = 1
_DNS_PORT = 53
_START_SECONDS = 10.0
_PAUSE, _LONGEST_PAUSE, _WELL = 0.2, 30.0, 10.0  # seconds until pasta is started again; after which it has worked
_SAID = 1000
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}")


def command(network: str, ready: str) -> list[str]:
    """Of pasta. `network`: the namespace to connect, as a file; `ready`: where it is to write when it is there. None of
    its comforts: no way to the host's loopback, no ports, no DHCP, no names."""
    return [
        "pasta", "--foreground", "--quiet", "--ipv4-only", "--config-net", "--netns-only",
        "--netns", network, "--pid", ready, "--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none",
        "--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra", "--ns-ifname", UPLINK,
        "--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY, "--mtu", str(MTU),
    ]  # fmt: skip


def own_addresses() -> list[str]:
    """Of the network namespace that we are in: what its kernel takes for itself, by the routes in all its tables.
    OSError."""
    asking = netlink.Netlink()
    try:
        found = asking.ask((_GET_ROUTES, netlink.DUMP, bytes([socket.AF_INET]) + bytes(_ROUTE - 1)))
    finally:
        asking.close()
    places = set()
    for kind, body in found:
        if kind == _NEW_ROUTE and len(body) >= _ROUTE and body[7] in _OWN_KINDS:
            raw = dict(netlink.attributes(body[_ROUTE:])).get(_DESTINATION, bytes(4))
            places.add(f"{socket.inet_ntoa(raw)}/{body[1]}")
    return sorted(places)


class Porter:
    """`stage`: a directory that nothing is in, for what nobody else is to see."""

    def __init__(self, zygote: socket.socket, stage: str) -> None:
        self._zygote = zygote
        self._stage = stage
        self._network, self._ready = f"{stage}/network", f"{stage}/ready"
        self._routers: dict[int, socket.socket] = {}
        self.resolv = Path("/etc/resolv.conf")
        self._own: list[str] = []
        self._is_up = False
        self._why = ""
        self._changes = netlink.Netlink(0, _CHANGES)
        self._changes.sock.setblocking(False)
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the zygote is gone."""
        loop = asyncio.get_running_loop()
        self._own = own_addresses()
        loop.add_reader(self._changes.sock.fileno(), self._on_change)
        loop.add_reader(self._zygote.fileno(), self._on_zygote)
        await self._over.wait()

    def close(self) -> None:
        self._changes.close()
        for router in list(self._routers.values()):
            self._forget(router)

    def _on_zygote(self) -> None:
        """A router has been started: its socket, and the network to connect."""
        try:
            packet, fds, _, _ = socket.recv_fds(self._zygote, ways.PACKET, 2)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            self._over.set()
            return
        router, network = fds
        self.resolv = Path(json.loads(packet)["resolv"])
        if not self._tasks:
            self._shelve(network)
            self._begin(self._keep_pasta())
        os.close(network)
        self.admit(socket.socket(fileno=router))

    def admit(self, router: socket.socket) -> None:
        """It is told what there is to know, and may ask."""
        router.setblocking(False)
        self._routers[router.fileno()] = router
        asyncio.get_running_loop().add_reader(router.fileno(), self._on_router, router)
        self._tell({"own": self._own}, router)
        self._tell_whether(router)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- pasta

    def _shelve(self, network: int) -> None:
        """What pasta is to open has to have a name, for it inherits nothing, and may not look at what we have."""
        k.unshare(k.NEWNS)
        k.mount("porter", self._stage, "tmpfs", k.MS_NOSUID | k.MS_NODEV | k.MS_NOEXEC, "mode=700,size=16k")
        Path(self._network).touch()
        k.mount(f"/proc/self/fd/{network}", self._network, None, k.MS_BIND)
        os.mkfifo(self._ready)

    async def _keep_pasta(self) -> None:
        pause = _PAUSE
        while True:
            began = time.monotonic()
            self._why = await self._run_pasta()
            self._is_up = False
            self._tell_whether()
            pause = _PAUSE if time.monotonic() - began > _WELL else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _run_pasta(self) -> str:
        """Until it ends: why."""
        reading = os.open(self._ready, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # it opens where somebody reads
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def on_ready() -> None:
            loop.remove_reader(reading)  # what it has written stays there to be read
            _resolve(ready)

        loop.add_reader(reading, on_ready)
        try:
            process = await asyncio.create_subprocess_exec(
                *command(self._network, self._ready), stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL, env={"PATH": PATH},
            )  # fmt: skip
            assert process.stderr is not None
            self._begin(self._look_out(process, ready))
            said = b""
            while data := await process.stderr.read(_SAID):
                said = (said + data)[-_SAID:]
            status = await process.wait()
        except OSError as error:
            return f"pasta cannot be started: {error.strerror}"
        finally:
            loop.remove_reader(reading)
            os.close(reading)
        words = " ".join(line for line in said.decode(errors="replace").splitlines() if "syslog" not in line)
        return f"pasta has ended with {status}: {words[-300:]}" if words else f"pasta has ended with {status}"

    async def _look_out(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        """It says when it is there, or is ended."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await ready
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return
        self._is_up, self._why = True, ""
        self._tell_whether()

    def _tell_whether(self, sock: socket.socket | None = None) -> None:
        if self._is_up:
            self._tell({"up": True}, sock)
        elif self._why:
            self._tell({"why": self._why}, sock)

    # --- the host's addresses

    def _on_change(self) -> None:
        try:
            self._changes.receive()
        except BlockingIOError:
            return
        except netlink.Overrun:
            pass
        found = own_addresses()
        if found != self._own:
            self._own = found
            self._tell({"own": found})

    # --- routers

    def _tell(self, message: dict[str, Any], sock: socket.socket | None = None) -> None:
        for one in list(self._routers.values()) if sock is None else [sock]:
            self._say(one, message)

    def _say(self, sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """A router that does not listen, or is told more than it could take, is none."""
        try:
            ways.say(sock, message, fds)
        except OSError:
            self._forget(sock)

    def _forget(self, sock: socket.socket) -> None:
        if self._routers.pop(sock.fileno(), None) is not None:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    def _on_router(self, sock: socket.socket) -> None:
        try:
            packet = sock.recv(ways.PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._forget(sock)
            return
        try:
            asked = json.loads(packet)
            if "name" in asked:
                self._begin(self._look_up(sock, asked["n"], str(asked["name"])))
            else:
                self._connect(sock, asked["n"], asked["server"], int(asked["kind"]))
        except (ValueError, KeyError, TypeError):
            self._forget(sock)  # it is not itself

    def _connect(self, sock: socket.socket, number: int, server: Any, kind: int) -> None:
        """To name servers of the host alone: whoever takes over a router gets no other socket of the host's."""
        family, place = server
        try:
            known = nameservers.settings(self.resolv.read_text(errors="replace"), _DNS_PORT).servers
            if (family, tuple(place)) not in known or kind not in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                raise OSError("no name server of the host's")
            with ways.connecting((family, tuple(place)), kind) as found:
                self._say(sock, {"n": number}, (found.fileno(),))
        except OSError as error:
            self._say(sock, {"n": number, "error": str(error)})

    async def _look_up(self, sock: socket.socket, number: int, name: str) -> None:
        try:
            if not _NAME.fullmatch(name):
                raise OSError("no name of a host")
            found = await ways.Here().addresses(name)
        except OSError as error:
            self._say(sock, {"n": number, "error": str(error)})
        else:
            self._say(sock, {"n": number, "addresses": found})


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _run(zygote: socket.socket, stage: str) -> None:
    await Porter(zygote, stage).serve()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--zygote", type=int, required=True, help="descriptor of a socket")
    parser.add_argument("--stage", required=True, help="an empty directory")
    options = parser.parse_args()
    os.chdir("/")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a terminal's keys are for the server
    zygote = socket.socket(fileno=options.zygote)
    zygote.setblocking(False)
    asyncio.run(_run(zygote, options.stage))
    sys.stderr.flush()
    os._exit(0)  # whoever is still looked up for is gone


if __name__ == "__main__":
    main()
