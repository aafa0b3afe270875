"""The host's name servers, as its resolv.conf(5) names them, within our bounds."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

MOST_SECONDS = 5.0  # for one server
_MOST_SERVERS = 3
Server = tuple[int, Any]  # family and address


@dataclass(frozen=True, slots=True)
class Settings:
    servers: tuple[Server, ...] = ()
    seconds: float = MOST_SECONDS
    attempts: int = 2


def settings(text: str, port: int) -> Settings:
    """What resolv.conf(5) says, within our bounds."""
    servers: list[Server] = []
    seconds, attempts = MOST_SECONDS, 2
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if len(servers) < _MOST_SERVERS:
                servers += _server(address, port)
            case ["options", *options]:
                for name, _, value in (option.partition(":") for option in options):
                    if name == "timeout" and value.isdecimal():
                        seconds = min(max(float(value), 1.0), MOST_SECONDS)
                    elif name == "attempts" and value.isdecimal():
                        attempts = min(max(int(value), 1), 5)
    return Settings(tuple(servers or _server("127.0.0.1", port)), seconds, attempts)


def _server(address: str, port: int) -> list[Server]:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM, flags=flags)
    except OSError:
        return []
    return [(family, place) for family, _, _, _, place in found[:1]]
