"""Connections of the server's to what listens in a box."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import BoxGone, GuestError, RunSpec
from boxwood.engine.host import HostEngine

pytestmark = pytest.mark.lent_engine
SERVER = """python3 -uc '
import socket
s = socket.create_server(("{address}", {port}), family=socket.{family}, backlog=64)
print("listening")
while True:
    c, _ = s.accept()
    c.sendall(b"{word}" + c.recv(100))
    c.close()
'"""


class Started(Result):
    """A run that goes on: heard once it has said something."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()

    def output(self, stream: int, offset: int, data: bytes) -> None:
        super().output(stream, offset, data)
        if b"\n" in self.out:
            self.heard.set()


async def serve(runner: Runner, port: int, word: str, address: str = "127.0.0.1", family: str = "AF_INET") -> None:
    program = SERVER.format(address=address, port=port, word=word, family=family)
    result = Started()
    await runner.box.start_run(RunSpec(new_id(), runner.session, program.encode()), result)
    await result.heard.wait()
    assert result.text == "listening\n", bytes(result.err)


async def said(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_sendall(sock, b"!")
        return await loop.sock_recv(sock, 100)


@pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1", "AF_INET"), ("0.0.0.0", "AF_INET"), ("::1", "AF_INET6"), ("::", "AF_INET6")]
)
async def test_what_listens_on_any_loopback_is_reached(runner: Runner, address: str, family: str) -> None:
    await serve(runner, 8080, "hello", address, family)
    for _ in range(20):  # more than are fetched at once
        assert await said(await runner.engine.dial(runner.box, 8080)) == b"hello!"


async def test_nobody_listens(runner: Runner) -> None:
    with pytest.raises(GuestError, match="nothing listens on port 8080") as caught:
        await runner.engine.dial(runner.box, 8080)
    assert caught.value.errno == errno.ECONNREFUSED


async def test_a_port_of_the_host_or_of_another_box_is_not_reached(engine: HostEngine, golden: str) -> None:
    first, second = Runner(engine, golden), Runner(engine, golden)
    await first.boot()
    await second.boot()
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        await serve(first, port, "first")
        assert await said(await engine.dial(first.box, port)) == b"first!"
        with pytest.raises(GuestError, match="nothing listens"):
            await engine.dial(second.box, port)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.accept()


async def test_connections_at_once(runner: Runner) -> None:
    await serve(runner, 8080, "x")
    socks = await asyncio.gather(*(runner.engine.dial(runner.box, 8080) for _ in range(50)))
    assert await asyncio.gather(*map(said, socks)) == [b"x!"] * 50


async def test_a_box_that_has_gone(runner: Runner) -> None:
    await serve(runner, 8080, "x")
    sock = await runner.engine.dial(runner.box, 8080)
    await runner.box.kill()
    with sock, suppress(ConnectionResetError):  # it may not have been accepted yet
        assert await asyncio.get_running_loop().sock_recv(sock, 10) == b""
    with pytest.raises(BoxGone):
        await runner.engine.dial(runner.box, 8080)


async def test_nothing_remains(runner: Runner) -> None:
    await serve(runner, 8080, "x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(GuestError):
            await runner.engine.dial(runner.box, 81)
    assert await said(await runner.engine.dial(runner.box, 8080)) == b"x!"
    await runner.box.kill()
    await asyncio.sleep(0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
