"""Policies as wholes: changes to them, their two forms, their bounds, and secrets that are named in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.policies import Malformed, Policies

NOW = datetime(2026, 11, 22, tzinfo=UTC)
A = {"type": "outbound", "priority": 2, "action": "allow", "match": {"hosts": ["a.example"]}}
B = {"type": "outbound", "priority": 1, "action": "deny"}
DOOR = {"type": "inbound", "priority": 1, "action": "allow", "match": {"ports": [8080]}}


def updated(before: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    return policies.parse_update(update, NOW).apply(policies.parse(before)).to_json()


@pytest.mark.parametrize(
    ("update", "after"),
    [
        ({}, {"a": A, "b": B}),
        ({"rules": {}}, {"a": A, "b": B}),
        ({"rules": None}, {"a": A, "b": B}),
        ({"rules": {"a": None}}, {"b": B}),
        ({"secrets": {}, "hostname": "h", "mitm_domains": ["x"], "warnings": []}, {"a": A, "b": B}),
        ({"rules": {"nobody": None}}, {"a": A, "b": B}),
        ({"rules": {"door": DOOR}}, {"a": A, "b": B, "door": DOOR}),
        ({"rules": {"a": {**A, "action": "deny"}}}, {"a": {**A, "action": "deny"}, "b": B}),
        ({"rules": {"a": {**A, "priority": 1}, "b": {**B, "priority": 2}}}, {"a": A | {"priority": 1}, "b": B | {"priority": 2}}),
        ({"policies": []}, {}),
        ({"policies": [{"type": "outbound", "action": "deny"}]}, {"rule-0": {"type": "outbound", "priority": 100, "action": "deny"}}),
    ],
)  # fmt: skip
def test_updates(update, after):
    assert updated({"a": A, "b": B}, update) == after


@pytest.mark.parametrize(
    ("update", "field", "problem"),
    [
        ([], "policies", "must be an object"),
        ({"rule": {}}, "policies.'rule'", "no such member; there are hostname"),
        ({"rules": []}, "policies.rules", "object of rules by their names"),
        ({"rules": {}, "policies": []}, "policies.policies", "not together with rules"),
        ({"policies": {}}, "policies.policies", "must be a list"),
        ({"policies": [{**A}]}, "policies.policies[0].'priority'", "no such member"),
        ({"policies": [{"type": "outbound", "action": "x"}]}, "policies.policies[0].action", "allow or deny"),
        ({"secrets": {"A": "***"}}, "policies.secrets.A", "leave the secret out to keep it"),
        ({"secrets": {"A": ""}}, "policies.secrets.A", "1 to 16384 bytes"),
        ({"secrets": {"A": "key\n"}}, "policies.secrets.A", "a line end behind it"),
        ({"secrets": {"A": 5}}, "policies.secrets.A", "must be a text, not a number"),
        ({"secrets": {"A": "\ud800"}}, "policies.secrets.A", "not valid Unicode"),
        ({"secrets": {"A-B": "x"}}, "policies.secrets", "no name of a secret"),
        ({"secrets": {f"A{n}": "x" for n in range(65)}}, "policies.secrets", "at most 64"),
        (
            {"rules": {"door": {**DOOR, "expires_at": "2026-11-21T00:00:00Z"}}},
            "policies.rules.door.expires_at", "must be in the future",
        ),
    ],
)  # fmt: skip
def test_updates_that_are_refused(update, field, problem):
    with pytest.raises(Malformed) as refused:
        policies.parse_update(update, NOW)
    assert refused.value.field == field
    assert problem in refused.value.problem


def test_priorities_are_unique_within_a_direction():
    with pytest.raises(Malformed, match="c and b both have 1, and are both outbound"):
        updated({"a": A, "b": B}, {"rules": {"c": B}})
    assert set(updated({"a": A, "b": B}, {"rules": {"door": DOOR}})) == {"a", "b", "door"}


def test_no_more_than_so_many_rules():
    many = {f"r{n}": {**B, "priority": n} for n in range(256)}
    assert len(updated({}, {"rules": many})) == 256
    with pytest.raises(Malformed, match="at most 256 rules, not 257"):
        updated(many, {"rules": {"one-more": {**B, "priority": 1000}}})


def test_no_more_than_so_many_bytes():
    large = {"gate": {"host": "https://a.example", "allow_on_status": [200], "body": ["x" * 4096] * 40}}
    with pytest.raises(Malformed, match="at most 262144 bytes"):
        updated({}, {"rules": {"a": {**A, "action": large}, "b": {**B, "action": large}}})


def test_the_ordered_form_keeps_its_order():
    entries = [
        {"type": "outbound", "action": "allow", "match": {"hosts": ["b.example"]}},
        {"type": "inbound", "action": "allow", "match": {"ports": [80]}, "auth": "open"},
        *({"type": "outbound", "action": "deny", "match": {"ports": [port]}} for port in range(1, 20)),
    ]
    document = {"policies": entries, "secrets": {}, "hostname": "h", "mitm_domains": ["x"], "warnings": [1]}
    made = policies.parse_ordered(document).apply(policies.parse({"a": A}))
    assert made.ordered() == entries
    assert [rule.ident for rule in made.outbound][:3] == ["rule-0", "rule-2", "rule-3"]


def test_the_ordered_form_leaves_hidden_secrets_alone():
    update = policies.parse_ordered({"policies": [], "secrets": {"KEPT": "***", "NEW": "v", "GONE": None}})
    assert update.secrets == {"NEW": "v", "GONE": None}
    assert update.apply_secrets({"KEPT", "GONE"}) == {"KEPT", "NEW"}


def test_a_vm_has_so_many_secrets():
    update = policies.parse_update({"secrets": {"B": "v"}}, NOW)
    with pytest.raises(Malformed, match="at most 64"):
        update.apply_secrets({f"A{n}" for n in range(64)})


def test_rules_name_so_many_secrets():
    def rules(most: int) -> dict[str, object]:
        names = [f"${{secret:A{n}}}" for n in range(most)]
        return {
            f"r{n}": {
                "type": "outbound", "priority": n, "match": {"hosts": ["a.example"]},
                "action": {"rewrite": {"headers": {f"h{i}": name for i, name in enumerate(names[n * 40 : (n + 1) * 40])}}},
            }
            for n in range(2)
        }  # fmt: skip

    assert len(policies.parse(rules(64)).secrets) == 64
    with pytest.raises(Malformed, match="name at most 64 secrets, not 65"):
        policies.parse(rules(65))


def test_an_error_never_tells_a_secret():
    for value in ("hunter2\n", "hunter2" * 4000):
        with pytest.raises(Malformed) as refused:
            policies.parse_update({"secrets": {"A": value}}, NOW)
        assert "hunter2" not in str(refused.value)


def test_who_ends_tls_for_whom():
    def rewriting(*hosts: str) -> dict[str, Any]:
        match = {"match": {"hosts": list(hosts)}} if hosts else {}
        return {**B, "priority": 5, "action": {"rewrite": {"headers": {"a": "b"}}}, **match}

    assert policies.parse({"a": A, "b": B}).mitm_domains == []
    assert policies.parse({"a": A, "r": rewriting("b.example", "*.c.example")}).mitm_domains == [
        "*.c.example",
        "b.example",
    ]
    assert policies.parse({"r": rewriting()}).mitm_domains == ["*"]
    assert not policies.parse({"a": A}).needs_proxy
    assert policies.parse({"r": rewriting()}).needs_proxy


def test_names_of_secrets_in_rules():
    headers = {"authorization": "Bearer ${secret:KEY}", "x": "$${secret:NONE} ${secret:OTHER}"}
    rule = {**A, "action": {"rewrite": {"headers": headers, "body": "${secret:BODY}"}}}
    assert policies.parse({"a": rule}).secrets == {"KEY", "OTHER", "BODY"}


def test_equal_policies_are_equal():
    assert policies.parse({"a": A, "b": B}) == policies.parse({"b": B, "a": A})
    assert hash(policies.parse({"a": A, "b": B})) == hash(policies.parse({"b": B, "a": A}))
    assert policies.parse({"a": A}) != policies.parse({"b": A})
    assert not Policies()
    assert Policies() == policies.parse({})
