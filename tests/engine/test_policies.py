"""Policies of boxes at the connection layer, as root: what goes out, what does not, and from when on."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from boxfixtures import Runner
from boxwood.engine.api import EngineError
from boxwood.engine.host import HostEngine
from boxwood.engine.network.netfilter import Elements
from boxwood.engine.network.ruleset import chain_of, set_prefix
from boxwood.engine.network.table import listed
from internet import EXCEPTED, OTHER_PUBLIC, PUBLIC, Internet
from netfixtures import CONNECT, REFUSED, Wired, beside, number_of, python, router_of, tried, visits
from policing import OTHER, OTHER_TLS, TCP, UDP, YES, names_asked, police, resolves

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]

PIDFD_GETFD, SIOCGSKNS = 438, 0x894C


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
    running = asyncio.create_task(python(vm, HELD))
    other = await beside(vm)
    await other.run("cat /tmp/ready")
    await police(vm, rule)
    await other.run("echo > /tmp/go")
    before, after = (await running).splitlines()
    assert before == f"{YES},you said hello,{YES}"
    tcp, udp, allowed = after.split(",")
    assert tcp in {"ECONNRESET", *REFUSED} and udp in {"nothing", *REFUSED}
    assert allowed == YES


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


async def test_as_many_rules_as_there_can_be(vm: Runner) -> None:
    many = [("deny", {"hosts": [f"n{n}-{m}.test" for m in range(16)], "ports": [n + 1]}) for n in range(255)]
    await police(vm, *many, ("allow", {"ips": [PUBLIC]}))
    assert (await tried(vm, [TCP, OTHER]))[0] == YES
    await police(vm)


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
