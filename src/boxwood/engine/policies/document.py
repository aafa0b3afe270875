"""A VM's policy as a whole: rules by their names, what changes them, and the two forms in which they are written.

The keyed form names its rules; the ordered form is a list, the first entry first. Both are one thing inside.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

from boxwood.engine.policies import actions, reading, rules
from boxwood.engine.policies.actions import Action
from boxwood.engine.policies.match import Direction
from boxwood.engine.policies.reading import Malformed, members
from boxwood.engine.policies.rules import Rule
from boxwood.engine.policies.spellings import all_spellings
from boxwood.engine.policies.templates import SECRET_NAME
from boxwood.engine.policies.timed import TimedRule

MOST_RULES = 256
MOST_SECRETS = 64  # of one VM, and that its rules name: its proxy is told all of them at once
MOST_BYTES = 256 << 10  # of the rules as JSON
MOST_SOUGHT = 64  # texts that rules of one direction look for in bodies: each is a walk through the whole of one
MOST_TOKENS = 512  # of one rule, for each of which something is put together at each request
SECRET_BYTES = 16 << 10
HIDDEN = "***"  # what a secret's value is shown as
_STEP = 100  # between the priorities of an ordered form's entries, so that others can come between
_MADE_HERE = ("hostname", "mitm_domains", "warnings")


AnyRule = Rule | TimedRule


class Policies:
    """Immutable; `rules` by their names. Of none: everything may go out, and come in with a key."""

    def __init__(self, found: Iterable[AnyRule] = ()) -> None:
        self.rules: Mapping[str, AnyRule] = MappingProxyType({rule.ident: rule for rule in sorted(found, key=_by_name)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policies) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(tuple(self.rules.values()))

    def __bool__(self) -> bool:
        return bool(self.rules)

    @cached_property
    def outbound(self) -> tuple[Rule, ...]:
        """In the order in which they are gone through."""
        return self._directed("outbound")

    @cached_property
    def inbound(self) -> tuple[Rule, ...]:
        return self._directed("inbound")

    @cached_property
    def timed(self) -> tuple[TimedRule, ...]:
        """Those that say when the VM is deleted or suspended, by name."""
        return tuple(rule for rule in self.rules.values() if isinstance(rule, TimedRule))

    @cached_property
    def of_traffic(self) -> Policies:
        """All others: what the network is to know."""
        return self if not self.timed else Policies((*self.outbound, *self.inbound))

    @cached_property
    def allows_unmatched(self) -> bool:
        """May go out what no rule applies to? Not once a rule lists what may."""
        return not any(not rule.action.deny and rule.action.is_plain for rule in self.outbound)

    @property
    def needs_proxy(self) -> bool:
        """Has it rules for what goes out that a connection alone cannot be judged by?"""
        return any(rule.needs_request for rule in self.outbound)

    @property
    def secrets(self) -> frozenset[str]:
        """The names of all that its rules use."""
        return frozenset().union(*(rule.secrets for rule in self.rules.values()))

    def without_secrets(self) -> Policies:
        """The rules that name some refuse what they apply to, as if there were no such secrets."""
        shut = Action(deny=True)
        return Policies(
            replace(rule, action=shut, auth="") if isinstance(rule, Rule) and rule.secrets else rule
            for rule in self.rules.values()
        )

    @cached_property
    def sought(self) -> tuple[frozenset[str], frozenset[str]]:
        """What its rules look for in bodies, of what goes out and of what comes in."""
        return _sought(self.outbound), _sought(self.inbound)

    @property
    def mitm_domains(self) -> list[str]:
        """Whose TLS is ended on the way: hosts as rules name them, `*` for all."""
        found = {str(host) for rule in self.outbound if rule.needs_request for host in rule.match.hosts}
        if any(rule.needs_request and not rule.match.hosts for rule in self.outbound):
            found.add("*")
        return sorted(found)

    def to_json(self) -> dict[str, Any]:
        """Rules by their names: what `parse` reads, each policy in one way only."""
        return {name: rule.to_json() for name, rule in self.rules.items()}

    def text(self) -> str:
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":"))

    def ordered(self) -> list[dict[str, Any]]:
        """The ordered form's entries, first to last; rules of time have no place in that order, and come behind."""
        dropped = ("priority", "expires_at")
        traffic = sorted((*self.outbound, *self.inbound), key=lambda rule: (-rule.priority, rule.ident))
        listed: list[AnyRule] = [*traffic, *self.timed]
        return [{name: value for name, value in rule.to_json().items() if name not in dropped} for rule in listed]

    def _directed(self, direction: Direction) -> tuple[Rule, ...]:
        found = (rule for rule in self.rules.values() if isinstance(rule, Rule) and rule.direction == direction)
        return tuple(sorted(found, key=lambda rule: -rule.priority))


