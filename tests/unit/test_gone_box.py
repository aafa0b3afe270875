"""A box that has died before it was asked: what it would have been given is let go of."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from boxwood.engine.api import BoxGone
from boxwood.engine.hostbox import INLINE_BYTES, HostBox

pytestmark = pytest.mark.anyio


async def put_down(box_id: str) -> None:
    pass


ASKED: dict[str, Callable[[HostBox], Awaitable[object]]] = {
    "a large file": lambda box: box.write_file("/f", bytes(INLINE_BYTES + 1)),
    "an open file": lambda box: box.write_file("/f", 0),
    "a stream": lambda box: box.receive_file("/f"),
    "an archive": lambda box: box.receive_archive("/f", False, 1),
    "a directory": lambda box: box.files.pack(b"/f"),
    "a tree": lambda box: box.files.unpack(b"/f", owners=False),
    "changes": lambda box: box.files.watch(b"/f", recursive=False, most=1),
}


@pytest.mark.parametrize("what", ASKED)
async def test_nothing_stays_open(what: str) -> None:
    box = HostBox("box", "vm", "top", put_down)
    box.died("for a test")
    box.files.known = True
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BoxGone):
        await ASKED[what](box)
    assert os.listdir("/proc/self/fd") == before
