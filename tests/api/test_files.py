"""Files over HTTP: read, write in chunks, manifest, upload and download by URL."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os

import contract
from together import together

CHUNK = 4 * 1024 * 1024


def entry(path: str, data: bytes, start: int = 0, end: int | None = None, upload: str = "u1", **more: object) -> dict:
    end = len(data) if end is None else end
    content = base64.b64encode(data[start:end]).decode()
    return {
        "path": path,
        "size": len(data),
        "upload_id": upload,
        "start": start,
        "end": end,
        "content": content,
        **more,
    }


async def write(api, vm: str, *entries: dict, **more: object) -> list:
    answer = await api.ok("POST", f"/vms/{vm}/sync", {"op": "write", "writes": list(entries)}, **more)
    contract.check(answer, "SyncWriteResponse")
    return answer["results"]


async def read(api, vm: str, path: str) -> bytes:
    answer = await api.ok("POST", f"/vms/{vm}/sync", {"op": "read", "path": path})
    contract.check(answer, "SyncReadInlineResponse")
    assert answer["encoding"] == "base64"
    data = base64.b64decode(answer["content"], validate=True)
    assert answer["size"] == len(data)
    return data


@together("size", [0, 1, 2, 3, 65536, 65537, 200_000, CHUNK, CHUNK + 1])
async def test_what_is_written_is_read(either, size):
    vm = await either.fork()
    data = os.urandom(size)
    for start in range(0, max(size, 1), CHUNK):
        (done,) = await write(either, vm, entry("/w/file", data, start, min(start + CHUNK, size), is_secret=False))
    assert (done["complete"], done["written"], done["received_bytes"]) == (True, True, size)
    assert await read(either, vm, "/w/file") == data


async def test_chunks_come_in_any_order_and_repeatedly(api):
    vm = await api.fork()
    data = b"0123456789"
    (one,) = await write(api, vm, entry("/f", data, 6, 10))
    assert (one["complete"], one["written"], one["ranges"]) == (False, False, [{"start": 6, "end": 10}])
    two, again, three = await write(api, vm, entry("/f", data, 0, 4), entry("/f", data, 0, 4), entry("/f", data, 3, 7))
    assert (two["received_bytes"], again["received_bytes"], three["complete"]) == (8, 8, True)
    assert await read(api, vm, "/f") == data


async def test_an_entry_fails_on_its_own(api):
    vm = await api.fork()
    good = entry("/good", b"yes", upload="a")
    results = await write(
        api, vm,
        entry("relative", b"x", upload="b"),
        good,
        {**good, "end": 2, "upload_id": "c"},
        {**good, "sha256": "0" * 64, "upload_id": "d"},
        {"path": "/p", "size": 1, "upload_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"},
        {"path": "/p", "size": 1},
        {"path": "/p", "size": 1 << 50, "presigned": True},
    )  # fmt: skip
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [
        "bad_request", None, "bad_request", "bad_request", "not_found", "bad_request", "payload_too_large",
    ]  # fmt: skip
    assert not any(result["complete"] or result["written"] for result in results if "error" in result)
    assert await read(api, vm, "/good") == b"yes"


async def test_what_concerns_the_vm_fails_the_request(api):
    body = {"op": "write", "writes": [entry("/f", b"x")]}
    error = await api.refused(404, "not_found", "POST", "/vms/nope/sync", body)
    assert error["details"] == {"resource": "vm"}
    vm = await api.fork()
    await api.ok("PATCH", f"/vms/{vm}", {"immutable": True})
    await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/sync", body)


async def test_reading_what_is_not_there(either):
    vm = await either.fork()
    error = await either.refused(404, "not_found", "POST", f"/vms/{vm}/sync", {"op": "read", "path": "/missing"})
    assert (error["details"], error["request"]["operation_id"]) == ({"resource": "file"}, "sync")
    await write(either, vm, entry("/dir/f", b"x"))
    for wrong in ("/dir", "relative", "/", "", "/a\0b"):
        await either.refused(400, "bad_request", "POST", f"/vms/{vm}/sync", {"op": "read", "path": wrong})


async def test_manifest(api):
    vm = await api.fork()
    await write(api, vm, entry("/w/a", b"1", upload="a"), entry("/w/d/b", b"22", upload="b"))
    answer = await api.ok("POST", f"/vms/{vm}/sync", {"op": "manifest", "path": "/w/"})
    contract.check(answer, "SyncManifestResponse")
    assert answer["root"] == "/w"
    assert [(e["path"], e["size"], e["hash"]) for e in answer["entries"]] == [
        ("a", 1, hashlib.sha256(b"1").hexdigest()),
        ("d/b", 2, hashlib.sha256(b"22").hexdigest()),
    ]
    missing = await api.ok("POST", f"/vms/{vm}/sync", {"op": "manifest", "path": "/nowhere"})
    assert (missing["entries"], missing["truncated"]) == ([], False)
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/sync", {"op": "manifest", "path": "/"})


async def test_upload_by_url(either):
    vm = await either.fork()
    data = os.urandom(5 * 1024 * 1024)
    wish = {"path": "/big", "size": len(data), "presigned": True, "is_secret": False}
    (told,) = await write(either, vm, wish)
    assert told["presigned_url"].startswith("http://127.0.0.1:18888/boxwood/uploads/")
    assert (told["expires_in"], told["method"], told["complete"]) == (900, "PUT", False)
    commit = {"path": "/big", "size": len(data), "upload_id": told["upload_id"]}
    assert (await write(either, vm, commit))[0]["error"]["code"] == "conflict"  # nothing has come yet
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await either.http.put(told["presigned_url"], content=data, headers=form)).status_code == 200
    (done,) = await write(either, vm, {**commit, "sha256": hashlib.sha256(data).hexdigest()})
    assert done["complete"] and done["written"]
    assert await read(either, vm, "/big") == data
    assert (await write(either, vm, commit))[0]["complete"]
    late = await either.http.put(told["presigned_url"], content=data)
    assert late.status_code == 409


async def test_an_upload_url_is_good_for_its_upload_alone(api):
    vm = await api.fork()
    (told,) = await write(api, vm, {"path": "/f", "size": 3, "presigned": True})
    (other,) = await write(api, vm, {"path": "/g", "size": 3, "presigned": True})
    url = told["presigned_url"]
    signature = url.rsplit("signature=", 1)[1]
    for forged in (
        url.replace(told["upload_id"], other["upload_id"]),
        url.replace("expires=", "expires=9"),
        url.replace(signature, "A" * len(signature)),
        url.replace(signature, "%C3%BC"),
    ):
        answer = await api.http.put(forged, content=b"abc")
        assert answer.status_code == 403, forged
        contract.check_error(answer.json(), answer, "")
    for wrong in (url.split("?")[0], url.replace("expires=", "expires=x"), url + "&signature=x"):
        assert (await api.http.put(wrong, content=b"abc")).status_code == 400
    assert (await api.http.put(url, content=b"ab")).status_code == 400
    assert (await api.http.put(url, content=b"abcd")).status_code == 413
    assert (await api.http.put(url, content=b"abc")).status_code == 200
    expired = api.app.core.files.sign("upload", told["upload_id"], seconds=-1)
    late = f"//boxwood/uploads/{told['upload_id']}?expires={expired.expires}&signature={expired.signature}"
    await api.refused(410, "expired", "PUT", late, content=b"abc")


async def test_a_large_file_is_read_from_a_url(api, monkeypatch):
    monkeypatch.setattr("boxwood.server.routes.files.INLINE_LIMIT", 100_000)
    vm = await api.fork(name="named")
    data = os.urandom(300_001)
    await write(api, vm, entry("/a b/ü?&", data))
    answer = await api.ok("POST", "/vms/named/sync", {"op": "read", "path": "/a b/ü?&"})
    contract.check(answer, "SyncReadPresignedResponse")
    assert "content" not in answer
    got = await api.http.get(answer["presigned_url"])
    assert got.content == data
    assert got.headers["content-length"] == str(len(data))
    assert got.headers["content-disposition"] == "attachment"
    head = await api.http.head(answer["presigned_url"])
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
    forged = await api.http.get(answer["presigned_url"].replace("%C3%BC", "x"))
    assert forged.status_code == 403
    await write(api, vm, entry("/a b/ü?&", b"", upload="u2"))
    assert (await api.http.get(answer["presigned_url"])).content == b""


async def test_no_descriptor_is_left_open(api, monkeypatch):
    monkeypatch.setattr("boxwood.server.routes.files.INLINE_LIMIT", 500_000)
    vm = await api.fork()
    await write(api, vm, entry("/inline", os.urandom(300_000), upload="a"), entry("/large", bytes(600_000), upload="b"))
    await read(api, vm, "/inline")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await read(api, vm, "/inline")
        url = (await api.ok("POST", f"/vms/{vm}/sync", {"op": "read", "path": "/large"}))["presigned_url"]
        await api.http.get(url)
        await api.http.head(url)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_full_chunk_and_many_in_one_request(api):
    vm = await api.fork()
    data = os.urandom(4 * CHUNK)
    entries = [entry("/many", data, at, at + CHUNK) for at in range(0, len(data), CHUNK)]
    assert (await write(api, vm, *entries))[-1]["complete"]
    assert await read(api, vm, "/many") == data
    too_many = {"op": "write", "writes": [*entries, *entries[:1]]}
    error = await api.refused(413, "payload_too_large", "POST", f"/vms/{vm}/sync", too_many)
    assert error["details"]["maximum_bytes"] == 24 * 1024 * 1024


@together(
    "body",
    [
        {}, {"op": "erase", "path": "/f"}, {"op": "read"}, {"op": "read", "path": 1}, {"op": "write", "writes": []},
        {"op": "write"}, {"op": "read", "path": "/f", "mode": "r"}, {"op": "write", "writes": [{"path": "/f"}]},
        {"op": "write", "writes": [entry("/f", b"x", content="%%%")]},
        {"op": "write", "writes": [entry("/f", b"x", size=-1)]},
        {"op": "write", "writes": [entry("/f", b"x", extra=1)]},
    ],
)  # fmt: skip
async def test_wrong_sync_bodies(api, body):
    vm = await api.fork()
    await api.refused(400, "bad_request", "POST", f"/vms/{vm}/sync", body)


async def test_many_at_once(api):
    vm = await api.fork()
    data = {f"/c/{number}": os.urandom(100_000) for number in range(20)}
    await asyncio.gather(*(write(api, vm, entry(path, raw, upload=path[3:])) for path, raw in data.items()))
    read_back = await asyncio.gather(*(read(api, vm, path) for path in data))
    assert read_back == list(data.values())