@dataclass(frozen=True, slots=True)
class Update:
    """What somebody wants changed. None as a rule or a secret's value takes it away. `replace`: all rules that were
    there go first."""

    rules: Mapping[str, AnyRule | None]
    secrets: Mapping[str, str | None]
    replace: bool = False

    def __bool__(self) -> bool:
        return self.replace or bool(self.rules) or bool(self.secrets)

    @property
    def timed(self) -> tuple[TimedRule, ...]:
        """Rules of time that are written."""
        return tuple(rule for rule in self.rules.values() if isinstance(rule, TimedRule))

    def apply(self, before: Policies, at: str = "policies") -> Policies:
        """Malformed: the whole would not do, whatever each of its rules is."""
        kept = {} if self.replace else dict(before.rules)
        for name, rule in self.rules.items():
            if rule is None:
                kept.pop(name, None)
            else:
                kept[name] = rule
        after = checked(at, kept.values())
        for earlier, now in zip(before.sought, after.sought, strict=True):
            if len(now) > max(MOST_SOUGHT, len(earlier)):  # it may have had more before anybody minded
                said = f"look for {len(now)} texts in bodies (body_contains); at most {MOST_SOUGHT}"
                raise Malformed(at, f"all rules of a direction together {said}")
        return after

    def apply_secrets(self, before: Iterable[str], at: str = "policies") -> frozenset[str]:
        """The names of the secrets that there are then. Malformed."""
        kept = set(before) - {name for name, value in self.secrets.items() if value is None}
        kept |= {name for name, value in self.secrets.items() if value is not None}
        if len(kept) > MOST_SECRETS:
            raise Malformed(f"{at}.secrets", f"a VM has at most {MOST_SECRETS}")
        return frozenset(kept)


def parse(value: Any, at: str = "policies") -> Policies:
    """Of `Policies.to_json`'s form. Malformed."""
    return checked(at, _rules(at, value, nulls=False).values())  # type: ignore[arg-type]


def parse_update(value: Any, now: datetime, at: str = "policies") -> Update:
    """The keyed form, or its deprecated list; what only servers write is passed over, since old clients send it back.
    `now`: what expires, and what deletes the VM, must do so later. Malformed."""
    said = members(at, value, ("rules", "secrets", "policies", *_MADE_HERE))
    if "policies" in said and "rules" in said:
        raise Malformed(f"{at}.policies", "not together with rules")
    secrets = _secrets(f"{at}.secrets", said.get("secrets", {}))
    if "policies" in said:
        return Update(_entries(f"{at}.policies", said["policies"], now), secrets, replace=True)
    found = _rules(f"{at}.rules", said.get("rules", {}), nulls=True, now=now)
    for name, rule in found.items():
        if isinstance(rule, Rule) and rule.expires_at is not None and rule.expires_at <= now:
            raise Malformed(f"{at}.rules.{name}.expires_at", "must be in the future")
        _check_written(f"{at}.rules.{name}", rule)
    return Update(found, secrets)


def parse_ordered(value: Any, now: datetime | None = None) -> Update:
    """The ordered form, which replaces all rules. Secrets that it shows hidden are kept as they are, those that it does
    not name go: they are in `secrets` as None only where `value` says so. `now`: as of `parse_update`. Malformed."""
    if not isinstance(value, Mapping):
        raise Malformed("body", f"must be an object, not {reading.kind(value)}")
    said = members("body", value, ("policies", "secrets", *_MADE_HERE))
    given = said.get("secrets", {})
    if isinstance(given, Mapping):
        given = {name: inner for name, inner in given.items() if inner != HIDDEN}
    return Update(_entries("policies", said.get("policies", []), now), _secrets("secrets", given), replace=True)


