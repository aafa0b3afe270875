"""Ports of VMs: a URL that a browser can open. Not in the contract: this route is ours."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core import words
from boxwood.core.errors import BadRequest, Unsupported
from boxwood.core.hostnames import label
from boxwood.core.ports import TICKET_SECONDS
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.inbound.door import TICKET
from boxwood.server.inbound.forward import Forwarding
from boxwood.server.schema import ports as wire


def port_of(text: str) -> int:
    """BadRequest."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise words.refuse("port", "a number from 1 to 65535")
    return int(text)


async def mint_ticket(exchange: Exchange) -> Response:
    await exchange.body(wire.PortTicketBody)
    port = port_of(exchange.params["port"])
    domain = exchange.app.hosts.domain
    if not domain:
        raise Unsupported("this server shows no ports of VMs over HTTP (ports_domain is empty)", "public_ingress")
    row, ticket = exchange.core.ports.ticket(exchange.caller, exchange.params["id"], port)
    _, colon, own = exchange.host.rpartition(":")
    at = f":{own}" if colon and own.isdigit() else ""
    url = f"{exchange.scope['scheme']}://{label(row.id, port)}.{domain}{at}/?{TICKET}={ticket}"
    return exchange.answer(wire.PortTicketAnswer(url=url, expires_in=TICKET_SECONDS))


async def forward(exchange: Exchange) -> Response:
    port = port_of(exchange.params["port"])
    if not exchange.upgrades:
        await exchange.core.vms.get(exchange.caller, exchange.params["id"])
        raise BadRequest("this is a WebSocket: ask for it with Upgrade: websocket, or with the SDK's vm.forward()")
    return Forwarding(exchange, await exchange.core.ports.own(exchange.caller, exchange.params["id"], port))


OPERATIONS = (
    Operation(
        "mintPortTicket", "POST", "/v1/vms/{id}/ports/{port}/ticket", mint_ticket,
        "A URL of a port of a VM that lets a browser in without a header, for a minute.",
        answers={200: wire.PortTicketAnswer}, body=wire.PortTicketBody, ours=True,
        errors=("bad_request", "not_found", "invalid_state", "payload_too_large", "unsupported_operation"),
    ),
    Operation(
        "forwardPort", "GET", "/v1/vms/{id}/ports/{port}/forward", forward,
        "A TCP connection to a port of a VM: a WebSocket.",
        answers={101: None}, websocket=True, ours=True,
        errors=("bad_request", "not_found", "invalid_state", "resource_busy", "unavailable"),
    ),
)  # fmt: skip
