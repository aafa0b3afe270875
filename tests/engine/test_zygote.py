"""The zygote in bad moments: whoever hurts it, the boxes that live and the VMs that come next are not harmed."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxSpec, EngineError, Stack
from boxwood.engine.daemon import _Gone
from boxwood.engine.host import HostEngine

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.timeout(120)]


def zygote_pid(data: Path) -> int:
    return int(json.loads((data / "zygote.json").read_text())["pid"])


async def test_a_host_that_is_short_of_descriptors_costs_no_box(runner: Runner, data: Path) -> None:
    """Nothing can be made ahead, and boots are refused; what lives goes on, and boots work again afterwards."""
    pid = zygote_pid(data)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (12, limits[1]))
    other = Runner(runner.engine, runner.golden)
    refused = 0
    for _ in range(8):  # more than are ready
        try:
            await other.boot()
        except EngineError:
            refused += 1
    assert refused and (await runner.run("echo alive")).text == "alive\n"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert zygote_pid(data) == pid
    await other.boot()
    assert (await other.run("echo alive")).text == "alive\n"


async def test_who_comes_while_the_host_is_short_of_descriptors_waits(runner: Runner, data: Path) -> None:
    pid, log = zygote_pid(data), data / "log" / "zygote.log"
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    runner.engine._zygote._lost("for a test")
    coming = asyncio.ensure_future(runner.boot(top=runner.stack.top))
    while "has to wait" not in log.read_text() and not coming.done():
        await asyncio.sleep(0.01)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    await coming
    assert zygote_pid(data) == pid and (await runner.run("echo alive")).text == "alive\n"


async def test_one_that_ends_as_it_is_reached_is_followed_by_another(data: Path, images: Path) -> None:
    """Its socket stands open for as long as its process takes to end: whoever knocks then is thrown out."""
    data.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
        dying.bind(str(data / "zygote.sock"))
        dying.listen()
        engine = HostEngine(data, images, network=False)
        starting = asyncio.ensure_future(engine.start())
        there, _ = await asyncio.to_thread(dying.accept)
        there.recv(1)  # it has asked
    there.close()
    try:
        assert not await starting
        assert zygote_pid(data)
    finally:
        await engine.shutdown()


async def test_one_that_lives_is_not_replaced_because_it_could_not_be_told(
    runner: Runner, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds of what is under way are a user's, who may be the boxes' too."""
    pid, zygote, room = zygote_pid(data), runner.engine._zygote, 0

    async def full(packet: bytes, fds: object) -> None:
        nonlocal room
        room += 1
        zygote._lost("the zygote is gone: Too many references: cannot splice")
        raise _Gone("the zygote is gone")

    zygote._lost("for a test")
    monkeypatch.setattr(zygote, "_send", full)
    with pytest.raises(EngineError, match="gone"):
        await runner.boot(top=runner.stack.top)
    monkeypatch.undo()
    await runner.boot(top=runner.stack.top)
    assert room >= 2 and zygote_pid(data) == pid and (await runner.run("echo alive")).text == "alive\n"


@pytest.mark.lent_engine
async def test_a_request_that_it_does_not_understand_costs_no_box(runner: Runner) -> None:
    """As of a server of a later version: limits that this one cannot set, say."""
    box, vm = runner.box.box_id, runner.box.vm_id
    later = {"hostname": "later", "limits": {"unheard_of": 1}}
    asked: list[tuple[str, dict[str, object]]] = [
        ("sing", {}), ("change", {"box": box, **later}), ("change", {"box": box, "hostname": 7, "limits": {}}),
        ("link", {"box": box}), ("job", {"job": {"kind": "look", "layer": vm}}), ("job", {"job": "none"}),
        ("boot", {"box": new_id(), "vm": vm, "top": new_id(), "layers": 7}), ("freeze", {"box": [box]}),
    ]  # fmt: skip
    for op, fields in asked:
        with pytest.raises(EngineError, match=f"^{op}: "):
            await runner.engine._zygote.ask(op, fields)
    assert (await runner.run("hostname; echo alive")).text == "testbox\nalive\n"
    assert [row["box"] for row in await runner.engine._living()] == [box]


