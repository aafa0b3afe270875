"""What rules say to connections and to questions for names: each match, each action, and which of them is first."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.policies import Outcome, connection_verdict, name_verdict

REWRITE = {"rewrite": {"headers": {"a": "b"}}}
GATE = {"gate": {"host": "https://gate.example", "allow_on_status": [200]}}


def listed(*rules: Any) -> policies.Policies:
    """Each (action, match) with a priority below the one before, named r0, r1, …"""
    return policies.parse(
        {
            f"r{index}": {"type": "outbound", "priority": 100 - index, "action": action, "match": match}
            for index, (action, match) in enumerate(rules)
        }
    )


def judged(made: policies.Policies, *names: str, to: str = "192.0.2.1", port: int = 443, protocol: str = "tcp") -> str:
    verdict = connection_verdict(made, names, ipaddress.ip_address(to), port, protocol)
    return f"{verdict.outcome} {verdict.rule}".strip()


def test_without_rules_everything_goes():
    assert judged(listed()) == "allow"
    inbound = {"type": "inbound", "priority": 1, "action": "allow", "match": {"ports": [80]}}
    assert judged(policies.parse({"door": inbound})) == "allow"


@pytest.mark.parametrize(
    ("match", "names", "where", "holds"),
    [
        ({}, (), {}, True),
        ({"ports": [443]}, (), {}, True),
        ({"ports": [80]}, (), {}, False),
        ({"ports": [[440, 450]]}, (), {}, True),
        ({"ports": [[1, 442], [444, 65535]]}, (), {}, False),
        ({"ports": [443]}, (), {"protocol": "udp"}, True),
        ({"ports": [443]}, (), {"protocol": "icmp", "port": 0}, False),
        ({"ips": ["192.0.2.1"]}, (), {}, True),
        ({"ips": ["192.0.2.0/24"]}, (), {}, True),
        ({"ips": ["192.0.2.2/31"]}, (), {}, False),
        ({"ips": ["2001:db8::/32"]}, (), {}, False),
        ({"ips": ["2001:db8::/32"]}, (), {"to": "2001:db8::1"}, True),
        ({"ips": ["0.0.0.0/0"]}, (), {}, True),
        ({"ips": ["192.0.2.1"]}, (), {"protocol": "icmp", "port": 0}, True),
        ({"hosts": ["example.com"]}, ("example.com",), {}, True),
        ({"hosts": ["example.com"]}, ("a.b.example.com",), {}, True),
        ({"hosts": ["example.com"]}, ("evilexample.com",), {}, False),
        ({"hosts": ["example.com"]}, ("example.com.evil.org",), {}, False),
        ({"hosts": ["example.com"]}, ("com",), {}, False),
        ({"hosts": ["*.example.com"]}, ("example.com",), {}, False),
        ({"hosts": ["*.example.com"]}, ("a.example.com",), {}, True),
        ({"hosts": ["*.example.com"]}, ("evilexample.com",), {}, False),
        ({"hosts": ["example.com"]}, (), {}, False),
        ({"hosts": ["a.example", "b.example"]}, ("x.example", "b.example"), {}, True),
        ({"hosts": ["example.com"], "ports": [80]}, ("example.com",), {}, False),
        ({"ips": ["192.0.2.1"], "ports": [443]}, (), {}, True),
    ],
)  # fmt: skip
def test_matches(match, names, where, holds):
    assert judged(listed(("deny", match)), *names, **where) == ("deny r0" if holds else "allow")
    assert judged(listed(("allow", match)), *names, **where) == ("allow r0" if holds else "deny")


@pytest.mark.parametrize(
    ("rules", "protocol", "said"),
    [
        ([("deny", {}), ("allow", {})], "tcp", "deny r0"),
        ([("allow", {}), ("deny", {})], "tcp", "allow r0"),
        ([("deny", {"ports": [80]}), ("allow", {})], "tcp", "allow r1"),
        ([("allow", {"methods": ["GET"]})], "tcp", "proxy r0"),
        ([("deny", {"methods": ["POST"]})], "tcp", "proxy r0"),
        ([("allow", {"methods": ["GET"]}), ("allow", {})], "tcp", "allow r1"),
        ([("deny", {"methods": ["POST"]}), ("deny", {})], "tcp", "deny r1"),
        ([("deny", {"methods": ["POST"]}), ("allow", {})], "tcp", "proxy r0"),
        ([("allow", {"methods": ["GET"]}), ("deny", {})], "tcp", "proxy r0"),
        ([("allow", {"methods": ["GET"], "hosts": ["other.example"]}), ("deny", {})], "tcp", "deny r1"),
        ([(REWRITE, {})], "tcp", "proxy r0"),
        ([(GATE, {})], "tcp", "proxy r0"),
        ([("deny", {}), (REWRITE, {})], "tcp", "deny r0"),
        ([(REWRITE, {"ports": [80]})], "tcp", "allow"),
        ([(REWRITE, {"ports": [80]}), ("allow", {"ports": [1]})], "tcp", "deny"),
        # what is not TCP has no requests that the proxy could see
        ([("allow", {"methods": ["GET"]})], "udp", "deny"),
        ([("deny", {"methods": ["POST"]})], "udp", "deny r0"),
        ([("deny", {"methods": ["POST"]}), ("allow", {})], "udp", "deny r0"),
        ([("allow", {"methods": ["GET"]}), ("allow", {"ports": [443]})], "udp", "allow r1"),
        ([(REWRITE, {})], "udp", "deny r0"),
        ([(GATE, {})], "icmp", "deny r0"),
        ([(REWRITE, {"ports": [80]})], "udp", "allow"),
    ],
)  # fmt: skip
def test_the_first_that_applies_decides(rules, protocol, said):
    assert judged(listed(*rules), protocol=protocol) == said


@pytest.mark.parametrize(
    ("rules", "name", "said"),
    [
        ([], "a.example", Outcome.ALLOW),
        ([("allow", {"hosts": ["a.example"]})], "a.example", Outcome.ALLOW),
        ([("allow", {"hosts": ["a.example"]})], "x.a.example", Outcome.ALLOW),
        ([("allow", {"hosts": ["a.example"]})], "b.example", Outcome.DENY),
        ([("allow", {"hosts": ["a.example"], "methods": ["GET"]})], "a.example", Outcome.ALLOW),
        ([("allow", {"ports": [443]})], "b.example", Outcome.ALLOW),
        ([("allow", {"ips": ["192.0.2.1"]})], "b.example", Outcome.ALLOW),
        ([("deny", {"hosts": ["a.example"]})], "a.example", Outcome.DENY),
        ([("deny", {"hosts": ["a.example"]})], "b.example", Outcome.ALLOW),
        ([("deny", {"hosts": ["a.example"], "ports": [80]})], "a.example", Outcome.ALLOW),
        ([("deny", {"hosts": ["a.example"], "methods": ["GET"]})], "a.example", Outcome.ALLOW),
        ([("deny", {"ips": ["192.0.2.1"]})], "a.example", Outcome.ALLOW),
        ([("allow", {"hosts": ["x.example"]}), ("deny", {"hosts": ["example"]})], "x.example", Outcome.ALLOW),
        ([("deny", {})], "a.example", Outcome.DENY),
        ([(REWRITE, {"hosts": ["a.example"]})], "b.example", Outcome.ALLOW),
        ([(REWRITE, {"hosts": ["a.example"]}), ("deny", {})], "b.example", Outcome.DENY),
        ([(REWRITE, {"hosts": ["a.example"]}), ("deny", {})], "a.example", Outcome.ALLOW),
    ],
)  # fmt: skip
def test_names(rules, name, said):
    assert name_verdict(listed(*rules), name).outcome is said
