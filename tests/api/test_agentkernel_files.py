"""agentkernel's protocol: the files of sandboxes."""

from __future__ import annotations

import base64
import os
from urllib.parse import unquote

from together import together


async def test_files(ak):
    await ak.create("a")
    assert (
        await ak.ok("PUT", "/sandboxes/a/files/tmp/x/f.txt", {"content": "grüße\n"}) == "Wrote 8 bytes to /tmp/x/f.txt"
    )
    assert await ak.ok("GET", "/sandboxes/a/files/tmp/x/f.txt") == {"content": "grüße\n", "encoding": "utf8", "size": 8}
    raw = b"\xff\x00" + os.urandom(100_000)
    body = {"content": base64.b64encode(raw).decode(), "encoding": "base64"}
    assert await ak.ok("PUT", "/sandboxes/a/files//tmp//raw/", body) == "Wrote 100002 bytes to /tmp/raw"
    read = await ak.ok("GET", "/sandboxes/a/files/tmp/raw")
    assert (read["encoding"], read["size"], base64.b64decode(read["content"])) == ("base64", 100_002, raw)
    assert await ak.ok("DELETE", "/sandboxes/a/files/tmp/raw") == "Deleted /tmp/raw"
    assert await ak.ok("DELETE", "/sandboxes/a/files/tmp/raw") == "Deleted /tmp/raw"
    await ak.refused(404, "no such file", "GET", "/sandboxes/a/files/tmp/raw")
    assert await ak.ok("PUT", "/sandboxes/a/files/e", {"content": "", "encoding": None}) == "Wrote 0 bytes to /e"
    assert await ak.ok("GET", "/sandboxes/a/files/e") == {"content": "", "encoding": "utf8", "size": 0}


async def test_paths_are_decoded_in_parts(ak):
    await ak.create("a")
    assert (
        await ak.ok("PUT", "/sandboxes/a/files/tmp/a%20b%23%3F%25", {"content": "x"}) == "Wrote 1 bytes to /tmp/a b#?%"
    )
    assert await ak.ok("DELETE", "/sandboxes/a/files/-rf") == "Deleted /-rf"


async def test_what_cannot_be_read_is_not_found(ak):
    await ak.create("a")
    for path in ("", "/", "etc", "nope", "etc/os-release/x"):
        assert (await ak("GET", f"/sandboxes/a/files/{path}")).status_code == 404, path


@together(
    "path", ["a%2F%2e%2e%2Fb", "a..b", "%2e%2e/x", "proc/1/environ", "sys/x", "dev/null", "device", "etc/passwd", "etc/shadow-",
             "etc/sudoers.d/x", "root/.ssh/id", ".//proc/x", "a%00b"],
)  # fmt: skip
async def test_paths_that_nobody_may_name(ak, sandbox, path):
    url = f"http://127.0.0.1:18888/sandboxes/a/files/{path}"
    for method, body in (("GET", None), ("PUT", {"content": ""}), ("DELETE", None)):
        request = ak.api.http.build_request(method, "/x", json=body, headers={"authorization": f"Bearer {ak.key}"})
        request.url = request.url.copy_with(raw_path=url.removeprefix("http://127.0.0.1:18888").encode())
        answer = await ak.api.http.send(request)
        assert (answer.status_code, answer.json()["success"]) == (400, False), answer.text
    name = "/" + unquote(path)
    await ak.refused(400, "Invalid path", "POST", "/sandboxes/a/files", {"files": {"/ok": "1", name: "2"}})
    assert not ak.api.machine.called("write_file")


async def test_writing_wrongly(ak):
    await ak.create("a")
    for wrong in (
        {},
        {"content": None},
        {"content": 1},
        {"content": "***", "encoding": "base64"},
        {"content": "YQ", "encoding": "base64"},
    ):
        assert (await ak("PUT", "/sandboxes/a/files/f", wrong)).status_code == 400
    for wrong in ({}, {"files": {}}, {"files": ["/a"]}, {"files": {"a": "relative"}}, {"files": {"/a": None}}):
        assert (await ak("POST", "/sandboxes/a/files", wrong)).status_code == 400
    await ak.refused(400, "Invalid base64", "PUT", "/sandboxes/a/files/f", {"content": "*", "encoding": "base64"})
    assert not ak.api.machine.called("write_file")


async def test_several_files(ak):
    await ak.create("a")
    assert await ak.ok("POST", "/sandboxes/a/files", {"files": {"/a/1": "one", "/b": "zwei"}}) == {"written": 2}
    assert (await ak.ok("GET", "/sandboxes/a/files/a/1"))["content"] == "one"


async def test_files_that_are_too_big(ak, monkeypatch):
    await ak.create("a")
    big = b'{"content":"' + b"x" * (16 << 20) + b'"}'
    await ak.refused(413, "16777216", "PUT", "/sandboxes/a/files/f", content=big)
    await ak.ok("PUT", "/sandboxes/a/files/f", {"content": "x" * 70_000})
    monkeypatch.setattr("boxwood.dialects.agentkernel.files.READ_LIMIT", 69_999)
    await ak.refused(413, "70000 bytes", "GET", "/sandboxes/a/files/f")
