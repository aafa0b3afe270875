"""Policies of a VM, and the secrets that rules name."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence

from boxwood.client import calls, policies
from boxwood.client._async.transport import AsyncTransport
from boxwood.client.models import Anything
from boxwood.client.policies import Holder, Policy, Rule, Secret, SecretList


class AsyncPolicies:
    """What a VM may reach, and who may reach it. A change is in force when the call returns, also on what is open."""

    def __init__(self, transport: AsyncTransport, vm: str) -> None:
        self._transport = transport
        self._vm = vm

    async def get(self) -> Policy:
        """:raises Forbidden: the VM is not yours."""
        return (await self._transport.call(calls.get(calls.vm_path(self._vm)), Holder)).policies

    async def update(
        self, rules: Mapping[str, Rule | None] | None = None, *, secrets: Mapping[str, str | None] | None = None
    ) -> Policy:
        """Writes what is named, takes away what is None, and leaves the rest.

        :param rules: by names of your choosing.
        :param secrets: values of this VM alone, which its rules name as ${secret:NAME}.
        :raises BadRequest: says which member is wrong, and how to right it.
        :raises Unsupported: this server cannot enforce it.
        """
        call = policies.update_policies(self._vm, rules, secrets)
        return (await self._transport.call(call, Holder)).policies

    async def set(self, rules: Mapping[str, Rule] | Sequence[Rule]) -> Policy:
        """Replaces all rules.

        :param rules: by their names, each with its priority; or a list without, the first that applies decides.
        """
        if isinstance(rules, Mapping):
            return await self.update(policies.without_others((await self.get()).rules, rules))
        return (await self._transport.call(policies.replace_policies(self._vm, rules), Holder)).policies


class AsyncSecrets:
    """Values that the rules of all your organisation's VMs can name, and that nobody is told again."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def set(self, name: str, value: str) -> Secret:
        """Makes one, or gives it another value.

        :param name: letters, digits and '_'.
        :raises Forbidden: your key has not the role admin.
        """
        return await self._transport.call(policies.set_secret(name, value), Secret)

    async def list(self) -> builtins.list[Secret]:
        """All of them by name, without their values."""
        return (await self._transport.call(calls.get("/v1/secrets"), SecretList)).secrets

    async def delete(self, name: str) -> None:
        """:raises NotFound: there is none."""
        await self._transport.call(calls.delete(policies.secret_path(name)), Anything)
