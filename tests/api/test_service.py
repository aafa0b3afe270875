"""The server itself: health, regions, identity, keys, the operator's routes, and how requests are received."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

import contract
from amounts import amount
from boxwood.engine.api import Feature
from boxwood.server import app
from boxwood.server.app import App
from boxwood.server.exchange import Operation
from boxwood.server.hosts import Hosts, url
from boxwood.server.routes import OPERATIONS
from boxwood.server.schema.service import Preparing
from together import together

NOBODY = {"authorization": ""}
OURS = ("version", "isolation", "level", "layers", "preparing", "problem")


async def test_health_is_public(either):
    answer = await either.ok("GET", "/health", headers=NOBODY)
    contract.check(answer, "HealthResponse", *OURS)
    assert answer["status"] == "ok"
    assert all(isinstance(active, bool) for active in answer["isolation"].values())


async def test_health_tells_of_the_host_as_it_is(api, monkeypatch):
    """Not only as it was at the start; and nobody waits for the engine's answer."""
    said = {"network of VMs": True}

    async def features():
        for name, active in said.items():
            yield Feature(name, active, "a reason", "a way out", required=False, level="full")

    monkeypatch.setattr(api.app.core.engine, "features", features)
    monkeypatch.setattr(app, "SURVEY_SECONDS", -1.0)
    for active in (True, False):
        said["network of VMs"] = active
        async with asyncio.timeout(10):
            while (await api.ok("GET", "/health", headers=NOBODY))["isolation"] != said:
                await asyncio.sleep(0)  # a request within one process lets nobody else run
    told = await api.ok("GET", "/health", headers=NOBODY)
    assert told["level"] == "none"  # of the layers that the lowest level needs, none was named
    assert told["layers"] == [
        {
            "name": "network of VMs", "active": False, "required": False, "why": "a reason", "fix": "a way out",
            "level": "full",
        }
    ]  # fmt: skip


async def test_health_while_the_host_image_is_made(api, monkeypatch):
    monkeypatch.setattr(api.app.core.goldens, "_ready", False)
    api.app.preparing = Preparing(step="files", fraction=0.5)
    response = await api("GET", "/health", headers=NOBODY)
    assert response.status_code == 503
    contract.check(response.json(), "NotReadyHealthResponse", *OURS)
    assert response.json()["preparing"] == {"step": "files", "fraction": 0.5}
    error = await api.refused(503, "unavailable", "POST", "/fork", {"source_vm_name": "ubuntu"})
    assert error["recovery"] == {"work": "not_started"}
    assert error["retry_after_seconds"] > 0


async def test_regions_and_whoami(either):
    regions = await either.ok("GET", "/regions", headers=NOBODY)
    contract.check(regions, "ListRegionsResponse")
    assert regions["regions"][0]["endpoint"] == "http://127.0.0.1:18888"
    contract.check(await either.ok("GET", "/whoami"), "WhoamiResponse")


async def test_welcome(api):
    assert (await api.ok("GET", "//", headers=NOBODY))["docs"] == "/openapi.json"


async def test_keys(either):
    made = await either.ok("POST", "/api-keys", {"name": "ci"})
    contract.check(made, "CreatedApiKey", "name", "prefix")
    assert made["key"].startswith(made["prefix"])
    other = {"headers": {"authorization": f"bearer  {made['key']}"}}
    assert await either.ok("GET", "/whoami", **other) == await either.ok("GET", "/whoami")
    listed = await either.ok("GET", "/api-keys", **other)
    contract.check(listed, "ListApiKeysResponse", "name", "prefix")
    assert [key["name"] for key in listed["api_keys"]] == ["ci", "root"]
    assert not any("key" in key for key in listed["api_keys"])
    response = await either("DELETE", f"/api-keys/{made['api_key_id']}")
    assert (response.status_code, response.content) == (204, b"")
    await either.refused(401, "unauthorized", "GET", "/whoami", **other)
    await either.refused(404, "not_found", "DELETE", f"/api-keys/{made['api_key_id']}")
    await either.ok("POST", "/api-keys")
    for scopes in ([{"vm_id": "x"}], [{"pool_id": "y"}]):
        await either.refused(422, "unsupported_operation", "POST", "/api-keys", {"scopes": scopes})
    await either.refused(400, "bad_request", "POST", "/api-keys", {"name": ""})


def keyed() -> list[Operation]:
    return [operation for operation in OPERATIONS if operation.access in ("key", "operator")]


