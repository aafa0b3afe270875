"""What the server asks of states of VMs, when it cannot be had."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest

from boxwood.engine.api import EngineError
from boxwood.engine.hostlayers import HostLayers
from boxwood.engine.hoststates import HostStates

pytestmark = pytest.mark.anyio


async def refused(job: dict[str, Any], stream: int) -> dict[str, Any]:
    os.close(stream)
    raise EngineError("the zygote is gone")


@pytest.mark.parametrize("what", ["diff", "commit", "pack", "unpack"])
async def test_a_job_that_is_refused_at_once_leaves_nothing_open(what: str) -> None:
    states, target = HostStates(refused), "0" * 26
    before = os.listdir("/proc/self/fd")
    with pytest.raises(EngineError, match="gone"):
        if what == "diff":
            await states.diff([], [], most=1)
        elif what == "commit":
            await states.commit([], [], [], target)
        elif what == "pack":
            async for _ in states.pack([], whole=True):
                pass
        else:
            await states.unpack(nothing(), target, whole=True, most=1)
    assert os.listdir("/proc/self/fd") == before


async def nothing() -> Any:
    for piece in ():
        yield piece


async def test_no_pipe_can_be_had_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job is given is closed whatever happens."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    layers = HostLayers(tmp_path, cast(Any, None))

    def none() -> None:
        raise OSError(errno.EMFILE, "no more descriptors")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", none)
        with pytest.raises(OSError, match="no more"):
            await layers._job({"kind": "diff"}, writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
