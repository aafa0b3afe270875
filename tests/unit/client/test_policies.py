"""Policies and secrets in both forms of the SDK."""

from __future__ import annotations

import asyncio

import pytest

from boxwood import AsyncBoxwood, BadRequest, Boxwood, NotFound, Policy
from unit.client.stub import KEY, VM_ID, StubServer, error
from unit.client.stub import VM as RECORD

DENY = {"type": "outbound", "priority": 1, "action": "deny"}
VM = f"/v1/vms/{VM_ID}"
SECRET = {"name": "KEY", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z"}


def told(**members: object) -> dict[str, object]:
    return {"vm_id": VM_ID, "policies": {"rules": {}, "secrets": {}, "mitm_domains": [], "warnings": [], **members}}


def test_policies(server: StubServer) -> None:
    with Boxwood(server.url, KEY) as box:
        policies = box.vm(VM_ID).policies
        server.script(f"GET {VM}", (200, told(rules={"old": DENY}, warnings=["w"])))
        assert policies.get() == Policy(rules={"old": DENY}, warnings=["w"])
        server.script(f"PATCH {VM}", (200, told(rules={"a": DENY}, secrets={"K": "***"})))
        assert policies.update({"a": DENY, "b": None}, secrets={"K": "v"}).secrets == {"K": "***"}
        assert server.last.body == {"policies": {"rules": {"a": DENY, "b": None}, "secrets": {"K": "v"}}}
        assert policies.set({"a": DENY}).rules == {"a": DENY}
        assert server.last.body == {"policies": {"rules": {"old": None, "a": DENY}}}
        policies.set([{"type": "outbound", "action": "deny"}])
        assert server.last.body == {"policies": {"policies": [{"type": "outbound", "action": "deny"}]}}
        server.script(f"PATCH {VM}", (400, error("bad_request", "policies.rules.a.action: …")))
        with pytest.raises(BadRequest):
            policies.update({"a": {}})


def test_a_fork_with_a_policy(server: StubServer) -> None:
    with Boxwood(server.url, KEY) as box:
        server.script("POST /v1/fork", (200, RECORD))
        made = box.fork("ubuntu", policies={"rules": {"a": DENY}})
        assert server.last.body == {"source_vm_name": "ubuntu", "policies": {"rules": {"a": DENY}}}
        box.vm(made.id).fork(policies={})
        assert server.last.body["policies"] == {}


def test_secrets(server: StubServer) -> None:
    server.script("PUT /v1/secrets/KEY", (200, SECRET))
    server.script("GET /v1/secrets", (200, {"secrets": [SECRET]}))
    server.script("DELETE /v1/secrets/KEY", (204, b""), (404, error("not_found", "none")))

    async def together() -> None:
        async with AsyncBoxwood(server.url, KEY) as box:
            made = await box.secrets.set("KEY", "value")
            assert server.last.body == {"value": "value"}
            assert await box.secrets.list() == [made] and made.name == "KEY"
            await box.secrets.delete("KEY")
            with pytest.raises(NotFound):
                await box.secrets.delete("KEY")

    asyncio.run(together())
