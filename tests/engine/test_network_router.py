"""The network of boxes, as root, when its router, its server or its firewall goes and comes again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import netfixtures
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import SessionSpec, Usage
from boxwood.engine.host import HostEngine
from internet import EXCEPTED, PUBLIC, Internet
from netfixtures import REFUSED, Wired, connections, number_of, python, router_of, tried, visits

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]

own, data = netfixtures.battered, netfixtures.battered_data


async def test_a_router_that_dies_is_replaced(own_vm: Runner, data: Path, world: Internet) -> None:
    pid = router_of(data)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(StopIteration):
                if router_of(data) != pid and (await own_vm.run("getent ahostsv4 public.test")).code == 0:
                    break
            await asyncio.sleep(0.05)
    assert (await tried(own_vm, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")
    assert set(await tried(own_vm, [("tcp", "4", "10.99.0.1", 80)])) <= REFUSED


async def test_a_box_made_meanwhile_has_a_network_too(
    own_vm: Runner, own: HostEngine, golden: str, data: Path, accounts: list[tuple[str, Usage]]
) -> None:
    """And the account of one that ends meanwhile is not lost."""
    await tried(own_vm, [("tcp", "4", PUBLIC, 80)])
    vm_id = own_vm.box.vm_id
    os.kill(router_of(data), signal.SIGKILL)
    await own_vm.box.kill()
    for _ in range(3):
        other = Wired(own, golden)
        await other.boot()
        assert other.box.address
        assert (await tried(other, [("tcp", "4", PUBLIC, 80)]))[0].endswith("hello")
    async with asyncio.timeout(10):
        while vm_id not in dict(accounts):
            await asyncio.sleep(0.01)
    assert dict(accounts)[vm_id].connections == 1


async def test_while_no_router_lives_the_rules_hold(own_vm: Runner, data: Path, world: Internet) -> None:
    world.seen()
    pid = router_of(data)
    os.kill(pid, signal.SIGSTOP)
    zygote = json.loads((data / "zygote.json").read_text())["pid"]
    os.kill(zygote, signal.SIGSTOP)  # nobody replaces it
    try:
        os.kill(pid, signal.SIGKILL)
        assert set(await tried(own_vm, [("tcp", "4", "10.99.0.1", 80), ("tcp", "4", "192.0.2.129", 22)])) <= REFUSED | {
            "TimeoutError"
        }
        assert visits(world) == []
    finally:
        os.kill(zygote, signal.SIGCONT)


async def test_a_new_server_brings_new_exceptions(
    own_vm: Runner, own: HostEngine, data: Path, images: Path, world: Internet
) -> None:
    assert set(await tried(own_vm, [("tcp", "4", "172.16.7.7", 80)])) <= REFUSED
    hold = f"s = socket.create_connection(({EXCEPTED!r}, 8080), 5)\nwhile s.send(b'x') and s.recv(99): pass"
    kept = asyncio.create_task(python(own_vm, hold))
    while not any(f"src={own_vm.box.address} dst={EXCEPTED}" in line for line in connections()):
        await asyncio.sleep(0.01)
    kept.cancel()  # nobody here waits for it any more; there it goes on
    await own.close()
    again = HostEngine(data, images, network_allow=["172.16.0.0/12:80"], resolv_conf=world.resolv_conf)
    (box,) = await again.start()
    assert box.address == own_vm.box.address
    own_vm.box, own_vm.engine = box, again
    box.listen(own_vm)
    own_vm.session = new_id()  # in the other one somebody still talks
    await box.open_session(SessionSpec(own_vm.session))
    async with asyncio.timeout(10):
        while not (await tried(own_vm, [("tcp", "4", "172.16.7.7", 80)]))[0].endswith("hello"):
            pass
    assert set(await tried(own_vm, [("tcp", "4", EXCEPTED, 8080), ("tcp", "4", "172.16.7.7", 8080)])) <= REFUSED
    while any(f"src={own_vm.box.address} dst={EXCEPTED}" in line for line in connections()):
        await asyncio.sleep(0.01)  # what was open is ended
    await again.close()
    await own.start()


async def test_a_firewall_that_is_flushed_is_put_up_again(own_vm: Runner, data: Path, world: Internet) -> None:
    """`nft flush ruleset` begins most configurations of nftables: reloading one removes our table too."""
    await tried(own_vm, [("tcp", "4", PUBLIC, 80)])
    table = ["table", "inet", f"boxwood_{number_of(data)}"]
    before = subprocess.run(["nft", "list", *table], capture_output=True, text=True, check=True).stdout
    assert f"ip daddr {EXCEPTED} " in before
    subprocess.run(["nft", "delete", *table], check=True)
    async with asyncio.timeout(10):
        while (
            f"ip daddr {EXCEPTED} "
            not in subprocess.run(["nft", "list", *table], capture_output=True, text=True).stdout
        ):
            await asyncio.sleep(0.01)
    said = await tried(own_vm, [("tcp", "4", "10.99.0.1", 80), ("tcp", "4", EXCEPTED, 8080), ("tcp", "4", PUBLIC, 80)])
    assert said[0] in REFUSED and said[1].endswith("hello") and said[2].endswith("hello")


def test_a_router_changes_nothing_of_the_host(tmp_path):
    """Whoever takes it over, by a message it reads, is root without a root's files."""
    probe = (
        "import os, sys; from pathlib import Path; from boxwood.engine.network import forwarding, router\n"
        "os.chdir(sys.argv[1])\n"
        "if sys.argv[2] == 'confined': router.drop_privileges()\n"
        "for path in (Path(sys.argv[1], 'layer'), Path('/etc/boxwood-test')):\n"
        "    try: path.write_text('x'); path.unlink(); print(True)\n"
        "    except PermissionError: print(False)\n"
        "Path('/proc/sys/net/ipv4/ip_forward').write_text(Path('/proc/sys/net/ipv4/ip_forward').read_text())\n"
        "forwarding.pass_firewall()\n"
    )
    for how, said in (("free", "True\nTrue\n"), ("confined", "False\nFalse\n")):
        done = subprocess.run([sys.executable, "-c", probe, str(tmp_path), how], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (said, ""), how