def checked(at: str, found: Iterable[AnyRule]) -> Policies:
    """Malformed: too many, too large, or two of a kind with one priority."""
    made = Policies(found)
    if len(made.rules) > MOST_RULES:
        raise Malformed(at, f"a VM has at most {MOST_RULES} rules, not {len(made.rules)}")
    if len(made.secrets) > MOST_SECRETS:
        raise Malformed(at, f"all rules together name at most {MOST_SECRETS} secrets, not {len(made.secrets)}")
    for listed in (made.outbound, made.inbound):
        for before, after in itertools.pairwise(listed):
            if before.priority == after.priority:
                said = f"{after.ident} and {before.ident} both have {after.priority}, and are both {after.direction}"
                raise Malformed(f"{at}.{after.ident}.priority", f"must be unique: {said}")
    if (size := len(made.text().encode())) > MOST_BYTES:
        raise Malformed(at, f"all rules together have at most {MOST_BYTES} bytes, not {size}")
    return made


def secret_name(at: str, value: Any) -> str:
    if not isinstance(value, str) or not SECRET_NAME.fullmatch(value):
        raise Malformed(at, f"{reading.shown(value)} is no name of a secret: letters, digits and '_', at most 64")
    return value


def secret_value(at: str, value: Any) -> str:
    """The text of an error never holds it."""
    if not isinstance(value, str):
        raise Malformed(at, f"must be a text, not {reading.kind(value)}")
    if value == HIDDEN:
        raise Malformed(at, f"{HIDDEN} is what is shown instead of a value; leave the secret out to keep it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Malformed(at, "is not valid Unicode text") from None
    if not 1 <= size <= SECRET_BYTES:
        raise Malformed(at, f"must have 1 to {SECRET_BYTES} bytes")
    if any(character < " " or character == "\x7f" for character in value):
        raise Malformed(at, "must not contain control characters, such as a line end behind it")
    all_spellings(at, (value,))
    return value


def _rules(at: str, value: Any, *, nulls: bool, now: datetime | None = None) -> dict[str, AnyRule | None]:
    if not isinstance(value, Mapping):
        raise Malformed(at, f"must be an object of rules by their names, not {reading.kind(value)}")
    if len(value) > MOST_RULES:
        raise Malformed(at, f"has {len(value)} rules; at most {MOST_RULES}")
    found: dict[str, AnyRule | None] = {}
    for said, inner in value.items():
        name = rules.ident(at, said)
        found[name] = None if inner is None and nulls else rules.parse(f"{at}.{name}", name, inner, now=now)
    return found


def _entries(at: str, value: Any, now: datetime | None) -> dict[str, AnyRule | None]:
    if not isinstance(value, list | tuple):
        raise Malformed(at, f"must be a list, not {reading.kind(value)}")
    if len(value) > MOST_RULES:
        raise Malformed(at, f"has {len(value)} entries; at most {MOST_RULES}")
    found: dict[str, AnyRule | None] = {}
    for index, entry in enumerate(value):
        priority = (len(value) - index) * _STEP
        found[f"rule-{index}"] = rules.parse(f"{at}[{index}]", f"rule-{index}", entry, priority=priority, now=now)
        _check_written(f"{at}[{index}]", found[f"rule-{index}"])
    return found


def _check_written(at: str, rule: AnyRule | None) -> None:
    """What is kept may say it, from before anybody minded: then it is passed over. Malformed."""
    if not isinstance(rule, Rule):
        return
    if rule.action.gate is not None and rule.action.gate.tells_secrets:
        raise Malformed(f"{at}.action.gate.host", "a gate that is given a secret must be asked by https")
    if (count := len(rule.action.tokens)) > MOST_TOKENS:
        raise Malformed(
            f"{at}.action", f"has {count} tokens ($path, ${{header:NAME}} and so on); at most {MOST_TOKENS}"
        )
    if rule.direction == "outbound" or rule.action.rewrite is None:
        return
    for name in sorted(rule.action.rewrite.named & actions.SERVERS):
        raise Malformed(f"{at}.action.rewrite", f"{name} is what the server itself says of who has come, or keeps back")


def _secrets(at: str, value: Any) -> dict[str, str | None]:
    if not isinstance(value, Mapping):
        raise Malformed(at, f"must be an object of values by their names, not {reading.kind(value)}")
    if len(value) > MOST_SECRETS:
        raise Malformed(at, f"has {len(value)} entries; at most {MOST_SECRETS}")
    found: dict[str, str | None] = {}
    for said, inner in value.items():
        name = secret_name(at, said)
        found[name] = None if inner is None else secret_value(f"{at}.{name}", inner)
    return found


def _by_name(rule: AnyRule) -> str:
    return rule.ident


def _sought(listed: Iterable[Rule]) -> frozenset[str]:
    return frozenset(text for rule in listed for text in rule.match.body_contains)
