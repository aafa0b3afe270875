"""What the server listens on: its own port; an https port for clients of Kubernetes, which send no key over plain http;
and, when asked, a port on which ARL's gateway protocol stands at the root, where its published clients look for it.

All of them are the same application, in the same event loop, behind the same bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from boxwood.core.config import Config
from boxwood.server import authority, hosts
from boxwood.server.app import PREFIXED
from boxwood.server.protocol import BoundedProtocol
from boxwood.server.websocket import MESSAGE_BYTES, PING_SECONDS, BoundedWebSocket

GATEWAY_PREFIX = "/arl"
KUBERNETES_PREFIX = "/k8s"
KUBERNETES, GATEWAY = "arl-kubernetes", "arl-gateway"  # the dialects that have ports of their own
LAST_ANSWERS_SECONDS = 10  # for requests that are being answered when the server is told to end
BACKLOG = 2048
log = logging.getLogger("boxwood.server")


class CannotStart(Exception):
    """The text says why, and what to do about it."""


@dataclass
class Sockets:
    """`problem`: why there is no https listener though there should be one."""

    main: socket.socket
    kubernetes: socket.socket | None
    gateway: socket.socket | None
    problem: str | None = None


@contextlib.contextmanager
def bound(config: Config) -> Iterator[Sockets]:
    """CannotStart: a port is taken that the server does not go without."""
    with contextlib.ExitStack() as held:
        main = held.enter_context(_socket(config.host, config.port))
        found = Sockets(main, None, None)
        if config.arl_port and GATEWAY in config.dialects:
            found.gateway = held.enter_context(_socket(config.host, config.arl_port))
        if KUBERNETES in config.dialects:
            port = _kubernetes_port(config)
            try:
                found.kubernetes = held.enter_context(_socket(config.host, port))
            except CannotStart as error:
                found.problem = f"{error} (kubernetes_port)"
                log.warning("no https for Kubernetes' clients: %s", found.problem)
        yield found


def _kubernetes_port(config: Config) -> int:
    """0: any."""
    if config.kubernetes_port >= 0:
        return config.kubernetes_port
    return config.port + 1 if 0 < config.port < 65535 else 0


def _socket(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise CannotStart(f"cannot listen on {host}: {error.strerror}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        hint = "; is another server running there? choose another port" if error.errno == 98 else ""
        raise CannotStart(f"cannot listen on {host}, port {port}: {error.strerror}{hint}") from None
    return made


class Servers:
    """uvicorn on each of the sockets."""

    def __init__(self, app: ASGIApp, config: Config, sockets: Sockets) -> None:
        self._config = config
        self._sockets = sockets
        self._all = [(_Server(app), sockets.main)]
        if sockets.gateway is not None:
            self._all.append((_Server(Prefixed(app, GATEWAY_PREFIX)), sockets.gateway))
        if sockets.kubernetes is not None:
            self._add_kubernetes(app, sockets.kubernetes)

    def _add_kubernetes(self, app: ASGIApp, listener: socket.socket) -> None:
        directory = self._config.data / "kubernetes"
        try:
            context = authority.ensure(directory, self._config.host).context()
        except (OSError, ValueError, ssl.SSLError) as error:
            self._sockets.kubernetes, self._sockets.problem = None, f"its certificate, in {directory}: {error}"
            log.error("no https for Kubernetes' clients: %s", self._sockets.problem)
            return
        self._all.append((_Server(app, context), listener))

    def listen(self) -> dict[str, str]:
        """From here on connections wait to be answered. Where they come to, as server.json tells it."""
        for _, listener in self._all:
            listener.listen(BACKLOG)
        said = {"url": self._url(self._sockets.main)}
        if self._sockets.gateway is not None:
            said["arl_url"] = self._url(self._sockets.gateway)
        if self._sockets.kubernetes is not None:
            plain = self._url(self._sockets.kubernetes)
            said["kubernetes_url"] = plain.replace("http://", "https://", 1) + KUBERNETES_PREFIX
        elif self._sockets.problem is not None:
            said["kubernetes_problem"] = self._sockets.problem
        return said

    def _url(self, listener: socket.socket) -> str:
        return hosts.url(self._config.host, listener.getsockname()[1])

    async def serve(self) -> None:
        """Until told to end; if one of them fails, all end."""
        async with asyncio.TaskGroup() as group:
            for server, listener in self._all:
                group.create_task(server.serve(sockets=[listener]))

    @property
    def ending(self) -> bool:
        return self._all[0][0].should_exit

    def end(self, *, at_once: bool = False) -> None:
        """`at_once`: without waiting for requests that are being answered."""
        for server, _ in self._all:
            server.should_exit = True
            server.force_exit = server.force_exit or at_once


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling: it would end the process before the core is closed."""

    def __init__(self, app: ASGIApp, context: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws=BoundedWebSocket,
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
        )
        config.load()
        config.ssl = context  # uvicorn would make one with ciphers of its own choice
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Prefixed:
    """The application as if every path began with a prefix; ports of VMs are not there."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            raw: bytes = scope.get("raw_path") or scope["path"].encode()
            path = self._prefix + scope["path"]
            scope = {**scope, "path": path, "raw_path": self._prefix.encode() + raw, PREFIXED: True}
        await self._app(scope, receive, send)
