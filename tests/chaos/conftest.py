"""What dies in these tests has a network, and boxes that are ready, only where the test says so: a router takes longer to
start than a server, and boxes that nobody gets longer still. Tests that need no other settings kill one server after
the other, and what they have made is deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amounts import amount
from servers import Server

SPARE = amount({"network": "none", "ready_boxes": "0"}, {"network": "none"})


@pytest.fixture
def make_server(make_server: Callable[..., Server]) -> Callable[..., Server]:
    """As everywhere, but for what VMs get by default: with a network, `network="internet"`; with boxes that are ready,
    `ready_boxes=2`."""

    def make(data: Path | None = None, **settings: object) -> Server:
        return make_server(data, **{**SPARE, **settings})

    return make


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("lasting") / "data", **SPARE)
    yield made.start()
    made.down()


@pytest.fixture
def server(lasting: Server) -> Iterator[Server]:
    """To be killed and started again. There is nothing in it."""
    if not lasting.runs:  # the test before has failed
        lasting.restart()
    yield lasting
    if not lasting.runs:
        lasting.restart()
    with lasting.client() as box:
        for vm in box.list():
            vm.delete()
        for filesystem in box.filesystems.list():
            box.filesystems.delete(filesystem.name)
