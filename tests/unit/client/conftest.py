"""No test here talks to a server of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from unit.client.stub import server  # noqa: F401


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server of this machine, no key of whoever runs the tests."""
    for name in ("BOXWOOD_URL", "BOXWOOD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXWOOD_DATA", str(tmp_path / "no-data"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time; the list holds how long they would have been."""
    paused: list[float] = []

    async def async_sleep(seconds: float) -> None:
        paused.append(seconds)

    for name in ("transport", "run"):
        monkeypatch.setattr(f"boxwood.client._sync.{name}.sleep", paused.append)
        monkeypatch.setattr(f"boxwood.client._async.{name}.sleep", async_sleep)
    return paused
