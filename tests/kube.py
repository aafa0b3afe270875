"""The server in memory, as a client of Kubernetes speaks to it. Every refusal is held against the shape of a Status."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2

ARL = "/k8s/apis/arl.infra.io/v1alpha1"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
PYTHON = "OpenAPI-Generator/35.0.0/python"  # as the official Python client calls itself
REASONS = {
    400: {"BadRequest"}, 401: {"Unauthorized"}, 403: {"Forbidden"}, 404: {"NotFound"}, 405: {"MethodNotAllowed"},
    409: {"AlreadyExists", "Conflict"}, 410: {"Expired"}, 413: {"RequestEntityTooLarge"}, 415: {"UnsupportedMediaType"},
    422: {"Invalid"}, 429: {"TooManyRequests"}, 501: {"NotImplemented"}, 503: {"ServiceUnavailable"},
}  # fmt: skip


def pool_spec(replicas: int = 1, image: str = "ubuntu", **container: Any) -> dict[str, Any]:
    containers = [{"name": "executor", "image": image, **container}, {"name": "sidecar", "image": "arl-sidecar"}]
    return {"replicas": replicas, "template": {"spec": {"containers": containers}}}


class Kube:
    """`api`: the server (tests/api/conftest.py). Paths are below the namespace, absolute ones begin with `/`."""

    def __init__(self, api: Any, key: str | None = None, namespace: str = "default") -> None:
        self.api = api
        self.key = api.key if key is None else key
        self.namespace = namespace

    def path(self, path: str) -> str:
        return path if path.startswith("/") else f"{ARL}/namespaces/{self.namespace}/{path}"

    async def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        agent = more.pop("agent", "kubectl/v1.32.0")
        headers = {"authorization": f"Bearer {self.key}", "user-agent": agent, **more.pop("headers", {})}
        if body is not None:
            more["content"] = body if isinstance(body, bytes) else json.dumps(body)
        response = await self.api.http.request(method, self.path(path), headers=headers, **more)
        if response.status_code >= 400:
            check(response.json(), response.status_code)
        return response

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        response = await self(method, path, body, **more)
        assert response.status_code == status, response.text
        shown = response.json()
        assert isinstance(shown, dict) and shown.get("status", {}) is not None
        return shown

    async def refused(self, status: int, text: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The Status, whose message holds `text`."""
        response = await self(method, path, body, **more)
        assert response.status_code == status, response.text
        assert text in response.json()["message"], response.text
        return response.json()

    async def pool(self, name: str = "p1", replicas: int = 1, **container: Any) -> Any:
        return await self.ok(
            "POST", "warmpools", {"metadata": {"name": name}, "spec": pool_spec(replicas, **container)}, 201
        )

    async def sandbox(self, name: str = "s1", pool: str = "p1", **spec: Any) -> Any:
        """As soon as it is ready."""
        await self.ok("POST", "sandboxes", {"metadata": {"name": name}, "spec": {"poolRef": pool, **spec}}, 201)
        return await self.until("sandboxes", name, lambda one: one["status"]["phase"] in ("Ready", "Failed"))

    async def task(self, name: str, *steps: Any, sandbox: str = "s1", **spec: Any) -> Any:
        """As soon as it is over. A step is the arguments of a command, or an object."""
        await self.begin(name, *steps, sandbox=sandbox, **spec)
        return await self.until("tasks", name, lambda one: one["status"]["state"] in ("Succeeded", "Failed"))

    async def begin(self, name: str, *steps: Any, sandbox: str = "s1", **spec: Any) -> Any:
        made = [step if isinstance(step, dict) else command(*step) for step in steps]
        body = {"metadata": {"name": name}, "spec": {"sandboxRef": sandbox, "steps": made, **spec}}
        return await self.ok("POST", "tasks", body, 201)

    async def until(self, plural: str, name: str, holds: Any) -> Any:
        """The object, as soon as this holds of it."""
        async with Watch(self, f"{plural}?watch=1&fieldSelector=metadata.name={name}") as watch:
            while not holds(found := (await watch.next())["object"]):
                pass
        return found


def command(*argv: str, **members: Any) -> dict[str, Any]:
    return {"name": argv[0] if argv else "none", "type": "Command", "command": list(argv), **members}


def check(shown: Any, status: int) -> None:
    """Is it a Status?"""
    assert set(shown) <= {"kind", "apiVersion", "metadata", "status", "message", "reason", "details", "code"}, shown
    assert (shown["kind"], shown["apiVersion"], shown["status"], shown["code"]) == ("Status", "v1", "Failure", status)
    assert shown["message"] and shown["reason"] in REASONS[status], shown
    for cause in shown.get("details", {}).get("causes", []):
        assert set(cause) == {"reason", "message", "field"} and all(cause.values())


class Watch:
    """A watch as it runs: `next` is what comes next, None when it has ended."""

    def __init__(self, kube: Kube, path: str, **headers: str) -> None:
        place, _, query = kube.path(path).partition("?")
        given = {"authorization": f"Bearer {kube.key}", "host": "127.0.0.1", **headers}
        self._scope = {
            "type": "http", "method": "GET", "path": place, "raw_path": place.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()], "scheme": "https",
        }  # fmt: skip
        self._app = kube.api.app
        self._gone = asyncio.Event()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.status = 0

    async def next(self) -> Any:
        line = await self._lines.get()
        return None if line is None else json.loads(line)

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._gone.set()
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        finally:
            self._lines.put_nowait(None)

    async def _receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            assert message["body"].endswith(b"\n") or self.status >= 400
            self._lines.put_nowait(message["body"])
