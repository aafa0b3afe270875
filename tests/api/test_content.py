"""The bytes of files as bodies: whole, in parts, streamed, and as archives."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import time

import pytest

from archives import archive
from together import together

MIB = 1 << 20


def at(vm: str, path: str = "/f", **query: object) -> str:
    more = "".join(f"&{name}={value}" for name, value in query.items())
    return f"/vms/{vm}/files/content?path={path}{more}"


async def put(api, vm: str, data: bytes, path: str = "/f", **query: object):
    return await api.ok("PUT", at(vm, path, **query), content=data)


async def settled(api, vm: str, path: str = "/f"):
    """An answer with a strong validator: the file has been left alone for a moment."""
    while (answer := await api("GET", at(vm, path))).headers["etag"].startswith("W/"):
        await asyncio.sleep(0.02)
    return answer


async def pieces(*parts: bytes):
    for part in parts:
        yield part


@together("size", [0, 1, 65536, 65537, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1])
async def test_what_is_put_is_got(either, size):
    vm = await either.fork()
    data = os.urandom(size)
    assert await put(either, vm, data) == {"path": "/f", "size": size}
    answer = await either("GET", at(vm))
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-length"] == str(size)
    assert answer.headers["accept-ranges"] == "bytes"
    head = await either("HEAD", at(vm))
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(size), b"")


@together("size", [100, 200_000])
@together(
    ("wanted", "first", "last"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=90-", 90, None), ("Bytes = 5-9999999", 5, None)],
)
async def test_a_part_of_a_file(api, size, wanted, first, last):
    vm = await api.fork()
    data = os.urandom(size)
    await put(api, vm, data)
    answer = await api("GET", at(vm), headers={"range": wanted})
    assert (answer.status_code, answer.content) == (206, data[first:last])
    end = (size if last is None else last) - 1
    assert answer.headers["content-range"] == f"bytes {first}-{end}/{size}"


async def test_the_end_of_a_file(api):
    vm = await api.fork()
    await put(api, vm, b"0123456789")
    for suffix, wanted in (("-3", b"789"), ("-99", b"0123456789")):
        answer = await api("GET", at(vm), headers={"range": f"bytes={suffix}"})
        assert (answer.status_code, answer.content) == (206, wanted)


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=99-100", "bytes=-0"])
async def test_a_part_that_is_not_there(api, wanted):
    vm = await api.fork()
    await put(api, vm, b"0123456789")
    headers = {"range": wanted, "authorization": f"Bearer {api.key}"}
    answer = await api.http.get(f"/v1{at(vm)}", headers=headers)
    assert (answer.status_code, answer.headers["content-range"], answer.content) == (416, "bytes */10", b"")


@pytest.mark.parametrize("wanted", ["bytes=0-1,4-5", "lines=0-1", "bytes=5-2", "bytes=-", "bytes=a-b"])
async def test_what_is_no_single_range_gets_the_whole(api, wanted):
    vm = await api.fork()
    await put(api, vm, b"0123456789")
    answer = await api("GET", at(vm), headers={"range": wanted})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


async def test_if_range_gets_parts_of_the_same_state_alone(api):
    vm = await api.fork()
    await put(api, vm, b"0123456789")
    wanted = {"range": "bytes=4-"}
    file = os.memfd_create("same")  # what the engine in memory opens is new each time: give it one file
    try:
        os.write(file, b"0123456789")
        living = api.machine.boxes[vm].handle
        opened = await living.read_file("/f")

        async def same(path: str):
            return type(opened)(os.dup(file), 10, 0o644)

        os.close(opened.fd)
        living.read_file = same
        wanted["if-range"] = (await settled(api, vm)).headers["etag"]
        answer = await api("GET", at(vm), headers=wanted)
        assert (answer.status_code, answer.content) == (206, b"456789")
        same_state = await api("GET", at(vm), headers={"if-none-match": f'"x", {wanted["if-range"]}'})
        assert (same_state.status_code, same_state.content) == (304, b"")
        time.sleep(0.02)
        os.pwrite(file, b"abcdefghij", 0)
        answer = await api("GET", at(vm), headers=wanted)
        assert (answer.status_code, answer.content) == (200, b"abcdefghij")
    finally:
        os.close(file)


async def test_a_state_that_times_cannot_tell_apart_yet_is_not_gone_on_with(api):
    vm = await api.fork()
    await put(api, vm, b"0123456789")
    fresh = (await api("GET", at(vm))).headers["etag"]
    assert fresh.startswith("W/")
    answer = await api("GET", at(vm), headers={"range": "bytes=4-", "if-range": fresh})
    assert answer.status_code == 200


async def test_a_body_without_a_length(api):
    vm = await api.fork()
    data = os.urandom(3 * MIB)
    await put(api, vm, pieces(data[:5], data[5:MIB], data[MIB:]))
    assert (await api("GET", at(vm))).content == data


async def test_a_digest_that_does_not_fit(api):
    vm = await api.fork()
    for data in (b"short", os.urandom(2 * MIB)):
        await put(api, vm, data, sha256=hashlib.sha256(data).hexdigest())
        await api.refused(400, "bad_request", "PUT", at(vm, sha256="0" * 64), content=data + b"!")
        assert (await api("GET", at(vm))).content == data


@pytest.mark.parametrize(
    ("query", "said"),
    [("path=relative", "path"), ("path=/dir/", "path"), ("", "path"), ("path=/f&mode=888", "mode"),
     ("path=/f&mode=4755", "mode"), ("path=/f&sha256=abc", "sha256"), ("path=/f&size=1", "size")],
)  # fmt: skip
async def test_wrong_queries(api, query, said):
    vm = await api.fork()
    error = await api.refused(400, "bad_request", "PUT", f"/vms/{vm}/files/content?{query}", content=b"x")
    assert said in error["message"]


async def test_what_is_not_there(either):
    vm = await either.fork()
    error = await either.refused(404, "not_found", "GET", at(vm, "/none"))
    assert error["details"] == {"resource": "file"}
    await either.refused(404, "not_found", "PUT", at("nobody"), content=b"x")


async def test_an_immutable_vm_takes_nothing(api):
    vm = await api.fork()
    await put(api, vm, b"x")
    await api.ok("PATCH", f"/vms/{vm}", {"immutable": True})
    await api.refused(409, "invalid_state", "PUT", at(vm), content=b"y")
    await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/sync-stream?path=/f", content=b"y")


async def test_too_large_is_told_before_anything_is_taken(api):
    vm = await api.fork()
    too_many = {"content-length": str(api.config.file_bytes + 1)}
    error = await api.refused(413, "payload_too_large", "PUT", at(vm), content=pieces(b"x"), headers=too_many)
    assert error["details"]["maximum_bytes"] == api.config.file_bytes
    assert not api.machine.called("write_file")


async def test_no_file_of_half_a_body(api):
    """The client goes away in the middle: whoever reads sees the file as it was."""
    vm = await api.fork()
    await put(api, vm, b"before")

    async def breaks():
        yield os.urandom(2 * MIB)
        raise ConnectionResetError

    await api.refused(500, "internal", "PUT", at(vm), content=breaks())
    assert (await api("GET", at(vm))).content == b"before"


async def test_a_fork_in_the_middle_of_an_upload(api):
    """It does not wait for the upload, and the upload goes on."""
    vm = await api.fork()
    await put(api, vm, b"before")
    more, forked = asyncio.Event(), asyncio.Event()

    async def slowly():
        yield os.urandom(2 * MIB)
        more.set()
        await forked.wait()
        yield b"end"

    upload = asyncio.create_task(put(api, vm, slowly()))
    await more.wait()
    child = await api.ok("POST", "/fork", {"source_vm_id": vm})
    assert (await api.ok("GET", f"/vms/{vm}"))["state"] == "running"
    assert not upload.done()
    forked.set()
    assert (await upload)["size"] == 2 * MIB + 3
    assert (await api("GET", at(child["vm_id"]))).content == b"before"
    assert (await api.ok("GET", f"/vms/{vm}"))["state"] == "idle"


async def test_a_box_that_is_lost_in_the_middle(api):
    vm = await api.fork()

    async def meanwhile():
        yield os.urandom(2 * MIB)
        api.machine.boxes[vm].die("gone")
        yield b"end"

    await api.refused(500, "internal", "PUT", at(vm), content=meanwhile())
    await put(api, vm, b"again")
    assert (await api("GET", at(vm))).content == b"again"


@pytest.mark.parametrize("size", [5, 2 * MIB])
async def test_a_vm_that_becomes_immutable_before_the_body_is_there(api, size):
    """However the client dawdles: what nobody can write any more stays as it is."""
    vm = await api.fork()
    await put(api, vm, b"before")

    async def meanwhile():
        yield b"x"
        await api.ok("PATCH", f"/vms/{vm}", json={"immutable": True})
        yield os.urandom(size)

    await api.refused(409, "invalid_state", "PUT", at(vm), content=meanwhile())
    fork = (await api.ok("POST", "/fork", json={"source_vm_id": vm}))["vm_id"]
    assert (await api("GET", at(fork))).content == b"before"


# sync-stream


async def stream(api, vm: str, body, **query: object):
    said = "&".join(f"{name}={value}" for name, value in query.items())
    return await api.ok("POST", f"/vms/{vm}/sync-stream?{said}", content=body)


@pytest.mark.parametrize("data", [b"", b"x", b"y" * (2 * MIB)])
async def test_a_file_by_sync_stream(either, data):
    vm = await either.fork()
    digest = hashlib.sha256(data).hexdigest()
    said = await stream(either, vm, data, path="/w/f", size=len(data), sha256=digest)
    assert said == {
        "ok": True, "op": "write_stream", "path": "/w/f", "size": len(data), "complete": True, "written": True,
    }  # fmt: skip
    assert (await either("GET", at(vm, "/w/f"))).content == data


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz"])
async def test_an_archive_by_sync_stream(either, kind):
    """Without a Content-Length: the query alone tells how much comes (wire 5.17)."""
    vm = await either.fork()
    body = archive(**{"a": b"1", "d/b": b"22"})
    body = body if kind == "tar" else gzip.compress(body)
    said = await stream(either, vm, pieces(body[:700], body[700:]), path="/w", size=len(body), extract=kind)
    assert (said["op"], said["extracted"], said["files"], said["unpacked_bytes"]) == ("extract_stream", True, 2, 3)
    assert (await either("GET", at(vm, "/w/d/b"))).content == b"22"
    path, packed, limit = either.machine.called("receive_archive")[-1]
    assert (path, packed, limit) == ("/w", kind != "tar", 4 * either.config.file_bytes)


async def test_sync_stream_takes_as_much_as_it_was_told(api):
    vm = await api.fork()
    for size in (2, 4):
        error = await api.refused(
            400, "bad_request", "POST", f"/vms/{vm}/sync-stream?path=/f&size={size}", content=pieces(b"abc")
        )
        assert "size" in error["message"]
    await api.refused(404, "not_found", "GET", at(vm))
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/sync-stream?path=/f&extract=zip", content=b"")


async def test_no_descriptor_is_left_open(api):
    vm = await api.fork()
    await put(api, vm, bytes(600_000), "/large")
    await put(api, vm, b"x", "/small")
    before = len(os.listdir("/proc/self/fd"))
    key = {"authorization": f"Bearer {api.key}"}
    for path in ("/large", "/small"):
        for headers in ({}, {"range": "bytes=1-70000"}, {"range": "bytes=999999-"}, {"if-none-match": "*"}):
            for method in ("GET", "HEAD"):
                await api.http.request(method, f"/v1{at(vm, path)}", headers=key | headers)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_file_that_is_cut_while_it_is_read_is_closed_once(api, monkeypatch):
    vm = await api.fork()
    await api.ok("PUT", f"/vms/{vm}/files/content?path=/a", content=b"hello")
    monkeypatch.setattr(os, "pread", lambda fd, size, at: b"")
    error = await api.refused(500, "internal", "GET", f"/vms/{vm}/files/content?path=/a")
    assert "became shorter" in error["message"]  # a second close would be an error of its own, or somebody else's file
