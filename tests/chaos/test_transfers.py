"""kill -9 of the server while files come in: what was there before is there, nothing half-written is, nor its bytes."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from amounts import amount
from boxwood import BoxwoodError, ConnectionFailed
from servers import Server, until

MIB = 1 << 20
SENT = amount(6, 30) * MIB  # of a body of 500
Make = Callable[..., Server]


def begin(server: Server, target: str, sent: int, method: str = "PUT") -> socket.socket:
    """A request whose body goes on after `sent` bytes."""
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nauthorization: Bearer {server.key}\r\n"
        f"content-length: {500 * MIB}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(head.encode() + os.urandom(sent))
    return client


@pytest.mark.parametrize("everything", [pytest.param(False, marks=pytest.mark.full), True])
def test_in_the_middle_of_uploads(server: Server, everything: bool) -> None:
    """Of one into the box, of one by URL, and of chunks: the last are kept, since they were acknowledged."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.write_file("/w/f", b"before")
        entry = {"path": "/w/chunks", "size": 8, "upload_id": "u", "start": 0, "end": 4, "content": "MDEyMw=="}
        assert server.request("POST", f"/v1/vms/{vm.id}/sync", {"op": "write", "writes": [entry]})[0] == 200
        wish = {"path": "/w/url", "size": 500 * MIB, "presigned": True}
        _, told = server.request("POST", f"/v1/vms/{vm.id}/sync", {"op": "write", "writes": [wish]})
        url = told["results"][0]["presigned_url"].removeprefix(server.url)
        uploads = [
            begin(server, f"/v1/vms/{vm.id}/files/content?path=/w/f", SENT), begin(server, url, SENT),
        ]  # fmt: skip
        until(server.unnamed_files)
        until(lambda: any(file.stat().st_size for file in (server.data / "uploads").iterdir()))
    (server.kill9_all if everything else server.kill9)()
    for upload in uploads:
        upload.close()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        assert vm.run("cat /w/f; ls -A /w").stdout == "beforef\n"
        until(lambda: not server.unnamed_files())
        rest = {**entry, "start": 4, "end": 8, "content": "NDU2Nw=="}
        status, done = server.request("POST", f"/v1/vms/{vm.id}/sync", {"op": "write", "writes": [rest]})
        assert (status, done["results"][0]["written"]) == (200, True)
        assert vm.read_file("/w/chunks") == b"01234567"


def test_what_was_acknowledged_is_there_and_whole(server: Server) -> None:
    """Files are replaced, small and large ones, as fast as can be, until the server dies in the middle of it."""
    acknowledged: dict[str, int] = {}
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("true")

    def write(name: str, size: int) -> None:
        with server.client() as box:
            mine = box.vm(vm.id)
            for number in range(100_000):
                try:
                    mine.write_file(f"/w/{name}", bytes([number % 256]) * size)
                except ConnectionFailed:
                    return
                acknowledged[name] = number

    writers = [threading.Thread(target=write, args=item) for item in (("small", 1000), ("large", 3 * MIB))]
    for writer in writers:
        writer.start()
    until(lambda: acknowledged.get("small", 0) > 8 and acknowledged.get("large", 0) > 1)
    server.kill9()
    server.start()  # at the same place: a writer that tries again finds it
    for name, size in (("small", 1000), ("large", 3 * MIB)):
        with server.client() as box:
            data = box.vm(vm.id).read_file(f"/w/{name}")
        assert len(data) == size and len(set(data)) == 1, "never a mixture"
    server.kill9()
    for writer in writers:
        writer.join()
    server.start()
    with server.client() as box:
        assert box.vm(vm.id).run("ls -A /w").stdout == "large\nsmall\n"
        for name in ("small", "large"):
            assert (box.vm(vm.id).read_file(f"/w/{name}")[0] - acknowledged[name]) % 256 in (0, 1)


def test_in_the_middle_of_commits(server: Server) -> None:
    """Uploads whose bytes are all there take their place in the VM when everything dies: each file is there whole or not
    at all, nothing else is, and a commit that is sent again ends it."""
    size, names = amount(24, 96) * MIB, ("one", "two", "three")
    content = os.urandom(MIB) * (size // MIB)
    told: list[str] = []
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.run("mkdir /w")

    def sync(entry: dict[str, object]) -> dict[str, Any]:
        status, answer = server.request("POST", f"/v1/vms/{vm.id}/sync", {"op": "write", "writes": [entry]})
        assert status == 200, answer
        return dict(answer["results"][0])

    entries = []
    for name in names:
        entry: dict[str, object] = {"path": f"/w/{name}", "size": size}
        wish = sync({**entry, "presigned": True})
        entries.append({**entry, "upload_id": wish["upload_id"]})
        url = urlsplit(wish["presigned_url"])
        client = http.client.HTTPConnection(url.netloc)
        client.request("PUT", f"{url.path}?{url.query}", content)
        assert client.getresponse().status == 200
        client.close()

    def commit(entry: dict[str, object]) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it was killed
            if sync(entry).get("written"):
                told.append(str(entry["path"]))

    committing = [threading.Thread(target=commit, args=(entry,)) for entry in entries]
    for one in committing:
        one.start()
    until(lambda: server.unnamed_files() or not any(one.is_alive() for one in committing))
    server.kill9_all()
    for one in committing:
        one.join()
    server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        seen = vm.run("cd /w; for f in $(ls -A); do echo $f $(stat -c %s $f); done").stdout.splitlines()
        assert set(seen) <= {f"{name} {size}" for name in names} and len(seen) >= len(told), (seen, told)
        for entry in entries:
            assert sync(entry)["written"] is True
        for name in names:
            assert vm.read_file(f"/w/{name}") == content
    until(lambda: not list((server.data / "uploads").iterdir()))


def test_a_server_without_descriptors_in_the_middle_of_uploads(make_server: Make) -> None:
    """What is refused leaves what was there; what is told to be written is; nothing of the rest is kept."""
    server = make_server(ready_boxes=0)
    content = os.urandom(3 * MIB)
    with server.client() as box:
        vm = box.fork("ubuntu")
        vm.write_file("/w/f0", b"before")
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        done: list[int] = []
        failed: list[BoxwoodError] = []

        def write(number: int) -> None:
            try:
                with server.client() as mine:
                    mine.vm(vm.id).write_file(f"/w/f{number}", content)
                done.append(number)
            except BoxwoodError as error:
                failed.append(error)

        held = len(os.listdir(f"/proc/{server.pid}/fd"))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (held + 6, limits[1]))
        writers = [threading.Thread(target=write, args=(number,)) for number in range(12)]
        for writer in writers:
            writer.start()
        until(lambda: len(failed) > 2 or not any(writer.is_alive() for writer in writers))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        for writer in writers:
            writer.join()
        names = vm.run("cd /w; ls -A").stdout.split()
        assert {f"f{number}" for number in done} <= set(names) <= {f"f{number}" for number in range(12)}
        for name in names:
            assert vm.read_file(f"/w/{name}") == (content if int(name[1:]) in done or name != "f0" else b"before")
        vm.write_file("/w/f0", content)
        assert vm.read_file("/w/f0") == content
    until(lambda: not server.unnamed_files() and len(os.listdir(f"/proc/{server.pid}/fd")) <= held + 6)
