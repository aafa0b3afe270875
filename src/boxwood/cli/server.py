"""`boxwood up`, `down`, `doctor`: the local server, as a process of its own."""

from __future__ import annotations

import json as jsonlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from boxwood.cli.options import Data, Json, connect
from boxwood.cli.output import clean, note, say, say_json, write_bytes
from boxwood.client.discovery import LocalServer, default_data, is_alive, read_server
from boxwood.client.errors import BoxwoodError, ConnectionFailed

TICK = 0.05  # seconds between two looks at a server that starts; its death is noticed at once
DOWN_TIMEOUT = 120.0  # seconds for a server to end after it has parked everything


def up(
    data: Data = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images, shared; default /var/cache/boxwood/images.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 18888,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="In the background; log in DATA/log.")] = False,
    json: Json = False,
) -> int:
    """Start a server here. The first time an image is made of this machine, which takes some seconds."""
    where = (data or default_data()).absolute()
    running = read_server(where)
    if running is not None and running.alive:
        _announce(running, json, "already running")
        return 0
    command = [sys.executable, "-m", "boxwood.server", "--data", str(where), "--host", host, "--port", str(port)]
    if images is not None:
        command += ["--images", str(images.absolute())]
    if detach:
        return _up_detached(command, where, json)
    return _up_here(command, where, json)


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


def doctor(json: Json = False) -> int:
    """Say which layers of isolation this host gives, what is missing and how to get it."""
    command = [sys.executable, "-m", "boxwood.engine.doctor", *(["--json"] if json else [])]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    write_bytes(done.stdout)
    return done.returncode


def _up_here(command: list[str], data: Path, json: bool) -> int:
    """The server as a child on this terminal; signals to this process end it."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: server.send_signal(received))
    ready = _wait_until_ready(server, data)
    if ready is not None:
        _announce(ready, json, "ready")
    code = server.wait()
    return 128 - code if code < 0 else code


def _up_detached(command: list[str], data: Path, json: bool) -> int:
    """The server in a session of its own; returns when it answers."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data / "log").mkdir(mode=0o700, exist_ok=True)
    log = data / "log" / "server.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    begin = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, cwd="/", start_new_session=True
        )
    finally:
        os.close(descriptor)
    try:
        ready = _wait_until_ready(server, data)
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        raise
    if ready is None:
        said = _tail(log, begin)
        raise BoxwoodError("not_started", f"the server ended with code {server.returncode}: {said or f'see {log}'}")
    _announce(ready, json, "ready")
    return 0


def _wait_until_ready(server: subprocess.Popen[bytes], data: Path) -> LocalServer | None:
    """The server's file once it answers; None when the process has ended. Tells what it is busy with meanwhile."""
    told = ""
    while True:
        found = read_server(data)
        if found is not None and found.pid == server.pid:
            progress = _progress(found)
            if progress is None:
                return found
            if progress and progress != told:
                note(progress)
                told = progress
        try:
            server.wait(TICK)
            return None
        except subprocess.TimeoutExpired:
            continue


def _progress(server: LocalServer) -> str | None:
    """None: it is ready. Else what it says it is doing, perhaps nothing."""
    from boxwood import Boxwood

    try:
        key = (server.data / "root.key").read_text("ascii")
        with Boxwood(server.url, key, timeout=5, retries=0) as box:
            health = box.health()
    except (OSError, ConnectionFailed):
        return ""
    if health.status == "ok":
        return None
    busy = health.preparing
    return f"{busy.step}: {busy.fraction:.0%}" if busy is not None else health.problem or ""


def _announce(server: LocalServer, json: bool, state: str) -> None:
    if json:
        say_json({"url": server.url, "pid": server.pid, "data": str(server.data), "state": state})
    else:
        say(f"Boxwood is {state}: {server.url} (process {server.pid}, data in {server.data})")


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
        return pid if is_alive(pid, owner, None) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tail(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return " / ".join(clean(line) for line in lines[-3:])
