"""What a policy says to a request that goes out, once it can be read, and to one that wants to come in.

What is there more than once (a header, a parameter) is judged by what it could be taken for: a rule that refuses
applies if one of the values is listed, a rule that lets through only if all are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from boxwood.engine.policies.actions import Action
from boxwood.engine.policies.document import Policies
from boxwood.engine.policies.match import Named
from boxwood.engine.policies.reading import Address, plain_path
from boxwood.engine.policies.rules import Rule

_OWN_KEY = {"authorization": "Bearer $arker_api_key", "x-api-key": "$arker_api_key"}
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """`host`: as hosts.canonical has it, and as the proxy has made sure of (empty for an address); `path`: as it was
    sent, without its query; `query`: decoded, in its order; `headers`: names in small letters. `body` is None while
    nobody has read it; otherwise it is complete, and as it is behind any Content-Encoding."""

    method: str
    host: str
    address: Address
    port: int
    path: str = "/"
    query: Pairs = ()
    headers: Pairs = ()
    body: bytes | None = None


class Sought(bytes):
    """A body that remembers what was looked for in it: rules are asked more than once."""

    _found: dict[bytes, bool]

    def look_for(self, texts: Iterable[str]) -> None:
        """What takes long of being judged: up to milliseconds for a mebibyte and a text. Any thread may do it."""
        for text in texts:
            self.__contains__(text.encode())

    def __contains__(self, text: object) -> bool:
        assert isinstance(text, bytes)
        found: dict[bytes, bool] = self.__dict__.setdefault("_found", {})
        if text not in found:
            found[text] = bytes.__contains__(self, text)
        return found[text]


class Answer(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    READ_BODY = "read_body"  # ask again with the whole body


@dataclass(frozen=True, slots=True)
class RequestVerdict:
    """`rule`: the one that decided, None where none applies; what to do with a request that is let through is in its
    action."""

    answer: Answer
    rule: Rule | None = None
    reason: str = ""  # why it was refused, where no rule says so

    @property
    def action(self) -> Action:
        return self.rule.action if self.rule is not None else Action(deny=self.answer is Answer.DENY)


def request_verdict(policies: Policies, request: Request) -> RequestVerdict:
    """Of a request that goes out over TCP. A path that servers read each in another way is refused as soon as a rule
    asks for paths."""
    path = plain_path(request.path)
    for rule in policies.outbound:
        if rule.match.holds_for_names((request.host,)) and (found := _judged(rule, request, path, _nobody)):
            return found
    return RequestVerdict(Answer.ALLOW if policies.allows_unmatched else Answer.DENY)


def inbound_verdict(
    policies: Policies, request: Request, *, vm_state: str, now: datetime, is_key: Callable[[str], bool]
) -> RequestVerdict | None:
    """Of a request to a port of the VM; `address` is the caller's, `port` the VM's. `is_key`: is this one of the
    organisation's API keys? None: no rule is about ports, so whoever has a key may come in. Of a verdict that lets in,
    `rule.auth` says whether a key is needed still ("open": no)."""
    if not any(_is_about_ports(rule, now) for rule in policies.inbound):
        return None
    found = _applying(policies, request, vm_state, now, is_key)
    return next(found, RequestVerdict(Answer.DENY, reason="no rule opens this"))


def takes_strangers(
    policies: Policies, request: Request, *, vm_state: str, now: datetime, is_key: Callable[[str], bool]
) -> bool:
    """Of a request whose body has yet to be read: could it be one that needs no key?"""
    for verdict in _applying(policies, request, vm_state, now, is_key):
        rule = verdict.rule
        assert rule is not None
        if rule.auth == "open" and not rule.action.deny and verdict.answer is not Answer.DENY:
            return True
        if verdict.answer is not Answer.READ_BODY:
            break
    return False


def _applying(
    policies: Policies, request: Request, vm_state: str, now: datetime, is_key: Callable[[str], bool]
) -> Iterator[RequestVerdict]:
    """What rules say of one that wants to come in, in their order: the first decides, unless it asks for the body."""
    path = plain_path(request.path)
    for rule in policies.inbound:
        match = rule.match
        if not _is_about_ports(rule, now) or match.vm_state not in ("", vm_state):
            continue
        if "new" in (match.connection_state or ("new",)) and (found := _judged(rule, request, path, is_key)):
            yield found


def stays_open(
    policies: Policies, request: Request, *, vm_state: str, now: datetime, is_key: Callable[[str], bool]
) -> bool:
    """Of a connection to a port that such a request has opened, when the rules have changed. Rules whose
    `connection_state` names open ones are about it, and no others: the first that applies decides."""
    path = plain_path(request.path)
    for rule in policies.inbound:
        match = rule.match
        if "open" not in match.connection_state or match.vm_state not in ("", vm_state):
            continue
        if _is_about_ports(rule, now) and (found := _judged(rule, request, path, is_key)):
            return found.answer is Answer.ALLOW
    return True


def _is_about_ports(rule: Rule, now: datetime) -> bool:
    return "port" in (rule.match.via or ("port",)) and (rule.expires_at is None or rule.expires_at > now)


def _judged(rule: Rule, request: Request, path: str | None, is_key: Callable[[str], bool]) -> RequestVerdict | None:
    """None: the rule does not apply. `path`: the one reading that there is of it, if there is."""
    match, deny = rule.match, rule.action.deny
    if not (match.holds_for_port(request.port, "tcp") and match.holds_for_address(request.address)):
        return None
    if match.methods and request.method.upper() not in match.methods:
        return None
    if match.paths:
        if path is None:
            return RequestVerdict(Answer.DENY, rule, "ambiguous path")
        if not any(path == start or path.startswith(start.rstrip("/") + "/") for start in match.paths):
            return None
    if not _hold(match.headers, [(name, value.strip()) for name, value in request.headers], deny, is_key):
        return None
    if not _hold(match.query_params, request.query, deny, None):
        return None
    if match.body_contains:
        if request.body is None:
            return RequestVerdict(Answer.READ_BODY, rule)
        if not any(text.encode() in request.body for text in match.body_contains):
            return None
    return RequestVerdict(Answer.DENY if deny else Answer.ALLOW, rule)


def _hold(wanted: Named, there: Pairs, deny: bool, is_key: Callable[[str], bool] | None) -> bool:
    """`is_key`: of headers, where a rule can stand for any key of the organisation."""
    for name, listed in wanted:
        found = [_is_listed(name, value, listed, is_key) for said, value in there if said == name]
        if not found or not (any(found) if deny else all(found)):
            return False
    return True


def _is_listed(name: str, value: str, listed: Collection[str], is_key: Callable[[str], bool] | None) -> bool:
    own = _OWN_KEY.get(name, "")
    if is_key is None or not own or own not in listed:
        return value in listed
    if value == own:
        return False  # that is how a rule says it, and no key
    if value in listed:
        return True
    scheme, _, key = value.partition(" ") if name == "authorization" else ("bearer", "", value)
    return scheme.lower() == "bearer" and is_key(key.strip())


def _nobody(key: str) -> bool:
    return False
