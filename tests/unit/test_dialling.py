"""Sockets that the server keeps of a box, to reach what listens in there."""

from __future__ import annotations

import array
import asyncio
import gc
import os
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from boxwood.engine import dialling
from boxwood.engine.dialling import AHEAD, Dialler
from boxwood.engine.sockets import FAMILIES


async def _hand_out(op: str, fields: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """As a zygote, of our own network."""
    await asyncio.sleep(0)  # others ask meanwhile
    made = [
        socket.socket(family) for family, count in zip(FAMILIES, fields["counts"], strict=True) for _ in range(count)
    ]
    for sock in made:
        sock.setblocking(False)
    with socket.socket(fileno=os.dup(fds[0])) as to:
        rights = array.array("i", [sock.fileno() for sock in made])
        to.sendmsg([b"s"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    for sock in made:
        sock.close()
    return {"ok": True}


async def test_many_first_connections_at_once_leave_a_few_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialling, "_check_elsewhere", lambda made: None)
    dialler = Dialler(_hand_out)
    gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for sock in await asyncio.gather(*(dialler.dial("box", gone, port) for _ in range(12))):
            sock.close()
        assert 0 < len(os.listdir("/proc/self/fd")) - before <= sum(AHEAD)
        gone.set_result("it has ended")
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before
