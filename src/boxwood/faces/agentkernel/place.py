"""Where the server is and which key belongs to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from boxwood.client.discovery import Target, find, normal_url
from boxwood.client.errors import Unauthorized

DEFAULT_URL = "http://localhost:18888"
NO_KEY = "none"  # what is sent where no key is known: the server says 401, and its health needs none


def target(base_url: str | None, api_key: str | None, env: Mapping[str, str] = os.environ) -> Target:
    """The arguments, else AGENTKERNEL_BASE_URL and AGENTKERNEL_API_KEY, else port 18888 of this machine and the key
    that its server keeps for those who may read it.

    :raises BadRequest: the url is not one.
    """
    url = normal_url(base_url or env.get("AGENTKERNEL_BASE_URL") or DEFAULT_URL)
    key = api_key or env.get("AGENTKERNEL_API_KEY") or None
    for tried in (url, _on_loopback(url)):
        try:
            return find(tried, key, env)
        except Unauthorized:
            if key is not None:
                raise
    return Target(url, NO_KEY)


def _on_loopback(url: str) -> str:
    """A local server's key goes to the address that it listens on, not to whatever `localhost` may be."""
    parts = urlsplit(url)
    if parts.hostname != "localhost":
        return url
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://127.0.0.1{port}{parts.path}"
