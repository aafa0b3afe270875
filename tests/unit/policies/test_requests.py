"""What rules say to requests, out and in: each match, values that are there twice, and paths with two readings."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.policies import Request, inbound_verdict, request_verdict, stays_open

NOW = datetime(2026, 11, 22, tzinfo=UTC)
REQUEST = Request("GET", "a.example", ipaddress.ip_address("192.0.2.1"), 443, "/v1/models")


def made(direction: str, *rules: Any) -> policies.Policies:
    return policies.parse(
        {
            f"r{index}": {"type": direction, "priority": 100 - index, "action": action, "match": match, **dict(*more)}
            for index, (action, match, *more) in enumerate(rules)
        }
    )


def judged(rules: policies.Policies, **changes: Any) -> str:
    verdict = request_verdict(rules, replace(REQUEST, **changes))
    return f"{verdict.answer} {verdict.rule.ident if verdict.rule else ''}".strip()


def test_who_has_no_key_may_come_to_a_body_that_is_not_read_yet():
    """If one of the rules that could decide then takes him."""
    body = {"ports": [443], "body_contains": ["x"]}
    opens, keyed = ("allow", {"ports": [443]}, {"auth": "open"}), ("allow", {"ports": [443]})
    for rules, expected in (
        ([("allow", body, {"auth": "open"})], True),
        ([("allow", body)], False),
        ([("allow", body), opens], True),
        ([("allow", body), keyed, opens], False),
        ([("deny", body), opens], True),
        ([("deny", body), keyed], False),
        ([("deny", body), ("allow", {**body, "methods": ["PUT"]}, {"auth": "open"})], False),
    ):
        found = made("inbound", *rules)
        assert policies.takes_strangers(found, REQUEST, vm_state="idle", now=NOW, is_key=str.isdigit) is expected, rules


TWICE = [("x-key", "good"), ("x-key", "bad")]


@pytest.mark.parametrize(
    ("match", "changes", "allowed", "denied"),
    [
        ({}, {}, True, True),
        ({"hosts": ["a.example"]}, {}, True, True),
        ({"hosts": ["a.example"]}, {"host": "b.example"}, False, False),
        ({"hosts": ["a.example"]}, {"host": ""}, False, False),
        ({"ports": [443]}, {}, True, True),
        ({"ports": [443]}, {"port": 80}, False, False),
        ({"ips": ["192.0.2.0/24"]}, {}, True, True),
        ({"methods": ["GET", "HEAD"]}, {}, True, True),
        ({"methods": ["GET"]}, {"method": "POST"}, False, False),
        ({"methods": ["GET"]}, {"method": "get"}, True, True),
        ({"paths": ["/v1"]}, {}, True, True),
        ({"paths": ["/v1/models"]}, {}, True, True),
        ({"paths": ["/v1/model"]}, {}, False, False),
        ({"paths": ["/"]}, {}, True, True),
        ({"paths": ["/v1"]}, {"path": "/v1"}, True, True),
        ({"paths": ["/v1"]}, {"path": "/v1/"}, True, True),
        ({"paths": ["/v1"]}, {"path": "/v10"}, False, False),
        ({"paths": ["/v1"]}, {"path": "/V1"}, False, False),
        ({"paths": ["/v1"]}, {"path": "/%76%31/x"}, True, True),
        ({"paths": ["/a b"]}, {"path": "/a%20b/c"}, True, True),
        ({"headers": {"X-Key": ["good"]}}, {"headers": [("x-key", " good ")]}, True, True),
        ({"headers": {"x-key": ["good"]}}, {"headers": [("x-key", "Good")]}, False, False),
        ({"headers": {"x-key": ["good"]}}, {}, False, False),
        ({"headers": {"x-key": ["good"]}}, {"headers": TWICE}, False, True),
        ({"headers": {"x-key": ["good", "bad"]}}, {"headers": TWICE}, True, True),
        ({"headers": {"x-key": ["good"], "y": ["1"]}}, {"headers": [("x-key", "good")]}, False, False),
        ({"query_params": {"q": ["1"]}}, {"query": [("q", "1")]}, True, True),
        ({"query_params": {"q": ["1"]}}, {"query": [("Q", "1")]}, False, False),
        ({"query_params": {"q": ["1"]}}, {"query": [("q", "1"), ("q", "2")]}, False, True),
        ({"query_params": {"q": ["1"]}}, {"query": [("q", " 1")]}, False, False),
        ({"body_contains": ["needle", "é"]}, {"body": b"hay needle hay"}, True, True),
        ({"body_contains": ["needle", "é"]}, {"body": "é".encode()}, True, True),
        ({"body_contains": ["needle"]}, {"body": b"hay"}, False, False),
        ({"body_contains": ["needle"]}, {"body": b""}, False, False),
    ],
)
def test_matches(match, changes, allowed, denied):
    assert judged(made("outbound", ("allow", match)), **changes) == ("allow r0" if allowed else "deny")
    assert judged(made("outbound", ("deny", match)), **changes) == ("deny r0" if denied else "allow")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin", "/v1/./x", "/v1/%2e%2e/admin", "/v1/.%2E/admin", "/v1//admin", "//v1", "/v1%2fadmin", "/v1\\..\\a",
        "/v1/%5c..", "/v1/..;/admin", "/v1/..;x=1/admin", "/v1/..%3b/admin", "/v1/%00", "/v1/%0d%0a", "/v1/\x01", "/v1/a b",
        "/v1/%", "/v1/%g1", "/v1/%252e%252e/admin", "v1", "", "*", "http://a.example/v1",
    ],
)  # fmt: skip
def test_a_path_with_two_readings_is_refused_where_rules_ask_for_paths(path):
    for action in ("allow", "deny"):
        verdict = request_verdict(made("outbound", (action, {"paths": ["/v1"]})), replace(REQUEST, path=path))
        assert verdict.answer == "deny"
        assert verdict.reason == "ambiguous path"
    assert judged(made("outbound", ("allow", {"methods": ["GET"]})), path=path) == "allow r0"


def test_the_first_that_applies_decides():
    rules = made(
        "outbound",
        ("deny", {"methods": ["DELETE"]}),
        ("allow", {"hosts": ["a.example"], "paths": ["/v1"]}),
        ({"rewrite": {"headers": {"a": "b"}}}, {"hosts": ["b.example"]}),
        ("deny", {"hosts": ["example"]}),
    )
    assert judged(rules) == "allow r1"
    assert judged(rules, method="DELETE") == "deny r0"
    assert judged(rules, path="/v2") == "deny r3"
    assert judged(rules, host="b.example") == "allow r2"
    assert judged(rules, host="b.org") == "deny"
    assert request_verdict(rules, replace(REQUEST, host="b.example")).action.rewrite is not None
    assert request_verdict(rules, replace(REQUEST, host="b.org")).action.deny


def test_a_body_is_read_only_if_it_matters():
    rules = made("outbound", ("deny", {"methods": ["POST"], "body_contains": ["x"]}), ("allow", {}))
    assert judged(rules) == "allow r1"
    assert judged(rules, method="POST") == "read_body r0"
    assert judged(rules, method="POST", body=b"x") == "deny r0"
    assert judged(rules, method="POST", body=b"y") == "allow r1"


# --- inbound


def entered(rules: policies.Policies, *, vm_state: str = "running", keys: tuple[str, ...] = (), **changes: Any) -> str:
    request = replace(REQUEST, host="", port=8080, **changes)
    verdict = inbound_verdict(rules, request, vm_state=vm_state, now=NOW, is_key=lambda key: key in keys)
    if verdict is None:
        return "with a key"
    return f"{verdict.answer} {verdict.rule.ident if verdict.rule else ''}".strip()


def test_inbound_without_rules_about_ports():
    assert entered(made("inbound")) == "with a key"
    assert entered(made("outbound", ("deny", {}))) == "with a key"
    assert entered(made("inbound", ("deny", {"via": ["ssh"]}))) == "with a key"
    expired = {"expires_at": "2026-11-22T00:00:00Z"}
    assert entered(made("inbound", ("allow", {"ports": [80]}, expired))) == "with a key"


@pytest.mark.parametrize(
    ("rules", "changes", "said"),
    [
        ([("allow", {"ports": [8080]})], {}, "allow r0"),
        ([("allow", {"ports": [80]})], {}, "deny"),
        ([("deny", {"ports": [80]})], {}, "deny"),
        ([("deny", {}), ("allow", {"ports": [8080]})], {}, "deny r0"),
        ([("allow", {"ports": [8080], "ips": ["192.0.2.0/24"]})], {}, "allow r0"),
        ([("allow", {"ports": [8080], "ips": ["198.51.100.0/24"]})], {}, "deny"),
        ([("allow", {"ports": [8080], "vm_state": "idle"})], {}, "deny"),
        ([("allow", {"ports": [8080], "vm_state": "idle"})], {"vm_state": "idle"}, "allow r0"),
        ([("deny", {"connection_state": ["open"]}), ("allow", {"ports": [8080]})], {}, "allow r1"),
        ([("allow", {"ports": [8080], "methods": ["POST"]})], {}, "deny"),
        ([("allow", {"ports": [8080], "paths": ["/v1"]})], {"path": "/v1/../x"}, "deny r0"),
        ([("allow", {"ports": [8080], "body_contains": ["x"]})], {}, "read_body r0"),
    ],
)
def test_inbound(rules, changes, said):
    assert entered(made("inbound", *rules), **changes) == said


OPEN = {"connection_state": ["open"]}


@pytest.mark.parametrize(
    ("rules", "changes", "stays"),
    [
        ([], {}, True),
        ([("deny", {})], {}, True),  # about new ones alone
        ([("deny", {"connection_state": ["new"]})], {}, True),
        ([("deny", OPEN)], {}, False),
        ([("deny", {"connection_state": ["new", "open"]})], {}, False),
        ([("deny", {**OPEN, "ports": [80]})], {}, True),
        ([("deny", {**OPEN, "ips": ["192.0.2.0/24"]})], {}, False),
        ([("deny", {**OPEN, "ips": ["198.51.100.0/24"]})], {}, True),
        ([("allow", {**OPEN, "ports": [8080]}), ("deny", OPEN)], {}, True),
        ([("allow", {"ports": [8080]}), ("deny", OPEN)], {}, False),
        ([("deny", {**OPEN, "via": ["ssh"]})], {}, True),
        ([("deny", {**OPEN, "vm_state": "idle"})], {}, True),
        ([("deny", {**OPEN, "methods": ["POST"]})], {}, True),
        ([("deny", {**OPEN, "paths": ["/v1"]})], {}, False),
        ([("deny", {**OPEN, "paths": ["/other"]})], {"path": "/v1/../other"}, False),
        ([("deny", {**OPEN, "body_contains": ["x"]})], {}, False),  # nobody has looked
        ([("deny", {**OPEN, "headers": {"x-api-key": ["$arker_api_key"]}})], {"headers": [("x-api-key", "k1")]}, False),
        ([("deny", OPEN, [("expires_at", "2026-11-22T00:00:00Z")])], {}, True),
    ],
)
def test_what_is_open_already(rules, changes, stays):
    request = replace(REQUEST, host="", port=8080, **changes)
    found = stays_open(made("inbound", *rules), request, vm_state="running", now=NOW, is_key=lambda key: key == "k1")
    assert found == stays


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], "deny"),
        ([("authorization", "Bearer k1")], "allow r0"),
        ([("authorization", "bearer k1")], "allow r0"),
        ([("authorization", "Bearer k2")], "deny"),
        ([("authorization", "Basic k1")], "deny"),
        ([("authorization", "Bearer $arker_api_key")], "deny"),
        ([("authorization", "Bearer k1"), ("authorization", "Bearer k2")], "deny"),
        ([("x-api-key", "k1")], "deny"),
    ],
)
def test_a_rule_can_ask_for_any_key_of_the_organisation(headers, said):
    rules = made("inbound", ("allow", {"ports": [8080], "headers": {"Authorization": ["Bearer $arker_api_key"]}}))
    assert entered(rules, headers=headers, keys=("k1", "$arker_api_key")) == said


def test_an_api_key_has_a_header_of_its_own():
    rules = made("inbound", ("allow", {"ports": [8080], "headers": {"x-api-key": ["$arker_api_key"]}}))
    assert entered(rules, headers=[("x-api-key", "k1")], keys=("k1",)) == "allow r0"
    assert entered(rules, headers=[("x-api-key", "k2")], keys=("k1",)) == "deny"
