"""What a rule applies to: members that are there must all hold, and of a list one entry.

A connection shows where it goes (`ports`, `ips`, `hosts`); everything else can be seen in a request only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from boxwood.engine.policies import reading
from boxwood.engine.policies.hosts import HostPattern, pattern
from boxwood.engine.policies.reading import Address, Malformed, Network, members

Direction = Literal["outbound", "inbound"]
Ports = tuple[int, int]  # the first and the last
Named = tuple[tuple[str, tuple[str, ...]], ...]  # names, each with values

PORT_PROTOCOLS = frozenset({"tcp", "udp"})
VIA = ("port", "ssh", "pty")
_MOST_NAMES = 64
_REQUEST = ("methods", "paths", "headers", "query_params", "body_contains")
_BOTH = ("ports", "ips", *_REQUEST)
_OUTBOUND = (*_BOTH, "hosts")
_INBOUND = (*_BOTH, "vm_state", "via", "ssh_keys", "connection_state")
_TERMINAL = frozenset({"ips", "vm_state", "connection_state", "via", "ssh_keys"})


@dataclass(frozen=True, slots=True)
class Match:
    """A member that is empty was left out: it holds for everything."""

    ports: tuple[Ports, ...] = ()
    ips: tuple[Network, ...] = ()
    hosts: tuple[HostPattern, ...] = ()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    headers: Named = ()  # names in small letters
    query_params: Named = ()
    body_contains: tuple[str, ...] = ()
    vm_state: str = ""
    via: tuple[str, ...] = ()
    ssh_keys: tuple[str, ...] = ()
    connection_state: tuple[str, ...] = ()

    @property
    def needs_request(self) -> bool:
        """Can a connection alone not tell?"""
        return any(getattr(self, name) for name in _REQUEST)

    def holds_for_port(self, port: int, protocol: str) -> bool:
        if not self.ports:
            return True
        return protocol in PORT_PROTOCOLS and any(first <= port <= last for first, last in self.ports)

    def holds_for_address(self, address: Address) -> bool:
        return not self.ips or any(address in network for network in self.ips)

    def holds_for_names(self, names: Collection[str]) -> bool:
        """Is any of these one of its hosts?"""
        return not self.hosts or any(host.matches(name) for host in self.hosts for name in names)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if not value:
                continue
            if member.name == "ports":
                found["ports"] = [first if first == last else [first, last] for first, last in value]
            elif member.name in ("ips", "hosts"):
                found[member.name] = [_place(one) for one in value]
            elif member.name in ("headers", "query_params"):
                found[member.name] = {name: list(values) for name, values in value}
            else:
                found[member.name] = value if isinstance(value, str) else list(value)
        return found


def parse(at: str, value: Any, direction: Direction) -> Match:
    """Malformed."""
    said = members(at, value, {*_OUTBOUND, *_INBOUND})
    for name in said.keys() - {*(_OUTBOUND if direction == "outbound" else _INBOUND)}:
        other = "inbound" if direction == "outbound" else "outbound"
        raise Malformed(f"{at}.{name}", f"is for {other} rules only")
    if "hosts" in said and "ips" in said:
        raise Malformed(f"{at}.ips", "not together with hosts: make a rule for each")
    readers = {"ports": _port if direction == "inbound" else _ports, "headers": _headers, "query_params": _query}
    found = {
        name: readers.get(name, _READERS.get(name, _nothing))(f"{at}.{name}", inner) for name, inner in said.items()
    }
    made = Match(**found)
    if direction == "inbound":
        _check_via(at, made, said.keys())
    return made


def _check_via(at: str, match: Match, said: Collection[str]) -> None:
    if match.ssh_keys and match.via != ("ssh",):
        raise Malformed(f"{at}.ssh_keys", 'goes with "via": ["ssh"] only')
    if {"ssh", "pty"} & set(match.via):
        for name in set(said) - _TERMINAL:
            raise Malformed(f"{at}.{name}", "says nothing about ssh or pty: make a rule for ports of its own")


def _nothing(at: str, value: Any) -> Any:
    raise AssertionError(at)


def _ports(at: str, value: Any) -> tuple[Ports, ...]:
    return tuple(sorted(reading.items(at, value, _range)))


def _port(at: str, value: Any) -> tuple[Ports, ...]:
    return tuple(sorted((port, port) for port in reading.items(at, value, _number)))


def _range(at: str, value: Any) -> Ports:
    if not isinstance(value, list | tuple):
        port = _number(at, value)
        return port, port
    if len(value) != 2:
        raise Malformed(at, "must be a port, or [first, last]")
    first, last = _number(f"{at}[0]", value[0]), _number(f"{at}[1]", value[1])
    if first > last:
        raise Malformed(at, f"must have the smaller port first: [{last}, {first}]")
    return first, last


def _number(at: str, value: Any) -> int:
    return reading.number(at, value, 1, 65535)


def _headers(at: str, value: Any) -> Named:
    return _named(at, value, lambda place, name: reading.token(place, name).lower(), reading.line)


def _query(at: str, value: Any) -> Named:
    return _named(at, value, reading.text, reading.text)


def _named(at: str, value: Any, name_of: Any, value_of: Any) -> Named:
    """An object of names, each with a list of values; one value may stand for itself."""
    if not isinstance(value, Mapping) or not value:
        raise Malformed(at, "must be an object of names, each with a list of values")
    if len(value) > _MOST_NAMES:
        raise Malformed(at, f"has {len(value)} names; at most {_MOST_NAMES}")
    found: dict[str, tuple[str, ...]] = {}
    for said, values in value.items():
        name = name_of(at, said)
        if name in found:
            raise Malformed(f"{at}.{reading.shown(said)}", "is there twice")
        listed = [values] if isinstance(values, str) else values
        found[name] = reading.items(f"{at}.{name}", listed, value_of)
    return tuple(sorted(found.items()))


def _body(at: str, value: Any) -> tuple[str, ...]:
    return reading.items(at, [value] if isinstance(value, str) else value, reading.filled)


def _words(known: tuple[str, ...]) -> Any:
    def read(at: str, value: Any) -> tuple[str, ...]:
        return reading.items(at, value, lambda place, entry: reading.word(place, entry, known))

    return read


def _place(place: Network | HostPattern) -> str:
    """An address alone where there is but one."""
    if isinstance(place, HostPattern):
        return str(place)
    return str(place.network_address) if place.num_addresses == 1 else str(place)


_READERS: dict[str, Any] = {
    "ips": lambda at, value: reading.items(at, value, reading.network),
    "hosts": lambda at, value: reading.items(at, value, pattern),
    "methods": lambda at, value: reading.items(at, value, reading.method),
    "paths": lambda at, value: reading.items(at, value, reading.path),
    "body_contains": _body,
    "vm_state": lambda at, value: reading.word(at, value, ("idle", "running")),
    "via": _words(VIA),
    "ssh_keys": lambda at, value: reading.items(at, value, reading.line),
    "connection_state": _words(("new", "open")),
}
