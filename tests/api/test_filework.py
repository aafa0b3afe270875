"""Files over HTTP beside sync: status, lists, directories, names, modes, patterns, text, archives, changes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
from dataclasses import replace
from typing import Any

import pytest

from boxwood.engine.api import BoxGone, GuestError
from boxwood.engine.fileapi import FileChange
from fakefiles import FakeFiles
from together import together

RAW = b"/w/\xff\xfe"


@pytest.fixture
async def vm(api: Any) -> str:
    vm = await api.fork(name="files")
    await api.run(vm, "put /w/a needle here; put /w/d/b another needle; put /w/d/c nothing")
    return str(vm)


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


async def test_status(api, either, vm):
    found = await either.ok("GET", f"/vms/{vm}/files/stat?path=/w/a")
    assert found == {
        "path": "/w/a", "kind": "file", "size": 11, "mode": 0o644, "uid": 0, "gid": 0, "links": 1,
        "modified_at": "1970-01-01T00:00:01.500000Z",
    }  # fmt: skip
    assert (await api.ok("GET", "/vms/files/files/stat?path=/w/"))["kind"] == "directory"
    error = await api.refused(404, "not_found", "GET", f"/vms/{vm}/files/stat?path=/none")
    assert error["details"] == {"resource": "file"}


@together(
    "query",
    [
        "",
        "path=relative",
        "path=",
        "path=/a%00b",
        "path=/a&path_base64=L2E%3D",
        "path_base64=%21",
        "path=/" + "x" * 4096,
        "path=/w&follow=perhaps",
        "path=/w&other=1",
    ],
)
async def test_paths_that_make_no_sense(api, vm, query):
    await api.refused(400, "bad_request", "GET", f"/vms/{vm}/files/stat?{query}")


async def test_names_that_are_no_utf_8(api, vm):
    """They are told exactly, and taken so."""
    where = {"path_base64": encoded(RAW)}
    assert (await api.ok("POST", f"/vms/{vm}/files/mkdir", where)) == {"created": True}
    (entry,) = [
        one for one in (await api.ok("GET", f"/vms/{vm}/files/list?path=/w"))["entries"] if "path_base64" in one
    ]
    assert (entry["path"], base64.b64decode(entry["path_base64"])) == ("\ufffd\ufffd", b"\xff\xfe")
    found = await api.ok("GET", f"/vms/{vm}/files/stat", params=where)
    assert base64.b64decode(found["path_base64"]) == RAW and found["kind"] == "directory"
    await api.ok("POST", f"/vms/{vm}/files/chmod", {**where, "mode": 0o700})
    assert (await api.ok("GET", f"/vms/{vm}/files/stat", params=where))["mode"] == 0o700
    assert await api.ok("POST", f"/vms/{vm}/files/remove", where) == {"removed": 1}
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/files/stat", params=where)


async def test_lists_come_page_by_page(api, vm):
    for number in range(7):
        await api.run(vm, f"put /many/{number} x")
    seen, cursor = [], ""
    while True:
        page = await api.ok("GET", f"/vms/{vm}/files/list?path=/many&limit=3&cursor={cursor}")
        seen.append([one["path"] for one in page["entries"]])
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    for wrong in (
        "limit=0",
        "limit=10001",
        "cursor=-",
        "cursor=" + encoded(b"a/b"),
        "cursor=" + encoded(b"\0").replace("=", "%3D"),
        "cursor=" + "A" * 600,
    ):
        await api.refused(400, "bad_request", "GET", f"/vms/{vm}/files/list?path=/many&{wrong}")
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/files/list?path=/w/a")


async def test_directories_names_and_modes(api, vm):
    def post(what: str, **body: Any) -> Any:
        return api.ok("POST", f"/vms/{vm}/files/{what}", body)

    assert await post("mkdir", path="/w/new/dir", parents=True, mode=0o750) == {"created": True}
    assert await post("mkdir", path="/w/new/dir", parents=True) == {"created": False}
    assert (await api.ok("GET", f"/vms/{vm}/files/stat?path=/w/new/dir"))["mode"] == 0o750
    await api.refused(409, "conflict", "POST", f"/vms/{vm}/files/mkdir", {"path": "/w/d"})
    assert await post("move", path="/w/a", to="/w/moved") == {"ok": True}
    await api.refused(409, "conflict", "POST", f"/vms/{vm}/files/move", {"path": "/w/moved", "to": "/w/d/b"})
    assert await post("move", path="/w/moved", to="/w/d/b", replace=True) == {"ok": True}
    await api.refused(409, "conflict", "POST", f"/vms/{vm}/files/remove", {"path": "/w/d"})
    assert await post("remove", path="/w/d", recursive=True) == {"removed": 3}
    assert await post("chmod", path="/w", mode=0o711) == {"ok": True}
    for body in (
        {"path": "/w"},
        {"path": "/w", "mode": 0o10000},
        {"path": "/w", "mode": -1},
        {"path": "/w", "mode": "755"},
    ):
        await api.refused(400, "bad_request", "POST", f"/vms/{vm}/files/chmod", body)
    for body in (
        {"path": "/w"},
        {"to": "/w"},
        {"path": "/w", "to": "x"},
        {"path": "/w", "to": "/x", "to_base64": "L3g="},
    ):
        await api.refused(400, "bad_request", "POST", f"/vms/{vm}/files/move", body)


async def test_patterns_and_text(api, vm):
    found = await api.ok("GET", f"/vms/{vm}/files/glob?path=/w&pattern=d/*")
    assert [one["path"] for one in found["entries"]] == ["d/b", "d/c"] and found["truncated"] is None
    found = await api.ok("GET", f"/vms/{vm}/files/glob?path=/w&pattern=*&limit=1")
    assert len(found["entries"]) == 1 and found["truncated"] == "limit"
    found = await api.ok("POST", f"/vms/{vm}/files/search", {"path": "/w", "pattern": "ne+dle"})
    assert found == {
        "engine": "builtin", "truncated": None,
        "matches": [
            {"path": "a", "line": 1, "column": 1, "text": "needle here"},
            {"path": "d/b", "line": 1, "column": 9, "text": "another needle"},
        ],
    }  # fmt: skip
    for body in (
        {"pattern": "x"},
        {"path": "/w"},
        {"path": "/w", "pattern": ""},
        {"path": "/w", "pattern": "("},
        {"path": "/w", "pattern": "x", "seconds": 61},
        {"path": "/w", "pattern": "x", "engine": "grep"},
        {"path": "/w", "pattern": "a\0b"},
        {"path": "/w", "pattern": "x", "include": ["x"] * 33},
    ):
        await api.refused(400, "bad_request", "POST", f"/vms/{vm}/files/search", body)


async def test_archives(api, vm):
    response = await api("GET", f"/vms/{vm}/files/tar?path=/w")
    assert response.headers["content-type"] == "application/x-tar" and "content-length" not in response.headers
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        assert sorted(tar.getnames()) == ["a", "d", "d/b", "d/c"]
    done = await api.ok("PUT", f"/vms/{vm}/files/tar?path=/copy", content=response.content)
    assert (done["entries"], done["skipped"]) == (4, 0)
    assert (await api.run(vm, "cat /copy/d/b"))["stdout"] == "another needle"
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/files/tar?path=/none")
    await api.refused(400, "bad_request", "PUT", f"/vms/{vm}/files/tar?path=/copy", content=b"x" * 3000)
    await api.refused(400, "bad_request", "PUT", f"/vms/{vm}/files/tar", content=b"")


async def test_an_archive_may_have_so_many_bytes(api, vm, monkeypatch):
    bounded = replace(api.config, file_bytes=4096)
    monkeypatch.setattr(api.app.core, "config", bounded)
    monkeypatch.setattr(api.app.core.filework, "_config", bounded)

    async def pieces():
        for _ in range(5):
            yield b"x" * 1000

    error = await api.refused(413, "payload_too_large", "PUT", f"/vms/{vm}/files/tar?path=/c", content=b"x" * 5000)
    assert error["details"]["maximum_bytes"] == 4096
    await api.refused(413, "payload_too_large", "PUT", f"/vms/{vm}/files/tar?path=/c", content=pieces())


async def test_half_an_archive_is_no_answer(api, vm):
    """What breaks in the middle breaks the connection: the last message of the body never comes."""
    await api.run(vm, "put /w/large " + "x" * 9000)
    api.machine.fail["packed"] = []
    sent = []

    async def send(message):
        sent.append(message)
        api.machine.fail["packed"] = [GuestError(116, "became shorter")]

    async def receive():
        return await asyncio.Event().wait()

    path = f"/v1/vms/{vm}/files/tar".encode()
    headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {api.key}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path.decode(),
        "raw_path": path,
        "query_string": b"path=/w",
        "headers": headers,
        "scheme": "http",
        "http_version": "1.1",
    }
    await api.app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert all(message.get("more_body") for message in sent[1:])


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines["event"], json.loads(lines["data"])))
    return found


async def test_changes_are_told(api, vm):
    api.machine.boxes[vm].changes = [
        FileChange("created", b"x"), FileChange("moved", b"x", b"\xff", True), FileChange("overflow", watched=3),
    ]  # fmt: skip
    response = await api("GET", f"/vms/{vm}/files/watch?path=/w")
    assert response.headers["content-type"] == "text/event-stream"
    assert events(response.text) == [
        ("watching", {"watched": 1, "complete": True}),
        ("created", {"path": "x", "directory": False}),
        ("moved", {"path": "x", "to": "\ufffd", "to_base64": "/w==", "directory": True}),
        ("overflow", {"watched": 3, "complete": True}),
        ("gone", {"watched": 0, "complete": True}),
    ]
    await api.refused(404, "not_found", "GET", f"/vms/{vm}/files/watch?path=/none")
    api.machine.fail["change"] = [GuestError(5, "broken")]
    assert events((await api("GET", f"/vms/{vm}/files/watch?path=/w")).text)[-1][0] == "error"


async def test_an_immutable_vm_is_not_worked_on(api, vm):
    await api.ok("PATCH", f"/vms/{vm}", {"immutable": True})
    await api.refused(409, "invalid_state", "POST", f"/vms/{vm}/files/remove", {"path": "/w", "recursive": True})
    await api.refused(409, "invalid_state", "GET", f"/vms/{vm}/files/stat?path=/w")


async def test_one_that_never_ran_and_one_that_is_parked(api):
    vm = await api.fork()
    assert vm not in api.machine.boxes
    assert (await api.ok("GET", f"/vms/{vm}/files/stat?path=/etc/os-release"))["size"] == 4
    caller = await api.app.core.keys.authenticate(api.key)
    await api.app.core.vms.park(caller, vm)
    assert vm not in api.machine.boxes
    assert (await api.ok("GET", f"/vms/{vm}/files/glob?path=/etc&pattern=*"))["entries"]


async def test_a_box_that_dies_meanwhile(api, vm, monkeypatch):
    """What may be done twice is; what may not is told."""
    monkeypatch.setattr("boxwood.core.boxes.GONE_SECONDS", 0.01)  # the fake one is not gone in truth
    api.machine.fail["list"] = [BoxGone("it died")]
    assert (await api.ok("GET", f"/vms/{vm}/files/list?path=/w"))["entries"]
    api.machine.fail["remove"] = [BoxGone("it died")]
    error = await api.refused(500, "internal", "POST", f"/vms/{vm}/files/remove", {"path": "/w/a"})
    assert error["recovery"] == {"work": "unknown"}


async def test_too_much_at_once(api, vm):
    api.machine.fail["glob"] = [GuestError(11, "32 at once")]
    error = await api.refused(409, "resource_busy", "GET", f"/vms/{vm}/files/glob?path=/w&pattern=*")
    assert error["message"] == "32 at once"


@pytest.mark.parametrize(("route", "work"), [("tar", "pack"), ("watch", "watch")])
async def test_what_nobody_wants_the_body_of_holds_nothing(api, vm, monkeypatch, route, work):
    begin, held = getattr(FakeFiles, work), []

    async def holding(self, path, **more):
        bits = await begin(self, path, **more)
        held.append(path)
        return released(bits)

    async def released(bits):
        try:
            async for bit in bits:
                yield bit
        finally:
            held.pop()

    monkeypatch.setattr(FakeFiles, work, holding)
    assert (await api("HEAD", f"/vms/{vm}/files/{route}?path=/w")).status_code == 200
    assert held == []
    assert (await api("GET", f"/vms/{vm}/files/{route}?path=/w")).status_code == 200
    assert held == []


async def test_an_archive_that_stops_coming_is_refused(api, vm, monkeypatch):
    monkeypatch.setattr("boxwood.server.exchange.SILENT_SECONDS", 0.01)

    async def pieces():
        yield b"x" * 512
        await asyncio.Event().wait()

    error = await api.refused(400, "bad_request", "PUT", f"/vms/{vm}/files/tar?path=/c", content=pieces())
    assert "nothing came" in error["message"]
