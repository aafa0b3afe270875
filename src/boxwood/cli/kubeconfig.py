"""`boxwood kubeconfig`: how kubectl, and clients of ARL's first generation, find the local server."""

from __future__ import annotations

import base64
import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from boxwood.cli.options import Data, Json
from boxwood.cli.output import note, say_json, write_bytes
from boxwood.client.discovery import LocalServer, find, local_servers, same_server
from boxwood.client.errors import BoxwoodError

MARK = "# Written by `boxwood kubeconfig`."
NAME = "boxwood"
_CONFIG_BYTES = 1 << 20


def kubeconfig(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there, for its owner alone.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print a kubeconfig for the local server, or write it; it holds your API key."""
    env = dict(os.environ)
    if data is not None:
        env = {"BOXWOOD_DATA": str(data)}
    target = find(env=env)
    server = _local(target.url, env)
    said = _said(server)
    if (url := said.get("kubernetes_url")) is None:
        why = said.get("kubernetes_problem") or "the dialect arl-kubernetes is switched off in its configuration"
        raise BoxwoodError("no_kubernetes", f"the server {server.url} has no https listener: {why}")
    authority = (server.data / "kubernetes/ca.crt").read_bytes()
    config = _config(str(url), authority, target.api_key)
    if output is None:
        if json:
            say_json(config)
        else:
            write_bytes(_yaml(config).encode())
        return
    _write(output, (jsonlib.dumps(config) + "\n" if json else _yaml(config)).encode())
    note(f"written: export KUBECONFIG={output.absolute()}")


def _local(url: str, env: dict[str, str]) -> LocalServer:
    for server in local_servers(env):
        if server.alive and same_server(server.url, url):
            return server
    raise BoxwoodError(
        "not_local", f"{url} is not a server of this machine: run `boxwood kubeconfig` there, where its certificate is"
    )


def _said(server: LocalServer) -> dict[str, Any]:
    with open(server.data / "server.json", "rb") as file:
        said: dict[str, Any] = jsonlib.loads(file.read(65536))
    return said


def _config(url: str, authority: bytes, key: str) -> dict[str, Any]:
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": {"token": key}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": "default"}}],
        "current-context": NAME,
    }


def _yaml(config: dict[str, Any]) -> str:
    """Texts are quoted as in JSON, which YAML is made to read."""
    lines = [MARK]
    for key, value in config.items():
        if not isinstance(value, list):
            lines.append(f"{key}: {jsonlib.dumps(value)}")
            continue
        lines.append(f"{key}:")
        for entry in value:
            for at, (name, member) in enumerate(entry.items()):
                lead = "- " if at == 0 else "  "
                if isinstance(member, dict):
                    lines.append(f"{lead}{name}:")
                    lines += [f"    {inner}: {jsonlib.dumps(text)}" for inner, text in member.items()]
                else:
                    lines.append(f"{lead}{name}: {jsonlib.dumps(member)}")
    return "\n".join(lines) + "\n"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and never over a file of somebody else's making: it may know other clusters."""
    try:
        with open(path, "rb") as file:
            old = file.read(_CONFIG_BYTES)
    except FileNotFoundError:
        pass
    else:
        if not _is_ours(old):
            raise BoxwoodError(
                "exists",
                f"{path} is there and was not written here: give another file, and name both, KUBECONFIG={path}:OTHER",
            )
    part = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_ours(old: bytes) -> bool:
    if not old.strip() or old.startswith(MARK.encode()):
        return True
    try:
        clusters = jsonlib.loads(old)["clusters"]
        return [cluster["name"] for cluster in clusters] == [NAME]
    except (ValueError, KeyError, TypeError):
        return False
