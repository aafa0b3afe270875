"""What a rule does: let through, refuse, change a request on its way, or ask somebody first."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from boxwood.engine.policies import hosts, reading, templates
from boxwood.engine.policies.match import Direction
from boxwood.engine.policies.reading import Malformed, members

BODY_CHARACTERS = 64 << 10
_MOST_HEADERS = 64
_MOST_DEPTH = 16  # of a gate's body
_GATE_MS = 30_000
_MOST_GATE_MS = 120_000
# They say how long a message is, and where it goes: the proxy's to write.
_FRAMING = frozenset(
    {
        "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# What the server itself tells a guest of who has come, or keeps from it: no inbound rule's to change.
SERVERS = frozenset(
    {
        "forwarded", "x-boxwood-key", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix",
        "x-forwarded-proto", "x-forwarded-server", "x-real-ip",
    }
)  # fmt: skip
_REWRITE = ("host", "path", "headers", "remove_headers", "remove_query_params", "body")
_GATE = ("host", "allow_on_status", "path", "method", "headers", "body", "deny_on_timeout", "timeout_ms")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Texts may hold tokens (templates.py). None and empty: that stays as the request has it."""

    host: str = ""
    path: str | None = None
    headers: tuple[tuple[str, str], ...] = ()  # names in small letters
    remove_headers: tuple[str, ...] = ()
    remove_query_params: tuple[str, ...] = ()
    body: str | None = None

    @property
    def secrets(self) -> frozenset[str]:
        return frozenset().union(*map(templates.secrets_in, self.texts))

    @property
    def texts(self) -> list[str]:
        """All that tokens can stand in."""
        return [value for _, value in self.headers] + [self.path or "", self.body or ""]

    @property
    def named(self) -> frozenset[str]:
        """All headers that it sets or removes."""
        return frozenset((*(name for name, _ in self.headers), *self.remove_headers))

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"host": self.host, "path": self.path, "headers": dict(self.headers)}
        found |= {"remove_headers": list(self.remove_headers), "remove_query_params": list(self.remove_query_params)}
        return {name: value for name, value in found.items() if value} | (
            {} if self.body is None else {"body": self.body}
        )


@dataclass(frozen=True, slots=True)
class Gate:
    """Asked before a request goes on: `url` has a scheme, a host and perhaps a port; `body` is JSON whose texts may
    hold tokens."""

    url: str
    allow_on_status: tuple[int, ...]
    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: Any = None
    deny_on_timeout: bool = True
    timeout_ms: int = _GATE_MS

    @property
    def secrets(self) -> frozenset[str]:
        return frozenset().union(*map(templates.secrets_in, self.texts))

    @property
    def texts(self) -> list[str]:
        """All that tokens can stand in."""
        return [self.path, *(value for _, value in self.headers), *_leaves(self.body)]

    @property
    def tells_secrets(self) -> bool:
        """To whoever listens on the way? Nobody may write that, and nobody is asked like that."""
        return bool(self.secrets) and not self.url.startswith("https:")

    def to_json(self) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "path": "/", "method": "GET", "headers": {}, "body": None, "deny_on_timeout": True, "timeout_ms": _GATE_MS,
        }  # fmt: skip
        found = {name: dict(self.headers) if name == "headers" else getattr(self, name) for name in usual}
        needed = {"host": self.url, "allow_on_status": list(self.allow_on_status)}
        return needed | {name: value for name, value in found.items() if value != usual[name]}


@dataclass(frozen=True, slots=True)
class Action:
    """`deny`, or let through what `rewrite` and `gate` leave of it. `unavailable` names a member of the contract that
    asks for what this server cannot do yet."""

    deny: bool = False
    rewrite: Rewrite | None = None
    gate: Gate | None = None
    unavailable: str = ""

    @property
    def is_plain(self) -> bool:
        """`allow` or `deny`, which a connection alone can be given."""
        return self.rewrite is None and self.gate is None

    @property
    def secrets(self) -> frozenset[str]:
        return frozenset().union(*(part.secrets for part in (self.rewrite, self.gate) if part is not None))

    @property
    def tokens(self) -> list[templates.Token]:
        """All that stand in its texts."""
        texts = [text for part in (self.rewrite, self.gate) if part is not None for text in part.texts]
        return [part for text in texts for part in templates.parts(text) if isinstance(part, templates.Token)]

    def to_json(self) -> Any:
        if self.is_plain:
            return "deny" if self.deny else "allow"
        made = {"rewrite": self.rewrite, "gate": self.gate}
        return {name: part.to_json() for name, part in made.items() if part is not None}


def parse(at: str, value: Any, direction: Direction) -> Action:
    """Malformed."""
    if isinstance(value, str):
        if value == "suspend" and direction == "outbound":
            return Action(unavailable="suspend")
        return Action(deny=reading.word(at, value, ("allow", "deny")) == "deny")
    said = members(at, value, ("rewrite", "gate", "suspend", "scaling"))
    later = ""
    if "suspend" in said:
        if reading.flag(f"{at}.suspend", said["suspend"]) is False or direction == "inbound":
            raise Malformed(f"{at}.suspend", "must be true, in an outbound rule; leave it out otherwise")
        later = "suspend"
    if "scaling" in said:
        members(f"{at}.scaling", said["scaling"], ("suspend", "wake"))
        if later:
            raise Malformed(f"{at}.scaling", "not together with suspend")
        later = "scaling"
    rewrite = _rewrite(f"{at}.rewrite", said["rewrite"], direction) if "rewrite" in said else None
    gate = _gate(f"{at}.gate", said["gate"], direction) if "gate" in said else None
    if rewrite is None and gate is None and not later:
        raise Malformed(at, "must be allow, deny, or an object with rewrite or gate in it")
    return Action(rewrite=rewrite, gate=gate, unavailable=later)


