"""What all tests share: a real server, the guard against leftovers, and what is skipped without root."""

from __future__ import annotations

import faulthandler
import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

import guard
import rootless
import servers

TESTS = Path(__file__).parent
hypothesis.settings.register_profile("boxwood", deadline=None)  # how long it takes is for bench/ to say
hypothesis.settings.load_profile("boxwood")
TEARDOWN_SECONDS = 300.0
NEEDS_ROOT = {"api", "attack", "chaos", "conformance", "engine"}  # each test there makes boxes


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """The session goes on in a child; this process is its guard."""
    if os.environ.get(guard.ENVIRONMENT) or config.option.collectonly or config.option.help or config.option.version:
        return None
    return guard.enter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).parts[0] in NEEDS_ROOT:
            item.add_marker(pytest.mark.root)
        if os.geteuid() and item.get_closest_marker("root") and not os.environ.get(rootless.ENVIRONMENT):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """None: xdist's own."""
    if config.option.dist != "loadfile":
        return None
    import scheduling  # here, since xdist may not be there

    return scheduling.Scheduling(config, log)


def pytest_collection_finish() -> None:
    """What was collected stays: nobody need look at it again, nor copy it into the children that tests fork."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Bounded as well: a test whose time is up is broken off wherever it is, in the middle of its event loop say, and
    then what its fixtures wait for may never come. The process ends, and says where it stood."""
    said = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_SECONDS, exit=True, file=said)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def boxwood_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One server for all tests that do it no harm."""
    server = servers.Server(tmp_path_factory.mktemp("server") / "data").start()
    yield server
    server.down()


@pytest.fixture(scope="session")
def rootless_home() -> Iterator[Path]:
    """A directory of the unprivileged user's, whose images are there."""
    rootless.make_images()
    with rootless.home() as place:
        yield place


@pytest.fixture(scope="session")
def rootless_server(rootless_home: Path) -> Iterator[servers.Server]:
    """Like `boxwood_server`, of an unprivileged user."""
    server = rootless.RootlessServer(rootless_home).start()
    yield server
    server.down()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., servers.Server]]:
    """Servers of a test's own, for it to ill-treat: `make_server(data=…, idle_seconds=…)`, started."""
    made: list[servers.Server] = []

    def make(data: Path | None = None, **settings: object) -> servers.Server:
        server = servers.Server(data or tmp_path / f"data{len(made)}", **settings)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.down()
