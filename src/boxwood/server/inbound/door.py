"""Who asks for a port of a VM, and whether it may: a key in a header, a cookie that a ticket was exchanged for, or
nobody where a rule opens the port.

A cookie comes from a browser, whoever made it send the request: so with one, requests that a page of another origin
could have caused are refused.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from starlette.types import Scope

from boxwood.core import clock
from boxwood.core.core import Core
from boxwood.core.errors import BadRequest, Forbidden, Unauthorized
from boxwood.core.hostnames import Place, place
from boxwood.core.keys import PREFIX
from boxwood.core.model import Caller
from boxwood.core.ports import COOKIE_SECONDS, Connection, Entry
from boxwood.engine.policies import Action, Request, Rule
from boxwood.server.auth import KEY_BYTES
from boxwood.server.inbound.headers import KEY, cookie, own_cookies
from boxwood.store.vms import VMRow

TICKET = "boxwood_ticket"
QUERY_KEY = "arker_api_key"  # the contract's, of links: it becomes a cookie as well
HOW = (
    "this port of a VM takes nobody without an API key: send it as X-Boxwood-Key, X-Api-Key or Authorization: Bearer, "
    "or open the URL that `boxwood url VM PORT --ticket` prints"
)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(slots=True)
class Visit:
    """A request for a port. `raw`: its headers, names in small letters. `host`: the one Host header."""

    scope: Scope
    host: str
    label: str
    upgrades: bool = False
    answered: bool = False  # nothing of ours can be said any more

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = self.scope["headers"]
        return found

    @property
    def has_body(self) -> bool:
        """Does it announce one? What asks for a WebSocket has none: what follows it is the WebSocket's."""
        return not self.upgrades and any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.raw
        )

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def scheme(self) -> str:
        return "https" if self.scope.get("scheme") in ("https", "wss") else "http"

    @property
    def client(self) -> str:
        client = self.scope.get("client")
        return str(client[0]) if client else "0.0.0.0"

    @property
    def target(self) -> bytes:
        """In origin form. BadRequest."""
        path: bytes = self.scope["raw_path"] or b"/"
        query: bytes = self.scope["query_string"]
        target = path + b"?" + query if query else path
        if not target.startswith(b"/") or any(byte <= 32 or byte == 127 for byte in target):
            raise BadRequest("the request's target is no path")
        return target

    def header(self, name: bytes) -> str | None:
        found = [value for known, value in self.raw if known == name]
        return found[0].decode("latin-1") if len(found) == 1 else None


@dataclass(slots=True)
class Guest:
    """Somebody who may come in. `drop`: names of headers that hold a key. `set_cookie`: a fresh one."""

    row: VMRow
    port: int
    caller: Caller | None
    drop: frozenset[bytes] = frozenset()
    set_cookie: tuple[bytes, bytes] | None = None
    request: Request | None = None
    entry: Entry | None = None

    @property
    def rule(self) -> Rule | None:
        """That lets him in."""
        return None if self.entry is None else self.entry.rule

    @property
    def waits(self) -> bool:
        """May his request take a while before it is passed on?"""
        return self.entry is not None and (
            self.entry.needs_body or (self.entry.rule is not None and not self.entry.rule.action.is_plain)
        )


@dataclass(slots=True)
class Exchanged:
    """A ticket was shown, and is a cookie from now on: come again, without it."""

    location: str
    set_cookie: tuple[bytes, bytes]


