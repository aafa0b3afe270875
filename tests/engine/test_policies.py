"""Policies of boxes at the connection layer, as root: what goes out, what does not, and from when on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine import policies
from boxwood.engine.api import EngineError, SessionSpec, Usage
from boxwood.engine.host import HostEngine
from boxwood.engine.network.netfilter import Elements
from boxwood.engine.network.ruleset import chain_of, set_prefix
from boxwood.engine.network.table import NftError, listed
from internet import EXCEPTED, OTHER_PUBLIC, PUBLIC, Internet
from netfixtures import (
    CONNECT,
    REFUSED,
    Wired,
    networked,
    number_of,
    one_of_many,
    python,
    router_of,
    started,
    tried,
    visits,
)

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]

REWRITE = {"rewrite": {"headers": {"x-a": "b"}}}
PIDFD_GETFD, SIOCGSKNS = 438, 0x894C
YES = "192.0.2.129 said hello"


@pytest.fixture(scope="module")
async def shared(
    world: Internet, tmp_path_factory: pytest.TempPathFactory, images: Path, accounts: list[tuple[str, Usage]]
) -> AsyncIterator[HostEngine]:
    """For tests that do it no harm."""
    async with started(networked(world, tmp_path_factory.mktemp("policies") / "data", images, accounts)) as engine:
        yield engine


@pytest.fixture
async def vm(shared: HostEngine, golden: str, world: Internet) -> AsyncIterator[Runner]:
    world.seen()
    runner = Wired(shared, golden)
    await runner.boot()
    yield runner
    await runner.box.kill()


@pytest.fixture
async def own(battered: HostEngine) -> AsyncIterator[HostEngine]:
    async with one_of_many(battered) as engine:
        yield engine


@pytest.fixture
def data(own: HostEngine) -> Path:
    return own._data


def ruled(*rules: Any) -> policies.Policies:
    """Each (action, match), the first one first."""
    return policies.parse(
        {
            f"r{index}": {"type": "outbound", "priority": 1000 - index, "action": action, "match": match}
            for index, (action, match) in enumerate(rules)
        }
    )


async def police(runner: Runner, *rules: Any) -> None:
    await runner.engine.police(runner.box, ruled(*rules))


def names_asked(world: Internet) -> tuple[set[str], list[tuple[str, str, int]]]:
    """What the world was asked, and who else has come."""
    seen = world.seen()
    asked = {one["text"].rstrip(".") for one in seen if one["kind"] == "dns"}
    return asked, [(one["kind"], one["to"], one["port"]) for one in seen if one["kind"] != "dns"]


async def resolves(runner: Runner, name: str) -> bool:
    return not (await runner.run(f"getent ahostsv4 {name}")).code


TCP, UDP = ("tcp", "4", PUBLIC, 80), ("udp", "4", PUBLIC, 4433)
OTHER, OTHER_TLS = ("tcp", "4", OTHER_PUBLIC, 80), ("tcp", "4", OTHER_PUBLIC, 443)


GOES: list[tuple[list[Any], str]] = [
    ([], "1111"),
    ([("deny", {})], "0000"),
    ([("allow", {})], "1111"),
    ([("allow", {"ips": [PUBLIC]})], "1100"),
    ([("allow", {"ips": ["151.101.0.0/16"]})], "0011"),
    ([("allow", {"ips": ["0.0.0.0/0"]})], "1111"),
    ([("allow", {"ips": ["2000::/3"]})], "0000"),
    ([("allow", {"ips": ["151.101.0.0/16", "151.101.1.0/24", PUBLIC]})], "1111"),
    ([("deny", {"ips": [PUBLIC]})], "0011"),
    ([("allow", {"ports": [80]})], "1010"),
    ([("deny", {"ports": [[400, 500], [450, 5000]]})], "1010"),
    ([("deny", {"ports": [443]}), ("allow", {"ips": [OTHER_PUBLIC]})], "0010"),
    ([("allow", {"ips": [OTHER_PUBLIC], "ports": [443]}), ("deny", {"ips": [OTHER_PUBLIC]})], "0001"),
    ([("deny", {"ips": [PUBLIC]}), ("allow", {"ips": [PUBLIC]})], "0000"),
    ([("allow", {"hosts": ["other.test"]})], "0000"),  # which the box has not been given yet
]  # fmt: skip


@pytest.mark.parametrize("which", range(3))
async def test_what_goes_out(vm: Runner, world: Internet, which: int) -> None:
    """To which of four places, by one policy after the other. Not all in one box: it is told of a few refused datagrams
    at once, and of no more for a while."""
    attempts = [TCP, UDP, OTHER, OTHER_TLS]
    for rules, goes in GOES[which::3]:
        await police(vm, *rules)
        said = await tried(vm, attempts)
        assert "".join("1" if "hello" in one else "0" for one in said) == goes, rules
        assert {one for one in said if "hello" not in one} <= REFUSED, rules
        came = [(kind, to, port) for (kind, _, to, port), one in zip(attempts, goes, strict=True) if one == "1"]
        assert visits(world) == came, rules


async def test_hosts_are_addresses_that_the_box_was_given_for_them(vm: Runner, world: Internet) -> None:
    await police(vm, ("allow", {"hosts": ["other.test"], "ports": [80]}))
    assert not await resolves(vm, "public.test") and not await resolves(vm, "evilother.test")
    assert (await tried(vm, [OTHER]))[0] in REFUSED
    assert await resolves(vm, "www.other.test")
    assert (await tried(vm, [OTHER, OTHER_TLS, TCP]))[0] == YES
    asked, came = names_asked(world)
    assert asked == {"www.other.test"}  # what is of no use to the box is not asked for: names carry data out
    assert came == [("tcp", OTHER_PUBLIC, 80)]


async def test_the_first_packet_finds_the_address(vm: Runner) -> None:
    await police(vm, ("allow", {"hosts": ["other.test"]}))
    assert await python(vm, "print(tried(socket.SOCK_STREAM, socket.AF_INET, 'OTHER.test.', 80))") == f"{YES}\n"


async def test_what_was_resolved_before_the_policy_counts(vm: Runner) -> None:
    assert await resolves(vm, "alias.test")
    await police(vm, ("allow", {"hosts": ["alias.test"]}))
    assert (await tried(vm, [OTHER]))[0] == YES
    await police(vm, ("allow", {"hosts": ["other.test"]}))  # it was asked for by another name
    assert (await tried(vm, [OTHER]))[0] in REFUSED


async def test_a_name_that_leads_to_one_that_is_refused(vm: Runner) -> None:
    await police(vm, ("deny", {"hosts": ["other.test"]}))
    assert not await resolves(vm, "other.test") and not await resolves(vm, "alias.test")
    assert await resolves(vm, "public.test")
    await police(vm, ("allow", {"hosts": ["alias.test"]}))  # where it leads is not listed, and need not be
    assert await resolves(vm, "alias.test")


async def test_an_address_is_good_for_its_time(vm: Runner) -> None:
    """As long as its TTL and a minute; from the last time on that the box was told of it."""
    await police(vm, ("allow", {"hosts": ["other.test"]}))
    table = f"boxwood_{number_of(vm.engine._data)}"

    def left() -> dict[str, int]:
        (found,) = [item["set"] for item in listed("table", "inet", table) if _is_hosts_of(item, vm)]
        return {one["elem"]["val"]: one["elem"]["expires"] for one in found.get("elem", ())}

    assert left() == {}
    assert await resolves(vm, "other.test")
    assert list(left()) == [OTHER_PUBLIC] and 60 <= left()[OTHER_PUBLIC] <= 120
    (name,) = [item["set"]["name"] for item in listed("table", "inet", table) if _is_hosts_of(item, vm)]
    with contextlib.closing(Elements(table)) as elements:
        elements.put(name, socket.inet_aton(OTHER_PUBLIC), 3_600_000)
        assert left()[OTHER_PUBLIC] > 3000  # also on kernels that do not lengthen what is there
        elements.put(name, socket.inet_aton(OTHER_PUBLIC), 1)
        while left():
            await asyncio.sleep(0)
        assert (await tried(vm, [OTHER]))[0] in REFUSED
        with pytest.raises(FileNotFoundError):
            elements.put("no_such_set", socket.inet_aton(OTHER_PUBLIC), 1)
        elements.put(name, socket.inet_aton(PUBLIC), 60_000)  # what was refused has left nothing behind
        assert list(left()) == [PUBLIC]


def _is_hosts_of(item: Any, runner: Runner) -> bool:
    return item.get("set", {}).get("name", "").startswith(set_prefix(runner.box.address))


async def test_one_box_s_names_are_not_another_s(vm: Runner, shared: HostEngine, golden: str) -> None:
    other = Wired(shared, golden)
    await other.boot()
    for one in (vm, other):
        await police(one, ("allow", {"hosts": ["other.test"]}))
    assert await resolves(vm, "other.test")
    assert (await tried(vm, [OTHER]))[0] == YES
    assert (await tried(other, [OTHER]))[0] in REFUSED
    await other.box.kill()


async def test_no_policy_opens_what_the_operator_closed(vm: Runner, world: Internet) -> None:
    await police(vm, ("allow", {"ips": ["0.0.0.0/0"]}), ("allow", {"hosts": ["metadata.test"]}))
    places = ["10.99.0.1", "169.254.169.254", "192.168.77.7", "100.64.7.7", "127.0.0.1", "192.0.2.129"]
    assert set(await tried(vm, [("tcp", "4", place, 80) for place in places])) <= REFUSED
    assert not await resolves(vm, "metadata.test")
    assert names_asked(world)[1] == []


async def test_a_policy_holds_for_what_the_operator_opened(vm: Runner) -> None:
    there = ("tcp", "4", EXCEPTED, 8080)
    assert (await tried(vm, [there]))[0] == YES
    await police(vm, ("deny", {"ips": ["10.0.0.0/8"]}))
    assert (await tried(vm, [there]))[0] in REFUSED


async def test_it_can_be_taken_away(vm: Runner) -> None:
    await police(vm, ("deny", {}))
    assert (await tried(vm, [TCP]))[0] in REFUSED and not await resolves(vm, "public.test")
    await police(vm)
    assert (await tried(vm, [TCP]))[0] == YES and await resolves(vm, "public.test")


async def test_refused_attempts_are_told(vm: Runner) -> None:
    assert await resolves(vm, "public.test")
    await police(vm, ("allow", {"ips": [OTHER_PUBLIC]}))
    await tried(vm, [TCP, UDP])
    await police(vm, ("allow", {"hosts": ["other.test"]}))
    await resolves(vm, "public.test")
    usage = await vm.engine.usage(vm.box.vm_id)
    told = [(one.protocol, one.address, one.port, one.name, one.reason) for one in usage.denials]
    assert told[:2] == [("tcp", PUBLIC, 80, "public.test", "policy"), ("udp", PUBLIC, 4433, "public.test", "policy")]
    assert told[2] == ("dns", "", 0, "public.test", "policy")
    assert usage.denied >= 3


HELD = f"""
import select
s = socket.create_connection(({PUBLIC!r}, 80)); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.connect(({PUBLIC!r}, 4433)); other = socket.create_connection(({OTHER_PUBLIC!r}, 80))
def said(sock):
    try:
        sock.send(b'hello')
        return sock.recv(99).decode() if select.select([sock], [], [], 3)[0] else 'nothing'
    except OSError as e: return errno.errorcode[e.errno]
