"""What the proxy asks the router."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from boxwood.engine.proxy.origins import Router

pytestmark = [pytest.mark.anyio]


async def test_a_router_that_is_busy_is_waited_for_by_all() -> None:
    """There is no room for so many questions: each waits for its turn, and none is forgotten."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = asyncio.get_running_loop()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that the kernel gives
        router = Router(ours, lambda boxes: None)
        asking = [asyncio.create_task(router.of(("198.18.0.7", port), ("198.19.0.1", 8008))) for port in range(1, 41)]
        await asyncio.sleep(0)
        serving = asyncio.create_task(router.serve())
        for _ in asking:
            said = json.loads(await asyncio.wait_for(loop.sock_recv(theirs, 4096), 20))
            known = {"vm": "vm", "address": "93.184.215.14", "port": said["from"][1], "names": []}
            await loop.sock_sendall(theirs, json.dumps({"n": said["n"], **known}).encode())
        assert [one.port for one in await asyncio.gather(*asking)] == list(range(1, 41))
        serving.cancel()
        await asyncio.wait({serving})
