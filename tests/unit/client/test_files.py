"""Files: chunks, whole reads, per-file errors."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from boxwood import VM as BoxVM
from boxwood import BadRequest, Boxwood, FileMissing, PayloadTooLarge, ServerError
from boxwood.client._async import files
from boxwood.client.content import Source
from unit.client.stub import KEY, VM, VM_ID, Request, StubServer, error

SYNC = f"POST /v1/vms/{VM_ID}/sync"
MIB = 1 << 20


class Ledger:
    """The server's side of chunked writes."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def __call__(self, request: Request) -> tuple[int, Any]:
        (entry,) = request.body["writes"]
        self.entries.append(entry)
        complete = entry["end"] == entry["size"]
        result = {"path": entry["path"], "size": entry["size"], "received_bytes": entry["end"], "complete": complete}
        return 200, {"ok": True, "op": "write", "results": [result | {"written": complete, "ranges": []}]}

    @property
    def data(self) -> bytes:
        return b"".join(base64.b64decode(entry["content"]) for entry in self.entries)


@pytest.fixture
def vm(server: StubServer):
    server.script(f"GET /v1/vms/{VM_ID}", (200, VM))
    with Boxwood(server.url, KEY) as box:
        yield box.get(VM_ID)


@pytest.fixture
def ledger(server: StubServer) -> Ledger:
    ledger = Ledger()
    server.script(SYNC, ledger)
    return ledger


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1, 9 * MIB])
def test_a_file_goes_in_chunks_of_4_mib_under_one_upload_id(ledger: Ledger, vm: BoxVM, size: int) -> None:
    data = bytes(i % 251 for i in range(1 << 12)) * (size // (1 << 12) + 1)
    vm.write_file("/a", data[:size])
    assert ledger.data == data[:size]
    assert len(ledger.entries) == max(1, -(-size // (4 * MIB)))
    assert len({entry["upload_id"] for entry in ledger.entries}) == 1
    assert [entry["start"] for entry in ledger.entries] == list(range(0, size or 1, 4 * MIB))
    assert {entry["size"] for entry in ledger.entries} == {size}
    assert all(len(base64.b64decode(entry["content"])) == entry["end"] - entry["start"] for entry in ledger.entries)


def test_text_and_files_of_every_kind(ledger: Ledger, vm: BoxVM, tmp_path: Path) -> None:
    vm.write_file("/a", "grüß")
    assert ledger.data == "grüß".encode()
    (tmp_path / "f").write_bytes(b"abcdef")
    ledger.entries.clear()
    with open(tmp_path / "f", "rb") as file:
        file.seek(2)
        vm.write_file("/a", file)
        assert not file.closed
    assert ledger.data == b"cdef"

    class Pipe(io.RawIOBase):
        parts = [b"12", b"3", b""]

        def read(self, size: int = -1) -> bytes:
            return self.parts.pop(0)

    ledger.entries.clear()
    vm.write_file("/a", Pipe())  # type: ignore[arg-type]
    assert ledger.data == b"123"


@pytest.mark.parametrize("data", [None, 3, io.StringIO("x")])
def test_what_is_no_content_is_refused_here(server: StubServer, vm: BoxVM, data: Any) -> None:
    before = len(server.requests)
    with pytest.raises(BadRequest):
        vm.write_file("/a", data)
    assert len(server.requests) == before


def test_a_files_own_error_is_raised(server: StubServer, vm: BoxVM) -> None:
    refused = {"path": "/a", "error": {"code": "payload_too_large", "message": "full"}}
    server.script(SYNC, (200, {"ok": True, "op": "write", "results": [refused]}))
    with pytest.raises(PayloadTooLarge, match="full"):
        vm.write_file("/a", b"x")


def test_a_write_that_the_server_forgot_is_an_error(server: StubServer, vm: BoxVM) -> None:
    server.script(SYNC, (200, {"results": [{"path": "/a", "complete": True, "written": False}]}))
    with pytest.raises(ServerError):
        vm.write_file("/a", b"x")
    server.script(SYNC, (200, {"results": []}))
    with pytest.raises(ServerError):
        vm.write_file("/a", b"x")


def test_reading(server: StubServer, vm: BoxVM) -> None:
    answer = {"ok": True, "op": "read", "path": "/a", "size": 2, "content": "aGk=", "encoding": "base64"}
    server.script(SYNC, (200, answer))
    assert vm.read_file("/a") == b"hi"
    assert server.last.body == {"op": "read", "path": "/a"}
    server.script(SYNC, (200, answer | {"content": "hi", "encoding": "utf8"}))
    assert vm.read_text("/a") == "hi"
    server.script(SYNC, (200, answer | {"size": 0, "content": "", "encoding": "utf8"}))
    assert vm.read_file("/a") == b""


def test_a_signed_url_is_fetched_without_the_key(server: StubServer, vm: BoxVM) -> None:
    signed = {"ok": True, "op": "read", "path": "/a", "size": 3, "presigned_url": server.url + "/get/token"}
    server.script(SYNC, (200, signed | {"expires_in": 900, "method": "GET"}))
    server.script("GET /get/token", (200, b"big"))
    assert vm.read_file("/a") == b"big"
    assert "authorization" not in server.last.headers
    server.script("GET /get/token", (403, b"expired"))
    with pytest.raises(ServerError):
        vm.read_file("/a")


def test_a_missing_file(server: StubServer, vm: BoxVM) -> None:
    server.script(SYNC, (404, error("not_found", "no such file: /a", details={"resource": "file"})))
    with pytest.raises(FileNotFoundError, match="no such file: /a") as caught:
        vm.read_file("/a")
    assert isinstance(caught.value, FileMissing)
    assert (caught.value.code, caught.value.status, caught.value.resource) == ("not_found", 404, "file")


def test_manifest(server: StubServer, vm: BoxVM) -> None:
    entry = {"path": "a", "size": 1, "mode": 0o644, "hash": "0" * 64}
    server.script(SYNC, (200, {"root": "/w", "hash_algo": "sha256", "entries": [entry], "truncated": False}))
    manifest = vm.manifest("/w/")
    assert (manifest.root, manifest.entries[0].path, manifest.truncated) == ("/w", "a", False)
    assert server.last.body == {"op": "manifest", "path": "/w/"}


def test_an_awaitable_client_reads_files_in_threads() -> None:
    """Whoever writes to a pipe may take his time: other tasks go on."""

    class Read(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.append(threading.current_thread())
            return super().read(size)

    async def go() -> bytes:
        return b"".join([piece async for piece in files.pieces(Source(Read(bytes(3 * MIB)), "/a"), told.append)])

    readers: list[threading.Thread] = []
    told: list[int] = []
    assert asyncio.run(go()) == bytes(3 * MIB)
    assert told == [MIB] * 3
    assert readers and threading.current_thread() not in readers