class Door:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._ports = core.ports

    def admit(self, visit: Visit) -> Guest | Exchanged:
        """CoreError: why not."""
        found = place(visit.label)
        if found is None:
            raise BadRequest("this host is no VM: a port of one is at VM-PORT, with its id or a name in small letters")
        if (exchanged := self._exchanged(visit, found)) is not None:
            return exchanged
        caller, drop = self._by_key(visit)
        set_cookie = None
        if caller is None:
            caller, set_cookie = self._by_cookie(visit, found)
        try:
            row = self._ports.row(found, caller)
            request = _request(visit, found.port)
            entry = self._ports.may_enter(row, request, caller)
        except Unauthorized:
            raise Unauthorized(HOW) from None
        return Guest(row, found.port, caller, drop, set_cookie, request, entry)

    def admit_with(self, guest: Guest, body: bytes) -> None:
        """He has sent what a rule has asked for. CoreError: why not."""
        assert guest.request is not None and guest.entry is not None
        guest.request = replace(guest.request, body=body)
        try:
            guest.entry = self._ports.may_enter(guest.row, guest.request, guest.caller, guest.entry.state)
        except Unauthorized:
            raise Unauthorized(HOW) from None

    def still_admits(self, guest: Guest, connection: Connection) -> None:
        """Rules may have changed while a gate was asked, or a box was booted for him. From now on a change reaches the
        connection too, as far as rules do not ask for its body, which nobody keeps. CoreError: why not."""
        assert guest.request is not None and guest.entry is not None
        entry = self._ports.may_enter(guest.row, guest.request, guest.caller, guest.entry.state)
        if entry.needs_body or _action(entry.rule) != _action(guest.rule):
            raise Forbidden("the rules of this VM have changed while this request waited: send it again")
        connection.request = guest.request = replace(guest.request, body=guest.request.body and None)

    def _by_key(self, visit: Visit) -> tuple[Caller | None, frozenset[bytes]]:
        """Headers that an application of the guest's may use as well are the guest's unless they hold a key of ours.
        Unauthorized: the header that is ours alone holds none."""
        caller, drop = None, {KEY}
        for name, value in visit.raw:
            if name not in (KEY, b"x-api-key", b"authorization"):
                continue
            key = _key(name, value)
            known = self._core.keys.known(key) if key else None
            if known is not None or key.startswith(PREFIX):
                drop.add(name)
            if known is None and name == KEY:
                raise Unauthorized("x-boxwood-key: this API key is not valid here")
            caller = caller or known
        return caller, frozenset(drop)

    def _by_cookie(self, visit: Visit, found: Place) -> tuple[Caller | None, tuple[bytes, bytes] | None]:
        for token in own_cookies(visit.raw):
            if (redeemed := self._ports.redeem("port-cookie", token, found)) is None:
                continue
            _check_origin(visit)
            caller, ends = redeemed
            if ends - clock.now() // 1_000_000 > COOKIE_SECONDS // 2:
                return caller, None
            return caller, self._cookie(visit, caller, found)
        return None, None

    def _exchanged(self, visit: Visit, found: Place) -> Exchanged | None:
        """Unauthorized."""
        query: bytes = visit.scope["query_string"]
        if TICKET.encode() not in query and QUERY_KEY.encode() not in query:
            return None
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        ours = [(name, value) for name, value in pairs if name in (TICKET, QUERY_KEY)]
        if not ours or visit.upgrades or visit.method not in _SAFE:
            return None
        name, value = ours[0]
        if name == TICKET:
            redeemed = self._ports.redeem("port-ticket", value, found)
            caller = redeemed[0] if redeemed is not None else None
        else:
            caller = self._core.keys.known(value)
        if caller is None:
            raise Unauthorized("this ticket is not valid here, or has expired: ask for another one")
        rest = urlencode([pair for pair in pairs if pair not in ours])
        path = visit.target.partition(b"?")[0].decode("latin-1")
        location = "/" + path.lstrip("/") + (f"?{rest}" if rest else "")  # never //host: that is another one
        return Exchanged(location, self._cookie(visit, caller, found))

    def _cookie(self, visit: Visit, caller: Caller, found: Place) -> tuple[bytes, bytes]:
        row = self._ports.row(found, caller)
        token = self._ports.token("port-cookie", caller, row, found.port)
        return cookie(token, COOKIE_SECONDS, secure=visit.scheme == "https")


def _action(rule: Rule | None) -> Action | None:
    return None if rule is None else rule.action


def _key(name: bytes, value: bytes) -> str:
    """Empty: there is none in this header."""
    if len(value) > KEY_BYTES or not value.isascii():
        return ""
    if name == b"authorization":
        scheme, _, value = value.partition(b" ")
        if scheme.lower() != b"bearer":
            return ""
    return value.strip().decode("ascii")


def _check_origin(visit: Visit) -> None:
    """Forbidden: a page of another origin may have caused this, with a cookie that its browser has."""
    origins = [value for name, value in visit.raw if name == b"origin"]
    own = f"{visit.scheme}://{visit.host}".lower().encode("latin-1")
    if origins and any(origin.lower() != own for origin in origins) and (visit.upgrades or visit.method not in _SAFE):
        raise Forbidden("a page of another origin may not do this with the cookie of this one")
    site, mode = visit.header(b"sec-fetch-site"), visit.header(b"sec-fetch-mode")
    if site in ("cross-site", "same-site") and (mode != "navigate" or visit.method not in _SAFE):
        raise Forbidden("a page of another origin may not do this with the cookie of this one")


def _request(visit: Visit, port: int) -> Request:
    path, _, query = visit.target.partition(b"?")
    try:
        address = ipaddress.ip_address(visit.client.partition("%")[0])
    except ValueError:
        address = ipaddress.IPv4Address(0)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return Request(
        visit.method, "", address, port, path.decode("latin-1"),
        parse_qsl(query.decode("latin-1"), keep_blank_values=True),
        [(name.decode("latin-1"), value.decode("latin-1")) for name, value in visit.raw],
        None if visit.has_body else b"",
    )  # fmt: skip