print(said(s), said(u), said(other), sep=',', flush=True)
open('/tmp/ready', 'w').close(); open('/tmp/go').read()
print(said(s), said(u), said(other), sep=',', flush=True)
"""


@pytest.mark.parametrize(
    "rule",
    [("deny", {"ips": [PUBLIC]}), ("deny", {"ips": [PUBLIC], "methods": ["POST"]})],
    ids=["forbidden", "to be seen by a proxy"],
)
async def test_what_is_open_and_forbidden_now_is_ended(vm: Runner, world: Internet, rule: Any) -> None:
    await vm.run("mkfifo /tmp/ready /tmp/go")
    running = asyncio.create_task(vm.run("python3 -c " + quoted(HELD)))
    beside = await second(vm)
    await beside.run("cat /tmp/ready")
    await police(vm, rule)
    await beside.run("echo > /tmp/go")
    before, after = (await running).text.splitlines()
    assert before == f"{YES},you said hello,{YES}"
    tcp, udp, other = after.split(",")
    assert tcp in {"ECONNRESET", *REFUSED} and udp in {"nothing", *REFUSED}
    assert other == YES  # it is allowed still


# --- what the proxy is to see: test_policy_proxy.py; where it may go itself:


async def test_the_proxy_reaches_what_the_operator_lets_boxes_reach(vm: Runner, world: Internet) -> None:
    places = [(PUBLIC, 80), (EXCEPTED, 8080), (EXCEPTED, 80), ("10.99.0.1", 80), ("192.0.2.129", 22)]
    places.append((vm.box.address, 1))
    ask = f"""{CONNECT}
