"""The network of boxes, as root: what is reached, what is not, and what remains. The internet is tests/internet.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from boxfixtures import Runner
from boxwood.engine.api import Denial, Usage
from boxwood.engine.host import HostEngine
from boxwood.engine.network.table import MOST_CONNECTIONS
from boxwood.engine.network.wire import GATEWAY
from internet import EXCEPTED, OF_BOXES, OTHER_PUBLIC, PRIVATE, PUBLIC, Internet, spoofed
from netfixtures import REFUSED, Wired, beside, connections, python, tried, visits

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]


# --- what is reached


async def test_the_internet_is_there(vm: Runner, world: Internet) -> None:
    assert vm.box.address.startswith("198.18.")
    said = await tried(vm, [("tcp", "4", PUBLIC, 80), ("udp", "4", PUBLIC, 4433), ("tcp", "6", f"::ffff:{PUBLIC}", 80)])
    assert said == ["192.0.2.129 said hello", "you said hello", "192.0.2.129 said hello"]
    assert visits(world) == [("tcp", PUBLIC, 80), ("udp", PUBLIC, 4433), ("tcp", PUBLIC, 80)]


async def test_names_are_resolved(vm: Runner) -> None:
    assert (await vm.run("getent ahostsv4 public.test")).text.split()[0] == PUBLIC
    assert (await python(vm, "print(tried(socket.SOCK_STREAM, socket.AF_INET, 'public.test', 80))")).endswith("hello\n")


async def test_what_the_operator_allows_is_reached_at_its_port_alone(vm: Runner, world: Internet) -> None:
    said = await tried(vm, [("tcp", "4", EXCEPTED, 8080), ("tcp", "4", EXCEPTED, 80), ("udp", "4", EXCEPTED, 123)])
    assert said[0].endswith("hello") and set(said[1:]) <= REFUSED
    assert visits(world) == [("tcp", EXCEPTED, 8080)]
    assert (await vm.run("getent ahostsv4 excepted.test")).text.split()[0] == EXCEPTED


async def test_much_at_once(vm: Runner) -> None:
    text = f"""
s = socket.create_connection(({PUBLIC!r}, 80)); s.sendall(b'GIVE 20000000'); n = 0
while n < 20000000: n += len(s.recv(1 << 20))
print(n)
"""
    assert await python(vm, text) == "20000000\n"
    usage = await vm.engine.usage(vm.box.vm_id)
    assert usage.received > 20_000_000 and 1000 < usage.sent < 5_000_000
    assert (usage.connections, usage.denied) == (1, 0)


async def test_a_box_has_an_address_and_a_name_of_its_own(vm: Runner, shared: HostEngine, golden: str) -> None:
    other = Wired(shared, golden)
    await other.boot()
    assert vm.box.address != other.box.address
    inside = (await vm.run("hostname -I 2>/dev/null || ip -4 -o addr show eth0; cat /proc/net/route")).text
    assert vm.box.address in inside and "eth0" in inside
    assert (await vm.run("cat /etc/resolv.conf")).text.startswith(f"nameserver {GATEWAY}\n")


# --- what is not


async def test_private_addresses_are_refused_at_once(vm: Runner, world: Internet) -> None:
    said = dict(zip(PRIVATE, await tried(vm, [("tcp", "4", address, 80) for address in PRIVATE]), strict=True))
    assert said.pop(OF_BOXES) in {*REFUSED, "TimeoutError"}
    assert set(said.values()) <= REFUSED, said
    assert set(await tried(vm, [("udp", "4", address, 123) for address in PRIVATE[:4]])) <= REFUSED
    send = f"for a in {PRIVATE!r}: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (a, 123))"
    await python(vm, send)  # more words of refusal at once than the kernel sends
    assert visits(world) == []


SPELLINGS = [
    "10.99.1", "0x0a.0x63.0.1", "012.0143.0.1", "174260225", "::ffff:10.99.0.1", "::ffff:a63:1", "::10.99.0.1",
    "64:ff9b::10.99.0.1", "2002:0a63:0001::1", "fe80::1%eth0", "fd00::2", "fd00:ec2::254", "ff02::1%eth0",
]  # fmt: skip


async def test_in_every_spelling(vm: Runner, world: Internet) -> None:
    places = [("6" if ":" in spelling else "4", spelling) for spelling in SPELLINGS]
    refused = REFUSED | {"EADDRNOTAVAIL", "EINVAL", "gaierror"}
    said = await tried(vm, [("tcp", *place, 80) for place in places], at_once=True)
    assert set(said) <= refused, list(zip(places, said, strict=True))
    said = await tried(vm, [("udp", *place, 123) for place in places], at_once=True)
    assert set(said) <= refused | {"TimeoutError"}, said  # the kernel is sparing with ICMP
    assert visits(world) == []


async def test_the_host_is_refused(vm: Runner, world: Internet) -> None:
    """On all its addresses, whatever listens: Boxwood's own interface would be one of them."""
    with socket.create_server(("0.0.0.0", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("0.0.0.0", 0))
        server.setblocking(False)
        udp.setblocking(False)
        hosts = ["192.0.2.129", GATEWAY, "127.0.0.1", "0.0.0.0", *_own_addresses()]
        port, udp_port = server.getsockname()[1], udp.getsockname()[1]
        assert set(await tried(vm, [("tcp", "4", address, port) for address in hosts])) <= REFUSED
        send = f"for a in {hosts!r}: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (a, {udp_port}))"
        await python(vm, send)
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(1)


def _own_addresses() -> list[str]:
    said = subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, check=True, text=True).stdout
    return [info["local"] for link in json.loads(said) for info in link["addr_info"]]


