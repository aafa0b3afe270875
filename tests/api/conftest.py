"""The real application over a core with an engine in memory, spoken to as clients do."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

import contract
from boxwood.core.config import Config
from boxwood.core.core import Core
from boxwood.core.model import Caller
from boxwood.core.refusals import of_store
from boxwood.server.app import App
from boxwood.store import database
from boxwood.store import keys as key_rows
from boxwood.store.database import Database
from commandline import boxwood  # noqa: F401
from fakes import fake_engine, images_in
from guestports import Guest
from serving import Running, ground, running  # noqa: F401


@dataclass
class Api:
    """A server, and one client of it. Every error body that comes by is held against the published contract."""

    app: App
    machine: Any
    config: Config
    http: httpx2.AsyncClient
    key: str
    prefix: str = "/v1"

    async def __call__(
        self, method: str, path: str, body: Any = None, *, agent: str = "boxwood/0", **more: Any
    ) -> httpx2.Response:
        """`path` below /v1; absolute if it begins with `//`."""
        headers = {"authorization": f"Bearer {self.key}", "user-agent": agent, **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        url = path[1:] if path.startswith("//") else self.prefix + path
        response = await self.http.request(method, url, headers=headers, **more)
        if response.status_code >= 400 and "error" in (shown := response.json()):
            contract.check_error(shown, response, agent)
        return response

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The decoded answer of a request that must succeed."""
        response = await self(method, path, body, **more)
        assert response.status_code < 300, response.text
        return response.json() if response.content else None

    async def refused(self, status: int, code: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The `error` of a request that must fail so."""
        response = await self(method, path, body, **more)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code), response.text
        return error

    async def fork(self, **members: Any) -> str:
        made = await self.ok("POST", "/fork", {"source_vm_name": "ubuntu", **members})
        return str(made["vm_id"])

    async def run(self, vm: str, command: str, **members: Any) -> Any:
        return await self.ok("POST", f"/vms/{vm}/runs", {"command": command, **members})


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server's first start leaves: to make it takes longer than most tests."""
    file = tmp_path_factory.mktemp("store") / "boxwood.db"

    async def make() -> None:
        made = await Database.open(file, of_store)
        await made.close()

    asyncio.run(make())
    return file


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the disk: the power does not fail in the tests here, and waiting takes longer than most of them."""
    connect = database.connect

    def connected(*arguments: Any) -> sqlite3.Connection:
        connection = connect(*arguments)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(database, "connect", connected)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
async def api(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, careless: None) -> AsyncIterator[Api]:
    machine = fake_engine.Machine()
    images = images_in(tmp_path, monkeypatch)
    config = Config(tmp_path / "data", images)
    config.data.mkdir(mode=0o700)
    shutil.copy(empty_store, config.data)
    core = await Core.open(config, fake_engine.FakeEngine(machine))
    app = App(core)
    await core.goldens.ensure_host()
    await app.start()
    key = (config.data / "root.key").read_text().strip()
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:18888") as http:
        yield Api(app, machine, config, http, key)
    if not app.stopping.is_set():
        await core.close()


@pytest.fixture(params=["/v1", "/api/v1"])
def either(api: Api, request: pytest.FixtureRequest) -> Api:
    """The same, under one prefix and under the other."""
    api.prefix = request.param
    return api


@dataclass
class OfDialect(ABC):
    """The same server, as a client of another protocol speaks to it, whose errors are texts."""

    api: Api
    key: str

    @abstractmethod
    async def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        """What a request is answered, held against what the protocol says of answers."""

    async def asked(self, method: str, path: str, body: Any, **more: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        return await self.api.http.request(method, path, headers=headers, **more)

    async def refused(self, status: int, text: str, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The error's text holds `text`."""
        response = await self(method, path, body, **more)
        assert response.status_code == status, response.text
        assert text in response.json()["error"]
        return response.json()


class AgentKernel(OfDialect):
    """The same server, as a client of agentkernel's speaks to it. Every answer is held against its envelope."""

    async def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        response = await self.asked(method, path, body, **more)
        if response.headers["content-type"] == "application/json":
            shown = response.json()
            assert shown["success"] is (response.status_code < 300)
            if shown["success"]:
                assert set(shown) == {"success", "data"} and shown["data"] is not None
            else:
                assert isinstance(shown["error"], str) and shown["error"]
                assert set(shown) in ({"success", "error"}, {"success", "error", "exit_code", "output"})
        return response

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        response = await self(method, path, body, **more)
        assert response.status_code == status, response.text
        return response.json()["data"]

    async def create(self, name: str = "box", **members: Any) -> Any:
        return await self.ok("POST", "/sandboxes", {"name": name, **members}, 201)

    async def exec(self, name: str, *argv: str, **members: Any) -> str:
        done = await self.ok("POST", f"/sandboxes/{name}/exec", {"command": list(argv), **members})
        assert set(done) == {"output"}
        return str(done["output"])


@pytest.fixture
def ak(api: Api) -> AgentKernel:
    return AgentKernel(api, api.key)


@pytest.fixture
async def sandbox(ak: AgentKernel) -> Any:
    """One that is called "a"."""
    return await ak.create("a")


@pytest.fixture
async def stranger(api: Api) -> AgentKernel:
    """A client with the key of another organisation."""
    core = api.app.core
    await core._database.write(lambda connection: key_rows.insert_org(connection, "OTHER", "other", 0))
    made = await core.keys.create(Caller("OTHER", "other", "", "admin"))
    assert made.key is not None
    return AgentKernel(api, made.key)


class ArlGateway(OfDialect):
    """The same server, as a client of ARL's gateway speaks to it. No answer may hold null, and every refusal a text."""

    async def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> httpx2.Response:
        response = await self.asked(method, f"/arl{path}", body, **more)
        if response.headers.get("content-type") == "application/json":
            shown = response.json()
            assert not _holds_null(shown), response.text
            if response.status_code >= 400:
                assert set(shown) <= {"error", "detail"} and all(isinstance(one, str) and one for one in shown.values())
        return response

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        response = await self(method, path, body, **more)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def session(self, **members: Any) -> str:
        """The path of a new one."""
        made = await self.ok("POST", "/v1/sessions", {"image": "ubuntu", "profile": "default", **members}, 201)
        return f"/v1/sessions/{made['id']}"

    async def execute(self, session: str, *argvs: list[str], **members: Any) -> list[Any]:
        steps = [{"name": f"step {at}", "command": argv} for at, argv in enumerate(argvs)]
        done = await self.ok("POST", f"{session}/execute", {"steps": steps, **members})
        return list(done["results"])

    async def said(self, session: str, *argv: str) -> str:
        """What one command puts out."""
        (result,) = await self.execute(session, list(argv))
        assert result["output"]["exit_code"] == 0, result
        return str(result["output"]["stdout"])


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_null(one) for one in value.values())
    return any(_holds_null(one) for one in value) if isinstance(value, list) else value is None


@pytest.fixture
def arl(api: Api) -> ArlGateway:
    return ArlGateway(api, api.key)


@pytest.fixture
def arl_stranger(api: Api, stranger: AgentKernel) -> ArlGateway:
    """A client with the key of another organisation."""
    return ArlGateway(api, stranger.key)


@pytest.fixture
async def arl_user(api: Api) -> ArlGateway:
    """A client with another key of the same organisation, which is no admin's."""
    core = api.app.core
    made = await core.keys.create(await core.keys.authenticate(api.key), "user", "member")
    assert made.key is not None
    return ArlGateway(api, made.key)


@pytest.fixture
async def server(ground: Any) -> AsyncIterator[Running]:  # noqa: F811
    """The server as a whole in this process, on a real socket, for tests of what is no request to its API alone."""
    async with running(ground) as found:
        yield found


@pytest.fixture
async def guest(server: Running) -> Guest:
    """A client of port 8080 of a VM of that server's."""
    return Guest(server, await server.fork())