from concurrent.futures import ThreadPoolExecutor
for said in ThreadPoolExecutor().map(lambda at: tried(socket.SOCK_STREAM, socket.AF_INET, *at), {places!r}):
    print(said)
"""
    namespace = resolver_namespace(router_of(vm.engine._data))
    try:
        command = ["nsenter", f"--net=/proc/self/fd/{namespace}", sys.executable, "-c", ask]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True, pass_fds=(namespace,)
        )
    finally:
        os.close(namespace)
    said = done.stdout.splitlines()
    assert said[:2] == [YES, YES] and set(said[2:]) <= REFUSED | {"TimeoutError"}
    assert sorted(visits(world)) == sorted([("tcp", PUBLIC, 80), ("tcp", EXCEPTED, 8080)])


def resolver_namespace(router: int) -> int:
    """A descriptor of the network namespace that only the sockets of the resolver are in."""
    ours = os.stat("/proc/self/ns/net").st_ino
    pid = os.pidfd_open(router)
    try:
        for entry in Path(f"/proc/{router}/fd").iterdir():
            if (fd := ctypes.CDLL(None).syscall(PIDFD_GETFD, pid, int(entry.name), 0)) >= 0:
                try:
                    found = fcntl.ioctl(fd, SIOCGSKNS)
                except OSError:
                    continue
                finally:
                    os.close(fd)
                if os.fstat(found).st_ino != ours:
                    return found
                os.close(found)
    finally:
        os.close(pid)
    raise AssertionError("the resolver has no sockets")


# --- what remains, and what happens to the router


def left_of(data: Path, runner: Runner | None = None) -> set[str]:
    """What the table has of policies, or of a box's: chains, sets, and boxes in the map."""
    found = set()
    for item in listed("table", "inet", f"boxwood_{number_of(data)}"):
        for kind in ("chain", "set"):
            if (name := item.get(kind, {}).get("name", "")).startswith(("policy_", "divert_", "hosts_")):
                found.add(name)
        if item.get("map", {}).get("name") in ("policies", "diverted"):
            found |= {element[0] for element in item["map"].get("elem", ())}
    if runner is None:
        return found
    address = runner.box.address
    mark = chain_of(address).removeprefix("policy_")  # what others have left may still be going
    return {one for one in found if one == address or mark in one}


