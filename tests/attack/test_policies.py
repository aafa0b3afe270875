"""Ways around a policy: other spellings, other protocols, other names, and every moment at which it could be missing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine import policies
from boxwood.engine.host import HostEngine
from boxwood.engine.network.wire import GATEWAY
from internet import OF_BOXES, OTHER_PUBLIC, PRIVATE, PUBLIC, Internet
from netfixtures import REFUSED, Wired, python, tried, visits
from policing import YES, names_asked
from servers import Server

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

LISTED = {
    "web": {"type": "outbound", "priority": 1, "action": "allow", "match": {"hosts": ["other.test"], "ports": [80]}}
}


@pytest.fixture
async def listed(shared: HostEngine, golden: str, world: Internet) -> AsyncIterator[Runner]:
    """A box that may go to one port of one host."""
    runner = Wired(shared, golden)
    await runner.boot()
    await shared.police(runner.box, policies.parse(LISTED))
    world.seen()
    yield runner
    await runner.box.kill()


# --- around a list


@pytest.mark.anyio
async def test_the_list_alone(listed: Runner, world: Internet) -> None:
    """Before the name was asked for, and after it: other addresses, ports and protocols."""
    around = [
        ("tcp", "4", PUBLIC, 80), ("tcp", "4", PUBLIC, 443), ("udp", "4", PUBLIC, 4433), ("tcp", "4", PUBLIC, 853),
        ("tcp", "4", OTHER_PUBLIC, 443), ("tcp", "4", OTHER_PUBLIC, 8080), ("udp", "4", OTHER_PUBLIC, 80),
        ("tcp", "6", f"::ffff:{PUBLIC}", 80), ("tcp", "4", "0x5db8d70e", 80), ("tcp", "4", "1572394766", 80),
    ]  # fmt: skip
    there = ("tcp", "4", OTHER_PUBLIC, 80)
    assert set(await tried(listed, [there, *around])) <= REFUSED
    assert (await listed.run("getent ahostsv4 other.test")).code == 0
    said = await tried(listed, [there, *around])
    assert said[0] == YES  # what is allowed is, so the rest fails for no other reason
    del said[1 + around.index(("udp", "4", OTHER_PUBLIC, 80))]  # open, but nobody is there: without root nobody says so
    assert set(said[1:]) <= REFUSED
    ping = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(1)
for address in ({PUBLIC!r}, {OTHER_PUBLIC!r}):
    try: s.sendto(b'\\x08' + bytes(15), (address, 0)); print(s.recv(99)[0])
    except OSError as e: print(type(e).__name__)
"""
    assert "0" not in (await python(listed, ping)).split()  # a rule of ports is none for what has no ports
    assert names_asked(world)[1] == [("tcp", OTHER_PUBLIC, 80)]


QUESTIONS = f"""
import os
def question(labels, kind=1):
    name = b''.join(bytes([len(label)]) + label for label in labels) + b'\\0'
    return os.urandom(2) + b'\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + name + kind.to_bytes(2, 'big') + b'\\0\\1'
def asked(wire, server, tcp=False):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        s.connect((server, 53))
        s.sendall(len(wire).to_bytes(2, 'big') + wire if tcp else wire)
        answer = s.recv(2048)
        answer = answer[2:] if tcp else answer
        return answer[3] & 15, int.from_bytes(answer[6:8], 'big')
for labels in (
    [b'evilother', b'test'], [b'other', b'test', b'evil', b'test'], [b'other.test'], [b'evil.other.test', b'test'],
    [b'public.test\\0', b'other', b'test'], [b'public', b'test\\0.other.test'], [b'xn--other', b'test'], [b'test'],
    [b'a' * 60, b'b' * 60, b'tunnel', b'test'], [b'\\xd0\\xbether', b'test'],
):
    for kind in (1, 16, 28, 65):
        print(*asked(question(labels, kind), {GATEWAY!r}))
    print(*asked(question(labels), {PUBLIC!r}))
    print(*asked(question(labels), {GATEWAY!r}, tcp=True))
print('then', *asked(question([b'OTHER', b'Test']), {GATEWAY!r}))
"""


@pytest.mark.anyio
async def test_names_that_are_not_on_the_list(listed: Runner, world: Internet) -> None:
    """Not resolved, whatever they look like, whoever is asked and how; and nobody outside hears of them."""
    *others, last = (await python(listed, QUESTIONS)).splitlines()
    assert {line.split()[1] for line in others} == {"0"} and not {line.split()[0] for line in others} & {"0"}
    assert last == "then 0 1"
    assert names_asked(world)[0] <= {"other.test"}  # it may be known already


