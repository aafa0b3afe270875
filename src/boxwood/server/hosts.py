"""Whose requests are heard: a server on a loopback address answers only to loopback names.

A browser that has been talked into resolving some site's name to 127.0.0.1 sends that name (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re

from boxwood.core.errors import BadRequest, Forbidden

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


class Hosts:
    """`bound`: the address or name that the server listens on. `domain`: below which every name is a VM's, and none of
    them the API's; empty: there are none."""

    def __init__(self, bound: str, domain: str = "localhost") -> None:
        self._bound = bound.lower().strip("[]")
        self._any = not is_loopback(self._bound)
        self.domain = domain
        self._below = f".{domain}" if domain and not self._bound.endswith(f".{domain}") else ""

    def guest(self, header: bytes) -> tuple[str, str] | None:
        """If a Host header names a port of a VM: the label that does, in small letters, and the header. The label is
        empty if it makes no sense."""
        if not self._below:
            return None
        found = _HOST.fullmatch(text := header.decode("latin-1"))
        if found is None:
            return None
        name = found[1].lower().removesuffix(".")
        return (name[: -len(self._below)], text) if name.endswith(self._below) else None

    def check(self, header: str | None) -> str:
        """The Host header, fit to be part of a URL. BadRequest (none, or not one), Forbidden."""
        found = _HOST.fullmatch(header) if header is not None else None
        if found is None:
            raise BadRequest("the request has no usable Host header")
        name = found[1].lower().strip("[]")
        if self.guest(found[0].encode("ascii")) is not None:
            raise Forbidden("this host is a port of a VM, which is not served here")
        if not self._any and name != self._bound and not is_loopback(name):
            raise Forbidden("this server listens on a loopback address and answers to that name alone")
        return found[0]


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def url(host: str, port: int) -> str:
    """Where a server on this address is reached from its own machine."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        return f"http://127.0.0.1:{port}" if address.version == 4 else f"http://[::1]:{port}"
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"
