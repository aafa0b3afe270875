"""agentkernel's protocol: who may ask, what is answered where there is nothing, and that all of it can be left out."""

from __future__ import annotations

from dataclasses import replace

import httpx2
import pytest

from boxwood.core.core import Core
from boxwood.dialects import agentkernel
from boxwood.server.app import App
from boxwood.server.routes import OPERATIONS
from fakes import fake_engine
from together import together

COMMAND = {"command": ["put", "/f", "x"]}
ONE = "/sandboxes/theirs"
BODIES = {
    "/run": COMMAND, "/run/stream": COMMAND, "/batch/run": {"commands": [COMMAND]}, "/sandboxes": {"name": "mine"},
    f"{ONE}/exec": COMMAND, f"{ONE}/exec/detach": COMMAND, f"{ONE}/files": {"files": {"/f": "x"}},
    f"{ONE}/extend": {"by": "1h"},
    f"{ONE}/files/tmp/f": {"content": "x"},
}  # fmt: skip


def routes(refused: bool = False) -> list[tuple[str, str]]:
    """Every one but health, with something in place of its parameters; `refused`: those for what is not there."""
    filled = {
        "{name}": "theirs",
        "{path}": "tmp/f",
        "{id}": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "{rest}": "x",
        "{uuid}": "UUID",
    }
    found = []
    for operation in agentkernel.DIALECT.operations:
        path = operation.path
        for name, value in filled.items():
            path = path.replace(name, value)
        if operation.access != "public" and (operation.refused or not refused):
            found.append((operation.method, path))
    return found


REFUSED = routes(refused=True)


async def state(ak) -> tuple:
    """What a request could have changed."""
    machine = ak.api.machine
    vms = (await ak.api.ok("GET", "/vms"))["vms"]
    return [(vm["vm_id"], vm["name"]) for vm in vms], len(machine.calls), machine.view([next(iter(machine.layers))])


@pytest.fixture
async def theirs(ak):
    return await ak.create("theirs")


@together(("method", "path"), routes())
async def test_without_a_key(ak, theirs, method, path):
    before = await state(ak)
    for header, text in (
        ({"authorization": ""}, "Invalid authorization format. Use: Bearer <api_key>"),
        ({"authorization": "Bearer nope"}, "Invalid API key"),
        ({"authorization": f"Basic {ak.key}"}, "Invalid authorization format. Use: Bearer <api_key>"),
    ):
        answer = await ak(method, path, BODIES.get(path), headers=header)
        assert (answer.status_code, answer.json()) == (401, {"success": False, "error": text})
    answer = await ak.api.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]) == (401, "Missing Authorization header")
    assert await state(ak) == before


@together(("method", "path"), [route for route in routes() if "sandboxes/" in route[1]])
async def test_with_another_organisations_key(ak, stranger, theirs, method, path):
    before = await state(ak)
    answer = await stranger(method, path.replace("UUID", theirs["uuid"]), BODIES.get(path))
    assert answer.status_code == (422 if (method, path) in REFUSED else 404), answer.text
    assert await state(ak) == before


async def test_each_organisation_has_names_of_its_own(ak, stranger):
    await ak.create("theirs")
    assert await stranger.ok("GET", "/sandboxes") == []
    await stranger.create("theirs")
    await stranger.ok("PUT", f"{ONE}/files/f", {"content": "stranger's"})
    await ak.refused(404, "no such file", "GET", f"{ONE}/files/f")
    await stranger.ok("DELETE", ONE)
    assert (await ak.ok("GET", ONE))["status"] == "running"


async def test_a_public_vm_of_others_is_not_there(ak, stranger):
    vm = await ak.api.fork(name="shown", public=True)
    assert (await ak.api.ok("GET", "/vms/shown"))["public"] is True
    uuid = agentkernel.sandboxes.words.uuid_of(vm)
    for path in ("/sandboxes/shown", f"/sandboxes/by-uuid/{uuid}", "/sandboxes/shown/logs"):
        await stranger.refused(404, "Sandbox not found", "GET", path)
    await stranger.refused(404, "Sandbox not found", "DELETE", "/sandboxes/shown")


async def test_health_is_open(ak, monkeypatch):
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = await ak.api.http.get("/health", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"success": True, "data": "ok"})
    monkeypatch.setattr(ak.api.app.core.goldens, "_ready", False)
    await ak.refused(503, "still being made", "GET", "/health")
    await ak.refused(503, "still being made", "POST", "/run", COMMAND)
    assert (await ak.ok("GET", "/backends"))["backends"][0]["usable"] is False


@together(
    ("method", "path"),
    [("GET", "/run"), ("DELETE", "/health"), ("POST", "/health"), ("PUT", "/sandboxes"), ("GET", "/sandboxes/a/b"),
     ("GET", "/sandboxes/a/exec"), ("OPTIONS", "/sandboxes"), ("GET", "/batch"), ("POST", "/run/x"), ("GET", "/sandboxes/a/files")],
)  # fmt: skip
async def test_what_is_no_route(ak, method, path):
    assert (await ak.refused(404, "Not found", method, path)) == {"success": False, "error": "Not found"}
    assert (await ak(method, path, headers={"authorization": "Bearer x"})).status_code == 401


async def test_slashes_do_not_count(ak):
    await ak.create("a")
    for path in ("/sandboxes/", "//sandboxes", "/sandboxes//"):
        answer = await ak.api.http.get(f"http://127.0.0.1:18888{path}", headers={"authorization": f"Bearer {ak.key}"})
        assert [one["name"] for one in answer.json()["data"]] == ["a"]
    assert (await ak.ok("GET", "/sandboxes/a/"))["name"] == "a"
    assert (await ak.ok("GET", "/health/")) == "ok"


async def test_paths_that_are_no_text(ak):
    answer = await ak.api.http.get("/sandboxes/%ff")
    assert (answer.status_code, answer.json()["error"]) == (401, "Missing Authorization header")
    await ak.refused(404, "Not found", "GET", "/sandboxes/%ff")


async def test_names_in_paths(ak):
    for wrong in ("%2e%2e", "a%2Fb", "a%00b", "a%20b", "%C3%BC", "x" * 64):
        for method, more in (("GET", ""), ("DELETE", ""), ("POST", "/stop")):
            await ak.refused(400, "Invalid sandbox name", method, f"/sandboxes/{wrong}{more}")


@pytest.mark.parametrize("head", ["snapshots", "orchestrations", "objects", "schedules", "stores"])
async def test_what_is_not_there_yet_says_so(ak, head):
    for method in ("GET", "POST", "DELETE"):
        for path in (f"/{head}", f"/{head}/x/y"):
            await ak.refused(422, "not supported", method, path, {} if method == "POST" else None)


async def test_hosts(ak):
    await ak.refused(403, "loopback", "GET", "/health", headers={"host": "evil.example"})
    await ak.refused(400, "Host", "GET", "/sandboxes", headers={"host": "a b"})


def test_no_path_is_also_ours():
    ours = {operation.path.split("/")[1] for operation in OPERATIONS} | {"api"}
    assert not ours & agentkernel.HEADS
    assert {operation.path.split("/")[1] for operation in agentkernel.DIALECT.operations} == agentkernel.HEADS


async def test_it_can_be_left_out(ak):
    await ak.api.app.core.close()
    core = await Core.open(replace(ak.api.config, dialects=()), fake_engine.FakeEngine(ak.api.machine))
    try:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(App(core)), base_url="http://localhost") as http:
            for path in ("/health", "/sandboxes"):
                answer = await http.get(path, headers={"authorization": f"Bearer {ak.key}"})
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    finally:
        await core.close()
