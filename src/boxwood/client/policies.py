"""Policies and secrets: what the SDK hands out of them, and the requests for them; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from boxwood.client.calls import Call, segment, vm_path

Rule = Mapping[str, Any]  # as docs/policies.md has them


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM may reach, and who may reach it, as the server last told it. `rules` by their names; `secrets`: the
    names of the VM's own, none of their values; `mitm_domains`: hosts whose TLS is ended on the way; `warnings`: what
    may not be as its author thinks."""

    rules: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    mitm_domains: list[str] = []
    warnings: list[str] = []


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """A value that rules can name, and that nobody is told."""

    name: str
    created_at: datetime
    updated_at: datetime


class Holder(msgspec.Struct, frozen=True):
    """A VM, as far as it is looked at here."""

    policies: Policy = Policy()


class SecretList(msgspec.Struct, frozen=True):
    secrets: list[Secret] = []


def update_policies(vm: str, rules: Mapping[str, Rule | None] | None, secrets: Mapping[str, str | None] | None) -> Call:
    """The same twice is the same once."""
    changes: dict[str, Any] = {} if rules is None else {"rules": dict(rules)}
    changes |= {} if secrets is None else {"secrets": dict(secrets)}
    return Call("PATCH", vm_path(vm), {"policies": changes}, replay_safe=True)


def replace_policies(vm: str, entries: Iterable[Rule]) -> Call:
    return Call("PATCH", vm_path(vm), {"policies": {"policies": list(entries)}}, replay_safe=True)


def without_others(there: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Rule | None]:
    """What makes these rules of those that are there."""
    return {**dict.fromkeys(there.keys() - rules.keys()), **rules}


def secret_path(name: str) -> str:
    return f"/v1/secrets/{segment(name)}"


def set_secret(name: str, value: str) -> Call:
    return Call("PUT", secret_path(name), {"value": value}, replay_safe=True)