@pytest.mark.anyio
async def test_a_rule_cannot_open_what_is_closed(shared: HostEngine, golden: str, world: Internet) -> None:
    runner = Wired(shared, golden)
    await runner.boot()
    rules = {
        f"r{number}": {"type": "outbound", "priority": number, "action": "allow", "match": match}
        for number, match in enumerate([{"ips": ["0.0.0.0/0"]}, {"ips": list(PRIVATE)}, {"hosts": ["test"]}, {}])
    }
    await shared.police(runner.box, policies.parse(rules))
    world.seen()
    places = [place for place in (*PRIVATE, "127.0.0.1", GATEWAY, "192.0.2.129") if place != OF_BOXES]
    assert set(await tried(runner, [("tcp", "4", place, 80) for place in places])) <= REFUSED
    assert set(await tried(runner, [("tcp", "4", OF_BOXES, 80)])) <= {*REFUSED, "TimeoutError"}
    for name in ("metadata.test", "mixed.test", "chain.test"):
        assert (await runner.run(f"getent ahosts {name}")).code
    assert names_asked(world)[1] == []
    await runner.box.kill()


# --- moments, of a whole server


def outbound(action: str, **match: Any) -> dict[str, Any]:
    return {"type": "outbound", "priority": 1, "action": action, "match": match}


KNOCK = f"""python3 -c '
import socket
for _ in range(20):
    try: socket.create_connection(("{PUBLIC}", 80), 2).close(); print("came")
    except OSError as error: print(type(error).__name__)
'"""


def knocked(server: Server, vm: str, **members: Any) -> set[str]:
    status, answer = server.request("POST", f"/v1/vms/{vm}/runs", {"command": KNOCK, **members})
    assert status == 200 and answer["exit_code"] == 0, str(answer)
    return set(answer["stdout"].split())


def forked(server: Server, **members: Any) -> str:
    source = {} if "source_vm_id" in members else {"source_vm_name": "ubuntu"}
    status, made = server.request("POST", "/v1/fork", {**source, **members})
    assert status == 200, made
    return str(made["vm_id"])


NO = {"ConnectionRefusedError", "ConnectionResetError"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all of them, whose VMs are in boxes that were ready, and are parked soon."""
    made = Server(tmp_path_factory.mktemp("moments") / "data", ready_boxes=2, idle_seconds=1).start()
    yield made
    made.down()


def test_no_moment_without_it(server: Server, world: Internet) -> None:
    """From the first command of a fork on; in forks of it, after parking, going back, and the server's sudden end."""
    assert knocked(server, forked(server)) == {"came"}  # the door is there
    world.seen()
    rules = {"policies": {"rules": {"no": outbound("deny", ips=[PUBLIC])}}}
    first = [forked(server, command=KNOCK, **rules) for _ in range(amount(3, 12))]  # some in boxes that were ready
    for vm in first:
        assert knocked(server, vm) <= NO
    child = forked(server, source_vm_id=first[0], command=KNOCK)
    assert knocked(server, child) <= NO
    while server.request("GET", f"/v1/vms/{child}/network")[1]["address"] is not None:
        pass  # it will be parked
    assert knocked(server, child) <= NO
    assert server.request("POST", f"/v1/vms/{child}/snapshots", {"name": "then"})[0] in (200, 201)
    status, said = server.request("POST", f"/v1/vms/{child}/restore", {"snapshot": "then"})
    assert status == 200, said
    assert knocked(server, child) <= NO
    server.kill9()
    server.start()
    assert knocked(server, child) <= NO
    assert visits(world) == []


def test_a_change_that_was_acknowledged_is_never_lost(server: Server, world: Internet) -> None:
    vm = forked(server)
    world.seen()
    for number in range(amount(2, 6)):
        allowed = {"policies": {"rules": {"no": outbound("allow", ips=[PUBLIC])}}}
        assert knocked(server, vm, **allowed) == {"came"}
        assert visits(world)
        denied = {"policies": {"rules": {"no": outbound("deny", ips=[PUBLIC])}}}
        assert server.request("PATCH", f"/v1/vms/{vm}", denied)[0] == 200
        if number:
            server.kill9()
            server.start()
        assert knocked(server, vm) <= NO
        assert visits(world) == []


def test_refused_attempts_are_in_the_account(server: Server, world: Internet) -> None:
    vm = forked(server, policies={"rules": {"no": outbound("deny")}})
    assert knocked(server, vm) <= NO
    _, seen_ = server.request("GET", f"/v1/vms/{vm}/network")
    assert seen_["denied"] >= 20 and {one["reason"] for one in seen_["denials"]} == {"policy"}
    assert json.dumps(PUBLIC) in json.dumps(seen_["denials"])
