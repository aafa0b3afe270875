"""What dies in these tests has a network only where the test says so: a router takes longer to start than a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from servers import Server


@pytest.fixture
def make_server(make_server: Callable[..., Server]) -> Callable[..., Server]:
    """As everywhere, but for what VMs get by default: with a network, `network="internet"`."""

    def make(data: Path | None = None, **settings: object) -> Server:
        return make_server(data, **{"network": "none", **settings})

    return make
