"""Which server to talk to and with which key. A key is only ever paired with the url that it belongs to.

The url is the argument, else BOXWOOD_URL, else that of the local server (server.json in a data directory). The key is
the argument; else BOXWOOD_API_KEY, which belongs to BOXWOOD_URL where that is set; else root.key of the data directory
whose server has this url. A server.json that a dead server left behind is not believed: anyone could listen there now.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from boxwood.client.errors import BadRequest, ConnectionFailed, Unauthorized

NO_SERVER = "no Boxwood server found: start one with `boxwood up`, or set BOXWOOD_URL and BOXWOOD_API_KEY"
CLOCK_SLACK = 5.0  # seconds by which a process may seem to have started after it wrote its own server.json


class Target(NamedTuple):
    url: str
    api_key: str


class LocalServer(NamedTuple):
    """A server.json. `alive`: the process that wrote it still runs."""

    data: Path
    url: str
    pid: int
    alive: bool


def find(url: str | None = None, api_key: str | None = None, env: Mapping[str, str] = os.environ) -> Target:
    """The server and its key.

    :raises BadRequest: the url is not an http(s) url.
    :raises ConnectionFailed: no url was given and no local server runs.
    :raises Unauthorized: there is a url but no key that belongs to it.
    """
    named = url or env.get("BOXWOOD_URL") or None
    if named is None:
        server = next((found for found in local_servers(env) if found.alive), None)
        if server is None:
            raise ConnectionFailed("no_server", _why_none(env))
        named = server.url
    named = normal_url(named)
    return Target(named, clean_key(api_key or _key_for(named, env)))


def normal_url(url: str) -> str:
    """The url without a trailing slash; a client's routes are appended to it.

    :raises BadRequest: not an http(s) url, or one that carries a user, a query or a fragment.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise BadRequest("bad_request", f"not a url: {url!r}") from None
    plain = not (parts.query or parts.fragment or "@" in parts.netloc) and url.isascii() and " " not in url.strip()
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not plain:
        raise BadRequest("bad_request", f"not the url of a server: {url!r}; it looks like http://127.0.0.1:18888")
    return url.strip().rstrip("/")


def clean_key(key: str) -> str:
    """:raises Unauthorized: the key holds what no header may hold."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthorized("unauthorized", "the API key is empty or holds characters that no key has")
    return key


def same_server(one: str, other: str) -> bool:
    """Do two urls name the same scheme, host and port? `localhost` and 127.0.0.1 are not the same host."""
    return _origin(one) == _origin(other)


def data_directories(env: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Where a local server may keep its data, likeliest first; only $BOXWOOD_DATA if that is set."""
    if chosen := env.get("BOXWOOD_DATA"):
        yield Path(chosen)
        return
    yield Path("/var/lib/boxwood")
    if home := env.get("HOME"):
        yield Path(home, ".local/share/boxwood")


def default_data() -> Path:
    """Where a server of this user keeps its data."""
    return next(data_directories()) if os.geteuid() == 0 else list(data_directories())[-1]


def local_servers(env: Mapping[str, str] = os.environ) -> Iterator[LocalServer]:
    """Every server.json that this user can read."""
    for data in data_directories(env):
        if (server := read_server(data)) is not None:
            yield server


def read_server(data: Path) -> LocalServer | None:
    """The server.json of a data directory; None if there is none, or none that this user may read or should believe."""
    try:
        with open(data / "server.json", "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            if owner not in (0, os.geteuid()):  # root with somebody else's HOME, say
                return None
            said = json.loads(file.read(65536))
        url, pid = normal_url(str(said["url"])), int(said["pid"])
        alive = is_alive(pid, owner, at=_seconds(said.get("started_at")), ticks=said.get("started"))
    except (OSError, ValueError, KeyError, TypeError, BadRequest):
        return None
    return LocalServer(data, url, pid, alive)


def is_alive(pid: int, owner: int, *, at: float | None = None, ticks: int | None = None) -> bool:
    """Does the process that wrote such a file still run, or has another one its number?

    `at`: seconds since the epoch, not before its start. `ticks`: its start as /proc has it, which no clock can change.
    """
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/uptime", "rb") as file:
            uptime = float(file.read().split()[0])
    except (OSError, ValueError):
        return False
    if fields[0] == b"Z" or uid not in (owner, 0):
        return False
    if ticks is not None:
        return int(fields[19]) == ticks
    began = time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return at is None or began <= at + CLOCK_SLACK


def _key_for(url: str, env: Mapping[str, str]) -> str:
    key, belongs = env.get("BOXWOOD_API_KEY"), env.get("BOXWOOD_URL")
    if key and (not belongs or same_server(url, belongs)):
        return key
    for server in local_servers(env):
        if server.alive and same_server(url, server.url):
            try:
                return (server.data / "root.key").read_text("ascii")
            except (OSError, UnicodeDecodeError):
                continue
    why = f"no API key for {url}: " + ("BOXWOOD_API_KEY belongs to BOXWOOD_URL, another server; " if key else "")
    raise Unauthorized("unauthorized", f"{why}pass api_key, or set BOXWOOD_API_KEY beside BOXWOOD_URL")


def _why_none(env: Mapping[str, str]) -> str:
    for server in local_servers(env):
        return f"{NO_SERVER} (the last one in {server.data}, process {server.pid}, has ended)"
    for data in data_directories(env):
        if data.is_dir() and not os.access(data / "server.json", os.R_OK) and not os.access(data, os.X_OK):
            return f"{NO_SERVER} ({data} belongs to another user: its key is not yours to read)"
    return NO_SERVER


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port


def _seconds(moment: object) -> float | None:
    if isinstance(moment, int | float):
        return float(moment)
    return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else None
