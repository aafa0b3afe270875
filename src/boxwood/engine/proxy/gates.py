"""A rule's `gate`: somebody is asked before a request goes on. A private address is never asked."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from typing import Any

from boxwood.engine.network.addresses import is_public
from boxwood.engine.policies import Gate
from boxwood.engine.proxy.channel import Broken
from boxwood.engine.proxy.message import BadMessage, Head
from boxwood.engine.proxy.origins import Origins
from boxwood.engine.proxy.rewriting import Meaning, value
from boxwood.engine.proxy.upstream import Place, Trust, Unverified, Upstreams


async def passes(gate: Gate, meaning: Meaning, origins: Origins, trust: Trust) -> str:
    """Empty: it lets through. Else why not. NoSecret, BadMessage."""
    url = urllib.parse.urlsplit(gate.url)
    assert url.hostname is not None
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    head, body = _request(gate, meaning, url.netloc)
    try:
        async with asyncio.timeout(gate.timeout_ms / 1e3):
            addresses = [address for address in await origins.resolve(url.hostname) if is_public(address)]
            if not addresses:
                return "its gate has no address on the internet"
            status = await _ask(head, body, Place(url.hostname, addresses[0], port, secure), trust)
    except TimeoutError:
        return "its gate did not answer in time" if gate.deny_on_timeout else ""
    except Unverified as error:
        return f"its gate could not be verified: {error}"
    except (OSError, BadMessage):
        return "its gate could not be asked"
    return "" if status in gate.allow_on_status else f"its gate said {status}"


def _request(gate: Gate, meaning: Meaning, authority: str) -> tuple[Head, bytes]:
    headers = [(name.encode(), value(meaning.text(text))) for name, text in gate.headers]
    body = b""
    if gate.body is not None:
        body = json.dumps(_leaves(gate.body, meaning)).encode(errors="replace")
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", b"application/json"))
    path = meaning.text(gate.path, lambda secret: urllib.parse.quote(secret, safe=""))
    return Head(gate.method, authority, path, headers, length=len(body)), body


def _leaves(said: Any, meaning: Meaning) -> Any:
    if isinstance(said, str):
        return meaning.text(said)
    if isinstance(said, dict):
        return {name: _leaves(inner, meaning) for name, inner in said.items()}
    if isinstance(said, list | tuple):
        return [_leaves(inner, meaning) for inner in said]
    return said


async def _ask(head: Head, body: bytes, place: Place, trust: Trust) -> int:
    upstreams = Upstreams(trust, http2=False)
    try:
        call, _ = await upstreams.call(place)
        await call.open(head, has_body=bool(body))
        if body:
            await call.send(body)
        await call.end([])
        return (await call.reply()).status
    except Broken as error:
        raise OSError(str(error)) from None
    finally:
        upstreams.close()
