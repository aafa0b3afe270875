"""What a rule may say, in which one way it is said back, and what is refused with which words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from boxwood.engine import policies
from boxwood.engine.policies import Malformed, Unavailable

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def outbound(match: dict[str, Any] | None = None, action: Any = "allow", **more: Any) -> dict[str, Any]:
    return {"type": "outbound", "priority": 1, "action": action, **({"match": match} if match else {}), **more}


def inbound(match: dict[str, Any] | None = None, action: Any = "allow", **more: Any) -> dict[str, Any]:
    return {**outbound(match, action, **more), "type": "inbound"}


def parsed(rule: dict[str, Any]) -> Any:
    return policies.parse({"web": rule}).to_json()["web"]


@pytest.mark.parametrize(
    "rule",
    [
        outbound(),
        outbound(action="deny"),
        outbound({"ports": [80, [8000, 8010]]}),
        outbound({"ips": ["192.0.2.1", "198.51.100.0/24", "2001:db8::/32"]}),
        outbound({"ips": ["0.0.0.0/0"]}),
        outbound({"hosts": ["example.com", "*.example.org", "xn--bcher-kva.example", "_dmarc.example.com"]}),
        outbound({"methods": ["GET", "PURGE"], "paths": ["/v1", "/", "/a%20b"]}),
        outbound({"headers": {"accept": ["a", "b"]}, "query_params": {"Q": ["", "é"]}, "body_contains": ["x"]}),
        outbound({"hosts": ["a.example"]}, {"rewrite": {"headers": {"authorization": "Bearer ${secret:KEY}"}}}),
        outbound({"hosts": ["a.example"]}, {"rewrite": {"host": "b.example", "path": "/x$path", "body": "${body}$$"}}),
        outbound(action={"rewrite": {"remove_headers": ["cookie"], "remove_query_params": ["utm"]}}),
        outbound(action={"rewrite": {"body": ""}}),
        outbound(action={"gate": {"host": "https://gate.example:8443", "allow_on_status": [200, 204]}}),
        outbound(
            action={
                "gate": {
                    "host": "http://gate.example", "allow_on_status": [200], "path": "/ask", "method": "POST",
                    "headers": {"x-vm": "$vm_id"}, "body": {"path": "$path", "deep": [1, None, 2.5, True]},
                    "deny_on_timeout": False, "timeout_ms": 5,
                }
            }
        ),
        inbound({"ports": [8080]}),
        inbound({"ports": [8080]}, auth="open", expires_at="2030-01-31T12:00:00Z"),
        inbound({"ports": [22], "ips": ["192.0.2.0/24"], "vm_state": "running", "connection_state": ["new", "open"]}),
        inbound({"via": ["ssh"], "ssh_keys": ["laptop"]}),
        inbound({"via": ["ssh"], "ips": ["192.0.2.1"]}, "deny"),
        inbound(action="deny"),
        inbound({"ports": [80]}, {"rewrite": {"headers": {"x-from": "${header:user-agent}"}}}),
    ],
)  # fmt: skip
def test_what_is_said_is_said_back(rule):
    assert parsed(rule) == rule


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"ports": [443, 80, 80]}, {"ports": [80, 443]}),
        ({"ports": [[80, 80]]}, {"ports": [80]}),
        ({"hosts": ["Example.COM."]}, {"hosts": ["example.com"]}),
        ({"hosts": ["bücher.example", "BÜCHER.example"]}, {"hosts": ["xn--bcher-kva.example"]}),
        ({"hosts": ["\uff45xample.com"]}, {"hosts": ["example.com"]}),  # a full-width letter
        ({"ips": ["192.0.2.1/32"]}, {"ips": ["192.0.2.1"]}),
        ({"ips": ["2001:DB8:0::1"]}, {"ips": ["2001:db8::1"]}),
        ({"methods": ["get"]}, {"methods": ["GET"]}),
        ({"paths": ["/v1/", "/%61"]}, {"paths": ["/v1", "/a"]}),
        ({"headers": {"Accept": "a"}}, {"headers": {"accept": ["a"]}}),
        ({"body_contains": "x"}, {"body_contains": ["x"]}),
        ({"ports": None, "methods": ["GET"]}, {"methods": ["GET"]}),
    ],
)
def test_one_spelling_for_each(said, meant):
    assert parsed(outbound(said))["match"] == meant


@pytest.mark.parametrize(
    ("rule", "field", "problem"),
    [
        ([], "rules.web", "must be an object, not a list"),
        (None, "rules.web", "must be an object, not null"),
        ({"type": "outbound", "action": "allow"}, "rules.web.priority", "must be there"),
        ({"type": "outbound", "priority": 1}, "rules.web.action", "must be there"),
        ({**outbound(), "type": "sideways"}, "rules.web.type", "outbound or inbound"),
        ({**outbound(), "priority": 1_000_001}, "rules.web.priority", "between 0 and 1000000"),
        ({**outbound(), "priority": True}, "rules.web.priority", "not true or false"),
        ({**outbound(), "priority": 1.5}, "rules.web.priority", "whole number"),
        (outbound(action="permit"), "rules.web.action", "must be allow or deny"),
        (outbound(action={}), "rules.web.action", "rewrite or gate"),
        (outbound(action=["allow"]), "rules.web.action", "must be an object"),
        (outbound(colour="red"), "rules.web.'colour'", "no such member; there are action, auth"),
        (outbound({"port": [80]}), "rules.web.match.'port'", "no such member"),
        (outbound({"hosts": []}), "rules.web.match.hosts", "must not be empty"),
        (outbound({"hosts": "a.example"}), "rules.web.match.hosts", "must be a list, not a text"),
        (outbound({"hosts": ["a.example"] * 257}), "rules.web.match.hosts", "has 257 entries; at most 256"),
        (outbound({"hosts": ["*"]}), "rules.web.match.hosts[0]", "leave hosts out"),
        (outbound({"hosts": ["a.*.example"]}), "rules.web.match.hosts[0]", "whole labels in front"),
        (outbound({"hosts": ["*example.com"]}), "rules.web.match.hosts[0]", "whole labels in front"),
        (outbound({"hosts": ["a.example", "192.0.2.1"]}), "rules.web.match.hosts[1]", "addresses go into ips"),
        (outbound({"hosts": ["0x7f.1"]}), "rules.web.match.hosts[0]", "can be read as an address"),
        (outbound({"hosts": ["3221225985"]}), "rules.web.match.hosts[0]", "can be read as an address"),
        (outbound({"hosts": ["a.0xC0000201"]}), "rules.web.match.hosts[0]", "can be read as an address"),
        (outbound({"hosts": ["[::1]"]}), "rules.web.match.hosts[0]", "addresses go into ips"),
        (outbound({"hosts": ["https://a.example"]}), "rules.web.match.hosts[0]", "no scheme, port, path or empty label"),
        (outbound({"hosts": ["a.example:443"]}), "rules.web.match.hosts[0]", "no scheme, port, path or empty label"),
        (outbound({"hosts": ["a.example\0.b.example"]}), "rules.web.match.hosts[0]", "must not contain NUL"),
        (outbound({"hosts": ["a b.example"]}), "rules.web.match.hosts[0]", "not part of a host's name"),
        (outbound({"hosts": ["a..example"]}), "rules.web.match.hosts[0]", "no scheme, port, path or empty label"),
        (outbound({"hosts": ["a.example.."]}), "rules.web.match.hosts[0]", "empty label"),
        (outbound({"hosts": ["."]}), "rules.web.match.hosts[0]", "empty label"),
        (outbound({"hosts": ["a\u3002example"]}), "rules.web.match.hosts[0]", "not part of a host's name"),
        (outbound({"hosts": ["straße.example"]}), "rules.web.match.hosts[0]", "two encodings"),
        (outbound({"hosts": ["a%2eexample"]}), "rules.web.match.hosts[0]", "not part of a host's name"),
        (outbound({"hosts": ["localhost"]}), "rules.web.match.hosts[0]", "the VM itself"),
        (outbound({"hosts": ["a" * 64 + ".example"]}), "rules.web.match.hosts[0]", "not part of a host's name"),
        (outbound({"hosts": [".".join(["abcdefg"] * 40)]}), "rules.web.match.hosts[0]", "more than 253"),
        (outbound({"hosts": ["a.example"], "ips": ["192.0.2.1"]}), "rules.web.match.ips", "not together with hosts"),
        (outbound({"ips": ["192.0.2.1/24"]}), "rules.web.match.ips[0]", "'192.0.2.1' or 192.0.2.0/24?"),
        (outbound({"ips": ["192.0.2.0/255.255.255.0"]}), "rules.web.match.ips[0]", "must be an address or a network"),
        (outbound({"ips": ["0300.0.2.1"]}), "rules.web.match.ips[0]", "must be an address or a network"),
        (outbound({"ips": ["0xc0000201"]}), "rules.web.match.ips[0]", "must be an address or a network"),
        (outbound({"ips": ["192.2"]}), "rules.web.match.ips[0]", "must be an address or a network"),
        (outbound({"ips": ["::ffff:192.0.2.1"]}), "rules.web.match.ips[0]", "give the IPv4 address"),
        (outbound({"ips": ["fe80::1%eth0"]}), "rules.web.match.ips[0]", "must be an address or a network"),
        (outbound({"ips": ["a.example"]}), "rules.web.match.ips[0]", "names of hosts go into hosts"),
        (outbound({"ips": [1]}), "rules.web.match.ips[0]", "must be a text, not a number"),
        (outbound({"ports": [0]}), "rules.web.match.ports[0]", "between 1 and 65535"),
        (outbound({"ports": ["80"]}), "rules.web.match.ports[0]", "whole number, not a text"),
        (outbound({"ports": [[90, 80]]}), "rules.web.match.ports[0]", "[80, 90]"),
        (outbound({"ports": [[1, 2, 3]]}), "rules.web.match.ports[0]", "[first, last]"),
        (outbound({"methods": ["GE T"]}), "rules.web.match.methods[0]", "letters, digits"),
        (outbound({"methods": ["connect"]}), "rules.web.match.methods[0]", "never let through"),
        (outbound({"paths": ["v1"]}), "rules.web.match.paths[0]", "begin with a slash"),
        (outbound({"paths": ["/a/../b"]}), "rules.web.match.paths[0]", "one reading"),
        (outbound({"paths": ["/a?b"]}), "rules.web.match.paths[0]", "query_params"),
        (outbound({"paths": ["/a%2fb"]}), "rules.web.match.paths[0]", "one reading"),
        (outbound({"paths": ["/a\r\nb"]}), "rules.web.match.paths[0]", "control characters"),
        (outbound({"headers": {"a b": ["c"]}}), "rules.web.match.headers", "letters, digits"),
        (outbound({"headers": {"a": ["b\n"]}}), "rules.web.match.headers.a[0]", "control characters"),
        (outbound({"headers": {"a": []}}), "rules.web.match.headers.a", "must not be empty"),
        (outbound({"headers": {"a": ["1"], "A": ["2"]}}), "rules.web.match.headers.'A'", "twice"),
        (outbound({"headers": {}}), "rules.web.match.headers", "object of names"),
        (outbound({"body_contains": [""]}), "rules.web.match.body_contains[0]", "in everything"),
        (outbound({"vm_state": "idle"}), "rules.web.match.vm_state", "for inbound rules only"),
        (outbound(auth="open"), "rules.web.auth", "for inbound rules only"),
        (outbound(expires_at="2030-01-01T00:00:00Z"), "rules.web.expires_at", "for inbound rules only"),
        (inbound({"ports": [80], "hosts": ["a.example"]}), "rules.web.match.hosts", "for outbound rules only"),
        (inbound({"ports": [[80, 90]]}), "rules.web.match.ports[0]", "whole number, not a list"),
        (inbound(), "rules.web.match.ports", "must name the ports"),
        (inbound({"via": ["ssh"], "ports": [22]}), "rules.web.match.ports", "nothing about ssh"),
        (inbound({"ports": [22], "ssh_keys": ["a"]}), "rules.web.match.ssh_keys", 'goes with "via": ["ssh"] only'),
        (inbound({"via": ["door"]}), "rules.web.match.via[0]", "port or ssh or pty"),
        (inbound({"via": ["pty"]}, {"rewrite": {"path": "/"}}), "rules.web.action", "allow or deny"),
        (inbound({"ports": [80], "connection_state": ["open"]}, {"rewrite": {"path": "/"}}), "rules.web.action", "allow"),
        (inbound({"ports": [80]}, "deny", auth="open"), "rules.web.auth", "open ports"),
        (inbound({"ports": [80]}, auth="maybe"), "rules.web.auth", "open or arker"),
        (inbound({"ports": [80]}, expires_at="2030-01-01"), "rules.web.expires_at", "with its zone"),
        (inbound({"ports": [80]}, expires_at="2030-01-01T00:00:00"), "rules.web.expires_at", "with its zone"),
        (
            inbound({"ports": [80]}, {"rewrite": {"headers": {"a": "${secret:A}"}}}),
            "rules.web.action.rewrite.headers.a", "would come into the VM",
        ),
        (
            outbound(action={"rewrite": {"headers": {"a": "${secret:A}"}}}),
            "rules.web.match.hosts", "hosts that a secret may go to",
        ),
        (
            outbound({"hosts": ["a.example"]}, {"rewrite": {"headers": {"a": "${secret:a b}"}}}),
            "rules.web.action.rewrite.headers.a", "no name of a secret",
        ),
        (
            outbound({"hosts": ["a.example"]}, {"rewrite": {"headers": {"a": "${secrets:A}"}}}),
            "rules.web.action.rewrite.headers.a", "written ${secret:NAME}",
        ),
        (
            outbound(action={"rewrite": {"headers": {"a": "${header:b}"}}}),
            "rules.web.action.rewrite.headers.a", "inbound rules only",
        ),
        (outbound(action={"rewrite": {}}), "rules.web.action.rewrite", "must change something"),
        (outbound(action={"rewrite": {"host": "a.example:80"}}), "rules.web.action.rewrite.host", "host's name"),
        (outbound(action={"rewrite": {"host": "${secret:A}"}}), "rules.web.action.rewrite.host", "host's name"),
        (outbound(action={"rewrite": {"path": "x"}}), "rules.web.action.rewrite.path", "begin with a slash"),
        (outbound(action={"rewrite": {"path": "/ HTTP/1.1"}}), "rules.web.action.rewrite.path", "without spaces"),
        (
            outbound(action={"rewrite": {"headers": {"Content-Length": "0"}}}),
            "rules.web.action.rewrite.headers", "how a message is sent",
        ),
        (
            outbound(action={"rewrite": {"remove_headers": ["host"]}}),
            "rules.web.action.rewrite.remove_headers[0]", "rewrite.host",
        ),
        (outbound(action={"rewrite": {"body": "x" * 65537}}), "rules.web.action.rewrite.body", "at most 65536"),
        (outbound(action={"gate": {"host": "https://a.example"}}), "rules.web.action.gate.allow_on_status", "be there"),
        (
            outbound(action={"gate": {"host": "a.example", "allow_on_status": [200]}}),
            "rules.web.action.gate.host", "begin with https://",
        ),
        (
            outbound(action={"gate": {"host": "https://u@a.example", "allow_on_status": [200]}}),
            "rules.web.action.gate.host", "not part of a host's name",
        ),
        (
            outbound(action={"gate": {"host": "https://169.254.169.254", "allow_on_status": [200]}}),
            "rules.web.action.gate.host", "can be read as an address",
        ),
        (
            outbound(action={"gate": {"host": "https://a.example/x", "allow_on_status": [200]}}),
            "rules.web.action.gate.host", "not part of a host's name",
        ),
        (
            outbound(action={"gate": {"host": "https://a.example:0", "allow_on_status": [200]}}),
            "rules.web.action.gate.host", "is no port",
        ),
        (
            outbound(action={"gate": {"host": "https://a.example", "allow_on_status": [99]}}),
            "rules.web.action.gate.allow_on_status[0]", "between 100 and 599",
        ),
        (
            outbound(
                action={"gate": {"host": "http://a.example", "allow_on_status": [200], "headers": {"a": "${secret:A}"}}}
            ),
            "rules.web.action.gate.host", "by https",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(rule, field, problem):
    with pytest.raises(Malformed) as refused:
        policies.parse_update({"rules": {"web": rule, "x": None} if rule is not None else {}}, NOW)
        policies.parse({"web": rule}, "policies.rules")
    assert refused.value.field == f"policies.{field}"
    assert problem in refused.value.problem


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (outbound(action="suspend"), "action"),
        (inbound({"via": ["ssh", "pty"]}, "deny"), "match.via"),  # nobody asks rules before a terminal is opened
        (outbound(action={"suspend": True, "rewrite": {"path": "/"}}), "action"),
        (inbound({"ports": [80]}, {"scaling": {"wake": True}}), "action"),
        (inbound({"ports": [80]}, auth={"token": "t"}), "auth"),
    ],
)
def test_what_the_contract_has_and_this_server_has_not(rule, field):
    with pytest.raises(Unavailable) as refused:
        policies.parse({"web": rule})
    assert refused.value.field == f"policies.web.{field}"


def test_a_gate_s_body_has_a_depth():
    body: Any = "x"
    for _ in range(20):
        body = [body]
    rule = outbound(action={"gate": {"host": "https://a.example", "allow_on_status": [200], "body": body}})
    with pytest.raises(Malformed, match="nested more than 16 times"):
        policies.parse({"web": rule})


@pytest.mark.parametrize("name", ["", "A", "-a", "a" * 65, "a/b", "ä", "a\n"])
def test_names_of_rules(name):
    with pytest.raises(Malformed, match="a rule's name is"):
        policies.parse({name: outbound()})
