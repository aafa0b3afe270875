"""`boxwood up`, `down`, `doctor`: the local server, as a process of its own."""

from __future__ import annotations

import json as jsonlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from boxwood.cli.options import Data, Json, connect
from boxwood.cli.output import Progress, clean, note, say, say_json, write_bytes
from boxwood.client.discovery import LocalServer, default_data, is_alive, read_server
from boxwood.client.errors import BoxwoodError, ConnectionFailed

if TYPE_CHECKING:
    from boxwood import Health

TICK = 0.05  # seconds between two looks at a server that starts; its death is noticed at once
LEVELS = ("basic", "limits", "full")  # of isolation, as the server's health names them
DOWN_TIMEOUT = 120.0  # seconds for a server to end after it has parked everything


def up(
    data: Data = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images, shared; default /var/cache/boxwood/images.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default 18888; 0: any.")] = None,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="What VMs have by default: internet (default) or none.")
    ] = None,
    network_allow: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A private address or name that VMs may reach; may be repeated."),
    ] = None,
    share_client_config: Annotated[
        bool,
        typer.Option("--share-client-config", help="Give VMs this machine's pip, npm, apt settings and certificates."),
    ] = False,
    ssh: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Take SSH into VMs there; default: nowhere.")
    ] = None,
    require: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Do not start below this level: basic, limits or full.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="In the background; log in DATA/log.")] = False,
    json: Json = False,
) -> int:
    """Start a server here. The first time an image is made of this machine, which takes some seconds."""
    where = (data or default_data()).absolute()
    running = read_server(where)
    if require is not None and require not in LEVELS:
        raise BoxwoodError("bad_request", f"--require {require}: levels are {', '.join(LEVELS)}")
    if running is not None and running.alive:
        return _announce(running, _as_it_runs(running, require), json)
    command = [sys.executable, "-m", "boxwood.server", "--data", str(where)]
    command += ["--host", host] if host is not None else []
    command += ["--port", str(port)] if port is not None else []
    env = dict(os.environ) | _settings(images, network, network_allow, share_client_config, require, ssh)
    return (_up_detached if detach else _up_here)(command, env, where, json)


def _as_it_runs(running: LocalServer, require: str | None) -> str:
    """What `_announce` is told of a server that was there before."""
    if require is None:
        return "already running"
    health, wanted = _health(running), LEVELS.index(require)
    if health is not None and health.level in LEVELS[wanted:]:
        return "already running"
    above = {None, *LEVELS[wanted + 1 :]}
    layers = health.layers if health is not None else []
    lacking = [layer for layer in layers if not layer.active and layer.level not in above]
    told = "; ".join(f"{layer.name}: {layer.why}" + (f" ({layer.fix})" if layer.fix else "") for layer in lacking)
    return f"already running, but not known to reach the level {require}: {told or 'it does not say why'}"


def _settings(
    images: Path | None,
    network: str | None,
    network_allow: list[str] | None,
    share_client_config: bool,
    require: str | None,
    ssh: str | None,
) -> dict[str, str]:
    """What was said here, as the server takes it from its environment; the rest it looks up for itself."""
    said = {
        "BOXWOOD_IMAGES": str(images.absolute()) if images is not None else None,
        "BOXWOOD_NETWORK": network,
        "BOXWOOD_NETWORK_ALLOW": ",".join(network_allow) if network_allow else None,
        "BOXWOOD_SHARE_CLIENT_CONFIG": "true" if share_client_config else None,
        "BOXWOOD_REQUIRE": require,
        "BOXWOOD_SSH": ssh,
    }
    return {name: value for name, value in said.items() if value is not None}


def down(data: Data = None, json: Json = False) -> int:
    """Park every VM and end the server. VMs and their files stay."""
    where = (data or default_data()).absolute()
    running = read_server(where)
    if running is None or not running.alive:
        return _nothing_to_end(where, json)
    leader = os.pidfd_open(running.pid)
    try:
        with connect(where) as box:
            box.down()
        if not select.select([leader], [], [], DOWN_TIMEOUT)[0]:
            text = f"everything is parked, but process {running.pid} has not ended within {DOWN_TIMEOUT:g} s"
            raise BoxwoodError("timeout", f"{text}; see {where}/log/server.log")
    finally:
        os.close(leader)
    if json:
        say_json({"url": running.url, "pid": running.pid, "data": str(where), "state": "down"})
    else:
        say(f"down: everything is parked; `boxwood up` continues from {where}")
    return 0


