"""Releases 0.1 and 0.2: their routes, their promises (wire 1.9)."""

from __future__ import annotations

import base64
import os

import pytest

from together import together

AGENT = "Python-urllib/3.11"
ALIASES = ["01KQBYKEV5WJ7YB010603T1DCT_d8c0", "01KQH2A0000000000000000000_uswe", "01kqh54zzzzzzzzzzzzzzzzzzz_USWE"]


@pytest.fixture
def old(api):
    """The server as a client of the first generation reaches it."""
    api.prefix = "/api/v1"

    async def call(method, path, body=None, **more):
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return await api(method, path, body, agent=AGENT, headers=headers, **more)

    async def ok(method, path, body=None, **more):
        response = await call(method, path, body, **more)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(status, code, method, path, body=None):
        response = await call(method, path, body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
        assert response.json()["ok"] is False
        return response.json()["error"]

    call.ok, call.refused, call.api = ok, refused, api
    return call


async def forked(old, **more) -> str:
    return (await old.ok("POST", f"/vms/{ALIASES[0]}/fork", {"is_public": False, **more}))["vm_id"]


@pytest.mark.parametrize("alias", ALIASES)
async def test_the_base_image_has_many_ids(old, alias):
    made = await old.ok("POST", f"/vms/{alias}/fork", {"is_public": False, "name": "hello", "region": "us"})
    assert (made["name"], made["base_image"], made["region"]) == ("hello", "arkuntu", "local")


@pytest.mark.parametrize("other", ["01KQH2B0000000000000000000_uswe", "01KQH2A0000000000000000000", "x_uswe"])
async def test_other_ids_have_no_alias(old, other):
    await old.refused(404, "not_found", "POST", f"/vms/{other}/fork", {"is_public": False})


async def test_fork_by_name_and_of_a_vm(old):
    by_name = await old.ok("POST", "/vms/fork", {"is_public": True, "name": "a", "from": "ubuntu"})
    child = await old.ok("POST", f"/vms/{by_name['vm_id']}/fork", {"is_public": False})
    assert (child["name"], child["base_image"]) == (None, "ubuntu")
    await old.refused(404, "not_found", "POST", "/vms/fork", {"is_public": False, "from": "nope"})
    await old.refused(400, "bad_request", "POST", "/vms/fork", {"is_public": False})
    error = await old.refused(409, "already_exists", "POST", "/vms/fork", {"from": "ubuntu", "name": "a"})
    assert error["request"]["operation_id"] == "fork"


async def test_run(old):
    vm = await forked(old)
    done = await old.ok("POST", f"/vms/{vm}/run", {"command": "echo hi; err no; exit 4", "session_id": 0})
    assert (done["stdout"], done["stderr"], done["exit_code"], done["session_id"]) == ("hi\n", "no\n", 4, 0)
    assert isinstance(done["duration_ms"], float)
    assert done["cwd"] == "/root"
    await old.ok("POST", f"/vms/{vm}/run", {"command": "cd /srv", "session_id": 3})
    assert (await old.ok("POST", f"/vms/{vm}/run", {"command": "pwd", "session_id": "3"}))["stdout"] == "/srv\n"
    assert (await old.ok("POST", f"/vms/{vm}/run", {"command": "pwd"}))["stdout"] == "/root\n"
    at = [(await old.ok("POST", f"/vms/{vm}/run", {"command": c}))["cwd"] for c in ("cd /tmp", "echo", "cd ..")]
    assert at == ["/tmp", "/tmp", "/"]
    listed = await old.api.ok("GET", f"//v1/vms/{vm}/runs")
    assert len(listed["runs"]) == 7, "what was asked for, and nothing else"
    await old.refused(404, "not_found", "POST", f"/vms/{vm}/run", {"command": "pwd", "session_id": "nope"})
    await old.refused(400, "bad_request", "POST", f"/vms/{vm}/run", {"session_id": 0})


async def test_binary_output_is_marked(old):
    vm = await forked(old)
    raw = os.urandom(100)
    content = base64.b64encode(raw).decode()
    entry = {"path": "/home/user/b", "size": 100, "upload_id": "u", "start": 0, "end": 100, "content": content}
    await old.ok("POST", f"/vms/{vm}/sync", {"op": "write", "writes": [entry]})
    done = await old.ok("POST", f"/vms/{vm}/run", {"command": "cat /home/user/b"})
    assert (done["stdout_encoding"], base64.b64decode(done["stdout"])) == ("base64", raw)


async def test_a_run_that_cannot_be_answered_in_time(old, monkeypatch):
    """Its client takes 429, 502, 503 and 504 as a request to run the command again."""
    monkeypatch.setattr("boxwood.dialects.arker_legacy.SHORT_WINDOW", 0.05)
    vm = await forked(old)
    error = await old.refused(422, "operation_failed", "POST", f"/vms/{vm}/run", {"command": "hang"})
    assert error["details"] == {"reason": "deadline_exceeded"}
    assert error["recovery"]["work"] == "stopped"
    monkeypatch.undo()
    assert (await old.ok("POST", f"/vms/{vm}/run", {"command": "echo free"}))["stdout"] == "free\n"


async def test_list(old):
    made = [await forked(old, name=f"vm-{number}") for number in range(7)]
    listed = await old.ok("GET", "/vms/list")
    assert (listed["total"], [item["vm_id"] for item in listed["items"]]) == (7, made[::-1])
    assert set(listed["items"][0]) == {"vm_id", "name", "base_image", "region", "created_at"}
    for query, expected in (
        ("limit=2", made[:4:-1]),
        ("limit=2&offset=3", [made[3], made[2]]),
        ("sort=created_at&limit=3", made[:3]),
        ("sort=created_at&limit=3&offset=5", made[5:]),
        ("sort=-created_at&offset=6", made[:1]),
        ("sort=region&limit=1", made[6:]),
        ("offset=7", []),
        ("offset=100&sort=created_at", []),
        ("q=vm-3", made[3:4]),
        ("q=VM_3", []),
        ("q=%25", []),
    ):
        found = await old.ok("GET", f"/vms/list?{query}")
        assert [item["vm_id"] for item in found["items"]] == expected, query
    assert (await old.ok("GET", "/vms/list?q=vm-3"))["total"] == 1
    for wrong in ("limit=0", "limit=101", "offset=-1", "sort=name", "page=2"):
        await old.refused(400, "bad_request", "GET", f"/vms/list?{wrong}")


async def test_delete(old):
    vm = await forked(old)
    assert (await old.ok("DELETE", f"/vms/{vm}"))["deleted"] is True
    await old.refused(404, "not_found", "DELETE", f"/vms/{vm}")


OUTSIDE = [
    "/etc/passwd", "/home/user/../root/x", "/home/user", "/home/user/", "/home/users/x", "/home", "home/user/x", "",
    "/home/user/..", "/home/user/a/../b", "//etc/passwd", "/home/./../etc/passwd", "/home/user/.",
]  # fmt: skip


@together("path", OUTSIDE)
async def test_only_below_home(old, path):
    vm = await forked(old)
    url = f"/vms/{vm}/sync"
    await old.refused(400, "bad_request", "POST", url, {"op": "read", "path": path})
    chunk = {"path": path, "size": 1, "upload_id": "u", "start": 0, "end": 1, "content": "eA=="}
    for entry in (chunk, {"path": path, "size": 1, "presigned": True}, {"path": path, "size": 1, "upload_id": "u"}):
        await old.refused(400, "bad_request", "POST", url, {"op": "write", "writes": [entry]})


async def test_later_generations_write_anywhere(old):
    vm = await forked(old)
    chunk = {"path": "/etc/new", "size": 1, "upload_id": "u", "start": 0, "end": 1, "content": "eA=="}
    body = {"op": "write", "writes": [chunk]}
    for prefix, agent in (("/v1", AGENT), ("/api/v1", "python-httpx2/2.16.2"), ("/api/v1", "python-httpx/0.28.1")):
        old.api.prefix = prefix
        answer = await old.api.ok("POST", f"/vms/{vm}/sync", body, agent=agent)
        assert answer["results"][0]["written"], (prefix, agent)


@pytest.mark.parametrize("path", ["/home/user/f", "/home/user//a/./b", "/home/user/..hidden", "/home/user/a..b/c"])
async def test_write_and_read_below_home(old, path):
    vm = await forked(old)
    chunk = {"path": path, "size": 2, "upload_id": "u", "start": 0, "end": 2, "content": "aGk="}
    answer = await old.ok("POST", f"/vms/{vm}/sync", {"op": "write", "writes": [chunk]})
    assert answer["results"][0]["complete"] and answer["results"][0]["written"]
    read = await old.ok("POST", f"/vms/{vm}/sync", {"op": "read", "path": path})
    assert (read["content"], read["encoding"]) == ("aGk=", "base64")
    await old.refused(404, "not_found", "POST", f"/vms/{vm}/sync", {"op": "read", "path": "/home/user/missing"})


async def test_presigned_upload(old):
    vm = await forked(old)
    data = os.urandom(8 * 1024 * 1024)
    url, path = f"/vms/{vm}/sync", "/home/user/big"
    wish = {"path": path, "size": len(data), "presigned": True}
    (told,) = (await old.ok("POST", url, {"op": "write", "writes": [wish]}))["results"]
    form = {"content-type": "application/x-www-form-urlencoded", "user-agent": AGENT}
    sent = await old.api.http.put(told["presigned_url"], content=data, headers=form)
    assert sent.status_code < 400
    commit = {"path": path, "size": len(data), "upload_id": told["upload_id"]}
    (done,) = (await old.ok("POST", url, {"op": "write", "writes": [commit]}))["results"]
    assert "error" not in done
    read = await old.ok("POST", url, {"op": "read", "path": path})
    assert base64.b64decode(read["content"]) == data
    late = await old.api.http.put(told["presigned_url"].replace("expires=", "expires=1"), content=data, headers=form)
    assert (late.status_code, late.json()["ok"]) == (403, False)


async def test_files_are_bounded(old):
    vm = await forked(old)
    wish = {"path": "/home/user/huge", "size": 100 * 1024 * 1024 + 1, "presigned": True}
    (told,) = (await old.ok("POST", f"/vms/{vm}/sync", {"op": "write", "writes": [wish]}))["results"]
    assert told["error"]["code"] == "payload_too_large"


async def test_these_routes_are_below_api_alone(old):
    old.api.prefix = "/v1"
    vm = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    for method, path in (("POST", f"/vms/{vm}/run"), ("POST", f"/vms/{vm}/fork")):
        await old.refused(404, "not_found", method, path)
    await old.refused(404, "not_found", "GET", "/vms/list")
