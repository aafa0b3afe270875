"""One rule: for which direction, in which place, what it applies to and what it does.

Rules of a direction are gone through by priority, the highest first; the first that applies decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from boxwood.engine.policies import actions, match, reading, timed
from boxwood.engine.policies.actions import Action
from boxwood.engine.policies.match import Direction, Match
from boxwood.engine.policies.reading import Malformed, members
from boxwood.engine.policies.timed import TimedRule

MOST_PRIORITY = 1_000_000
Auth = Literal["", "open", "arker"]
_IDENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MEMBERS = ("type", "priority", "action", "match", "auth", "expires_at")


@dataclass(frozen=True, slots=True)
class Rule:
    ident: str
    direction: Direction
    priority: int
    action: Action
    match: Match = field(default_factory=Match)
    auth: Auth = ""  # of inbound rules that let in: `open` asks for no key
    expires_at: datetime | None = None

    @property
    def needs_request(self) -> bool:
        """Is it the request layer's, and not to be judged by a connection alone?"""
        return self.match.needs_request or not self.action.is_plain

    @property
    def secrets(self) -> frozenset[str]:
        return self.action.secrets

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": self.direction, "priority": self.priority, "action": self.action.to_json()}
        if made := self.match.to_json():
            found["match"] = made
        if self.auth:
            found["auth"] = self.auth
        if self.expires_at is not None:
            found["expires_at"] = timed.shown_moment(self.expires_at)
        return found


class Unavailable(Malformed):
    """The contract has it, this server does not do it yet: it is refused, and not kept and forgotten."""


def ident(at: str, value: Any) -> str:
    if not isinstance(value, str) or not _IDENT.fullmatch(value):
        said = "1 to 64 small letters, digits, '.', '_' or '-', a letter or digit first"
        raise Malformed(at, f"a rule's name is {said}, not {reading.shown(value)}")
    return value


def parse(
    at: str, name: str, value: Any, *, priority: int | None = None, now: datetime | None = None
) -> Rule | TimedRule:
    """`priority`: of an entry of the ordered form, which must not say one itself. `now`: of rules that somebody writes,
    see timed.parse. Malformed, Unavailable."""
    known = _MEMBERS if priority is None else ("type", "action", "match", "auth")
    if isinstance(value, dict) and value.get("type") in timed.TYPES:
        return timed.parse(at, name, value, now)
    said = members(at, value, known)
    for needed in ("type", "action", *(("priority",) if priority is None else ())):
        if needed not in said:
            raise Malformed(f"{at}.{needed}", "must be there")
    direction: Direction = reading.word(  # type: ignore[assignment]
        f"{at}.type", said["type"], ("outbound", "inbound", *timed.TYPES)
    )
    if priority is None:
        priority = reading.number(f"{at}.priority", said["priority"], 0, MOST_PRIORITY)
    rule = Rule(
        ident=name,
        direction=direction,
        priority=priority,
        action=actions.parse(f"{at}.action", said["action"], direction),
        match=match.parse(f"{at}.match", said.get("match", {}), direction),
        auth=_auth(f"{at}.auth", said["auth"]) if "auth" in said else "",
        expires_at=timed.moment(f"{at}.expires_at", said["expires_at"]) if "expires_at" in said else None,
    )
    _check(at, rule)
    return rule


def _check(at: str, rule: Rule) -> None:
    """What no member says by itself."""
    if rule.action.unavailable:
        raise Unavailable(f"{at}.action", f"{rule.action.unavailable} is not available on this server")
    if rule.direction == "outbound":
        _check_outbound(at, rule)
    else:
        _check_inbound(at, rule)


def _check_outbound(at: str, rule: Rule) -> None:
    if rule.auth:
        raise Malformed(f"{at}.auth", "is for inbound rules only")
    if rule.expires_at is not None:
        raise Malformed(f"{at}.expires_at", "is for inbound rules only")
    if rule.action.rewrite is not None and rule.action.rewrite.secrets and not rule.match.hosts:
        raise Malformed(f"{at}.match.hosts", "must name the hosts that a secret may go to")


def _check_inbound(at: str, rule: Rule) -> None:
    found = rule.match
    terminal = bool({"ssh", "pty"} & set(found.via))
    if not found.ports and not terminal and not rule.action.deny:
        raise Malformed(f"{at}.match.ports", "must name the ports that are opened")
    if not rule.action.is_plain and (terminal or "open" in found.connection_state):
        member = "via" if terminal else "connection_state"
        raise Malformed(f"{at}.action", f"must be allow or deny with this match.{member}")
    if rule.auth and (rule.action.deny or terminal):
        raise Malformed(f"{at}.auth", "is for rules that open ports")
    if "pty" in found.via:
        raise Unavailable(f"{at}.match.via", "pty is not available on this server: whoever has a key has terminals")


def _auth(at: str, value: Any) -> Auth:
    if isinstance(value, dict):
        raise Unavailable(at, "a token is not available on this server: match a header's value instead")
    found: Auth = reading.word(at, value, ("open", "arker"))  # type: ignore[assignment]
    return found