@pytest.mark.lent_engine
async def test_a_server_that_reads_late_misses_nothing(runner: Runner) -> None:
    """More packets than a socket holds, while the server does something else."""
    engine = runner.engine
    asks = [asyncio.ensure_future(engine._zygote.ask("list", {"after": "x" * 60_000})) for _ in range(amount(300, 600))]
    await asyncio.gather(*asks)
    assert (await runner.run("echo alive")).text == "alive\n"


@pytest.mark.lent_engine
async def test_a_boot_that_nobody_waits_for_leaves_no_box(runner: Runner, golden: str) -> None:
    stack = Stack((golden,), new_id(), frozenset({golden}))
    boot = asyncio.ensure_future(runner.engine.boot(BoxSpec(new_id(), stack, "nobody")))
    while len(runner.engine._boxes) < 2:
        await asyncio.sleep(0)
    boot.cancel()
    await asyncio.wait({boot})
    while len(await runner.engine._living()) > 1:
        await asyncio.sleep(0)
    assert not runner.box.gone.done()


@pytest.mark.lent_engine
async def test_a_copy_that_is_cut_off_leaves_its_source_running(runner: Runner) -> None:
    for turns in range(1, 40, amount(4, 1)):
        copy = asyncio.ensure_future(runner.engine.copy_top(runner.box, runner.stack.top, new_id()))
        for _ in range(turns):
            await asyncio.sleep(0)
        copy.cancel()
        await asyncio.wait({copy})
        assert (await runner.run("echo alive")).text == "alive\n"


async def test_a_connection_that_is_lost_strands_no_vm(runner: Runner, golden: str) -> None:
    """The zygote lives, its boxes count as dead: the VM comes up again, and only once."""
    engine, old = runner.engine, runner.box
    engine._zygote._lost("for a test")
    assert old.gone.done()
    await runner.boot(top=runner.stack.top)
    assert (await runner.run("echo alive")).text == "alive\n"
    assert [row["box"] for row in await engine._living()] == [runner.box.box_id]


async def test_who_does_not_wait_for_a_connection_leaves_no_half_of_one(runner: Runner) -> None:
    engine = runner.engine
    for turns in (1, 2, 3, 5):
        engine._zygote._lost("for a test")
        impatient = asyncio.ensure_future(engine.remove([new_id()]))
        for _ in range(turns):
            await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait({impatient})
        await runner.boot(top=runner.stack.top)
        assert [row["box"] for row in await engine._living()] == [runner.box.box_id]


async def test_whoever_is_late_starts_no_other_zygote(data: Path, images: Path) -> None:
    engine = HostEngine(data, images, network=False)
    await engine.start()
    end = asyncio.ensure_future(engine.shutdown())
    late = asyncio.gather(*(_late(engine) for _ in range(5)), return_exceptions=True)
    await end
    assert all(isinstance(error, EngineError) for error in await late)
    assert not (data / "zygote.json").exists()


async def _late(engine: HostEngine) -> None:
    while True:
        await engine.remove([new_id()])  # until it is refused


async def test_what_was_prepared_and_is_killed_costs_no_vm(runner: Runner, data: Path) -> None:
    """A boot takes another one, though the zygote may not have heard of their end yet."""
    (nursery,) = (pid for pid in children(zygote_pid(data)) if Path(f"/proc/{pid}/comm").read_text() == "nursery\n")
    for _ in range(amount(3, 5)):
        living = {row["pid"] for row in await runner.engine._living()}
        for child in set(children(nursery)) - living:
            os.kill(child, signal.SIGKILL)
        other = Runner(runner.engine, runner.golden)
        await other.boot()
        assert (await other.run("echo alive")).text == "alive\n"
    assert (await runner.run("echo alive")).text == "alive\n"


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
