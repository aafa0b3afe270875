"""A policy as rules of the router's table: one chain and a few sets for each box that has one.

`connections.connection_verdict` says what they mean, and tests hold both against each other. They stand behind the
router's own rules, which refuse what no policy can open. A set of hosts holds the addresses that the box was given for
them, each as long as that may be relied on.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from boxwood.engine.policies import HostPattern, Policies, Rule

MOST_ADDRESSES = 4096  # of a set
_FEW = 4
_OF_A_SET = 8  # statements that nft and the kernel are as busy with as with a set, where there are thousands of both
_ALLOWED, _BARRED = "goto opened", "goto barred"
_Ports = tuple[tuple[int, int], ...]


def chain_of(address: str) -> str:
    """Of the box with this address."""
    return f"policy_{socket.inet_aton(address)[2:].hex()}"


def address_of(chain: str) -> str:
    """Empty: it is no policy's."""
    if not chain.startswith("policy_"):
        return ""
    return socket.inet_ntoa(bytes((198, 18)) + bytes.fromhex(chain[7:]))


def diverting_of(address: str) -> str:
    """The chain that sends a box's connections to the proxy."""
    return chain_of(address).replace("policy_", "divert_")


def set_prefix(address: str) -> str:
    return f"hosts_{socket.inet_aton(address)[2:].hex()}_"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """`rules`: the statements of the chain that judges; `sets`: of hosts, by names that nothing had before."""

    address: str
    rules: tuple[str, ...]
    diverting: tuple[str, ...]  # of a chain that TCP goes through before; empty: it does not
    sets: dict[str, tuple[HostPattern, ...]]

    @property
    def weight(self) -> int:
        """How many sets the kernel has for it, those without a name among them: it looks for each by going through
        all of a table's. Of statements many take as long."""
        statements = (*self.rules, *self.diverting)
        return len(self.sets) + sum(rule.count("{") for rule in statements) + len(statements) // _OF_A_SET

    def sets_of(self, name: str) -> list[str]:
        """Those that an address belongs into that was given for this name."""
        return [one for one, hosts in self.sets.items() if any(host.matches(name) for host in hosts)]

    def script(self, table: str, given: dict[str, dict[str, int]], gone: Sequence[str]) -> str:
        """For nft, as a part of a transaction. `given`: what is in the sets from the start: milliseconds by address;
        `gone`: sets of the box that it may have had before."""
        chain = chain_of(self.address)
        before = diverting_of(self.address)
        lines = [f"add chain inet {table} {one}" for one in (chain, before)]
        lines += [f"flush chain inet {table} {one}" for one in (chain, before)]
        for name in self.sets:
            found = ", ".join(f"{place} timeout {ms}ms" for place, ms in given.get(name, {}).items())
            lines.append(_set(table, name, f"elements = {{ {found} }}; " if found else ""))
        lines += [f"add rule inet {table} {chain} {rule}" for rule in self.rules]
        lines += [f"add rule inet {table} {before} {rule}" for rule in self.diverting]
        lines.append(f"add element inet {table} policies {{ {self.address} : goto {chain} }}")
        lines.append(f"add element inet {table} diverted {{ {self.address} : goto {before} }}")
        return "\n".join(lines + _without(table, gone)) + "\n"


def _set(table: str, name: str, elements: str = "") -> str:
    return f"add set inet {table} {name} {{ type ipv4_addr; size {MOST_ADDRESSES}; flags timeout; {elements}}}"


def _without(table: str, sets: Iterable[str]) -> list[str]:
    """nft refuses to delete what is not there; whoever removes the whole table leaves nobody time to look."""
    return [line for name in sets for line in (_set(table, name), f"delete set inet {table} {name}")]


