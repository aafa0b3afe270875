"""Whatever is thrown at the parsers: they read it or say what is wrong, and what they have read means one thing."""

from __future__ import annotations

import ipaddress
import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from boxwood.engine import policies
from boxwood.engine.policies import Malformed, Outcome, Request, canonical, connection_verdict, request_verdict
from boxwood.engine.policies.reading import plain_path
from boxwood.engine.policies.templates import expand, parts

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SAID = (
    "type priority action match auth expires_at outbound inbound allow deny rewrite gate host path headers body ports "
    "ips hosts methods paths a.example 192.0.2.0/24 GET /v1 allow_on_status https://g.example ${secret:A} open"
)
WORDS = st.sampled_from(SAID.split())
LEAVES = st.none() | st.booleans() | st.integers(-5, 70000) | st.floats() | st.text(max_size=20) | WORDS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=6)
)
HOSTS = st.sampled_from(["a.example", "b.a.example", "c.example", "*.c.example"])
NAMES = st.sampled_from(["a.example", "b.a.example", "c.example", "x.c.example"])
PLACES = st.fixed_dictionaries({}, optional={"hosts": st.lists(HOSTS, min_size=1)}) | st.fixed_dictionaries(
    {}, optional={"ips": st.lists(st.sampled_from(["192.0.2.1", "192.0.2.0/28", "0.0.0.0/0"]), min_size=1)}
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "ports": st.lists(st.sampled_from([80, 443, [1, 100]]), min_size=1),
        "methods": st.lists(st.sampled_from(["GET", "POST"]), min_size=1),
        "paths": st.lists(st.sampled_from(["/", "/v1", "/v1/x"]), min_size=1),
    },
)
MATCHES = st.builds(lambda place, request: {**place, **request}, PLACES, REQUESTS)
ACTIONS = st.sampled_from(["allow", "deny", {"rewrite": {"headers": {"a": "b"}}}])
RULES = st.lists(st.tuples(ACTIONS, MATCHES), max_size=5)


def made(rules: list[tuple[Any, dict[str, Any]]]) -> policies.Policies:
    return policies.parse(
        {
            f"r{index}": {"type": "outbound", "priority": 100 - index, "action": action, "match": match}
            for index, (action, match) in enumerate(rules)
        }
    )


@given(JSON)
def test_any_json_is_read_or_refused(value):
    for at in (value, {"rules": value}, {"rules": {"a": value}}, {"policies": [value]}, {"secrets": value}):
        try:
            update = policies.parse_update(at, NOW)
            after = update.apply(policies.Policies())
        except Malformed as refused:
            assert refused.field.startswith("policies")
            assert refused.problem.isprintable()
        else:
            assert policies.parse(json.loads(after.text())) == after


@given(RULES)
def test_what_was_read_reads_the_same_again(rules):
    document = made(rules)
    again = policies.parse(json.loads(document.text()))
    assert again == document
    assert again.text() == document.text()


@given(st.text())
def test_a_host_has_one_spelling(value):
    try:
        name = canonical("host", value)
    except Malformed:
        return
    assert canonical("host", name) == name
    assert canonical("host", name.upper()) == name
    assert canonical("host", f"{name}.") == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(st.text(alphabet=st.sampled_from("/.%;ab25eEfF\\ é\0"), max_size=20))
def test_a_path_has_one_reading_or_none(value):
    path = plain_path(f"/{value}")
    if path is not None:
        assert plain_path(path) == path
        assert not {".", "..", ""} & set(path.split("/")[1:-1])


@given(st.text(alphabet=st.sampled_from("$${}secret:headrbody A"), max_size=40))
def test_templates_lose_nothing(value):
    if "$" not in value:
        assert parts(value) == ([value] if value else [])
    assert expand(value.replace("$", "$$"), lambda token: "?") == value


@given(
    RULES, st.sets(NAMES), st.sampled_from(["192.0.2.1", "192.0.2.9", "198.51.100.1"]), st.sampled_from([22, 80, 443]),
    NAMES, st.sampled_from(["GET", "POST", "PUT"]), st.sampled_from(["/", "/v1", "/v1/x", "/v2"]),
)  # fmt: skip
def test_a_connection_is_let_through_or_refused_only_where_every_request_is(rules, names, to, port, host, method, path):
    """The two layers agree: what needs no look at requests is what looking at them would have said."""
    document = made(rules)
    address = ipaddress.ip_address(to)
    verdict = connection_verdict(document, {host}, address, port, "tcp")
    answer = request_verdict(document, Request(method, host, address, port, path)).answer
    if verdict.outcome is Outcome.ALLOW:
        assert answer == "allow"
    elif verdict.outcome is Outcome.DENY:
        assert answer == "deny"


@given(RULES, st.sets(NAMES), st.sampled_from(["192.0.2.1", "198.51.100.1"]), st.sampled_from([22, 80, 443]))
def test_what_is_not_tcp_never_waits_for_a_proxy(rules, names, to, port):
    verdict = connection_verdict(made(rules), names, ipaddress.ip_address(to), port, "udp")
    assert verdict.outcome is not Outcome.PROXY