async def test_everything_else_wants_a_key(api):
    """Of one server: nobody gets so far that anything changes."""
    headers = (
        "Bearer nope", "", "Bearer", "Bearer ", f"Basic {api.key}", api.key, "Bearer \xff", "Bearer " + "x" * 600,
    )  # fmt: skip
    assert len(keyed()) > 50
    some = amount(keyed()[::10], keyed())  # of which every header is tried
    asked = {(one.name, header): one for one in keyed() for header in (headers if one in some else headers[:2])}
    for (_, header), operation in asked.items():
        path = "/" + operation.prefixes[-1] + operation.path.replace("{", "").replace("}", "")
        answer = await api(operation.method, path, headers={"authorization": header.encode("latin-1")})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (401, "unauthorized"), (operation.name, header, answer.text)
        assert "details" not in error


async def test_a_header_that_is_there_twice(api):
    twice = [("authorization", f"Bearer {api.key}"), ("authorization", "Bearer other")]
    response = await api.http.get("/v1/whoami", headers=twice)
    assert response.json()["error"]["code"] == "bad_request"


async def test_only_the_operator_reaches_the_machine(api):
    admin = (await api.ok("POST", "/api-keys", {"name": "other"}))["key"]
    for path, body in (("//boxwood/images", {"name": "x", "path": "/etc"}), ("//boxwood/down", {})):
        await api.refused(403, "forbidden", "POST", path, body, headers={"authorization": f"Bearer {admin}"})
    for path in ("relative", "../etc", ""):
        await api.refused(400, "bad_request", "POST", "//boxwood/images", {"name": "x", "path": path})


async def test_storage(api):
    vm = await api.fork()
    await api.run(vm, "put /f 12345")
    child = (await api.ok("POST", "/fork", {"source_vm_id": vm}))["vm_id"]
    shown = {one["vm_id"]: one for one in (await api.ok("GET", "//boxwood/storage"))["vms"]}
    assert (shown[child]["layers"], shown[child]["own_bytes"], shown[child]["shared_bytes"]) == (1, 0, 5)
    assert await api.ok("POST", "//boxwood/storage/verify") == {"layers": 1, "problems": []}
    for body in ({}, {"dry_run": True}):
        found = await api.ok("POST", "//boxwood/storage/gc", body)
        assert found == {"dry_run": bool(body), "layer_ids": [], "bytes": 0}
    admin = (await api.ok("POST", "/api-keys", {"name": "other"}))["key"]
    for method, path in (("GET", ""), ("POST", "/verify"), ("POST", "/gc")):
        headers = {"authorization": f"Bearer {admin}"}
        await api.refused(403, "forbidden", method, f"//boxwood/storage{path}", headers=headers)


async def test_down_parks_and_ends(api):
    vm = await api.fork()
    await api.run(vm, "put /f kept")
    ended = asyncio.Event()
    api.app.on_down = ended.set
    assert await api.ok("POST", "//boxwood/down") == {"down": True}
    assert ended.is_set()
    assert not api.machine.boxes
    await api.refused(503, "unavailable", "GET", "/whoami")


# Routes and methods


@together(
    "path",
    [
        "/nothing",
        "/vms/",
        "//v1",
        "//v2/vms",
        "//api/v1/vms/x/y/z",
        "//v1//vms",
        "/vms/x/run",
        "//V1/vms",
        "/vms/list/",
    ],
)
async def test_unknown_routes(api, path):
    error = await api.refused(404, "not_found", "GET", path)
    assert error["request"] == {"kind": "unmatched", "method": "GET"}
    assert error["details"] == {"resource": "route"}
    await api.refused(404, "not_found", "GET", path, headers=NOBODY)


async def test_wrong_methods(either):
    for method, path, allowed in (
        ("PUT", "/vms", "GET, HEAD, OPTIONS"),
        ("GET", "/fork", "POST, OPTIONS"),
        ("POST", "/vms/x/runs/y", "GET, HEAD, DELETE, OPTIONS"),
    ):
        error = await either.refused(405, "method_not_allowed", method, path)
        assert error["request"]["kind"] == "unmatched"
        response = await either(method, path)
        assert response.headers["allow"] == allowed
        options = await either("OPTIONS", path)
        assert (options.status_code, options.headers["allow"]) == (204, allowed)
        assert "access-control-allow-origin" not in options.headers
    assert (await either("HEAD", "/vms")).status_code == 200
    assert (await either("OPTIONS", "/nothing")).status_code == 404


