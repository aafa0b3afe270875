"""Fixtures and words of the tests of boxes' networks. The internet is internet.py's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from boxfixtures import Runner, booted, started
from boxwood.engine.api import Box, Limits, SessionSpec, Usage
from boxwood.engine.host import HostEngine
from internet import EXCEPTED, Internet, internet

CONNECT = """
import socket, sys, errno
def tried(kind, family, address, port):
    with socket.socket(family, kind) as s:
        s.settimeout(5 if kind == socket.SOCK_STREAM else 2)  # refused is refused at once, however busy the host is
        try:
            s.connect((address, port))
            s.send(b'hello')
            return s.recv(99).decode()
        except OSError as e:
            return errno.errorcode.get(e.errno, type(e).__name__)
"""


class Wired(Runner):
    """With a network."""

    async def boot(
        self, layers: tuple[str, ...] = (), top: str | None = None, limits: Limits = Limits(), network: bool = True
    ) -> Box:
        return await super().boot(layers, top, limits, network)


REFUSED = {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("internet")) as found:
        yield found


@pytest.fixture(scope="module")
def accounts() -> list[tuple[str, Usage]]:
    return []


def networked(world: Internet, data: Path, images: Path, accounts: list[tuple[str, Usage]]) -> HostEngine:
    """An engine, to be started, whose boxes have a network of this world."""
    engine = HostEngine(
        data, images, network_allow=[f"{EXCEPTED}:8080", f"{EXCEPTED}:8000-8090"], resolv_conf=world.resolv_conf
    )
    engine.account(lambda vm, usage: accounts.append((vm, usage)))
    return engine


@pytest.fixture
async def own(
    world: Internet, data: Path, images: Path, accounts: list[tuple[str, Usage]]
) -> AsyncIterator[HostEngine]:
    async with started(networked(world, data, images, accounts)) as engine:
        yield engine


@pytest.fixture(scope="module")
async def shared(
    world: Internet, tmp_path_factory: pytest.TempPathFactory, images: Path, accounts: list[tuple[str, Usage]]
) -> AsyncIterator[HostEngine]:
    """One for the tests of a file that leave it whole: to start one with a network takes a second."""
    async with started(networked(world, tmp_path_factory.mktemp("shared") / "data", images, accounts)) as engine:
        yield engine


@pytest.fixture
async def vm(shared: HostEngine, golden: str, world: Internet) -> AsyncIterator[Runner]:
    """A box with a network, for tests that do its engine no harm."""
    world.seen()
    async with booted(Wired(shared, golden)) as runner:
        assert runner.box.address
        yield runner


@pytest.fixture
async def battered(shared: HostEngine) -> AsyncIterator[HostEngine]:
    """In the place of `own`, for files whose tests ill-treat the engine and leave it whole. It has a router, and no
    boxes of others."""
    async with asyncio.timeout(30):
        while not has_router(shared._data):
            await asyncio.sleep(0.01)
    yield shared
    await asyncio.gather(*(box.kill() for box in list(shared._boxes.values())))


@pytest.fixture
def battered_data(own: HostEngine) -> Path:
    """In the place of `data`, where `own` is `battered`."""
    return own._data


@pytest.fixture
async def own_vm(own: HostEngine, golden: str) -> Runner:
    runner = Wired(own, golden)
    await runner.boot()
    return runner


async def beside(runner: Runner) -> Runner:
    """Another session of the same box."""
    made = Runner(runner.engine, runner.golden)
    made.box = runner.box
    await made.box.open_session(SessionSpec(made.session))
    return made


async def python(runner: Runner, text: str) -> str:
    said = await runner.run("python3 -c " + _quoted(CONNECT + text))
    assert said.code == 0, said.err.decode()
    return said.text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


async def tried(runner: Runner, attempts: list[tuple[str, str, str, int]], *, at_once: bool = False) -> list[str]:
    """Each (tcp|udp, 4|6, address, port) from inside: what was answered, or the name of the error. `at_once`: for what
    may have to be waited for."""
    kinds = {"tcp": "socket.SOCK_STREAM", "udp": "socket.SOCK_DGRAM", "4": "socket.AF_INET", "6": "socket.AF_INET6"}
    listed = "".join(f"({kinds[k]}, {kinds[f]}, {a!r}, {p}), " for k, f, a, p in attempts)
    threads = "from concurrent.futures import ThreadPoolExecutor as T\nmap = T(99).map\n" if at_once else ""
    return (
        await python(runner, f"{threads}for said in map(lambda at: tried(*at), ({listed})): print(said)")
    ).splitlines()


def visits(world: Internet) -> list[tuple[str, str, int]]:
    return [(visit["kind"], visit["to"], visit["port"]) for visit in world.seen()]


def connections() -> list[str]:
    """What the host's kernel keeps of them, a line each."""
    return Path("/proc/net/nf_conntrack").read_text().splitlines()


def router_of(data: Path) -> int:
    return next(
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _isrouter_of(entry, data)
    )


def _isrouter_of(entry: Path, data: Path) -> bool:
    with contextlib.suppress(OSError):
        words = (entry / "cmdline").read_bytes().decode().split("\0")
        return "boxwood.engine.network.router" in words and str(data) in words
    return False


def has_router(data: Path) -> bool:
    return any(_isrouter_of(entry, data) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def number_of(data: Path) -> int:
    words = Path(f"/proc/{router_of(data)}/cmdline").read_bytes().decode().split("\0")
    return int(words[words.index("--number") + 1])
