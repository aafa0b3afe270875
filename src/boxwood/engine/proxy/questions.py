"""What a gate is asked about one request, with nothing left to put in: the proxy can ask it whoever made it.

A request that goes out is the proxy's own. One that comes in is the server's, which has the proxy ask: the proxy's way
to the internet is that of boxes, and ends where theirs does.
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from boxwood.engine.policies import Gate
from boxwood.engine.proxy.message import BadMessage, Headers
from boxwood.engine.proxy.rewriting import Meaning, in_path, value

MOST_HEAD, MOST_BODY = 64 << 10, 2 << 20  # bytes of a question, so that it is a line of control.py's in any case
_MEMBERS = ("url", "method", "path", "allow_on_status", "deny_on_timeout", "timeout_ms")


@dataclass(frozen=True, slots=True)
class Question:
    """`url`: scheme, host and perhaps a port; `path` may bring a query. It may hold secrets: it is never shown."""

    url: str
    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    allow_on_status: tuple[int, ...]
    deny_on_timeout: bool
    timeout_ms: int

    def __repr__(self) -> str:
        return f"Question({self.url!r})"

    @property
    def size(self) -> int:
        """Bytes, of all that may be long."""
        return _size(self.path, self.headers) + len(self.body)

    def to_json(self) -> dict[str, Any]:
        headers = [[name.decode("ascii"), value.decode("latin-1")] for name, value in self.headers]
        said = {name: getattr(self, name) for name in _MEMBERS}
        return {**said, "headers": headers, "body": base64.b64encode(self.body).decode("ascii")}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Question:
        """KeyError, TypeError, ValueError."""
        headers = tuple((name.encode("ascii"), value.encode("latin-1")) for name, value in said["headers"])
        known = {name: said[name] for name in _MEMBERS} | {"allow_on_status": tuple(said["allow_on_status"])}
        return cls(**known, headers=headers, body=base64.b64decode(said["body"]))


def question(gate: Gate, meaning: Meaning) -> Question:
    """NoSecret; BadMessage: what a request has brought cannot be asked about like this."""
    if gate.tells_secrets:
        raise BadMessage("its gate would be given a secret without TLS")
    headers: Headers = [(name.encode(), value(meaning.text(text))) for name, text in gate.headers]
    body = b""
    if gate.body is not None:
        body = json.dumps(_leaves(gate.body, meaning)).encode(errors="replace")
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", b"application/json"))
    path = meaning.text(gate.path, in_path)
    _check(path, headers, body)
    return Question(
        gate.url, gate.method, path, tuple(headers), body, gate.allow_on_status, gate.deny_on_timeout, gate.timeout_ms
    )


def _check(path: str, headers: Headers, body: bytes) -> None:
    """BadMessage: said here, and not when it is sent, where it would look like a gate that cannot be reached."""
    if not all("!" <= character <= "~" for character in path):
        raise BadMessage("what a rule makes of its gate's path is not as HTTP has it")
    if _size(path, headers) > MOST_HEAD or len(body) > MOST_BODY:
        raise BadMessage("what a rule's gate is to be asked is too long")


def _size(path: str, headers: Iterable[tuple[bytes, bytes]]) -> int:
    return len(path) + sum(len(name) + len(text) + 4 for name, text in headers)


def authority(url: str) -> tuple[str, int, bool, str]:
    """Of a gate's `url`: its host, its port, whether that is TLS, and how it is called in Host."""
    found = urllib.parse.urlsplit(url)
    if found.hostname is None:
        raise ValueError("a gate without a host")
    secure = found.scheme == "https"
    return found.hostname, found.port or (443 if secure else 80), secure, found.netloc


def _leaves(said: Any, meaning: Meaning) -> Any:
    if isinstance(said, str):
        return meaning.text(said)
    if isinstance(said, dict):
        return {name: _leaves(inner, meaning) for name, inner in said.items()}
    if isinstance(said, list | tuple):
        return [_leaves(inner, meaning) for inner in said]
    return said
