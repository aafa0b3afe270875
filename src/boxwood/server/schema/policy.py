"""Policies and secrets on the wire. What rules may say is the grammar's (docs/policies.md), not this module's."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta

from boxwood.core.policies import PolicyView
from boxwood.core.secrets import Secret
from boxwood.server.schema.common import Answer, Request

_RULES = {"type": "object", "additionalProperties": {"anyOf": [{"type": "object"}, {"type": "null"}]}}
_VALUES = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
_UPDATE = {
    "type": "object",
    "properties": {
        "rules": _RULES,
        "secrets": _VALUES,
        "policies": {"type": "array", "items": {"type": "object"}, "deprecated": True},
    },
}
PolicyUpdate = Annotated[
    Any,
    Meta(
        description="Rules and secrets by their names: written, or taken away with null; the rest stays as it is.",
        extra_json_schema={"anyOf": [_UPDATE, {"type": "null"}]},
    ),
]


class VmPolicies(Answer, frozen=True, kw_only=True):
    rules: dict[str, Any]
    secrets: Annotated[dict[str, str], Meta(description="Names of the VM's own; the values are never told.")]
    mitm_domains: Annotated[list[str], Meta(description="Hosts whose TLS is ended on the way; *: all.")]
    warnings: list[str]


class PolicyDoc(Answer, frozen=True, kw_only=True):
    policies: Annotated[list[Any], Meta(description="The first that applies decides.")]
    secrets: dict[str, str]
    hostname: None
    mitm_domains: list[str]
    warnings: list[str]


class PolicyDocBody(Request, frozen=True, kw_only=True):
    """It replaces all rules. Secrets that it does not name, or shows as ***, stay."""

    policies: Any = None
    secrets: Any = None
    hostname: Any = None
    mitm_domains: Any = None
    warnings: Any = None


class SetSecretBody(Request, frozen=True, kw_only=True):
    value: str


class SecretAnswer(Answer, frozen=True, kw_only=True):
    name: str
    created_at: datetime
    updated_at: datetime


class ListSecretsAnswer(Answer, frozen=True, kw_only=True):
    secrets: list[SecretAnswer]


def policies(of: PolicyView) -> VmPolicies:
    return VmPolicies(rules=of.rules, secrets=of.secrets, mitm_domains=of.mitm_domains, warnings=of.warnings)


def document(of: PolicyView) -> PolicyDoc:
    return PolicyDoc(
        policies=of.entries, secrets=of.secrets, hostname=None, mitm_domains=of.mitm_domains, warnings=of.warnings
    )


def secret(of: Secret) -> SecretAnswer:
    return SecretAnswer(name=of.name, created_at=of.created_at, updated_at=of.updated_at)
