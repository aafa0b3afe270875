"""The server as a whole in this very process, on a real socket, over an engine in memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from boxwood.core.config import Config
from boxwood.server import main
from fakes import fake_engine, images_in

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # else each client reads every authority of the host


class Running:
    def __init__(self, config: Config, task: asyncio.Task[None], machine) -> None:
        self.config, self.task, self.machine = config, task, machine
        self.said = json.loads((config.data / "server.json").read_text())
        key = (config.data / "root.key").read_text().strip()
        self.headers = {"authorization": f"Bearer {key}"}
        self.port = int(self.said["url"].rsplit(":", 1)[1])
        self.http = httpx2.AsyncClient(base_url=self.said["url"], headers=self.headers, timeout=30, verify=NO_TLS)

    async def fork(self) -> str:
        return (await self.http.post("/v1/fork", json={"source_vm_name": "ubuntu"})).json()["vm_id"]

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    async def raw(self, *parts: bytes) -> bytes:
        """What comes back until the server hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine, and the settings for a server on it."""
    machine = fake_engine.Machine()
    images = images_in(tmp_path, monkeypatch)
    monkeypatch.setattr(main, "HostEngine", lambda *places, **settings: fake_engine.FakeEngine(machine))
    real = main.Core.open

    async def opened(config, engine):
        machine.core = await real(config, engine)
        return machine.core

    monkeypatch.setattr(main.Core, "open", opened)
    return Config(tmp_path / "data", images, port=0), machine


@asynccontextmanager
async def running(ground) -> AsyncIterator[Running]:
    config, machine = ground
    task = asyncio.create_task(main._serve(config))
    while not (config.data / "server.json").exists():
        await asyncio.sleep(0.001)
        if task.done():
            await task
    server = Running(config, task, machine)
    try:
        async with server.http:
            while (await server.http.get("/v1/health")).status_code != 200:
                await asyncio.sleep(0.001)
            yield server
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task
