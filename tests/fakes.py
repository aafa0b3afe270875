"""The engine in memory that the core's tests have (`unit/core/fake_engine.py`), for tests elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from boxwood.images import host


def _load() -> ModuleType:
    if "fake_engine" in sys.modules:
        return sys.modules["fake_engine"]
    spec = importlib.util.spec_from_file_location("fake_engine", Path(__file__).parent / "unit/core/fake_engine.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["fake_engine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake_engine = _load()


def images_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of images in `place`, where the host's golden is the one that the fake machine has."""
    images = place / "images"
    (images / fake_engine.IMAGE / "upper").mkdir(parents=True)
    image = host.HostImage(fake_engine.IMAGE, "fingerprint", 0, 0, 0, 0.0)
    monkeypatch.setattr(host, "ensure", lambda directory, progress, **settings: image)
    return images


def release(machine: Any, vm_id: str) -> None:
    """Let what hangs in this VM go on, if it has a box by now."""
    box = machine.boxes.get(vm_id)
    for process in box.runs.values() if box is not None else ():
        process.released.set()


async def started(machine: Any, count: int = 1) -> None:
    """Wait until so many runs have begun."""
    while len(machine.called("start_run")) < count:
        await asyncio.sleep(0.001)
