"""The server as this protocol sees it, and what it has and this server has not."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.errors import Unavailable, Unsupported
from boxwood.dialects.arl_gateway.envelope import told
from boxwood.dialects.arl_gateway.gateway import gateway
from boxwood.server.exchange import Exchange


async def health(exchange: Exchange) -> Response:
    """Unavailable as long as nothing can be run."""
    if not exchange.core.goldens.ready or exchange.app.stopping.is_set():
        raise Unavailable(exchange.app.problem or "the image of this host is still being made")
    return Response("ok", media_type="text/plain")


async def iroh_address(exchange: Exchange) -> Response:
    """There is none: clients come through the gateway."""
    there = await gateway(exchange)
    await there.find(exchange)
    return told({"addr": ""})


async def not_supported(exchange: Exchange) -> Response:
    raise Unsupported(f"{exchange.operation.summary} not supported by this server; docs/arl.md says what is")
