"""A port of a VM on this machine: the SDK's forward over a real server, in a box and over an engine in memory."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import servers
from amounts import amount
from boxwood import VM, AsyncBoxwood, AsyncVM, ConnectionFailed, NotFound, Unauthorized
from guestports import listening
from serving import Running

ECHO = """
import socket, threading
def serve(c):
    total = 0
    while data := c.recv(65536):
        total += len(data)
        c.sendall(data)
    c.sendall(b"%d at the end" % total)
    c.close()
s = socket.create_server(("127.0.0.1", 7000), backlog=256)
print("ready", flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""


@pytest.fixture
def vm(boxwood_server: servers.Server) -> Iterator[VM]:
    with boxwood_server.client() as client, client.fork("ubuntu") as found:
        found.write_file("/echo.py", ECHO)
        run = found.run("python3 /echo.py", background=True)
        servers.until(lambda: "ready" in run.refresh().stdout)
        yield found


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


def test_a_port_here_is_one_in_the_vm(vm):
    with vm.forward(7000) as forward, socket.create_connection((forward.address, forward.port)) as sock:
        assert (forward.address, forward.vm_port) == ("127.0.0.1", 7000)
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        sock.shutdown(socket.SHUT_WR)  # half of it is closed: the other half goes on
        assert read_all(sock) == b"5 at the end"


def test_many_connections_with_many_bytes(vm):
    size = 4 << 20

    def one(number: int) -> bool:
        with socket.create_connection((forward.address, forward.port)) as sock:
            sent = bytes([number]) * size
            sending = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR)))
            sending.start()
            back = read_all(sock)
            sending.join()
            return back == sent + b"%d at the end" % size

    with vm.forward(7000) as forward, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(amount(20, 64))))


def test_closing_it_ends_its_connections(vm):
    forward = vm.forward(7000)
    with socket.create_connection((forward.address, forward.port)) as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
        forward.close()
        forward.close()
        try:
            assert sock.recv(10) == b""
        except ConnectionResetError:
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((forward.address, forward.port))


def test_what_goes_wrong_is_told(vm):
    told: list[Exception] = []
    heard = threading.Event()

    def hear(error: Exception) -> None:
        told.append(error)
        heard.set()

    with vm.forward(9, on_error=hear) as forward:
        with socket.create_connection((forward.address, forward.port)) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert heard.wait(20) and "nothing listens on port 9" in str(told[0])
        with pytest.raises(ConnectionFailed, match="cannot listen"):
            vm.forward(9, forward.port)


def test_a_vm_that_is_not_there(boxwood_server):
    with boxwood_server.client() as client, pytest.raises(NotFound):
        client.vm("nobody").forward(80)


# Over an engine in memory, where what listens is in this process


@pytest.fixture
async def machine(server: Running) -> AsyncIterator[tuple[Running, AsyncVM]]:
    key = server.headers["authorization"].split()[1]
    async with AsyncBoxwood(url=server.said["url"], api_key=key) as client:
        yield server, client.vm(await server.fork())


async def test_it_holds_the_sender_up_and_waits_for_slow_readers(machine):
    server, vm = machine
    go_on, sent = asyncio.Event(), 0

    async def flood(reader, writer):
        nonlocal sent
        while not go_on.is_set():
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with listening(server, vm.id, flood, 80), await vm.forward(80) as forward:
        reader, writer = await asyncio.open_connection(forward.address, forward.port, limit=1 << 16)
        last = -1
        while last != sent:  # until it is held up
            last = sent
            await asyncio.sleep(0.5)
        assert sent < 64 << 20
        go_on.set()
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        assert total == sent
        writer.close()


async def test_it_ends_with_the_box_and_with_the_key(machine):
    server, vm = machine

    async def quiet(reader, writer):
        await reader.read()

    async def dropped(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True

    made = (await server.http.post("/v1/api-keys", json={"name": "x"})).json()
    async with listening(server, vm.id, quiet, 80), AsyncBoxwood(url=server.said["url"], api_key=made["key"]) as other:
        async with await other.vm(vm.id).forward(80) as forward:
            reader, writer = await asyncio.open_connection(forward.address, forward.port)
            while not server.machine.core.ports._open:
                await asyncio.sleep(0.001)
            await server.http.delete(f"/v1/api-keys/{made['api_key_id']}")
            assert await dropped(reader)
            writer.close()
        with pytest.raises(Unauthorized):
            await other.vm(vm.id).forward(80)
        async with await vm.forward(80) as forward:
            reader, writer = await asyncio.open_connection(forward.address, forward.port)
            while not server.machine.core.ports._open:
                await asyncio.sleep(0.001)
            server.machine.boxes[vm.id].die("test")
            assert await dropped(reader)
            writer.close()
    assert not server.machine.core.ports._open


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "080000"])
async def test_ports_that_are_none(machine, port):
    server, vm = machine
    assert (await server.http.get(f"/v1/vms/{vm.id}/ports/{port}/forward")).status_code == 400
