"""Clients of Boxwood's SSH, and the server with an engine in memory that they speak to.

Its fixtures are for files that say `server, key = sshclients.server, sshclients.key`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncssh
import pytest

from serving import Running, running


@pytest.fixture
async def server(ground: Any) -> AsyncIterator[Running]:
    config, machine = ground
    async with running((replace(config, ssh="127.0.0.1:0"), machine)) as found:
        yield found


@pytest.fixture
def key() -> Any:
    return asyncssh.generate_private_key("ssh-ed25519")


async def vm_with(server: Running, key: Any, name: str | None = None, **more: Any) -> str:
    public = key.export_public_key().decode().strip()
    made = await server.http.post(
        "/v1/fork", json={"source_vm_name": "ubuntu", "name": name, "ssh_public_keys": [public], **more}
    )
    assert made.status_code == 200, made.text
    assert made.json()["network"]["ssh_public_keys"][0]["public_key"] == " ".join(public.split()[:2])
    return str(made.json()["vm_id"])


def connect(server: Running, user: str, key: Any, **more: Any) -> Any:
    host, _, port = server.said["ssh"].rpartition(":")
    return asyncssh.connect(
        host, int(port), username=user, client_keys=key if isinstance(key, list) else [key], known_hosts=None,
        agent_path=None, config=None, **more,
    )  # fmt: skip