def made_of(address: str, policies: Policies, proxy: str) -> Ruleset:
    """For the box with this address; `proxy`: address and port of what sees requests."""
    prefix = set_prefix(address) + secrets.token_hex(4)
    sets: dict[tuple[HostPattern, ...], str] = {}
    rules: list[str] = []
    diverting: list[str] = []
    for effect, alike in groupby(policies.outbound, _effect):
        for where in _places(alike, sets, prefix):
            rules.append(f"{effect.scope} {where} {effect.judged}")
            diverting.append(f"{where} meta l4proto tcp dnat ip to {proxy}" if effect.seen else f"{where} return")
    rules.append(_ALLOWED if policies.allows_unmatched else _BARRED)
    if not policies.needs_proxy:
        diverting.clear()
    tidy = [tuple(" ".join(one.split()) for one in chain) for chain in (rules, diverting)]
    return Ruleset(address, tidy[0], tidy[1], {name: hosts for hosts, name in sets.items()})


def barred(address: str) -> Ruleset:
    """Of a box that goes nowhere for now."""
    return Ruleset(address, (_BARRED,), (), {})


def removal(table: str, address: str, sets: Iterable[str]) -> str:
    """Of all that a box may have of a policy."""
    lines = []
    for places, chain in (("policies", chain_of(address)), ("diverted", diverting_of(address))):
        lines += [
            f"add chain inet {table} {chain}",
            f"add element inet {table} {places} {{ {address} : goto {chain} }}",
            f"delete element inet {table} {places} {{ {address} }}",
            f"flush chain inet {table} {chain}",
            f"delete chain inet {table} {chain}",
        ]
    return "\n".join(lines + _without(table, sets)) + "\n"


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a rule does to packets. `seen`: its requests have to be; `scope`: of which packets a rule is that judges
    those that were not."""

    seen: bool
    scope: str
    judged: str


def _effect(rule: Rule) -> _Effect:
    """A request that would have to be seen has not been: what its rule may refuse or change goes nowhere."""
    if not rule.needs_request:
        return _Effect(False, "", _BARRED if rule.action.deny else _ALLOWED)
    return _Effect(True, "meta l4proto tcp" if rule.action.is_plain and not rule.action.deny else "", _BARRED)


@dataclass(slots=True)
class _Place:
    hosts: dict[HostPattern, None] = field(default_factory=dict)
    networks: list[ipaddress.IPv4Network] = field(default_factory=list)
    anywhere: bool = False


def _places(rules: Iterable[Rule], sets: dict[tuple[HostPattern, ...], str], prefix: str) -> list[str]:
    """What packets show of these rules' matches. They do the same and follow upon each other, so in which order they
    are asked, and how many there are, is of no matter."""
    found: dict[_Ports, _Place] = {}
    for rule in rules:
        match = rule.match
        place = found.setdefault(tuple(_merged(match.ports)), _Place())
        place.hosts |= dict.fromkeys(match.hosts)
        place.networks += [one for one in match.ips if isinstance(one, ipaddress.IPv4Network)]  # no packet is IPv6
        place.anywhere |= not (match.hosts or match.ips)
    return [text for ports, place in found.items() for text in _shown(ports, place, sets, prefix)]


def _shown(ports: _Ports, place: _Place, sets: dict[tuple[HostPattern, ...], str], prefix: str) -> list[str]:
    targets = []
    if place.anywhere or not all(one.prefixlen for one in place.networks):
        targets.append("")
    else:
        if place.hosts:
            targets.append(f"ip daddr @{sets.setdefault(tuple(place.hosts), f'{prefix}_{len(sets)}')}")
        networks = [str(one) for one in ipaddress.collapse_addresses(place.networks)]
        targets += [f"ip daddr {one}" for one in _few(networks)]
    numbers = [f"{first}-{last}" if first != last else str(first) for first, last in ports]
    services = [f" meta l4proto @ported th dport {one}" for one in _few(numbers)] or [""]
    return [target + service for target in targets for service in services]


def _few(values: Sequence[str]) -> Sequence[str]:
    """A few are a statement each; more are a set, of which a table bears only so many."""
    return values if len(values) <= _FEW else (f"{{ {', '.join(values)} }}",)


def _merged(ports: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ports in ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
