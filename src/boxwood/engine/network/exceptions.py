"""What the operator lets boxes reach though it is not on the internet: addresses, networks, and hosts by name.

A name stands for the addresses that the host finds for it: the router looks them up time and again, the firewall is
opened for exactly these, and boxes are told no others. So a wildcard is no exception: nobody knows its addresses before
a box asks, and the box could then choose them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from boxwood.engine.network.addresses import Address, Network

_FORMS = (
    "allowed are addresses (10.1.2.3, fd00::1), networks (10.0.0.0/8, fd00::/8) and names of hosts (mirror.corp), "
    "each with a port or a range of ports behind it if need be (10.1.2.3:443, [fd00::1]:443, mirror.corp:8000-8010)"
)
_CLOSED: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "this host itself"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
        ("198.18.0.0/15", "other boxes"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved and broadcast"),
        ("::/96", "loopback"),
        ("::ffff:0:0/96", "IPv4 written as IPv6: name the IPv4 address"),
        ("64:ff9b::/96", "IPv4 behind a translator: name the IPv4 address"),
        ("64:ff9b:1::/48", "IPv4 behind a translator: name the IPv4 address"),
        ("2001::/32", "IPv4 in a tunnel: name the IPv4 address"),
        ("2002::/16", "IPv4 in a tunnel: name the IPv4 address"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
# Lies within networks that may well be excepted, and stays closed there.
METADATA: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# As a last label: an address, in one of the spellings that C libraries take.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MOST_ADDRESSES = 64  # of a name


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry: a network or, where that is None, a name; the first and the last port."""

    network: Network | None
    name: str = ""
    first_port: int = 0
    last_port: int = 65535


class Exceptions:
    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.networks: tuple[Network, ...] = tuple(dict.fromkeys(rule.network for rule in rules if rule.network))
        self.names = tuple(dict.fromkeys(rule.name for rule in rules if rule.name))
        self._found: dict[str, tuple[Address, ...]] = {}
        self._all_found: frozenset[Address] = frozenset()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Exceptions:
        """ValueError, which names the entry and says what is allowed."""
        rules = []
        for entry in entries:
            try:
                rules.append(_rule(entry))
            except ValueError as error:
                raise ValueError(f"{entry!r}: {error}; {_FORMS}") from None
        return cls(rules)

    def replace(self, other: Exceptions) -> None:
        """From now on these are the other's; whoever holds this object goes by them."""
        self.__init__(other.rules)  # type: ignore[misc]

    def allows(self, address: Address) -> bool:
        """Is it in an excepted network, or one of the addresses that the names have now?"""
        if address in self._all_found:
            return True
        return any(address in network for network in self.networks) and not _in_any(address, METADATA)

    def places(self) -> list[tuple[str, int, int]]:
        """What is open now, of IPv4: address or network, first and last port."""
        found = []
        looked_up = self.looked_up()
        for rule in self.rules:
            places = [str(rule.network)] if rule.network is not None else looked_up.get(rule.name, ())
            found += [(place, rule.first_port, rule.last_port) for place in places if ":" not in place]
        return found

    def open(self, address: Address, port: int) -> bool:
        """Do they open this port of this address?"""
        return self.allows(address) and any(
            first <= port <= last and address in ipaddress.ip_network(place) for place, first, last in self.places()
        )

    def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        """What the host has found for an excepted name. Addresses that no exception may open are left out, whoever put
        them into the name. KeyError for a name that is not excepted."""
        if name not in self.names:
            raise KeyError(name)
        found = dict.fromkeys(ipaddress.ip_address(text) for text in addresses)
        self._found[name] = tuple(address for address in found if not _is_closed(address))[:_MOST_ADDRESSES]
        self._all_found = frozenset(address for some in self._found.values() for address in some)

    def is_excepted(self, name: str) -> bool:
        return name.removesuffix(".").lower() in self.names

    def looked_up(self) -> dict[str, tuple[str, ...]]:
        """The addresses of each name now; a name that has not been looked up yet is missing."""
        return {name: tuple(map(str, found)) for name, found in self._found.items()}


def _in_any(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _is_closed(address: Address) -> bool:
    return _in_any(address, METADATA) or any(address in network for network, _ in _CLOSED)


def _rule(entry: str) -> Rule:
    place, ports = _split(entry)
    first, last = _ports(ports)
    if "*" in place:
        raise ValueError("a wildcard cannot be looked up ahead: name each host, or give the network's CIDR")
    lower = place.lower().removesuffix(".")
    if "/" in place or ":" in place or _NUMBER.fullmatch(lower.rpartition(".")[2]):
        return Rule(_network(place), "", first, last)
    return Rule(None, _name(lower), first, last)


def _split(entry: str) -> tuple[str, str | None]:
    """The place, and the ports behind it. Of IPv6 only what stands in brackets has any."""
    if entry.startswith("["):
        place, bracket, rest = entry[1:].partition("]")
        if not bracket or ":" not in place or (rest and not rest.startswith(":")):
            raise ValueError("brackets are for IPv6, with a port behind them")
        return place, rest[1:] if rest else None
    if entry.count(":") != 1:
        return entry, None
    place, _, ports = entry.partition(":")
    return place, ports


def _ports(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 65535
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is neither a port nor a range of ports")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= 65535:
        raise ValueError("ports are between 1 and 65535, the smaller one first")
    return first, last


def _network(text: str) -> Network:
    address, slash, length = text.partition("/")
    if slash and not (length.isascii() and length.isdigit()):
        raise ValueError("a network's size is written as the number of its leading bits")
    if "%" in address:
        raise ValueError("an interface of the host means nothing to a box")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            meant = ipaddress.ip_network(text, strict=False)
            raise ValueError(f"bits are set behind the network's: {address} or {meant}?") from None
        raise ValueError("not an address or a network") from None
    if not network.prefixlen:
        raise ValueError("that would open everything")
    for closed, what in _CLOSED:
        if network.version == closed.version and network.overlaps(closed):
            raise ValueError(f"{closed} is never opened ({what})")
    if _in_any(network.network_address, METADATA):
        raise ValueError("the metadata of clouds are never opened")
    return network


def _name(text: str) -> str:
    if not text.isascii():
        raise ValueError("a name with letters beyond a-z is given as it is asked for (xn--…)")
    labels = text.split(".")
    if len(text) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("neither an address nor a name of a host")
    if labels[-1] == "localhost":
        raise ValueError("localhost is the box itself")
    return text
