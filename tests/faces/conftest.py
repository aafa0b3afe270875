"""Faces over a stub, and over a real server as their users find it: by their own variables of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

import servers
from faces.agentkernelstub import client  # noqa: F401
from faces.memory import memory, session  # noqa: F401
from unit.client.stub import server  # noqa: F401

VARIABLES = (
    "AGENTKERNEL_API_KEY", "AGENTKERNEL_BASE_URL", "ARKER_API_KEY", "ARKER_BASE_URL", "ARKER_REGION", "BOXWOOD_API_KEY",
    "BOXWOOD_URL", "KUBECONFIG", "KUBERNETES_SERVICE_HOST",
)  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server of this machine, no key of whoever runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXWOOD_DATA", str(tmp_path / "no-data"))


@pytest.fixture
def real(boxwood_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> servers.Server:
    """A real server, in the environment of both faces."""
    for face in ("ARKER", "AGENTKERNEL"):
        monkeypatch.setenv(f"{face}_BASE_URL", boxwood_server.url)
        monkeypatch.setenv(f"{face}_API_KEY", boxwood_server.key)
    return boxwood_server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The blocking client's pauses take no time; the list holds how long they would have been."""
    paused: list[float] = []
    for name in ("transport", "run"):
        monkeypatch.setattr(f"boxwood.client._sync.{name}.sleep", paused.append)
    return paused
