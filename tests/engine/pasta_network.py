"""What pasta would open if nothing stood before it, and what becomes of the network when a part of it is killed.

Run without root, by test_network_rootless.py: not collected by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from boxfixtures import Runner
from boxwood.engine.host import HostEngine
from boxwood.engine.network import behind
from internet import EXCEPTED, PUBLIC, Internet
from netfixtures import REFUSED, Wired, networked, python, router_of, started, tried, visits

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
OWN_PUBLIC = os.environ.get("BOXWOOD_TEST_OWN_ADDRESS", "")  # of the host, for this test
MODULE = b"boxwood.engine.network.porter"


def porter_of(data: Path) -> int:
    """Its pid, of the porter whose stage is in this directory."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if MODULE in words and str(data / "mnt").encode() in words:
                return int(entry.name)
    return 0


def pasta_of(porter: int) -> int:
    words = Path(f"/proc/{porter}/task/{porter}/children").read_text().split()
    return int(words[0]) if words else 0


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"


async def eventually(come: object) -> None:
    async with asyncio.timeout(30):
        while not come():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def test_the_host_s_public_address_is_refused(vm: Runner, world: Internet) -> None:
    """Pasta would connect to it as any program of the host does."""
    assert OWN_PUBLIC
    with socket.create_server((OWN_PUBLIC, 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((OWN_PUBLIC, 0))
        port, udp_port = server.getsockname()[1], udp.getsockname()[1]
        with socket.create_connection((OWN_PUBLIC, port)):  # who is of the host gets there
            server.accept()[0].close()
        server.setblocking(False)
        udp.setblocking(False)
        assert set(await tried(vm, [("tcp", "4", OWN_PUBLIC, port)])) <= REFUSED
        assert set(await tried(vm, [("udp", "4", OWN_PUBLIC, udp_port)])) <= REFUSED
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)


async def test_pasta_s_own_addresses_lead_nowhere(vm: Runner) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        places = (behind.GATEWAY, behind.ADDRESS, "198.19.0.1")
        assert set(await tried(vm, [("tcp", "4", place, port) for place in places])) <= REFUSED
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_a_piece_of_a_packet_is_no_packet(vm: Runner, world: Internet) -> None:
    """The second piece of a datagram to a port that is open looks like a datagram to one that is not."""
    head = struct.pack("!HHHH", 4444, 123, 8 + 11, 0)
    first = (behind.MTU - 20) // 8 * 8  # bytes of a piece: its own head counts, and the rest goes by eights
    payload = bytes(first - 8) + head + b"hello world"
    text = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 0)
s.sendto(bytes({len(payload) - 19}) + {payload[-19:]!r}, ({EXCEPTED!r}, 8080))
s.sendto(b'whole', ({PUBLIC!r}, 4433)); s.settimeout(5); print(s.recv(99))
"""
    assert await python(vm, text) == "b'you said whole'\n"
    assert visits(world) == [("udp", PUBLIC, 4433)]


async def test_a_box_takes_no_port_of_the_host(vm: Runner) -> None:
    """Pasta sends datagrams from the port that it sees them come from."""
    port = 20000 + os.getpid() % 9999
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind(("0.0.0.0", port))
        service.settimeout(5)
        text = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', {port})); s.settimeout(5)
s.sendto(b'hello', ({PUBLIC!r}, 4433)); print(s.recv(99))
"""
        assert await python(vm, text) == "b'you said hello'\n"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"for the host", ("127.0.0.1", port))
        assert service.recv(99) == b"for the host"


async def test_nothing_comes_in_but_answers(vm: Runner, world: Internet) -> None:
    """Whoever sends to the port of the host that pasta has taken for a datagram."""
    text = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(b'hello', ({PUBLIC!r}, 4433)); print(s.recv(99))
s.sendto(b'again', ({PUBLIC!r}, 4433)); print(s.recv(99))
s.settimeout(2)
try: print(s.recvfrom(99))
except TimeoutError: print('nobody')
"""
    asked = asyncio.create_task(python(vm, text))
    there: list[dict[str, Any]] = []
    while len(there) < 2:
        there += [visit for visit in world.seen() if visit["kind"] == "udp"]
        await asyncio.sleep(0.01)
    (port,) = {visit["peer"][1] for visit in there}
    assert port >= 61000
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"let me in", (there[0]["peer"][0], port))
    assert (await asked).splitlines() == ["b'you said hello'", "b'you said again'", "nobody"]


async def test_the_porter_rests(vm: Runner, shared: HostEngine) -> None:
    """Whoever has nothing to do takes no time: at one of these moments at least he would be seen at it."""
    porter = porter_of(shared._data)
    await eventually(lambda: all(sleeps(porter) for _ in range(100)))


async def test_pasta_comes_again_and_ends_with_its_zygote(own_vm: Runner, data: Path) -> None:
    before = pasta_of(porter_of(data))
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: pasta_of(porter_of(data)) not in (0, before))

    async def works() -> bool:
        return (await tried(own_vm, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")

    async with asyncio.timeout(30):
        while not await works():
            await asyncio.sleep(0.05)
    assert set(await tried(own_vm, [("tcp", "4", "10.99.0.1", 80)])) <= REFUSED
    zygote = json.loads((data / "zygote.json").read_text())["pid"]
    porter, router = porter_of(data), router_of(data)
    pasta = pasta_of(porter)
    os.kill(zygote, signal.SIGKILL)
    await eventually(lambda: not any(map(lives, (porter, pasta, router))))


async def test_without_its_porter_there_is_no_network(
    own_vm: Runner, own: HostEngine, golden: str, data: Path, world: Internet
) -> None:
    world.seen()
    porter = porter_of(data)
    pasta, router = pasta_of(porter), router_of(data)
    os.kill(porter, signal.SIGKILL)
    await eventually(lambda: not lives(pasta) and not lives(router))
    assert not (await tried(own_vm, [("udp", "4", PUBLIC, 4433)]))[0].endswith("hello")
    other = Wired(own, golden)
    await other.boot()
    assert not (await tried(other, [("udp", "4", PUBLIC, 4433)]))[0].endswith("hello")
    found = {one.name: one async for one in own.features()}["network of VMs"]
    assert not found.active and "porter" in found.why, found
    assert visits(world) == []


async def test_nothing_is_left(world: Internet, data: Path, images: Path, golden: str) -> None:
    async with started(networked(world, data, images, [])) as engine:
        runner = Wired(engine, golden)
        await runner.boot()
        porter = porter_of(data)
        pasta = pasta_of(porter)
        assert lives(porter) and lives(pasta)
    assert not lives(porter) and not lives(pasta)