async def test_every_operation_of_the_contract_is_served_or_refused_by_name(either):
    served = {operation.name: operation for operation in OPERATIONS if not operation.ours}
    assert {name: (one.method, one.path) for name, one in served.items()} == contract.operations()
    for operation in served.values():
        if operation.refused:
            path = operation.path.removeprefix("/v1").replace("{", "").replace("}", "")
            response = await either(operation.method, path, {} if operation.method != "GET" else None)
            error = response.json()["error"]
            assert error["request"] == {"kind": "matched", "operation_id": operation.name}
            if "ool" in operation.path:
                assert (response.status_code, error["details"]) == (404, {"resource": "pool"})
            else:
                assert (response.status_code, error["code"]) == (422, "unsupported_operation")
                assert error["details"]["reason"] == "feature_not_supported"


@pytest.mark.parametrize(
    "method, path, feature",
    [
        ("GET", "/vms/x/tunnels", "public_ingress"),
        ("POST", "/vms/x/resize", None),
    ],
)  # fmt: skip
async def test_the_feature_is_named(api, method, path, feature):
    error = await api.refused(422, "unsupported_operation", method, path)
    assert error["details"].get("feature") == feature


# Bodies


async def test_bodies_that_are_no_json(api):
    headers = {"content-type": "application/json"}
    for raw in (
        b"{",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b"nul",
        b'{"a":1} {}',
        b'{"policies":' + b"[" * 100_000,
        b"[[]]",
    ):
        await api.refused(400, "bad_request", "POST", "/fork", content=raw, headers=headers)


async def test_members_nested_deeply(api):
    deep: dict = {}
    for _ in range(500):
        deep = {"a": deep}
    body = {"source_vm_name": "ubuntu", "policies": deep}
    await api.refused(400, "bad_request", "POST", "/fork", body)


async def test_bodies_are_bounded(api):
    big = b'{"name":"' + b"x" * (1 << 20) + b'"}'
    error = await api.refused(413, "payload_too_large", "POST", "/fork", content=big)
    assert error["details"] == {"maximum_bytes": 1 << 20, "request_bytes": len(big)}

    async def unannounced():
        for _ in range(40):
            yield b" " * (1 << 16)

    error = await api.refused(413, "payload_too_large", "POST", "/fork", content=unannounced())
    assert error["details"] == {"maximum_bytes": 1 << 20}


async def test_a_body_is_not_read_without_a_key(api):
    async def endless():
        while True:
            yield b" " * 1024

    headers = {"authorization": "Bearer nope"}
    response = await asyncio.wait_for(api("POST", "/fork", content=endless(), headers=headers), 10)
    assert response.status_code == 401


# Hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9:1", "localhost:18888", "[::1]:80", "LOCALHOST"])
async def test_loopback_names_are_answered(api, host):
    await api.ok("GET", "/whoami", headers={"host": host})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:18888", "127.0.0.1.evil.example", "10.0.0.1", "0.0.0.0"]
)
async def test_other_names_are_not(api, host):
    await api.refused(403, "forbidden", "GET", "/whoami", headers={"host": host})
    await api.refused(403, "forbidden", "GET", "/health", headers={"host": host})


@pytest.mark.parametrize("host", ["", "a b", "a/b", "a@b", "a:b", "<script>"])
async def test_what_is_no_host_is_refused(api, host):
    await api.refused(400, "bad_request", "GET", "/whoami", headers={"host": host})


async def test_a_server_for_others_answers_to_any_name(api):
    app = App(api.app.core, host="0.0.0.0")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://boxes.example") as http:
        regions = await http.get("/v1/regions")
        assert regions.json()["regions"][0]["endpoint"] == "http://boxes.example"


def test_own_names_and_urls():
    assert Hosts("127.0.0.1").check("127.0.0.1:1") == "127.0.0.1:1"
    assert Hosts("my-name.localhost").check("MY-NAME.localhost") == "MY-NAME.localhost"
    assert url("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert url("::", 1) == "http://[::1]:1"
    assert url("::1", 1) == "http://[::1]:1"
    assert url("localhost", 1) == "http://localhost:1"
    assert url("10.0.0.7", 1) == "http://10.0.0.7:1"


# Errors


async def test_an_error_of_ours_is_told_without_its_text(api, monkeypatch, caplog):
    async def broken(*_):
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(api.app.core.vms, "get", broken)
    error = await api.refused(500, "internal", "GET", "/vms/x")
    assert "secret" not in str(error)
    assert error["request_id"] in caplog.text


async def test_ok_false_for_urllib(either):
    response = await either("GET", "/vms/nope", agent="Python-urllib/3.12")
    assert response.json()["ok"] is False
    assert response.json()["error"]["code"] == "not_found"
    assert (await either("GET", "/vms/nope", agent="curl/8 Python-urllib/3.12")).json().get("ok") is None
