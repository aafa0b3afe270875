"""Policies and secrets over HTTP: the contract's two forms, who may see them, and what is never told."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

import contract

ALLOW = {"type": "outbound", "priority": 2, "action": "allow", "match": {"hosts": ["a.example"]}}
DENY = {"type": "outbound", "priority": 1, "action": "deny"}
ENTRIES = [
    {"type": "outbound", "action": "allow", "match": {"ips": ["192.0.2.0/24"], "ports": [443]}},
    {"type": "outbound", "action": "deny"},
]
OURS = ("mode", "address")  # of the network
NONE: dict[str, Any] = {"rules": {}, "secrets": {}, "mitm_domains": [], "warnings": []}
EMPTY = {"policies": [], "secrets": {}, "hostname": None, "mitm_domains": [], "warnings": []}


async def test_the_ordered_form(either):
    vm = await either.fork()
    found = await either.ok("GET", f"/vms/{vm}/policies")
    contract.check(found, "PolicyDoc")
    assert found == EMPTY
    put = await either.ok("PUT", f"/vms/{vm}/policies", {"policies": ENTRIES, "secrets": {}, "warnings": ["x"]})
    contract.check(put, "PolicyDoc")
    assert put == await either.ok("GET", f"/vms/{vm}/policies") == {**EMPTY, "policies": ENTRIES}
    shown = (await either.ok("GET", f"/vms/{vm}"))["policies"]["rules"]
    assert [(name, rule["priority"]) for name, rule in shown.items()] == [("rule-0", 200), ("rule-1", 100)]
    assert await either.ok("PUT", f"/vms/{vm}/policies", {"policies": []}) == EMPTY


async def test_the_keyed_form(either):
    made = await either.ok("POST", "/fork", {"source_vm_name": "ubuntu", "policies": {"rules": {"a": ALLOW}}})
    contract.check(made, "Vm", *OURS)
    assert made["policies"] == {**NONE, "rules": {"a": ALLOW}}
    vm = f"/vms/{made['vm_id']}"
    patched = await either.ok("PATCH", vm, {"policies": {"rules": {"b": DENY}}})
    assert patched["policies"]["rules"] == {"a": ALLOW, "b": DENY}
    assert (await either.ok("PATCH", vm, {"policies": {}}))["policies"]["rules"] == {"a": ALLOW, "b": DENY}
    assert (await either.ok("PATCH", vm, {"policies": {"rules": {"a": None}}}))["policies"]["rules"] == {"b": DENY}
    assert (await either.ok("PATCH", vm, {"policies": {"policies": []}}))["policies"] == NONE
    ends = {"type": "schedule", "after_created": 1000, "action": "delete"}
    assert (await either.ok("PATCH", vm, {"policies": {"rules": {"c": ends}}}))["expires_at"]
    assert "policies" not in (await either.ok("GET", "/vms"))["vms"][0]


@pytest.mark.parametrize(
    ("update", "field"),
    [
        ({"rules": {"a": {**ALLOW, "priority": -1}}}, "policies.rules.a.priority"),
        ({"rules": {"a": ALLOW, "b": {**DENY, "priority": 2}}}, "policies.b.priority"),
        ({"rules": {"a": {**ALLOW, "match": {"hosts": []}}}}, "policies.rules.a.match.hosts"),
        ({"rules": {"a": {**ALLOW, "match": {"hosts": ["a.example\0"]}}}}, "policies.rules.a.match.hosts[0]"),
        ({"secrets": {"A": "***"}}, "policies.secrets.A"),
        ([], "policies"),
        ("x", "policies"),
    ],
)
async def test_what_is_wrong_is_named(api, update, field):
    vm = await api.fork()
    before = await api.ok("GET", f"/vms/{vm}")
    for method, path, body in (
        ("PATCH", f"/vms/{vm}", {"policies": update}),
        ("POST", "/fork", {"source_vm_id": vm, "policies": update}),
        ("POST", f"/vms/{vm}/runs", {"command": "pwd", "policies": update}),
    ):
        error = await api.refused(400, "bad_request", method, path, body)
        assert [one["field"] for one in error["details"]["violations"]] == [field]
    assert await api.ok("GET", f"/vms/{vm}") == before
    assert len((await api.ok("GET", "/vms"))["vms"]) == 1


@pytest.mark.parametrize(
    "rule",
    [
        {**ALLOW, "match": {"methods": ["GET"]}},
        {**ALLOW, "action": {"rewrite": {"headers": {"a": "${secret:KEY}"}}}},
    ],
)
async def test_what_cannot_be_enforced_is_refused(api, rule):
    vm = await api.fork()
    error = await api.refused(422, "unsupported_operation", "PATCH", f"/vms/{vm}", {"policies": {"rules": {"a": rule}}})
    assert error["details"] == {"reason": "feature_not_supported", "feature": "network_policy"}
    assert (await api.ok("GET", f"/vms/{vm}"))["policies"] == NONE


async def test_rules_of_time_are_shown_in_both_forms(api):
    end = {"type": "schedule", "after_created": 3600, "action": "delete"}
    rest = {"type": "schedule", "at": "2999-01-01T00:00:00Z", "action": "suspend"}
    old = {"type": "lifecycle", "when": {"after": 7200}, "action": "delete"}
    rules = {"end": end, "rest": rest, "old": old, "web": ALLOW}
    made = await api.ok("POST", "/fork", {"source_vm_name": "ubuntu", "policies": {"rules": rules}})
    vm = made["vm_id"]
    assert made["policies"]["rules"] == rules
    assert datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"]) == timedelta(hours=1)
    entries = (await api.ok("GET", f"/vms/{vm}/policies"))["policies"]
    assert entries[1:] == [end, old, rest] and entries[0]["type"] == "outbound"
    again = await api.ok("PUT", f"/vms/{vm}/policies", {"policies": [rest, *entries[:1]]})
    assert again["policies"] == [entries[0], rest]
    assert "expires_at" not in await api.ok("GET", f"/vms/{vm}")
    error = await api.refused(400, "bad_request", "PUT", f"/vms/{vm}/policies", {"policies": [{**end, "priority": 1}]})
    assert [one["field"] for one in error["details"]["violations"]] == ["policies[0].priority"]


async def test_nothing_of_a_secret_is_told(api):
    value = "swordfish-4711"
    made = await api("POST", "/fork", {"source_vm_name": "ubuntu", "policies": {"secrets": {"KEY": value}}})
    vm = made.json()["vm_id"]
    assert made.json()["policies"]["secrets"] == {"KEY": "***"}
    answers = [
        made,
        await api("GET", f"/vms/{vm}"),
        await api("GET", f"/vms/{vm}/policies"),
        await api("PUT", f"/vms/{vm}/policies", {"policies": ENTRIES, "secrets": {"KEY": "***", "MORE": value}}),
        await api("PUT", "/secrets/OURS", {"value": value}),
        await api("PUT", "/secrets/no-name", {"value": value}),
        await api("PUT", "/secrets/OURS", {"value": value + "\n"}),
        await api("GET", "/secrets"),
        await api("GET", "/runs"),
        await api("POST", "/fork", {"source_vm_id": vm, "policies": {"secrets": {"BAD": value + "\n"}}}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 400, 400, 200, 200, 400]
    assert all(value not in answer.text for answer in answers)
    assert answers[3].json()["secrets"] == {"KEY": "***", "MORE": "***"}
    for file in api.config.data.rglob("*"):
        if file.is_file():
            assert value.encode() not in file.read_bytes(), file


async def test_secrets_of_the_organisation(api):
    assert await api.ok("GET", "/secrets") == {"secrets": []}
    first = await api.ok("PUT", "/secrets/B_KEY", {"value": "one"})
    again = await api.ok("PUT", "/secrets/B_KEY", {"value": "two"})
    assert first["name"] == again["name"] == "B_KEY" and first["created_at"] == again["created_at"]
    await api.ok("PUT", "/secrets/A", {"value": "x"})
    assert [one["name"] for one in (await api.ok("GET", "/secrets"))["secrets"]] == ["A", "B_KEY"]
    assert await api.ok("DELETE", "/secrets/A") is None
    await api.refused(404, "not_found", "DELETE", "/secrets/A")
    for name, value in (("a-b", "x"), ("1A", "x"), ("A", ""), ("A", "***"), ("A", "x" * 20000)):
        await api.refused(400, "bad_request", "PUT", f"/secrets/{name}", {"value": value})
