"""What a policy says to a connection and to a question for a name, before anything was sent.

A connection shows an address, a port and a protocol, and the names for which this box was given the address. Whoever
opens it may mean any of these, so a rule that names hosts applies if one of them is its own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from boxwood.engine.policies.document import Policies
from boxwood.engine.policies.reading import Address
from boxwood.engine.policies.rules import Rule


class Outcome(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    PROXY = "proxy"  # its requests are to be seen first


@dataclass(frozen=True, slots=True)
class ConnectionVerdict:
    """`rule`: the name of the one that decided; empty where none applies."""

    outcome: Outcome
    rule: str = ""


def connection_verdict(
    policies: Policies, names: Collection[str], address: Address, port: int, protocol: str
) -> ConnectionVerdict:
    """`names`: for which the box was given this address, as hosts.canonical has them; `protocol`: tcp, udp, icmp or a
    number; `port`: 0 where it has none.

    What only a request can tell is the proxy's, if it is TCP. Of other protocols it sees no requests: a rule that
    refuses or changes some of them then refuses all, one that lets some through lets none.
    """
    open_questions: list[Rule] = []
    for rule in policies.outbound:
        if not covers(rule, names, address, port, protocol):
            continue
        if not rule.needs_request:
            return _decided(open_questions, deny=rule.action.deny, rule=rule.ident)
        if protocol == "tcp":
            open_questions.append(rule)
        elif rule.action.deny or not rule.action.is_plain:
            return ConnectionVerdict(Outcome.DENY, rule.ident)
    return _decided(open_questions, deny=not policies.allows_unmatched, rule="")


def name_verdict(policies: Policies, name: str) -> ConnectionVerdict:
    """May a box ask for this name? Not if no rule could let it go where the name leads: a question that is of no use to
    a box is of use to those who smuggle data in it. Never PROXY."""
    for rule in policies.outbound:
        if rule.match.hosts and not rule.match.holds_for_names((name,)):
            continue
        if not rule.action.deny:
            return ConnectionVerdict(Outcome.ALLOW, rule.ident)
        if not (rule.match.ports or rule.match.ips or rule.match.needs_request):
            return ConnectionVerdict(Outcome.DENY, rule.ident)
    return ConnectionVerdict(Outcome.ALLOW if policies.allows_unmatched else Outcome.DENY)


def covers(rule: Rule, names: Collection[str], address: Address, port: int, protocol: str) -> bool:
    """Does it apply, as far as a connection shows?"""
    match = rule.match
    return match.holds_for_port(port, protocol) and match.holds_for_address(address) and match.holds_for_names(names)


def _decided(open_questions: list[Rule], *, deny: bool, rule: str) -> ConnectionVerdict:
    """Whatever a request turns out to be, is the outcome the same?"""
    if all(before.action.is_plain and before.action.deny == deny for before in open_questions):
        return ConnectionVerdict(Outcome.DENY if deny else Outcome.ALLOW, rule)
    return ConnectionVerdict(Outcome.PROXY, open_questions[0].ident)