async def test_nothing_of_a_policy_outlives_its_box(own: HostEngine, golden: str, data: Path) -> None:
    """An address is used again, and then by a VM that has no policy."""
    had = set()
    for _ in range(2):
        runner = Wired(own, golden)
        await runner.boot()
        await police(runner, ("allow", {"hosts": ["other.test"]}), ("allow", {"hosts": ["x.test"], "ports": [80]}))
        await police(runner, ("allow", {"hosts": ["other.test", "y.test"]}))
        address = runner.box.address
        assert len(left_of(data, runner)) == 4
        had.add(address)
        await runner.box.kill()
    async with asyncio.timeout(20):
        while left_of(data):
            await asyncio.sleep(0.02)
    boxes = []
    while had:
        boxes.append(Wired(own, golden))
        await boxes[-1].boot()
        assert (await tried(boxes[-1], [TCP]))[0] == YES
        had.discard(boxes[-1].box.address)
        assert len(boxes) < 50


async def test_as_many_rules_as_there_can_be(vm: Runner) -> None:
    many = [("deny", {"hosts": [f"n{n}-{m}.test" for m in range(16)], "ports": [n + 1]}) for n in range(255)]
    await police(vm, *many, ("allow", {"ips": [PUBLIC]}))
    assert (await tried(vm, [TCP, OTHER]))[0] == YES
    await police(vm)


async def test_a_router_that_dies_takes_no_policy_with_it(own_vm: Runner, data: Path, world: Internet) -> None:
    await police(own_vm, ("allow", {"hosts": ["other.test"]}))
    assert await resolves(own_vm, "other.test")
    world.seen()
    pid = router_of(data)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while not (router_started_after(data, pid) and await resolves(own_vm, "other.test")):
            assert (await tried(own_vm, [TCP]))[0] in REFUSED | {"TimeoutError"}
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES
    assert not await resolves(own_vm, "public.test")
    assert all(visit[1] != PUBLIC for visit in names_asked(world)[1])


def router_started_after(data: Path, pid: int) -> bool:
    try:
        return router_of(data) != pid
    except StopIteration:
        return False


