"""What all tests share: a real server, the guard against leftovers, and what is skipped without root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import guard
import rootless
import servers

TESTS = Path(__file__).parent
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