async def test_other_boxes_are_refused(vm: Runner, shared: HostEngine, golden: str) -> None:
    other = Wired(shared, golden)
    await other.boot()
    inside, served = await listening(other, "print(s.accept()[1][0])")
    said = await tried(vm, [("tcp", "4", other.box.address, 7777), ("udp", "4", other.box.address, 7777)])
    assert set(said) <= REFUSED
    await tried(inside, [("tcp", "4", "127.0.0.1", 7777)])
    assert await served == "127.0.0.1\n", "nobody had come before"
    await other.box.kill()


async def listening(runner: Runner, then: str) -> tuple[Runner, asyncio.Task[str]]:
    """A program in the box listens at port 7777, and does `then`, which is given the socket, `s`. Another session, and
    what the program says."""
    other = await beside(runner)
    await other.run("mkfifo /tmp/listens")
    text = f"s = socket.create_server(('', 7777)); s.settimeout(60); open('/tmp/listens', 'w').close(); {then}"
    served = asyncio.create_task(python(runner, text))
    await other.run("cat /tmp/listens")
    return other, served


def _is_agent(entry: Path) -> bool:
    return (entry / "comm").read_text() == "agent\n" and "boxwood" not in (entry / "cmdline").read_text()


def _pid(runner: Runner) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if f"|-- {runner.box.address}\n" in (entry / "net/fib_trie").read_text() and _is_agent(entry):
                    return int(entry.name)
    raise AssertionError("no process has this network")


async def test_packets_with_another_s_address_go_nowhere(
    vm: Runner, shared: HostEngine, golden: str, world: Internet
) -> None:
    """A box cannot make them; if it could (here the host does it in the box's network), they would not pass."""
    raw = await vm.run("python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)'")
    packet = await vm.run("python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'")
    assert raw.code and packet.code
    other = Wired(shared, golden)
    await other.boot()
    send = "import socket,sys;s=socket.socket(socket.AF_INET,socket.SOCK_RAW,255);" + "".join(
        f"s.sendto({spoofed(source, PUBLIC, 4433)!r},({PUBLIC!r},0));"
        for source in (other.box.address, "192.0.2.2", "127.0.0.1", GATEWAY, "8.8.8.8", vm.box.address)
    )
    subprocess.run(["nsenter", "-t", str(_pid(vm)), "-n", sys.executable, "-c", send], check=True)
    assert visits(world) == [("udp", PUBLIC, 4433)]  # the last one, which is its own


