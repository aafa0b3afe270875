"""An internet for tests: a network namespace that has addresses of all kinds, servers on them, and a log of who came.

The host's routes to these addresses lead there, so nothing but this namespace is ever contacted. Run as a program it is
the servers, and tells each visit as a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PUBLIC = "93.184.215.14"
OTHER_PUBLIC = "151.101.1.6"
NAMESERVER = "10.99.0.53"
EXCEPTED = "10.99.0.80"
PRIVATE = (
    "10.99.0.1", "100.64.7.7", "100.100.100.200", "168.63.129.16", "169.254.169.254", "172.16.7.7", "192.0.0.192",
    "192.88.99.7", "192.168.77.7", "198.19.77.7", "198.51.100.7", "203.0.113.7", "240.7.7.7",
)  # fmt: skip
# Of the boxes' own network: a Boxwood that was started later on this host drops what goes there, so nobody hears a word.
OF_BOXES = "198.19.77.7"
TCP_PORTS, UDP_PORTS = (80, 8080, 443, 853), (123, 4433)
NAMES = {
    "public.test.": [("A", PUBLIC)],
    "metadata.test.": [("A", "169.254.169.254")],
    "mixed.test.": [("A", PUBLIC), ("A", "10.99.0.1")],
    "chain.test.": [("CNAME", "metadata.test."), ("A@metadata.test.", "169.254.169.254")],
    "excepted.test.": [("A", EXCEPTED)],
    "other.test.": [("A", OTHER_PUBLIC)],
    "www.other.test.": [("A", OTHER_PUBLIC)],
    "evilother.test.": [("A", OTHER_PUBLIC)],
    "alias.test.": [("CNAME", "other.test."), ("A@other.test.", OTHER_PUBLIC)],
}


_ENVIRONMENT = "BOXWOOD_TEST_INTERNET"
_LOCK = Path("/run/lock/boxwood-tests-internet")
_numbers = itertools.count()  # a wire may linger for a moment when its namespace is gone


@dataclass
class Internet:
    name: str
    link: str
    resolv_conf: Path
    visitors: IO[str]
    visits: list[dict[str, Any]] = field(default_factory=list)

    def seen(self) -> list[dict[str, Any]]:
        """Who has come so far, in order: all that came before this question."""
        with socket.create_connection((PUBLIC, 9)) as sock:  # one more visit, at the end
            mark = list(sock.getsockname())
        while True:
            visit = json.loads(self.visitors.readline())
            if visit["peer"] == mark and visit["port"] == 9:  # a box's may have been given the same port
                found, self.visits = self.visits, []
                return found
            self.visits.append(visit)


@contextlib.contextmanager
def internet(directory: Path) -> Iterator[Internet]:
    """One for this session; or the one that somebody else has made for it, see `handed_over`."""
    if _ENVIRONMENT in os.environ:
        with _inherited() as found:
            yield found
        return
    number = next(_numbers)
    name, link = f"bwtest{os.getpid()}-{number}", f"t{os.getpid() % 1000000}n{number}"
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_LOCK.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)  # the routes to it are the host's: one at a time, also of other sessions
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "delete", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        stack.callback(_ip, "link", "delete", link)  # at once, with its routes: a namespace takes its time
        _ip("address", "add", "192.0.2.129/32", "dev", link)
        _ip("link", "set", link, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "eth0", "up")
        for address in (PUBLIC, OTHER_PUBLIC, NAMESERVER, EXCEPTED, *PRIVATE):
            _ip("-n", name, "address", "add", f"{address}/32", "dev", "lo" if address.startswith("240.") else "eth0")
            _ip("route", "add", f"{address}/32", "dev", link, "src", "192.0.2.129")
        _ip("-n", name, "route", "add", "default", "dev", "eth0")
        command = ["ip", "netns", "exec", name, sys.executable, __file__]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        resolv_conf = directory / "resolv.conf"
        resolv_conf.write_text(f"nameserver {NAMESERVER}\noptions timeout:2\n")
        yield Internet(name, link, resolv_conf, process.stdout)


def handed_over(world: Internet) -> tuple[dict[str, str], int]:
    """For a process without root, whose tests are to have this one: its environment, and a descriptor to pass on."""
    fd = world.visitors.fileno()
    return {_ENVIRONMENT: json.dumps([world.name, world.link, str(world.resolv_conf), fd])}, fd


@contextlib.contextmanager
def _inherited() -> Iterator[Internet]:
    name, link, resolv_conf, fd = json.loads(os.environ[_ENVIRONMENT])
    with open(os.dup(fd)) as visitors:
        yield Internet(name, link, Path(resolv_conf), visitors)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# --- the servers


def _tell(kind: str, here: Any, peer: Any, text: str = "") -> None:
    print(json.dumps({"kind": kind, "to": here[0], "port": here[1], "peer": list(peer), "text": text}), flush=True)


async def _serve_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    here, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    _tell("tcp", here, peer)
    try:
        while data := await reader.read(65536):
            if data.startswith(b"GIVE "):  # so many bytes
                writer.write(bytes(int(data.split()[1])))
            else:
                writer.write(f"{peer[0]} said ".encode() + data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, here: tuple[str, int]) -> None:
        self._here = here

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        _tell("udp", self._here, peer)
        self._transport.sendto(b"you said " + data, peer)


class _Names(asyncio.DatagramProtocol):
    def __init__(self, here: tuple[str, int]) -> None:
        self._here = here

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        import dns.message
        import dns.rcode
        import dns.rrset

        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text().lower()
        _tell("dns", self._here, peer, name)
        answer = dns.message.make_response(query)
        if name not in NAMES:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        for kind, value in NAMES.get(name, ()):
            kind, _, owner = kind.partition("@")
            answer.answer.append(dns.rrset.from_text(owner or name, 60, "IN", kind, value))
        self._transport.sendto(answer.to_wire(), peer)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    for port in (9, *TCP_PORTS):
        await asyncio.start_server(_serve_tcp, "0.0.0.0", port)
    for address in (PUBLIC, EXCEPTED, *PRIVATE):
        for port in UDP_PORTS:
            await loop.create_datagram_endpoint(lambda a=address, p=port: _Udp((a, p)), (address, port))  # type: ignore[misc]
    for address in (NAMESERVER, PUBLIC, *PRIVATE):
        await loop.create_datagram_endpoint(lambda a=address: _Names((a, 53)), (address, 53))  # type: ignore[misc]
    print("ready", flush=True)
    await asyncio.Event().wait()


def spoofed(source: str, target: str, port: int) -> bytes:
    """An UDP packet that says it comes from somebody else."""
    payload = b"spoofed"
    udp = struct.pack("!HHHH", 4444, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(target))  # fmt: skip
    return head + udp


if __name__ == "__main__":
    asyncio.run(_main())