def _rewrite(at: str, value: Any, direction: Direction) -> Rewrite:
    said = members(at, value, _REWRITE)
    if not said:
        raise Malformed(at, f"must change something: {', '.join(_REWRITE)}")
    inbound = direction == "inbound"
    path = None
    if "path" in said:
        read = reading.line(f"{at}.path", said["path"])
        path = templates.check(f"{at}.path", read, inbound=inbound, enters=inbound)
        if not path.startswith(("/", "$path")) or " " in path or "#" in path:
            raise Malformed(f"{at}.path", "must begin with a slash (or $path), without spaces and '#'")
    body = None
    if "body" in said:
        read = reading.text(f"{at}.body", said["body"], BODY_CHARACTERS)
        body = templates.check(f"{at}.body", read, inbound=inbound, enters=inbound)
    removed, parameters = said.get("remove_headers"), said.get("remove_query_params")
    return Rewrite(
        host=hosts.canonical(f"{at}.host", said["host"], local=inbound) if "host" in said else "",
        path=path,
        headers=_headers(f"{at}.headers", said.get("headers"), inbound=inbound, enters=inbound),
        remove_headers=() if removed is None else reading.items(f"{at}.remove_headers", removed, _header),
        remove_query_params=(
            () if parameters is None else reading.items(f"{at}.remove_query_params", parameters, reading.filled)
        ),
        body=body,
    )


def _gate(at: str, value: Any, direction: Direction) -> Gate:
    said = members(at, value, _GATE)
    for name in ("host", "allow_on_status"):
        if name not in said:
            raise Malformed(f"{at}.{name}", "must be there")
    inbound = direction == "inbound"
    url = _origin(f"{at}.host", said["host"])
    path = reading.line(f"{at}.path", said.get("path", "/"))
    if not path.startswith("/") or " " in path or "#" in path:
        raise Malformed(f"{at}.path", "must begin with a slash, without spaces and '#'")
    body = said.get("body")
    _check_body(f"{at}.body", body, inbound=inbound)
    return Gate(
        url=url,
        allow_on_status=tuple(sorted(reading.items(f"{at}.allow_on_status", said["allow_on_status"], _status))),
        path=templates.check(f"{at}.path", path, inbound=inbound),
        method=reading.method(f"{at}.method", said.get("method", "GET")),
        headers=_headers(f"{at}.headers", said.get("headers"), inbound=inbound),
        body=body,
        deny_on_timeout=reading.flag(f"{at}.deny_on_timeout", said.get("deny_on_timeout", True)),
        timeout_ms=reading.number(f"{at}.timeout_ms", said.get("timeout_ms", _GATE_MS), 1, _MOST_GATE_MS),
    )


def _origin(at: str, value: Any) -> str:
    """`https://gate.example:8443`: nothing behind it, so nothing for two readers to differ about."""
    found = reading.line(at, value, 512)
    scheme, separator, rest = found.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise Malformed(at, "must begin with https:// or http://")
    rest = rest.removesuffix("/")
    host, colon, port = rest.partition(":")
    if colon and not (port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise Malformed(at, f"{reading.shown(port)} is no port; an IPv6 address cannot be given")
    made = urllib.parse.urlunsplit((scheme.lower(), hosts.canonical(at, host), "", "", ""))
    return f"{made}:{int(port)}" if colon else made


def _headers(at: str, value: Any, *, inbound: bool, enters: bool = False) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise Malformed(at, f"must be an object of names and values, not {reading.kind(value)}")
    if len(value) > _MOST_HEADERS:
        raise Malformed(at, f"has {len(value)} headers; at most {_MOST_HEADERS}")
    found: dict[str, str] = {}
    for said, inner in value.items():
        name = _header(at, said)
        if name in found:
            raise Malformed(f"{at}.{reading.shown(said)}", "is there twice")
        read = reading.line(f"{at}.{name}", inner)
        found[name] = templates.check(f"{at}.{name}", read, inbound=inbound, enters=enters)
    return tuple(sorted(found.items()))


def _header(at: str, value: Any) -> str:
    name = reading.token(at, value).lower()
    if name in _FRAMING:
        hint = ": rewrite.host says where a request goes" if name == "host" else ""
        raise Malformed(at, f"{name} says how a message is sent, which is not a rule's to change{hint}")
    return name


def _status(at: str, value: Any) -> int:
    return reading.number(at, value, 100, 599)


def _check_body(at: str, value: Any, *, inbound: bool, depth: int = 0) -> None:
    """JSON, not too deep, of a bounded size."""
    if depth > _MOST_DEPTH:
        raise Malformed(at, f"is nested more than {_MOST_DEPTH} times")
    if isinstance(value, str):
        templates.check(at, reading.text(at, value), inbound=inbound)
    elif isinstance(value, Mapping):
        if len(value) > reading.MOST_ITEMS:
            raise Malformed(at, f"has {len(value)} members; at most {reading.MOST_ITEMS}")
        for name, inner in value.items():
            reading.text(at, name)
            _check_body(f"{at}.{reading.shown(name)}", inner, inbound=inbound, depth=depth + 1)
    elif isinstance(value, list | tuple):
        if len(value) > reading.MOST_ITEMS:
            raise Malformed(at, f"has {len(value)} entries; at most {reading.MOST_ITEMS}")
        for index, inner in enumerate(value):
            _check_body(f"{at}[{index}]", inner, inbound=inbound, depth=depth + 1)
    elif not isinstance(value, int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise Malformed(at, "must be JSON")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
