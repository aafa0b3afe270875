"""`boxwood policy` and `boxwood secret`."""

from __future__ import annotations

import json
from pathlib import Path

from unit.client.stub import StubServer

DENY = {"type": "outbound", "priority": 1, "action": "deny"}
SECRET = {"name": "KEY", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"}
TOLD = {
    "vm_id": "w",
    "policies": {"rules": {"a": DENY}, "secrets": {"K": "***"}, "warnings": ["the secret X is not set"]},
}


def test_policies(server: StubServer, boxwood, tmp_path: Path) -> None:
    server.script("GET /v1/vms/work", (200, TOLD))
    server.script("PATCH /v1/vms/work", (200, TOLD))
    done = boxwood("policy", "get", "work")
    assert json.loads(done.stdout) == {"rules": {"a": DENY}, "secrets": {"K": "***"}}
    assert b"the secret X is not set" in done.stderr
    for command in (["get", "work"], ["set", "work", "-"], ["patch", "work", "-"]):
        whole = json.loads(boxwood("policy", *command, "--json", stdin=b'{"rules": {}}').stdout)
        assert whole == TOLD["policies"] | {"mitm_domains": []}
    (tmp_path / "rules.json").write_bytes(done.stdout)  # what was got can be set
    assert boxwood("policy", "set", "work", "rules.json").returncode == 0
    assert server.last.body == {"policies": {"rules": {"a": DENY}}}
    assert boxwood("policy", "set", "work", "-", stdin=json.dumps({"b": DENY}).encode()).returncode == 0
    assert server.last.body == {"policies": {"rules": {"a": None, "b": DENY}}}
    assert boxwood("policy", "set", "work", "-", stdin=b'[{"type": "outbound"}]').returncode == 0
    assert server.last.body == {"policies": {"policies": [{"type": "outbound"}]}}
    update = {"rules": {"a": None}, "secrets": {"K": "v"}}
    assert boxwood("policy", "patch", "work", "-", stdin=json.dumps(update).encode()).returncode == 0
    assert server.last.body == {"policies": update}


def test_what_is_no_policy_is_told(server: StubServer, boxwood) -> None:
    for command, text in (("set", b"{"), ("set", b"5"), ("patch", b"[]"), ("patch", b'{"a": {}}')):
        done = boxwood("policy", command, "work", "-", stdin=text)
        assert done.returncode == 1 and done.stderr.startswith(b"boxwood: -: ") and not server.requests
    assert b"nothing.json" in boxwood("policy", "set", "work", "nothing.json").stderr


def test_secrets(server: StubServer, boxwood) -> None:
    server.script("PUT /v1/secrets/KEY", (200, SECRET))
    server.script("GET /v1/secrets", (200, {"secrets": [SECRET]}))
    server.script("DELETE /v1/secrets/KEY", (204, b""))
    done = boxwood("secret", "set", "KEY", stdin=b"value\n")
    assert server.last.body == {"value": "value"} and done.stdout == b"KEY\n" and b"value" not in done.stderr
    assert boxwood("secret", "ls").stdout.split(b"\t")[0] == b"KEY"
    assert json.loads(boxwood("secret", "ls", "--json").stdout)[0]["name"] == "KEY"
    assert boxwood("secret", "rm", "KEY").returncode == 0 and server.last.method == "DELETE"
    assert json.loads(boxwood("secret", "rm", "KEY", "--json").stdout) == {"deleted": "KEY"}
