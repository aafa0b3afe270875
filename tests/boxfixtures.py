"""Fixtures of the tests that run real boxes on a real engine, as root."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import hostchecks
from boxwood.core.ids import new_id
from boxwood.engine.api import Box, BoxSpec, Limits, RunEnd, RunSpec, SessionSpec, Stack
from boxwood.engine.host import HostEngine
from boxwood.images import host as host_image


@pytest.fixture(scope="session", autouse=True)
def host_is_known() -> None:
    """No engine of these tests tries anew what the host gives."""
    hostchecks.remember(hostchecks.place())


@pytest.fixture(scope="session")
def images() -> Path:
    return Path(os.environ.get("BOXWOOD_IMAGES", "/var/cache/boxwood/images"))


@pytest.fixture(scope="session")
def golden(images: Path) -> str:
    """The layer of the host golden."""
    return host_image.ensure(images, None).layer_id


def is_lent(request: pytest.FixtureRequest) -> bool:
    """Does the test share its engine? What stands closest to it counts: `own_engine`, or `lent_engine` of its file."""
    names = (mark.name for mark in request.node.iter_markers())
    return next((name for name in names if name in ("lent_engine", "own_engine")), "") == "lent_engine"


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The engine's directory."""
    if is_lent(request):
        yield request.getfixturevalue("shared_engine")._data
        return
    directory = tmp_path / "data"
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def started(engine: HostEngine) -> AsyncIterator[HostEngine]:
    """On a data directory in which no box lives; and ended, whatever happens."""
    assert not await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown()


@pytest.fixture
async def own_engine(data: Path, images: Path) -> AsyncIterator[HostEngine]:
    async with started(HostEngine(data, images, network=False)) as engine:
        yield engine


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> HostEngine:
    """The test's own, to ill-treat, unless it is marked as one that shares: to start one takes longer than a box does."""
    return request.getfixturevalue("lent_engine" if is_lent(request) else "own_engine")


class Runner:
    """A box with one session, and a way to run commands in it. No network, unless it is asked for."""

    def __init__(self, engine: HostEngine, golden: str) -> None:
        self.engine = engine
        self.golden = golden
        self.session = new_id()
        self.saved: dict[str, tuple[str, dict[str, str], bytes]] = {}
        self.box: Box

    async def boot(
        self,
        layers: tuple[str, ...] = (),
        top: str | None = None,
        limits: Limits = Limits(),
        network: bool = False,
        read_only: bool = False,
    ) -> Box:
        stack = Stack((*layers, self.golden), top or new_id(), frozenset({self.golden}))
        self.stack = stack
        self.box = await self.engine.boot(BoxSpec(new_id(), stack, "testbox", limits, network, read_only=read_only))
        self.box.listen(self)
        await self.box.open_session(SessionSpec(self.session))
        return self.box

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        self.saved[session_id] = cwd, env, state

    async def run(self, command: str | bytes, **options: object) -> Result:
        result = Result()
        raw = command.encode() if isinstance(command, str) else command
        spec = RunSpec(new_id(), self.session, raw, **options)  # type: ignore[arg-type]
        await self.box.start_run(spec, result)
        await result.wait(self.box)
        self.box.forget(spec.run_id)
        return result


@asynccontextmanager
async def booted(runner: Runner) -> AsyncIterator[Runner]:
    """The box that it has in the end is put down, whatever happens."""
    await runner.boot()
    try:
        yield runner
    finally:
        await runner.box.kill()


class Result:
    def __init__(self) -> None:
        self.out, self.err = bytearray(), bytearray()
        self.end: RunEnd | None = None
        self._done = asyncio.Event()

    def output(self, stream: int, offset: int, data: bytes) -> None:
        into = self.out if stream == 1 else self.err
        assert offset == len(into)
        into += data

    def finished(self, end: RunEnd) -> None:
        self.end = end
        self._done.set()

    async def wait(self, box: Box) -> None:
        waiting = asyncio.ensure_future(self._done.wait())
        await asyncio.wait({waiting, box.gone}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
        waiting.cancel()
        assert self.end is not None, "the run did not end" if not box.gone.done() else f"box gone: {box.gone.result()}"

    @property
    def code(self) -> int | None:
        assert self.end is not None
        return self.end.exit_code

    @property
    def text(self) -> str:
        return self.out.decode()


@pytest.fixture
async def runner(engine: HostEngine, golden: str) -> Runner:
    runner = Runner(engine, golden)
    await runner.boot()
    return runner


@pytest.fixture(scope="module")
async def shared_engine(tmp_path_factory: pytest.TempPathFactory, images: Path) -> AsyncIterator[HostEngine]:
    """One for all tests of a file that look at boxes alone: to start it takes longer than a box does."""
    directory = tmp_path_factory.mktemp("engine") / "data"
    try:
        async with started(HostEngine(directory, images, network=False)) as engine:
            yield engine
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def lent_engine(shared_engine: HostEngine) -> AsyncIterator[HostEngine]:
    """The engine of the file; the boxes of a test are gone with it."""
    yield shared_engine
    await asyncio.gather(*(box.kill() for box in list(shared_engine._boxes.values())))
