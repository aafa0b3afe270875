"""Descriptors that a box sends and should not: whatever they are, the server does not wait for them."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from boxwood.engine.frames import pack
from boxwood.engine.link import Link

pytestmark = pytest.mark.anyio


def lingering() -> tuple[socket.socket, socket.socket]:
    """A connected socket whose close waits for its peer, who never reads, for an hour; and the peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    return ours, peer


def send(sock: socket.socket, fds: list[int], data: bytes = b"x") -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


async def broken(agent: socket.socket, ours: socket.socket) -> str:
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    link = Link(ours, lambda header, payload: None, reason.set_result)
    try:
        return await asyncio.wait_for(reason, 10)
    finally:
        link.close()
        agent.close()


async def test_where_no_process_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are closed all the same: whoever sends them would fill the server."""

    def none(*command: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", none)
    agent, ours = socket.socketpair()
    reading, writing = os.pipe()
    send(agent, [writing], pack({"ev": "hello", "fds": 1}))
    os.close(writing)
    assert "no regular file" in await broken(agent, ours)
    poll = select.poll()
    poll.register(reading, 0)
    assert await asyncio.to_thread(poll.poll, 10_000)  # nobody has the other end
    os.close(reading)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("hidden", ["plainly", "in the queue", "in a socket's queue"])
async def test_a_socket_that_lingers_holds_nobody_up(hidden: str) -> None:
    agent, ours = socket.socketpair()
    stray, peer = lingering()
    if hidden == "plainly":
        send(agent, [stray.fileno()], pack({"ev": "hello", "fds": 1}))
    elif hidden == "in the queue":
        agent.sendall(b"\xff" * 16)  # ends the link before the rest is read
        send(agent, [stray.fileno()])
    else:
        inner, outer = socket.socketpair()
        send(inner, [stray.fileno()])
        send(agent, [outer.fileno()], pack({"ev": "hello", "fds": 1}))
        inner.close()
        outer.close()
    os.close(stray.detach())  # the last one is the server's now
    assert "broke the protocol" in await broken(agent, ours)
    with peer:  # and it is closed in the end
        await asyncio.to_thread(read_to_end, peer)


def read_to_end(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


async def test_a_file_may_come(tmp_path: Path) -> None:
    """What an agent that behaves sends, is handed on."""
    agent, ours = socket.socketpair()
    (tmp_path / "f").write_text("of the vm")
    link = Link(ours, lambda header, payload: None, lambda reason: None)
    asked = asyncio.ensure_future(link.ask("file.read", {}, timeout=10, takes=1))
    await asyncio.sleep(0)
    with open(tmp_path / "f", "rb") as file:
        send(agent, [file.fileno()], pack({"re": 1, "fds": 1}))
    _, _, [fd] = await asked
    assert os.pread(fd, 100, 0) == b"of the vm"
    os.close(fd)
    link.close()
    agent.close()
