"""Headers on their way into a VM and out of it: what is between two of the three stays there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from boxwood.engine.policies import SERVERS

Headers = list[tuple[bytes, bytes]]

COOKIE, SAFE_COOKIE = b"boxwood_port", b"__Host-boxwood_port"  # ours: never the guest's to see or to set
KEY = b"x-boxwood-key"
ERROR = b"x-boxwood-error"  # of answers that are the server's and not the guest's
HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
    b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_SAID_ANEW = HOP_BY_HOP | {b"host", b"expect", b"content-length"} | {name.encode("ascii") for name in SERVERS}
_FORBIDDEN = frozenset(b"\r\n\0")


def connection_tokens(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """What is for the next hop alone, as the headers themselves say."""
    said = b",".join(value for name, value in headers if name.lower() == b"connection")
    return frozenset(token.strip().lower() for token in said.split(b",") if token.strip())


def inwards(headers: Iterable[tuple[bytes, bytes]], drop: Collection[bytes]) -> Headers:
    """Of a request, names in small letters: what a guest may see of it, and rules may put elsewhere. `drop`: names of
    those that hold a key of ours."""
    given = list(headers)
    left_out = _SAID_ANEW | {b"cookie"} | frozenset(drop) | (connection_tokens(given) - {b"host"})
    passed = [
        (name, value)
        for name, value in given
        if left_out.isdisjoint((name, alike(name))) and _FORBIDDEN.isdisjoint(value)
    ]
    cookies = b"; ".join(filter(None, (foreign(value) for name, value in given if name == b"cookie")))
    return [*passed, *([(b"cookie", cookies)] if cookies else [])]


def alike(name: bytes) -> bytes:
    """What a name is for programs that take `_` and `-` for the same, as CGI does and much that came after it."""
    return name.replace(b"_", b"-")


def addressed(headers: Headers, host: bytes) -> Headers:
    """What `inwards` has left of a request, or a rule has made of that, with the host that it is for in front."""
    return [(b"host", host), *((name, value) for name, value in headers if name not in _SAID_ANEW)]


def sender(host: bytes, client: str, scheme: str) -> Headers:
    """What a guest is told of who has come. `host`: as the client said it; `client`: its address."""
    return [
        (b"x-forwarded-for", client.encode("ascii", "replace")),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", scheme.encode("ascii")),
    ]  # fmt: skip


def foreign(cookie: bytes) -> bytes:
    """A Cookie header without our own."""
    return b"; ".join(part for part in (one.strip() for one in cookie.split(b";")) if part and not _is_own(part))


def own_cookies(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The values of all cookies that may be ours: a page of another VM can set some for many."""
    parts = (one.strip() for name, value in headers if name == b"cookie" for one in value.split(b";"))
    return [part.partition(b"=")[2].strip().decode("latin-1") for part in parts if _is_own(part)]


def _is_own(part: bytes) -> bool:
    return part.partition(b"=")[0].strip() in (COOKIE, SAFE_COOKIE)


def outwards(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Of an answer. A cookie is for its own host: with a domain it would reach other VMs."""
    given = [(name.lower(), value) for name, value in headers]
    left_out = HOP_BY_HOP | {b"date", ERROR} | (connection_tokens(given) - {b"set-cookie", b"content-length"})
    passed: Headers = []
    for name, value in given:
        if name in left_out or not _FORBIDDEN.isdisjoint(value):
            continue
        if name == b"set-cookie":
            value = _host_only(value)
            if not value:
                continue
        passed.append((name, value))
    return passed


def _host_only(cookie: bytes) -> bytes:
    """Empty: it is none of the guest's to set."""
    pair, *attributes = cookie.split(b";")
    if _is_own(pair.strip()):
        return b""
    kept = [one for one in attributes if one.partition(b"=")[0].strip().lower() != b"domain"]
    return b";".join((pair, *kept))


def cookie(token: str, seconds: int, *, secure: bool) -> tuple[bytes, bytes]:
    """Ours, for this host alone."""
    name = (SAFE_COOKIE if secure else COOKIE).decode()
    more = "; Secure" if secure else ""
    said = f"{name}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{more}"
    return b"set-cookie", said.encode("ascii")