async def test_a_policy_that_comes_while_no_router_lives(own_vm: Runner, data: Path) -> None:
    os.kill(router_of(data), signal.SIGKILL)
    await police(own_vm, ("deny", {"ips": [PUBLIC]}))  # as soon as there is one
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES


async def test_a_new_server_brings_what_is_in_force(
    own_vm: Runner, own: HostEngine, data: Path, images: Path, world: Internet
) -> None:
    await police(own_vm, ("deny", {"ips": [PUBLIC]}))
    await own.close()
    again = HostEngine(data, images, resolv_conf=world.resolv_conf)
    (box,) = await again.start()
    own_vm.box, own_vm.engine = box, again
    box.listen(own_vm)
    own_vm.session = new_id()
    await box.open_session(SessionSpec(own_vm.session))
    assert (await tried(own_vm, [TCP]))[0] in REFUSED  # before anybody has said so again
    await police(own_vm)  # what this one knows of is that there is none
    assert (await tried(own_vm, [TCP]))[0] == YES
    await again.close()
    await own.start()


async def test_a_firewall_that_is_flushed_has_its_policies_again(own_vm: Runner, data: Path) -> None:
    await police(own_vm, ("allow", {"hosts": ["other.test"]}))
    assert await resolves(own_vm, "other.test")
    before = left_of(data, own_vm)
    subprocess.run(["nft", "delete", "table", "inet", f"boxwood_{number_of(data)}"], check=True)
    async with asyncio.timeout(10):
        while not there_again(data, own_vm, before):
            await asyncio.sleep(0.01)
    said = await tried(own_vm, [TCP, OTHER])
    assert said[0] in REFUSED and said[1] == YES


async def test_rules_that_could_not_be_taken_away_are_not_said_to_be(vm: Runner) -> None:
    """Also not to whoever asks a second time, when there seems to be nothing left to take away."""
    await police(vm, ("deny", {"ips": [PUBLIC]}))
    table, chain = f"boxwood_{number_of(vm.engine._data)}", chain_of(vm.box.address)
    subprocess.run(["nft", "add", "chain", "inet", table, "intruder"], check=True)
    subprocess.run(["nft", "add", "rule", "inet", table, "intruder", "jump", chain], check=True)  # nft: it is busy
    for _ in range(2):
        with pytest.raises(EngineError, match="nft"):
            await police(vm)
        assert (await tried(vm, [TCP]))[0] in REFUSED
    subprocess.run(["nft", "flush", "chain", "inet", table, "intruder"], check=True)
    subprocess.run(["nft", "delete", "chain", "inet", table, "intruder"], check=True)
    await police(vm)
    assert (await tried(vm, [TCP]))[0] == YES


def there_again(data: Path, runner: Runner, before: set[str]) -> bool:
    try:
        return left_of(data, runner) == before
    except NftError:
        return False


STORM = f"""
while True:
    s = socket.socket(); s.settimeout(2)
    try: s.connect(({PUBLIC!r}, 80))
    except OSError: pass
    finally: s.close()
"""


async def test_under_load_nothing_forbidden_goes_out(own_vm: Runner, world: Internet) -> None:
    """Programs that never stop trying, while the policy changes back and forth."""
    storms = [await second(own_vm) for _ in range(amount(2, 4))]
    running = [asyncio.create_task(storm.run("python3 -c " + quoted(STORM))) for storm in storms]
    came = 0
    rounds = amount(3, 20)
    for _ in range(rounds):
        await police(own_vm, ("deny", {"ips": [PUBLIC]}))
        world.seen(), world.seen()  # who had come before, and was not told of yet
        refused = (await own_vm.engine.usage(own_vm.box.vm_id)).denied
        while (await own_vm.engine.usage(own_vm.box.vm_id)).denied < refused + 50:
            await asyncio.sleep(0)
        assert visits(world) == []
        await police(own_vm, ("allow", {"ips": [PUBLIC]}))
        while not (now := len(visits(world))):
            await asyncio.sleep(0)
        came += now
    assert came >= rounds
    await own_vm.box.kill()
    await asyncio.gather(*running, return_exceptions=True)


async def second(runner: Runner) -> Runner:
    """Another session of the same box."""
    made = Runner(runner.engine, runner.golden)
    made.box = runner.box
    await made.box.open_session(SessionSpec(made.session))
    return made


def quoted(text: str) -> str:
    return "'" + ("import socket, sys, errno\n" + text).replace("'", "'\\''") + "'"
