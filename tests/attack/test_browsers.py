"""A web page that somebody on this machine looks at reaches the server on loopback: it must not be able to do anything
there, nor read anything (attacks.md, item 34).

A browser sends what a page asks for without asking the server first, as long as it is a "simple" request: GET, HEAD or
POST, with a body of text/plain, a form or multipart, and no header of the page's own. Authorization is such a header,
and there are no cookies: so every simple request comes without a key. All else is asked for with a preflight, which
must not be granted.
"""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from amounts import amount
from boxwood.server.exchange import Operation
from boxwood.server.routes import DIALECTS, OPERATIONS
from wellformed import BODIES, KUBERNETES

EVERY: list[Operation] = [*OPERATIONS, *(one for dialect in DIALECTS for one in dialect.operations)]
ORIGINS = ("https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1:18888.evil.example", "file://")
SIMPLE = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
CORS = re.compile("access-control-|cross-origin-resource-policy", re.IGNORECASE)


def path_of(operation: Operation, vm: str) -> str:
    return operation.prefixes[0] + re.sub(
        r"\{(\w+)\}", lambda found: vm if found[1] == "id" else "theirs", operation.path
    )


def body_of(operation: Operation, vm: str) -> Any:
    kubernetes = KUBERNETES.items() if operation.name.startswith("arlKube") else ()
    kind = next((body for plural, body in kubernetes if f"/{plural}" in operation.path), None)
    body = kind or BODIES.get(operation.name) or {}
    return {name: vm if value == "VM" else value for name, value in body.items()}


def granted(response: httpx2.Response) -> list[str]:
    """What would let a page read an answer, or send what is not simple."""
    return [name for name in response.headers if CORS.match(name)]


async def untouched(api: Any, vm: str) -> Any:
    listed = await api.ok("GET", "/vms?limit=1000")
    return listed, len(api.machine.calls), api.machine.boxes[vm].tree(), await api.ok("GET", "/api-keys")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_simple_request_does_nothing(api, method):
    """To every route: without a key it is refused, whatever it says that it is."""
    vm = await api.fork(name="theirs")
    await api.run(vm, "put /secret x")
    before = await untouched(api, vm)
    for operation in EVERY:
        if operation.method != method.replace("HEAD", "GET"):
            continue
        for number, kind in enumerate(SIMPLE if method == "POST" else SIMPLE[-1:]):
            headers = {
                "origin": ORIGINS[number],
                "referer": "https://evil.example/",
                "cookie": "key=x",
                "content-type": kind,
            }
            headers["sec-fetch-site"] = "cross-site"
            made = api.http.build_request(method, path_of(operation, vm), headers=headers, json=body_of(operation, vm))
            made.headers["content-type"] = kind
            response = await api.http.send(made)
            assert not granted(response), operation.name
            if operation.access in ("key", "operator", "ticket"):
                assert response.status_code == 401, (operation.name, response.text)
            assert "x-content-type-options" in response.headers
    assert await untouched(api, vm) == before


async def test_the_key_is_not_taken_from_anywhere_else(api):
    """Neither a cookie, nor the query, nor a form, nor what a browser fills in when a page asks for a password."""
    from base64 import b64encode

    for given in (
        {"headers": {"cookie": f"authorization=Bearer {api.key}; key={api.key}"}},
        {"params": {"authorization": f"Bearer {api.key}", "api_key": api.key, "key": api.key, "token": api.key}},
        {"headers": {"authorization": "Basic " + b64encode(f"x:{api.key}".encode()).decode()}},
        {"headers": {"x-api-key": api.key, "proxy-authorization": f"Bearer {api.key}"}},
    ):
        for path in ("/v1/vms", "/sandboxes", "/arl/v1/sessions", "/k8s/version"):
            assert (await api.http.get(path, **given)).status_code == 401, given
    answer = await api.http.post(
        "/v1/fork", content=f"authorization=Bearer {api.key}", headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 401
    assert (await api.http.get("/v1/vms", headers={"authorization": f"Bearer {api.key}"})).status_code == 200, (
        "the probe"
    )


@pytest.mark.parametrize("origin", ORIGINS)
async def test_no_preflight_is_granted(api, origin):
    headers = {
        "origin": origin, "access-control-request-method": "DELETE", "access-control-request-private-network": "true",
        "access-control-request-headers": "authorization, content-type",
    }  # fmt: skip
    for operation in EVERY[:: 1 if origin == ORIGINS[0] else amount(9, 1)]:
        response = await api.http.options(path_of(operation, "theirs"), headers=headers)
        assert not granted(response), operation.name


@pytest.mark.parametrize("origin", ORIGINS)
async def test_no_answer_can_be_read_by_a_page(api, origin):
    """Not even with a key that the page has come by, nor a public one."""
    for path in (
        "/v1/health",
        "/v1/vms",
        "/v1/nothing",
        "/health",
        "/sandboxes",
        "/arl/healthz",
        "/k8s/version",
        "/openapi.json",
    ):
        for key in ({}, {"authorization": f"Bearer {api.key}"}):
            response = await api.http.get(path, headers={"origin": origin, **key})
            assert not granted(response), path
            assert response.headers["cache-control"] == "no-store"


async def test_a_rebound_name_is_refused(api):
    """A page whose own name has come to mean 127.0.0.1 is of the same origin as the server, to the browser: it may read.
    So nothing is told to it, not even what is public; and not with a key."""
    vm = await api.fork()
    await api.run(vm, "put /secret x")
    before = await untouched(api, vm)
    for number, host in enumerate(
        (
            "evil.example:18888",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "0x7f000001.evil",
            "[::ffff:8.8.8.8]",
        )
    ):
        for operation in EVERY[:: amount(9, 1) if number else 1]:
            headers = {"host": host, "origin": f"http://{host}", "authorization": f"Bearer {api.key}"}
            response = await api.http.request(
                operation.method, path_of(operation, vm), headers=headers, json=body_of(operation, vm)
            )
            assert response.status_code == 403, (host, operation.name, response.text)
            assert not granted(response)
    assert await untouched(api, vm) == before
    assert not api.app.stopping.is_set(), "and it is not brought down"


async def test_what_is_shown_is_no_page(api):
    """Whatever lies in a file: a browser that is led to a URL keeps it, instead of running it on this origin."""
    vm = await api.fork()
    await api.run(vm, "put /page.html <script>alert(1)</script>")
    org = (await api.app.core.keys.authenticate(api.key)).org_id
    signed = api.app.core.files.sign("download", org, vm, "/page.html", seconds=60)
    query = {"path": "/page.html", "org": org, "expires": signed.expires, "signature": signed.signature}
    shown = await api.http.get(f"/boxwood/files/{vm}", params=query)
    assert shown.text == "<script>alert(1)</script>"
    assert shown.headers["content-type"] == "application/octet-stream"
    assert (
        shown.headers["content-disposition"] == "attachment" and shown.headers["content-security-policy"] == "sandbox"
    )
    for path in (
        "/",
        "/v1/<script>",
        "/v1/vms/<script>alert(1)</script>",
        "/sandboxes/<script>",
        "/arl/<script>",
        "/k8s/<script>",
    ):
        answer = await api.http.get(path, headers={"authorization": f"Bearer {api.key}"})
        assert (
            answer.headers["content-type"] == "application/json"
            and answer.headers["x-content-type-options"] == "nosniff"
        )