def doctor(
    data: Data = None,
    require: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Fail unless this level is met: basic, limits or full.")
    ] = None,
    json: Json = False,
) -> int:
    """Say which layers of isolation this host gives, what is missing and how to get it."""
    command = [sys.executable, "-m", "boxwood.engine.doctor", *(["--json"] if json else [])]
    command += ["--data", str(data.absolute())] if data is not None else []
    command += ["--require", require] if require is not None else []
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    write_bytes(done.stdout)
    return done.returncode


def _up_here(command: list[str], env: dict[str, str], data: Path, json: bool) -> int:
    """The server as a child whose log is on this terminal. In a process group of its own: a Ctrl-C reaches it once."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, process_group=0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: server.terminate())
    started = _wait_until_started(server, data, tell=False)
    if started is not None:
        _announce(*started, json)
    code = server.wait()
    return 128 - code if code < 0 else code


def _up_detached(command: list[str], env: dict[str, str], data: Path, json: bool) -> int:
    """The server in a session of its own; returns when it answers."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data / "log").mkdir(mode=0o700, exist_ok=True)
    log = data / "log" / "server.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    begin = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, env=env, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    try:
        started = _wait_until_started(server, data, tell=not json)
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        raise
    if started is None:
        said = _tail(log, begin)
        raise BoxwoodError("not_started", f"the server ended with code {server.returncode}: {said or f'see {log}'}")
    return _announce(*started, json)


def _wait_until_started(server: subprocess.Popen[bytes], data: Path, tell: bool) -> tuple[LocalServer, str] | None:
    """The server's file and "ready", or what keeps it from that; None when the process has ended.

    `tell`: say what it is busy with meanwhile.
    """
    progress = Progress()
    while True:
        found = read_server(data)
        if found is not None and found.pid == server.pid:
            health = _health(found)
            if health is not None and (health.status == "ok" or health.problem is not None):
                progress.end()
                return found, health.problem or "ready"
            if tell and health is not None and health.preparing is not None:
                progress.tell(f"making an image of this machine: {health.preparing.step}", health.preparing.fraction)
        try:
            server.wait(TICK)
            progress.end()
            return None
        except subprocess.TimeoutExpired:
            continue


def _health(server: LocalServer) -> Health | None:
    """What the server says of itself; None: it does not answer yet."""
    from boxwood import Boxwood

    try:
        key = (server.data / "root.key").read_text("ascii")
        with Boxwood(server.url, key, timeout=5, retries=0) as box:
            return box.health()
    except (OSError, ConnectionFailed):
        return None


def _announce(server: LocalServer, state: str, json: bool) -> int:
    """Tells where the server is. `state`: ready, already running, or what is wrong with it."""
    well = state in ("ready", "already running")
    if json:
        say_json({"url": server.url, "pid": server.pid, "data": str(server.data), "state": state})
    else:
        is_ = state if well else "running, but not ready"
        say(f"Boxwood is {is_}: {server.url} (process {server.pid}, data in {server.data})")
        if not well:
            note(f"boxwood: {state}")
    return 0 if well else 1


def _nothing_to_end(data: Path, json: bool) -> int:
    zygote = _living_zygote(data)
    if zygote is not None:
        raise BoxwoodError(
            "no_server",
            f"no server runs for {data}, but its zygote (process {zygote}) and boxes live: start a server with "
            f"`boxwood up --data {data}`, which takes them over, then `boxwood down` again",
        )
    if json:
        say_json({"data": str(data), "state": "down"})
    else:
        say(f"no server runs for {data}")
    return 0


def _living_zygote(data: Path) -> int | None:
    try:
        with open(data / "zygote.json", "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            said: Any = jsonlib.load(file)
        pid = int(said["pid"])
        return pid if is_alive(pid, owner, ticks=said.get("started")) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tail(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return " / ".join(clean(line) for line in lines[-3:])
