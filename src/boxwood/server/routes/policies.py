"""Policies of VMs, and the secrets that their rules name. Secrets of an organisation have no route in the contract: the
ones here are ours. Nothing here answers with a secret's value."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.model import VM
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import policy as wire
from boxwood.server.schema.common import UNSET, UnsetType

BODY_LIMIT = 2 << 20
_VM = "/v1/vms/{id}/policies"


def of(exchange: Exchange, vm: VM) -> wire.VmPolicies | UnsetType:
    """What an answer that holds a VM says of its policy; nothing to those whose VM it is not."""
    found = exchange.core.policies.shown(exchange.caller, vm.vm_id)
    return UNSET if found is None else wire.policies(found)


async def get_vm_policies(exchange: Exchange) -> Response:
    return exchange.answer(wire.document(exchange.core.policies.get(exchange.caller, exchange.params["id"])))


async def put_vm_policies(exchange: Exchange) -> Response:
    body = await exchange.body(wire.PolicyDocBody)
    said = {name: getattr(body, name) for name in body.__struct_fields__}
    policies = exchange.core.policies
    made = await policies.update(exchange.caller, exchange.params["id"], policies.parse_ordered(said))
    return exchange.answer(wire.document(made))


async def list_secrets(exchange: Exchange) -> Response:
    found = exchange.core.secrets.list(exchange.caller)
    return exchange.answer(wire.ListSecretsAnswer(secrets=[wire.secret(one) for one in found]))


async def set_secret(exchange: Exchange) -> Response:
    body = await exchange.body(wire.SetSecretBody)
    made = await exchange.core.policies.set_secret(exchange.caller, exchange.params["name"], body.value)
    return exchange.answer(wire.secret(made))


async def delete_secret(exchange: Exchange) -> Response:
    await exchange.core.policies.remove_secret(exchange.caller, exchange.params["name"])
    return Response(status_code=204)


OPERATIONS = (
    Operation(
        "getVmPolicies", "GET", _VM, get_vm_policies, "What a VM may reach, and who may reach it, as a list.",
        answers={200: wire.PolicyDoc}, errors=("bad_request", "not_found"),
    ),
    Operation(
        "putVmPolicies", "PUT", _VM, put_vm_policies, "Replace a VM's rules by a list; in force when it is answered.",
        answers={200: wire.PolicyDoc}, body=wire.PolicyDocBody, body_limit=BODY_LIMIT,
        errors=("bad_request", "not_found", "invalid_state", "payload_too_large", "unsupported_operation"),
    ),
    Operation(
        "listSecrets", "GET", "/v1/secrets", list_secrets, "The organisation's secrets: names and times.",
        answers={200: wire.ListSecretsAnswer}, ours=True,
    ),
    Operation(
        "setSecret", "PUT", "/v1/secrets/{name}", set_secret, "Make a secret, or give it another value.",
        answers={200: wire.SecretAnswer}, body=wire.SetSecretBody,
        errors=("bad_request", "conflict", "payload_too_large"), ours=True,
    ),
    Operation(
        "deleteSecret", "DELETE", "/v1/secrets/{name}", delete_secret, "From now on nothing stands for its name.",
        answers={204: None}, errors=("not_found",), ours=True,
    ),
)  # fmt: skip