async def test_packets_with_options_go_nowhere(vm: Runner, world: Internet) -> None:
    """A way that a box chooses itself (source routes) would lead around what is judged by where a packet goes."""
    gateway = ", ".join(GATEWAY.split("."))
    said = await python(
        vm,
        f"""
for options in (b'', bytes((131, 7, 4, {gateway}, 0)), bytes((137, 7, 4, {gateway}, 0)), bytes((1, 1, 1, 0)), b''):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        try:
            s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
            s.connect(({PUBLIC!r}, 4433)); s.send(b'hello'); print('answered', len(s.recv(99)) > 0)
        except OSError as e: print(type(e).__name__)
""",
    )
    assert said.split("\n")[0] == said.split("\n")[4] == "answered True" and "answered" not in said.split("\n")[1:4]
    assert visits(world) == [("udp", PUBLIC, 4433)] * 2


async def test_a_box_may_ask_the_world_to_echo(vm: Runner, world: Internet) -> None:
    echo = f"""
def ping(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(1)
    try:
        s.sendto(b'\\x08' + bytes(15), (address, 0)); return s.recv(99)[0]
    except OSError as e: return type(e).__name__
print(ping({PUBLIC!r}), ping('10.99.0.1'), ping('192.0.2.129'))
"""
    first, *others = (await python(vm, echo)).split()
    assert first == "0"
    assert set(others) <= {"3", "TimeoutError", "OSError", "ConnectionRefusedError"}


async def test_nothing_comes_in(vm: Runner) -> None:
    """From the host neither: what listens in a box is the box's."""
    _, served = await listening(vm, "s.accept()")
    with pytest.raises(OSError):
        socket.create_connection((vm.box.address, 7777), 1)
    assert not served.done()
    await vm.box.kill()
    with contextlib.suppress(Exception):
        await served


# --- names


async def test_names_of_private_addresses_are_not_told(vm: Runner, world: Internet) -> None:
    for name in ("metadata.test", "mixed.test", "chain.test", "METADATA.test.", "nosuch.test"):
        assert (await vm.run(f"getent ahostsv4 {name}")).code == 2
    denials = (await vm.engine.usage(vm.box.vm_id)).denials
    assert {denial.name for denial in denials if denial.protocol == "dns"} == {
        "metadata.test",
        "mixed.test",
        "chain.test",
    }


async def test_whatever_server_is_asked_ours_answers(vm: Runner, world: Internet) -> None:
    question = bytes.fromhex("123401000001000000000000") + b"\x08whatever\x04test\x00\x00\x01\x00\x01"
    text = f"""
q = {question!r}
for address in ({PUBLIC!r}, '10.99.0.53', '169.254.169.254', '192.0.2.129'):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(q, (address, 53)); print(s.recv(999)[3] & 15)
    t = socket.create_connection((address, 53), 5); t.sendall(len(q).to_bytes(2, 'big') + q); print(t.recv(999)[5] & 15)
"""
    assert (await python(vm, text)).split() == ["3"] * 8
    assert {visit["peer"][0] for visit in world.seen()} == {"192.0.2.129"}  # the resolver, from the host


# --- accounts


async def test_denied_attempts_are_told(vm: Runner) -> None:
    await tried(vm, [("tcp", "4", "10.99.0.1", 80), ("udp", "4", "169.254.169.254", 123)])
    usage = await _usage(vm, lambda usage: len(usage.denials) >= 2)
    assert [(d.protocol, d.address, d.port, d.reason) for d in usage.denials] == [
        ("tcp", "10.99.0.1", 80, "private"),
        ("udp", "169.254.169.254", 123, "private"),
    ]
    assert usage.denied == 2 and usage.connections == 0


async def _usage(runner: Runner, enough: Callable[[Usage], bool]) -> Usage:
    async with asyncio.timeout(10):
        while not enough(usage := await runner.engine.usage(runner.box.vm_id)):
            await asyncio.sleep(0.01)  # the kernel's log comes when it comes
    return usage


