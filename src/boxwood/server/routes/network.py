"""What a VM moves over the network, and what it was refused. Not in the contract: this route is ours."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import network as wire


async def get_vm_network(exchange: Exchange) -> Response:
    return exchange.answer(wire.answer(await exchange.core.networks.get(exchange.caller, exchange.params["id"])))


OPERATIONS = (
    Operation(
        "getVmNetwork", "GET", "/v1/vms/{id}/network", get_vm_network,
        "What a VM has of the network, what it moved over it, and what it was refused.",
        answers={200: wire.NetworkAnswer}, errors=("bad_request", "not_found"), ours=True,
    ),
)  # fmt: skip
