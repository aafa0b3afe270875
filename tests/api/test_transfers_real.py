"""Streams on a real server with real boxes: our SDK, raw connections, a connection that breaks, a directory of odd names."""

from __future__ import annotations

import asyncio
import http.client
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from amounts import amount
from boxwood import VM, AsyncBoxwood, BadRequest, Boxwood, BoxwoodError, FileMissing, PayloadTooLarge, Progress
from servers import Server, until
from together import together

MIB = 1 << 20
CHUNK = 4 * MIB


@pytest.fixture
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


@together("size", [0, 1, 65537, CHUNK - 1, CHUNK, CHUNK + 1, 30 * MIB])
def test_there_and_back(vm: VM, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    with (tmp_path / "f").open("rb") as file:
        vm.write_file("/w/a/f", file, mode=0o640)
    assert vm.read_file("/w/a/f") == data
    assert b"".join(vm.read_stream("/w/a/f")) == data
    vm.write_file("/w/a/f", iter([data[:100], data[100:]]))
    assert b"".join(vm.read_stream("/w/a/f", start=size // 3, end=size // 2)) == data[size // 3 : size // 2]
    assert vm.run("stat -c '%a %s' /w/a/f; ls -A /w/a").stdout == f"640 {size}\nf\n"


def test_awaited(boxwood_server: Server) -> None:
    data = os.urandom(9 * MIB)

    async def go() -> None:
        async with AsyncBoxwood(boxwood_server.url, boxwood_server.key) as box, await box.fork("ubuntu") as vm:
            await asyncio.gather(*(vm.write_file(f"/w/{number}", data) for number in range(4)))
            for number in range(4):
                assert b"".join([piece async for piece in vm.read_stream(f"/w/{number}")]) == data
            await vm.write_file("/w/small", "text")
            assert await vm.read_file("/w/small") == b"text"
            with pytest.raises(FileMissing):
                await vm.read_file("/none")

    asyncio.run(go())


def test_what_is_refused_is_heard_in_the_middle_of_an_upload(make_server: Callable[..., Server]) -> None:
    most = amount(48, 1024)  # MiB of a file; by default a GiB
    server = make_server(network="none", ready_boxes=0, file_bytes=most * MIB)
    with server.client() as box, box.fork("ubuntu") as vm:
        for path, kind in (("/w/", BadRequest), ("/proc/f", BadRequest), ("/etc", BadRequest)):
            with pytest.raises(kind):
                vm.write_file(path, bytes(40 * MIB))
        with pytest.raises(PayloadTooLarge):
            vm.write_file("/w/f", iter([bytes(MIB)] * (most + 76)))
        assert vm.run("ls -A /w; ls /proc/f 2>/dev/null").stdout == ""


@contextmanager
def breaking(server: Server, after: int) -> Iterator[str]:
    """The url of a way to the server on which the first two connections break after so many bytes of answers."""
    left = [after, after]

    def carry(client: socket.socket) -> None:
        most = left.pop() if left else 1 << 60
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", server.port)) as there:
            while most > 0:
                readable, _, _ = select.select([client, there], [], [])
                for one in readable:
                    if not (data := one.recv(65536)):
                        return
                    (there if one is client else client).sendall(data)
                    most -= len(data) if one is there else 0
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # as a network breaks

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            carriers.append(threading.Thread(target=carry, args=(client,)))
            carriers[-1].start()

    carriers: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for carrier in carriers:
        carrier.join()


def test_a_download_is_gone_on_with(boxwood_server: Server, vm: VM) -> None:
    data = os.urandom(8 * MIB)
    vm.write_file("/w/f", data)
    vm.run("sleep 0.2")  # until the file's times tell its states apart
    with breaking(boxwood_server, 3 * MIB) as url, Boxwood(url, boxwood_server.key) as box:
        assert b"".join(box.vm(vm.id).read_stream("/w/f")) == data


def test_a_file_that_changes_is_not_gone_on_with(boxwood_server: Server, vm: VM) -> None:
    vm.write_file("/w/f", os.urandom(8 * MIB))
    vm.run("sleep 0.2")
    with breaking(boxwood_server, 3 * MIB) as url, Boxwood(url, boxwood_server.key) as box:
        pieces = box.vm(vm.id).read_stream("/w/f")
        next(pieces)
        vm.write_file("/w/f", os.urandom(8 * MIB))
        with pytest.raises(BoxwoodError) as error:
            for _ in pieces:
                pass
        assert error.value.code == "changed"


def test_a_client_that_goes_leaves_nothing(boxwood_server: Server, vm: VM) -> None:
    vm.write_file("/w/f", b"before")
    head = (
        f"PUT /v1/vms/{vm.id}/files/content?path={quote('/w/f')} HTTP/1.1\r\nhost: 127.0.0.1:{boxwood_server.port}\r\n"
        f"authorization: Bearer {boxwood_server.key}\r\ncontent-length: {100 * MIB}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", boxwood_server.port)) as client:
        client.sendall(head.encode() + bytes(20 * MIB))
        until(lambda: vm.refresh().state == "running")
        assert len(boxwood_server.unnamed_files()) == 1
        with vm.fork() as child:
            assert child.read_file("/w/f") == b"before"
    until(lambda: vm.refresh().state == "idle")
    assert vm.run("cat /w/f; ls -A /w").stdout == "beforef\n"
    until(lambda: not boxwood_server.unnamed_files())


def test_parts_and_heads_over_one_connection(boxwood_server: Server, vm: VM) -> None:
    """What is sent straight from the kernel leaves the connection as it has to be for the next request."""
    data = os.urandom(3 * MIB)
    vm.write_file("/w/f", data)
    path, key = f"/v1/vms/{vm.id}/files/content?path=/w/f", {"authorization": f"Bearer {boxwood_server.key}"}
    with closing(http.client.HTTPConnection("127.0.0.1", boxwood_server.port, timeout=60)) as connection:
        for start, end in ((0, 3 * MIB), (100, 200_000), (MIB, 3 * MIB), (5, 6)):
            connection.request("GET", path, headers={**key, "range": f"bytes={start}-{end - 1}"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (206, data[start:end])
            connection.request("HEAD", path, headers=key)
            answer = connection.getresponse()
            assert (answer.status, answer.read(), answer.headers["content-length"]) == (200, b"", str(3 * MIB))


def test_a_sparse_and_a_secret_file(vm: VM) -> None:
    vm.run("mkdir /w; truncate -s 20M /w/sparse; echo s > /w/secret; chmod 0 /w/secret; mkfifo /w/fifo", check=True)
    assert sum(len(piece) for piece in vm.read_stream("/w/sparse")) == 20 * MIB
    assert vm.read_file("/w/secret") == b"s\n"
    for path in ("/w/fifo", "/w", "/dev/zero", "/proc/meminfo"):
        with pytest.raises(BadRequest):
            vm.read_file(path)


# Directories


def tree(root: Path) -> dict[bytes, bytes]:
    """Odd names, and what each of them holds."""
    names = ["a\nb", "n" * 255, "u\u0308", "ü", " ", "-rf", "d/e/f/g", "$(x)", "*", os.fsdecode(b"\xff\xfe")]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.fsencode(name))
    (root / "empty").mkdir()
    (root / "none").write_bytes(b"")
    (root / "run").write_text("#!/bin/sh\necho ran\n")
    (root / "run").chmod(0o755)
    (root / "big").write_bytes(os.urandom(5 * MIB))
    (root / "sparse").write_bytes(b"")
    os.truncate(root / "sparse", 3 * MIB)
    (root / "link").symlink_to("a\nb")
    os.mkfifo(root / "fifo")
    return {os.fsencode(name): os.fsencode(name) for name in names}


def test_sync_dir(vm: VM, tmp_path: Path) -> None:
    names = tree(tmp_path)
    cache: dict[str, tuple[int, int, str]] = {}
    told: list[Progress] = []
    done = vm.sync_dir(tmp_path, "/w", cache=cache, progress=told.append)
    assert (done.sent, done.unchanged, done.skipped, done.truncated) == (len(names) + 4, 0, 2, False)
    assert (told[-1].files, told[-1].bytes) == (told[-1].all_files, told[-1].all_bytes) == (done.sent, done.bytes_sent)
    assert vm.run("/w/run; ls -A /w | wc -l; ls -A /w/empty /w/link /w/fifo 2>/dev/null").stdout.startswith("ran\n")
    shown = r"""find /w -type f -size -2k -exec sh -c 'printf "%s\0" "$1"; cat "$1"; printf "\0"' - {} \;"""
    found = vm.run(shown)
    for name, data in names.items():
        assert b"/w/" + name + b"\0" + data + b"\0" in found.stdout_bytes, name
    assert vm.read_file("/w/big") == (tmp_path / "big").read_bytes()
    (tmp_path / "d/e/f/g").write_bytes(b"other")
    again = vm.sync_dir(tmp_path, "/w", cache=cache)
    assert (again.sent, again.unchanged) == (2, len(names) + 2)  # the changed one, and one that cannot be listed
    assert vm.read_file("/w/d/e/f/g") == b"other"
    assert vm.sync_dir(tmp_path, "/w", cache=cache).sent == 1  # that one alone


def test_what_is_ignored_stays_here(vm: VM, tmp_path: Path) -> None:
    for name in ("a.py", "a.log", "keep.log", "d/__pycache__/x", "d/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    vm.sync_dir(tmp_path, "/w", ignore=["*.log", "# comment", "!keep.log", "**/__pycache__/"])
    assert vm.run("cd /w; find . -type f | sort").stdout == "./a.py\n./d/b.py\n./keep.log\n"
    vm.sync_dir(tmp_path, "/v", ignore=lambda name: name.endswith(".py"))
    assert vm.run("cd /v; find . -type f | sort").stdout == "./a.log\n./d/__pycache__/x\n./keep.log\n"
