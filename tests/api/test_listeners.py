"""The server's other ports: https for Kubernetes' clients, with an authority of its own, and ARL's gateway at the root."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

import servers
from boxwood.core.config import Config
from boxwood.server import authority, listeners, main, protocol


@pytest.fixture
def config(ground: tuple[Config, Any]) -> Config:
    return ground[0]


@asynccontextmanager
async def serving(config: Config):
    """What server.json says of it."""
    task = asyncio.create_task(main._serve(config))
    try:
        while not (config.data / "server.json").exists():
            await asyncio.sleep(0.001)
            if task.done():
                await task
        yield json.loads((config.data / "server.json").read_text())
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


def client(config: Config) -> httpx2.AsyncClient:
    """Of one who knows the authority, and has a key."""
    trusted = ssl.create_default_context(cafile=str(config.data / "kubernetes/ca.crt"))
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    key = (config.data / "root.key").read_text().strip()
    return httpx2.AsyncClient(verify=trusted, headers={"authorization": f"Bearer {key}"}, timeout=30)


async def test_https(config):
    async with serving(config) as said, client(config) as http:
        url = said["kubernetes_url"]
        assert url.startswith("https://127.0.0.1:") and url.endswith("/k8s")
        assert (await http.get(f"{url}/version")).json()["major"] == "1"
        named = url.replace("127.0.0.1", "localhost")
        assert (await http.get(f"{named}/version")).status_code == 200
        assert (await http.get(f"{said['url']}/k8s/version")).status_code == 200
        assert (await http.get(url.removesuffix("/k8s") + "/v1/health")).status_code == 200
        rebound = await http.get(f"{url}/version", headers={"host": "evil.example"})
        assert rebound.status_code == 403 and rebound.json()["kind"] == "Status"
        async with httpx2.AsyncClient() as stranger:
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"{url}/version")
    for name in ("ca.key", "ca.crt", "server.key", "server.crt"):
        assert (config.data / "kubernetes" / name).stat().st_mode & 0o777 == 0o600
    assert (config.data / "kubernetes").stat().st_mode & 0o777 == 0o700


async def test_bounds_hold_there_too(config):
    async with serving(config) as said:
        port = int(said["kubernetes_url"].split(":")[2].partition("/")[0])
        trusted = ssl.create_default_context(cafile=str(config.data / "kubernetes/ca.crt"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        writer.write(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * (1 << 17) + b"\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_the_authority_stays(config):
    async with serving(config):
        pass
    before = {file.name: file.read_bytes() for file in (config.data / "kubernetes").iterdir()}
    async with serving(config):
        pass
    assert {file.name: file.read_bytes() for file in (config.data / "kubernetes").iterdir()} == before


async def test_a_port_that_is_taken(config):
    """The server goes on without it, and says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        asked = replace(config, kubernetes_port=taken.getsockname()[1])
        async with serving(asked) as said, httpx2.AsyncClient() as http:
            assert "kubernetes_url" not in said and "another server" in said["kubernetes_problem"]
            while (await http.get(f"{said['url']}/v1/health")).status_code != 200:  # it may still look at its image
                await asyncio.sleep(0.01)
        with pytest.raises(listeners.CannotStart, match="another server"):
            await main._serve(replace(config, arl_port=taken.getsockname()[1]))


async def test_without_the_dialect_there_is_no_https(config):
    async with serving(replace(config, dialects=())) as said:
        assert {name for name in said if "url" in name or "problem" in name} == {"url"}
    assert not (config.data / "kubernetes").exists()


async def test_the_gateway_at_the_root_of_a_port_of_its_own(config):
    port = servers.free_port()
    async with serving(replace(config, arl_port=port)) as said, httpx2.AsyncClient() as http:
        assert said["arl_url"] == f"http://127.0.0.1:{port}"
        at_the_root = await http.get(f"{said['arl_url']}/v1/sessions")
        below = await http.get(f"{said['url']}/arl/v1/sessions")
        assert at_the_root.status_code == below.status_code == 401
        assert at_the_root.json() == below.json() and isinstance(below.json()["error"], str)
        assert (await http.get(f"{said['arl_url']}/v1/health")).status_code == 401, "not the contract's route"


async def test_paths_are_what_they_were_behind_a_prefix():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["type"], scope.get("path"), scope.get("raw_path")))

    prefixed = listeners.Prefixed(app, "/arl")
    for scope in (
        {"type": "http", "path": "/a b", "raw_path": b"/a%20b"},
        {"type": "websocket", "path": "/x"},
        {"type": "lifespan"},
    ):
        await prefixed(scope, None, None)
    assert seen == [("http", "/arl/a b", b"/arl/a%20b"), ("websocket", "/arl/x", b"/arl/x"), ("lifespan", None, None)]


# The authority


def noted(directory: Path) -> dict:
    return json.loads((directory / "server.json").read_text())


def test_a_certificate_is_renewed_before_its_end(tmp_path):
    made = authority.ensure(tmp_path, "127.0.0.1")
    first = made.certificate.read_bytes()
    assert authority.ensure(tmp_path, "127.0.0.1").certificate.read_bytes() == first
    soon = datetime.now(UTC) + timedelta(days=authority.RENEWED_DAYS - 1)
    (tmp_path / "server.json").write_text(json.dumps({**noted(tmp_path), "until": soon.isoformat()}))
    trusted = made.authority.read_bytes()
    assert authority.ensure(tmp_path, "127.0.0.1").certificate.read_bytes() != first
    assert made.authority.read_bytes() == trusted
    made.context()


@pytest.mark.parametrize("lost", ["server.key", "server.crt", "server.json", "ca.key", "ca.crt"])
def test_what_is_lost_is_made_anew(tmp_path, lost):
    authority.ensure(tmp_path, "127.0.0.1")
    (tmp_path / lost).unlink()
    made = authority.ensure(tmp_path, "127.0.0.1")
    made.context()
    trusted = ssl.create_default_context(cafile=str(made.authority))
    assert len(trusted.get_ca_certs()) == 1
    assert noted(tmp_path)["authority"] == made.authority.read_text()


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
def test_what_cannot_be_read_is_made_anew(tmp_path, name):
    made = authority.ensure(tmp_path, "127.0.0.1")
    given = made.authority.read_bytes()
    (tmp_path / name).write_bytes(b"")
    authority.ensure(tmp_path, "127.0.0.1").context()
    assert made.authority.read_bytes() == given


def test_the_names_are_those_that_it_listens_on(tmp_path):
    always = {"localhost", "127.0.0.1", "::1"}
    assert set(authority.names_of("127.0.0.1")) == always
    assert set(authority.names_of("box.example")) == always | {"box.example"}
    assert set(authority.names_of("[2001:db8::1]")) == always | {"2001:db8::1"}
    everywhere = set(authority.names_of("0.0.0.0"))
    assert everywhere >= always | {socket.gethostname().lower()}
    first = authority.ensure(tmp_path, "127.0.0.1").certificate.read_bytes()
    assert authority.ensure(tmp_path, "box.example").certificate.read_bytes() != first


async def test_what_is_held_for_a_client_that_has_gone_is_dropped():
    class Gone:
        def is_closing(self) -> bool:
            return True

        def write(self, data: bytes) -> None:
            raise RuntimeError("the handler is closed")

    failures = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    joining = protocol._Joining(Gone(), loop)
    joining.write(b"x")
    await asyncio.sleep(0)
    assert failures == []
    joining.write(b"x" * (protocol.JOINED_BYTES + 1))