async def test_the_account_is_closed_when_the_box_ends(vm: Runner, accounts: list[tuple[str, Usage]]) -> None:
    await tried(vm, [("tcp", "4", PUBLIC, 80), ("tcp", "4", "10.99.0.1", 80)])
    before = await _usage(vm, lambda usage: bool(usage.denials))
    vm_id = vm.box.vm_id
    await vm.box.kill()
    async with asyncio.timeout(10):
        while vm_id not in dict(accounts):
            await asyncio.sleep(0.01)
    (usage,) = (usage for who, usage in accounts if who == vm_id)
    assert (usage.connections, usage.denied) == (1, 1)
    assert usage.sent >= before.sent > 0 and usage.received >= before.received > 0
    assert isinstance(usage.denials[0], Denial)
    assert await vm.engine.usage(vm_id) == Usage()


async def test_what_a_box_opened_is_forgotten_with_it(vm: Runner) -> None:
    await tried(vm, [("tcp", "4", PUBLIC, 80), ("udp", "4", PUBLIC, 4433)])
    address = vm.box.address
    assert any(f"src={address} " in line for line in connections())
    await vm.box.kill()
    async with asyncio.timeout(10):
        while any(f"src={address} " in line for line in connections()):
            await asyncio.sleep(0.01)


# --- without


async def test_a_box_without_network_has_its_loopback(shared: HostEngine, golden: str, world: Internet) -> None:
    world.seen()
    for _ in range(6):  # prepared ones, which have a wire, and others
        runner = Wired(shared, golden)
        await runner.boot(network=False)
        assert runner.box.address == ""
        assert [
            line.split(":")[0].strip() for line in (await runner.run("cat /proc/net/dev")).text.splitlines()[2:]
        ] == ["lo"]
        assert set(await tried(runner, [("tcp", "4", PUBLIC, 80), ("udp", "4", PUBLIC, 53)])) <= REFUSED
        assert (await runner.run("python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 0))'")).code == 0
    runner = Wired(shared, golden)
    await runner.boot()
    assert (await tried(runner, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")
    assert [to for _, to, _ in visits(world)] == [PUBLIC]


# --- what comes and goes


async def test_a_parked_vm_comes_back_with_a_network(vm: Runner) -> None:
    await vm.run("touch /root/here")
    await vm.box.kill()
    await vm.boot(top=vm.stack.top)
    assert (await tried(vm, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")


async def test_a_flood_is_bounded(vm: Runner, golden: str, shared: HostEngine) -> None:
    """The host's table of connections is everybody's."""
    flood = f"""
import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
for port in range(2000, 8000):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', port))
    try: s.sendto(b'x', ({OTHER_PUBLIC!r}, 9999))
    except OSError: pass
    s.close()
"""
    await python(vm, flood)
    assert len([line for line in connections() if f"src={vm.box.address} " in line]) <= MOST_CONNECTIONS + 1
    usage = await _usage(vm, lambda usage: bool(usage.denials))
    assert usage.connections <= MOST_CONNECTIONS + 1 and usage.denied >= 6000 - usage.connections - 1
    assert {denial.reason for denial in usage.denials} == {"flood"}
    other = Wired(shared, golden)
    await other.boot()
    assert (await tried(other, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")


async def test_two_on_one_host(vm: Runner, golden: str, tmp_path: Path, images: Path, world: Internet) -> None:
    """Each has rules and a resolver of its own; what one takes down the other keeps."""
    second = HostEngine(tmp_path / "second", images, resolv_conf=world.resolv_conf)
    await second.start()
    try:
        other = Wired(second, golden)
        await other.boot()
        assert other.box.address != vm.box.address
        said = await tried(
            other, [("tcp", "4", PUBLIC, 80), ("tcp", "4", EXCEPTED, 8080), ("tcp", "4", vm.box.address, 1)]
        )
        assert said[0].endswith("hello") and set(said[1:]) <= REFUSED
        assert (await other.run("getent ahostsv4 public.test || exit; getent ahostsv4 metadata.test")).code == 2
        usage = await _usage(other, lambda usage: len(usage.denials) >= 3)
        assert "metadata.test" in {denial.name for denial in usage.denials}
    finally:
        await second.shutdown()
    assert (await tried(vm, [("tcp", "4", PUBLIC, 80), ("tcp", "4", EXCEPTED, 8080)]))[1].endswith("hello")
    assert (await vm.run("getent ahostsv4 public.test")).code == 0
