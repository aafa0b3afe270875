"""What dies in these tests has a network, and boxes that are ready, only where the test says so: a router takes longer to
start than a server, and boxes that nobody gets longer still."""

from __future__ import annotations

from collections.abc import Callable
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
