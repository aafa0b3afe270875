"""A pool that the kernel does not take: nothing of it is left, and no engine starts without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import guard
from boxwood.engine import quota, storage
from boxwood.engine.api import EngineUnavailable
from boxwood.engine.host import HostEngine


@pytest.fixture(autouse=True)
def _without_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> str:
        raise quota.NoQuota("there are none", "get some")

    monkeypatch.setattr(quota, "kind_of", refuse)


def test_of_what_cannot_be_mounted_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MKFS", ("true",))  # the image is full of zeros
    monkeypatch.setattr(storage, "_need", lambda program, package: None)
    monkeypatch.setattr(storage, "GIB", 64 << 20)
    with pytest.raises(storage.Refused, match=r"CONFIG_XFS_QUOTA\? .*mount: "):
        storage.make(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["layers", "lock"]
    assert not guard.mounts(tmp_path) and not guard.loops(tmp_path)


async def test_no_engine_starts_without_its_pool(tmp_path: Path, images: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "pool.xfs").write_bytes(bytes(1 << 20))
    engine = HostEngine(data, images, network=False)
    with pytest.raises(EngineUnavailable, match=r"pool\.xfs cannot be mounted"):
        await engine.start()
    assert not (data / "zygote.sock").exists()
    assert not guard.mounts(tmp_path) and not guard.loops(tmp_path)
